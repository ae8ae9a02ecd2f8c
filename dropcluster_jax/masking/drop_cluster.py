"""DropCluster: dropout of whole clusters of correlated units."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from dropcluster_jax.clustering.state import ClusterState, check_shapes
from dropcluster_jax.masking.bernoulli import bernoulli_keep
from dropcluster_jax.masking.common import Rate, Rescale, apply_computed_mask, check_input, check_rate, rescale_factor
from dropcluster_jax.masking.packing import WORD, bit_at


def drop_cluster(
    key: Array,
    x: Float[Array, "batch *spatial channels"],
    rate: Rate,
    state: ClusterState,
    *,
    per_channel: bool = False,
    per_example: bool = True,
    min_explained: float = 0.0,
    rescale: Rescale = "kept",
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
        min_explained: Threshold for `state.explained_variance`, in [0, 1]. Channels (the whole layer, if clusters are
            shared) below it are neither dropped nor rescaled, so that nothing is dropped before the first update. A
            Python number; 0 turns the threshold off.
        rescale: Factor for kept units. `"kept"` is units / kept units per example, so that a constant input keeps its
            sum. `"rate"` is `1 / (1 - rate)`, so that each unit keeps its expectation. `"batch"` is units / kept units
            over the batch. `"none"` is 1.

    Returns:
        Array of the shape and dtype of `x`. An example whose units are all dropped is 0.

    Raises:
        TypeError: If `x` is not floating-point, or `rate` is not a number.
        ValueError: If `rate` is not a scalar in [0, 1], `min_explained` is outside [0, 1], `rescale` is unknown, or
            the shape of `x` does not match the clusters.

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
    kept = _draw_clusters(key, x, rate, state, per_channel, per_example, min_explained)
    droppable = _droppable_groups(state, min_explained)

    # Count units from cluster sizes, in droppable channels only. The others keep the factor 1.
    units = math.prod(x.shape[1:-1]) * jnp.sum(jnp.broadcast_to(droppable, (1, 1, kept.shape[-1])), dtype=jnp.int32)
    kept_units = jnp.sum(jnp.where(kept & droppable, state.sizes[None], 0), axis=(1, 2), dtype=jnp.int32)
    scale = rescale_factor(kept_units, units, rate, rescale)
    scale = jnp.expand_dims(scale, tuple(range(1, x.ndim))) if scale.ndim else scale
    scale = jnp.where(droppable.reshape(*(1,) * (x.ndim - 1), -1) | jnp.isnan(scale), scale, 1.0)

    return apply_computed_mask(x, lambda words: _unit_mask(words, state.labels), _pack(kept), scale)


def drop_cluster_mask(
    key: Array,
    x: Float[Array, "batch *spatial channels"],
    rate: Rate,
    state: ClusterState,
    *,
    per_channel: bool = False,
    per_example: bool = True,
    min_explained: float = 0.0,
) -> Bool[Array, "examples *spatial groups"]:
    """Returns the mask of `drop_cluster`. See `drop_cluster`.

    Returns:
        Bool array `(batch or 1, *spatial, channels or 1)`, True where a unit is kept. The last dimension is 1 if
        channels share clusters and masks.
    """
    kept = _draw_clusters(key, x, rate, state, per_channel, per_example, min_explained)
    return _unit_mask(_pack(kept), state.labels)


def _draw_clusters(
    key: Array,
    x: Array,
    rate: Rate,
    state: ClusterState,
    per_channel: bool,
    per_example: bool,
    min_explained: float,
) -> Bool[Array, "examples clusters groups"]:
    """Validates the arguments and draws the clusters to keep."""
    check_input(x)
    check_rate(rate)
    check_shapes(x, state.labels)
    if not 0 <= min_explained <= 1:
        raise ValueError(f"min_explained must be in [0, 1], got {min_explained}")
    clusters, groups = state.sizes.shape
    shape = (x.shape[0] if per_example else 1, clusters, x.shape[-1] if per_channel else groups)
    return bernoulli_keep(key, rate, shape) | ~_droppable_groups(state, min_explained)


def _droppable_groups(state: ClusterState, min_explained: float) -> Bool[Array, "1 1 groups"]:
    """Returns whether channels may be dropped, `(1, 1, groups)`, or `(1, 1, 1)` for all."""
    droppable = state.explained_variance >= min_explained if min_explained > 0 else jnp.ones(1, bool)
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
