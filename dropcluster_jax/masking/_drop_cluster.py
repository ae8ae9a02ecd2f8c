"""DropCluster: dropout of whole clusters of correlated units."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from dropcluster_jax.clustering.state import ClusterState, check_shapes
from dropcluster_jax.masking.bernoulli import bernoulli_keep
from dropcluster_jax.masking.common import Rate, Rescale, check_input, check_rate, rescale_factor
from dropcluster_jax.masking.fill import Fill, apply_computed_mask, resolve_rescale
from dropcluster_jax.masking.packing import WORD, bit_at


def drop_cluster(
    key: Array,
    x: Float[Array, "batch *spatial channels"],
    rate: Rate,
    state: ClusterState,
    *,
    per_channel: bool = False,
    per_example: bool = True,
    min_explained_variance: float = 0.0,
    fill: Fill = "zero",
    rescale: Rescale | None = None,
) -> Float[Array, "batch *spatial channels"]:
    """Drops each cluster of each example independently with probability `rate`.

    The expected fraction of dropped units is `rate`, regardless of the sizes of the clusters.

    Args:
        key: PRNG key.
        x: Activations `(batch, *spatial, channels)`.
        rate: Probability of dropping a cluster, in [0, 1]. May be traced.
        state: Clusters for the spatial shape of `x`. No gradient flows to them.
        per_channel: Whether channels that share clusters have separate masks. Channels with separate clusters always
            have separate masks.
        per_example: Whether examples have separate masks.
        min_explained_variance: Threshold for `state.explained_variance`, in [0, 1]. Channels (the whole layer, if
            clusters are shared) below it are neither dropped nor rescaled, so that nothing is dropped before the first
            update. A Python number; 0 turns the threshold off.
        fill: Replacement of dropped units. `"zero"` is that of the paper. `"noise"` is a normal draw with the mean and
            the standard deviation of the unit's channel over the batch and the positions (of this device under a mapped
            axis), through which no gradient flows. `"swap"` is the same unit of the next example of the batch (of this
            device under a mapped axis), through which gradients flow. Noise and swapped units keep the mean and the
            variance of channels, so nothing is rescaled.
        rescale: Factor for kept units, by default `"kept"` for zeros and `"none"`, the only choice, for other fills.
            `"kept"` is units / kept units per example, so that a constant input keeps its sum. `"rate"` is
            `1 / (1 - rate)`, so that each unit keeps its expectation. `"batch"` is units / kept units over the batch.

    Returns:
        Array of the shape and dtype of `x`. With zeros, an example whose units are all dropped is 0.

    Raises:
        TypeError: If `x` is not floating-point, or `rate` is not a number.
        ValueError: If `rate` is not a scalar in [0, 1], `min_explained_variance` is outside [0, 1], `fill` or
            `rescale` is unknown, they contradict each other, the shape of `x` does not match the clusters, or units are
            to be swapped in a batch of one example.

    References:
        Chen, Gautier, Aydore, "DropCluster: A structured dropout for convolutional networks", arXiv:2002.02997v1.

    Example:
        >>> from dropcluster_jax import Grid
        >>> x = jnp.ones((2, 4, 4, 8))
        >>> state = Grid(num_clusters=4).init(x.shape[1:])  # tiles of 2 x 2 positions
        >>> y = drop_cluster(jax.random.key(0), x, 0.5, state)
        >>> tile = y[:, :2, :2]
        >>> y.shape, bool(jnp.all(tile == tile[:, :1, :1, :1]))
        ((2, 4, 4, 8), True)
    """
    rescale = resolve_rescale(rescale, fill, "kept")
    kept = _draw_clusters(key, x, rate, state, per_channel, per_example, min_explained_variance)
    droppable = _droppable_groups(state, min_explained_variance)

    # Count units from cluster sizes, in droppable channels only. The others keep the factor 1.
    units = math.prod(x.shape[1:-1]) * jnp.sum(jnp.broadcast_to(droppable, (1, 1, kept.shape[-1])), dtype=jnp.int32)
    kept_units = jnp.sum(jnp.where(kept & droppable, state.sizes[None], 0), axis=(1, 2), dtype=jnp.int32)
    scale = rescale_factor(kept_units, units, rate, rescale)
    scale = jnp.expand_dims(scale, tuple(range(1, x.ndim))) if scale.ndim else scale
    scale = jnp.where(droppable.reshape(*(1,) * (x.ndim - 1), -1) | jnp.isnan(scale), scale, 1.0)

    return apply_computed_mask(x, lambda words: _unit_mask(words, state.labels), _pack(kept), scale, fill, key)


def drop_cluster_mask(
    key: Array,
    x: Float[Array, "batch *spatial channels"],
    rate: Rate,
    state: ClusterState,
    *,
    per_channel: bool = False,
    per_example: bool = True,
    min_explained_variance: float = 0.0,
) -> Bool[Array, "examples *spatial groups"]:
    """Returns the mask of `drop_cluster`. See `drop_cluster`.

    Returns:
        Bool array `(batch or 1, *spatial, channels or 1)`, True where a unit is kept. The last dimension is 1 if
        channels share clusters and masks.
    """
    kept = _draw_clusters(key, x, rate, state, per_channel, per_example, min_explained_variance)
    return _unit_mask(_pack(kept), state.labels)


def _draw_clusters(
    key: Array,
    x: Array,
    rate: Rate,
    state: ClusterState,
    per_channel: bool,
    per_example: bool,
    min_explained_variance: float,
) -> Bool[Array, "examples clusters groups"]:
    """Validates the arguments and draws the clusters to keep."""
    check_input(x)
    check_rate(rate)
    check_shapes(x, state.labels)
    if not 0 <= min_explained_variance <= 1:
        raise ValueError(f"min_explained_variance must be in [0, 1], got {min_explained_variance}")
    clusters, groups = state.sizes.shape
    shape = (x.shape[0] if per_example else 1, clusters, x.shape[-1] if per_channel else groups)
    return bernoulli_keep(key, rate, shape) | ~_droppable_groups(state, min_explained_variance)


def _droppable_groups(state: ClusterState, min_explained_variance: float) -> Bool[Array, "1 1 groups"]:
    """Returns whether channels may be dropped, `(1, 1, groups)`, or `(1, 1, 1)` for all."""
    droppable = state.explained_variance >= min_explained_variance if min_explained_variance > 0 else jnp.ones(1, bool)
    return droppable[None, None]


def _unit_mask(
    words: list[UInt32[Array, "examples groups"]], labels: Int[Array, "*spatial maps"]
) -> Bool[Array, "examples *spatial groups"]:
    """Returns the bit of each unit's cluster."""
    axes = tuple(range(1, labels.ndim))
    index = labels[None].astype(jnp.uint32)
    if len(words) > 1 and labels.shape[-1] > 1:
        # Adding a zero per example that XLA does not know makes it broadcast the labels and compute word and bit from
        # them. Otherwise, it computes both for each position and broadcasts two arrays, which is slower on TPUs.
        index += jax.lax.optimization_barrier(jnp.zeros((len(words[0]), *(1,) * labels.ndim), jnp.uint32))
    return bit_at([jnp.expand_dims(word, axes) for word in words], index)


def _pack(kept: Bool[Array, "examples clusters groups"]) -> list[UInt32[Array, "examples groups"]]:
    """Packs cluster k into bit `k % 32` of word `k // 32`."""
    words = []
    for start in range(0, kept.shape[1], WORD):
        bits = kept[:, start : start + WORD].astype(jnp.uint32)
        shifts = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, 1)
        words.append(jnp.sum(bits << shifts, axis=1, dtype=jnp.uint32))
    return words
