"""DropCluster: dropout of whole clusters of correlated units."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from dropcluster_jax.clustering.state import ClusterState, check_activations
from dropcluster_jax.masking.bernoulli import bernoulli_keep
from dropcluster_jax.masking.common import (
    Rate,
    Rescale,
    apply_mask,
    check_rate,
    check_units,
    rescale_factor,
)

_WORD = 32


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
    """Drop whole clusters, each with probability `rate`, independently in each example.

    Where channels have labels of their own, each (cluster, channel) is drawn by itself; else all channels of an example
    share the draw, unless `per_channel`. The expected dropped share is `rate`, whatever the sizes of the clusters; with
    `min_explained` it is `rate` times the share of the channels that are not left alone.

    Args:
        key: a PRNG key.
        x: activations `(batch, *spatial, channels)`.
        rate: the probability of being dropped, in [0, 1]; may be traced.
        state: the clusters, of the spatial shape of `x`.
        per_channel: whether each channel draws for itself also where all share the labels.
        per_example: whether each example draws for itself; else all share one mask.
        min_explained: structure on demand, in [0, 1]. A channel (with shared labels: the layer) whose clusters explain
            less of the variance than this, by `state.explained_variance`, is left alone: neither dropped nor rescaled. Nothing
            is dropped before the first update then, as the grid explains nothing yet. A Python number; 0: off.
        rescale: `"kept"` multiplies what is left by units / units kept, per example: a constant map keeps its sum
            exactly; `"rate"` by `1 / (1 - rate)`: each unit keeps its expectation exactly; `"batch"` by units / units
            kept over all examples; `"none"` not at all.

    Returns:
        An array like `x`; zeros where all is dropped, never NaN. No gradient flows to `state`.

    Raises:
        TypeError: `x` is not of a floating-point type, or `rate` no number.
        ValueError: `x` has another shape than the clusters, `rate` is no scalar in [0, 1], `min_explained` outside
            [0, 1], or an unknown `rescale`.

    References:
        Chen, Gautier, Aydore, "DropCluster: A structured dropout for convolutional networks", arXiv:2002.02997v1.

    Example:
        >>> from dropcluster_jax import KMeans
        >>> x = jnp.ones((2, 4, 4, 8))
        >>> state = KMeans(num_clusters=4).init(x.shape[1:])
        >>> y = drop_cluster(jax.random.key(2), x, 0.5, state)
        >>> y[0, ..., 0].tolist()
        [[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.0], [2.0, 2.0, 0.0, 0.0], [2.0, 2.0, 0.0, 0.0]]
    """
    kept = _draw_clusters(key, x, rate, state, per_channel, per_example, min_explained)
    groups = kept.shape[-1]
    sizes, units = jnp.broadcast_to(state.sizes, kept.shape[1:]), math.prod(x.shape[1:-1]) * groups
    dropping = jnp.broadcast_to(_dropping(state, min_explained), groups) if min_explained > 0 else None
    if dropping is not None:
        sizes, units = jnp.where(dropping, sizes, 0), units // groups * jnp.sum(dropping)
    scale = rescale_factor(jnp.sum(jnp.where(kept, sizes, 0), axis=(1, 2)), units, rate, rescale)
    scale = jnp.expand_dims(scale, tuple(range(1, x.ndim))) if scale.ndim else scale
    if dropping is not None:
        scale = jnp.where(dropping, scale, 1.0)

    # For the backward pass the packed words are kept, not the mask.
    def drop_units(x: Array, words: Array, scale: Array) -> Array:
        return apply_mask(x, _unit_mask(words, state.labels), scale)

    return jax.checkpoint(drop_units, prevent_cse=False)(x, _pack(kept), scale)


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
    """The mask of `drop_cluster`; see there.

    Args:
        key: a PRNG key.
        x: activations `(batch, *spatial, channels)`; only their shape and type matter.
        rate: the probability of being dropped, in [0, 1]; may be traced.
        state: the clusters, of the spatial shape of `x`.
        per_channel: whether each channel draws for itself also where all share the labels.
        per_example: whether each example draws for itself; else all share one mask.
        min_explained: channels (with shared labels: the layer) whose clusters explain less are kept whole, in [0, 1];
            0: off.

    Returns:
        bool, True = kept, `(batch or 1, *spatial, channels or 1)`; 1 where all channels share labels and draws.

    Raises:
        TypeError: `x` is not of a floating-point type, or `rate` no number.
        ValueError: `x` has another shape than the clusters, `rate` is no scalar in [0, 1], or `min_explained` outside
            [0, 1].

    Example:
        >>> from dropcluster_jax import Grid
        >>> x = jnp.ones((1, 4, 4, 8))
        >>> state = Grid(num_clusters=4).init(x.shape[1:])
        >>> mask = drop_cluster_mask(jax.random.key(2), x, 0.5, state)
        >>> mask.shape, mask[0, ..., 0].astype(int).tolist()
        ((1, 4, 4, 1), [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]])
        >>> bool(drop_cluster_mask(jax.random.key(2), x, 0.5, state, min_explained=0.1).all())  # tiles explain nothing
        True
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
    """Which clusters are kept."""
    check_units(x)
    check_rate(rate)
    check_activations(x, state)
    check_min_explained(min_explained)
    clusters, groups = state.sizes.shape
    groups = x.shape[-1] if per_channel else groups
    kept = bernoulli_keep(key, rate, (len(x) if per_example else 1, clusters, groups))
    return kept | ~_dropping(state, min_explained) if min_explained > 0 else kept


def check_min_explained(min_explained: float) -> None:
    """Refuse what is no share of variance.

    Raises:
        ValueError: `min_explained` is outside [0, 1].
    """
    if not 0 <= min_explained <= 1:
        raise ValueError(f"min_explained, a share of the variance, must be in [0, 1], got {min_explained}")


def _dropping(state: ClusterState, min_explained: float) -> Bool[Array, " groups"]:
    """The channels that are not left alone."""
    return state.explained_variance >= min_explained


def _unit_mask(
    words: UInt32[Array, "examples words groups"], labels: Int[Array, "*spatial maps"]
) -> Bool[Array, "examples *spatial groups"]:
    """Spread the clusters' draws over their units by shifts of packed words: a gather costs several times more."""
    groups = words.shape[-1]
    words = jnp.expand_dims(words, tuple(range(2, labels.ndim + 1)))  # (batch, words, 1, ..., groups)
    words = jnp.broadcast_to(words, (*words.shape[:2], *labels.shape[:-1], groups))
    word = jax.lax.select_n(
        jnp.broadcast_to(labels // _WORD, words[:, 0].shape), *(words[:, i] for i in range(words.shape[1]))
    )
    return (word >> (labels % _WORD).astype(jnp.uint32)) & 1 == 1


def _pack(kept: Bool[Array, "examples clusters groups"]) -> UInt32[Array, "examples words groups"]:
    """Cluster k becomes bit `k % 32` of word `k // 32`."""
    examples, clusters, groups = kept.shape
    width = min(clusters, _WORD)
    words = -(-clusters // width)
    kept = jnp.pad(kept, ((0, 0), (0, words * width - clusters), (0, 0)))
    bits = kept.reshape(examples, words, width, groups).astype(jnp.uint32)
    return jnp.sum(bits << jnp.arange(width, dtype=jnp.uint32)[:, None], axis=2, dtype=jnp.uint32)
