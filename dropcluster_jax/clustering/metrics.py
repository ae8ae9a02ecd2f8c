"""Measures of a clustering, as plain functions of labels and activations."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dropcluster_jax.clustering import correlation
from dropcluster_jax.clustering.grid import edges
from dropcluster_jax.clustering.state import check_shapes


def explained_variance(
    labels: Int[Array | np.ndarray, "*spatial groups"],
    x: Float[Array | np.ndarray, "batch *spatial channels"],
    num_clusters: int,
    axis_name: str | None = None,
) -> Float[Array, " groups"]:
    """The share of the units' variance that lies between clusters: `1 - within / total`, over varying units.

    In the correlation geometry: each unit's response over the batch, centered and scaled to length 1.

    Args:
        labels: int32 `(*spatial, groups)`; `groups` is 1 (shared by all channels) or the number of channels.
        x: activations `(batch, *spatial, channels)`.
        num_clusters: the number of clusters; labels lie in `[0, num_clusters)`.
        axis_name: a mapped axis over which the batch is split, if any.

    Returns:
        float32 `(groups,)` in [0, 1]; 0 where no unit varies, NaN if any activation is not finite.

    Raises:
        TypeError, ValueError: `x` is not floating-point, or of another shape than the labels.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> signal = jax.random.normal(jax.random.key(0), (50, 2))
        >>> x = signal[:, jnp.array([0, 0, 1, 1]), None]  # positions 0, 1 and positions 2, 3 respond alike
        >>> [round(float(explained_variance(jnp.array(l)[:, None], x, 2)[0]), 2) for l in ([0, 0, 1, 1], [0, 0, 0, 0])]
        [1.0, 0.0]
    """
    return _measure(correlation.explained, jnp.asarray(labels), jnp.asarray(x), num_clusters, axis_name)


def mean_within_correlation(
    labels: Int[Array | np.ndarray, "*spatial groups"],
    x: Float[Array | np.ndarray, "batch *spatial channels"],
    num_clusters: int,
    axis_name: str | None = None,
) -> Float[Array, " groups"]:
    """The mean correlation of two units of one cluster, over all pairs of different varying units of one channel.

    With `s_k` the sum of the vectors of cluster k and `n_k` their number: `sum (|s_k|^2 - n_k) / sum n_k (n_k - 1)`,
    over clusters and, where they share labels, channels.

    Args:
        labels: int32 `(*spatial, groups)`; `groups` is 1 (shared by all channels) or the number of channels.
        x: activations `(batch, *spatial, channels)`.
        num_clusters: the number of clusters; labels lie in `[0, num_clusters)`.
        axis_name: a mapped axis over which the batch is split, if any.

    Returns:
        float32 `(groups,)` in [-1, 1]; 0 where no cluster has two varying units, NaN if any activation is not finite.

    Raises:
        TypeError, ValueError: `x` is not floating-point, or of another shape than the labels.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> signal = jax.random.normal(jax.random.key(0), (50, 2))
        >>> x = signal[:, jnp.array([0, 0, 1, 1]), None]  # positions 0, 1 and positions 2, 3 respond alike
        >>> [round(float(mean_within_correlation(jnp.array(l)[:, None], x, 2)[0]), 2) for l in ([0, 0, 1, 1], [0] * 4)]
        [1.0, 0.24]
    """
    return _measure(correlation.within_correlation, jnp.asarray(labels), jnp.asarray(x), num_clusters, axis_name)


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _measure(
    measure: Callable[[correlation.Group, Array, int], Float[Array, ""]],
    labels: Array,
    x: Array,
    num_clusters: int,
    axis_name: str | None,
) -> Float[Array, " groups"]:
    check_shapes(x, labels)

    def one(group: correlation.Group, labels: Array) -> Float[Array, ""]:
        return measure(group, labels, num_clusters)

    result, finite = correlation.map_groups(
        one, x, correlation.by_group(labels), axis_name=axis_name, per_position=num_clusters
    )
    return jnp.where(finite, result, jnp.nan)


def is_connected(
    labels: Int[Array | np.ndarray, "*spatial groups"], num_clusters: int
) -> Bool[Array, "clusters groups"]:
    """Whether each cluster is connected: from each of its positions one can step to any other within it.

    A step goes to a neighbor along one dimension. No position at all is connected too.

    Args:
        labels: int32 `(*spatial, groups)`, in `[0, num_clusters)`.
        num_clusters: the number of clusters.

    Returns:
        bool `(num_clusters, groups)`.

    Example:
        >>> import jax.numpy as jnp
        >>> is_connected(jnp.array([0, 0, 1, 0, 2])[:, None], 4)[:, 0].tolist()
        [False, True, True, True]
    """
    return _is_connected(jnp.asarray(labels), num_clusters)


@functools.partial(jax.jit, static_argnums=1)
def _is_connected(labels: Int[Array, "*spatial groups"], num_clusters: int) -> Bool[Array, "clusters groups"]:
    *spatial, _ = labels.shape
    first, second = edges(tuple(spatial))
    positions = math.prod(spatial)

    def one(labels: Int[Array, " positions"]) -> Bool[Array, " clusters"]:
        inside = labels[first] == labels[second]

        def spread(carry: tuple[Array, Array]) -> tuple[Array, Array]:
            """Each position takes the lowest position that it or a neighbor knows of, and what that one knows."""
            lowest, _ = carry
            across = jnp.where(inside, jnp.minimum(lowest[first], lowest[second]), positions)
            known = lowest.at[first].min(across).at[second].min(across)
            known = known[known]
            return known, jnp.any(known != lowest)

        lowest, _ = jax.lax.while_loop(lambda carry: carry[1], spread, (jnp.arange(positions), jnp.array(True)))
        parts = jnp.bincount(jnp.where(lowest == jnp.arange(positions), labels, num_clusters), length=num_clusters)
        return parts <= 1

    return jax.lax.map(one, correlation.by_group(labels)).T


def adjusted_rand_index(
    labels: Int[Array | np.ndarray, "*spatial groups"],
    other: Int[Array | np.ndarray, "*spatial groups"],
) -> Float[Array, " groups"]:
    """The adjusted Rand index of two clusterings of the same positions, whatever the names of their clusters.

    With `n_ij` the positions in cluster i of the one and j of the other, `a_i` and `b_j` its sums, n all positions,
    `C(m) = m (m - 1) / 2` and `e = sum C(a_i) sum C(b_j) / C(n)`:
    `(sum C(n_ij) - e) / ((sum C(a_i) + sum C(b_j)) / 2 - e)`.

    Args:
        labels: int32 `(*spatial, groups)`.
        other: of the same shape.

    Returns:
        float32 `(groups,)`, at most 1: 1 for equal partitions, about 0 for unrelated ones, below 0 for worse.

    Raises:
        ValueError: the shapes differ.

    References:
        Hubert, Arabie, "Comparing partitions", Journal of Classification 2, 1985.

    Example:
        >>> one, renamed, half = (jnp.array(l)[:, None] for l in ([0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 0, 1]))
        >>> adjusted_rand_index(one, renamed).tolist(), adjusted_rand_index(one, half).tolist()
        ([1.0], [0.0])
    """
    if labels.shape != other.shape:
        raise ValueError(f"other must have the shape of labels, {labels.shape}, got {other.shape}")
    return _agreement(*(correlation.by_group(jnp.asarray(each)) for each in (labels, other)))


@jax.jit
def _agreement(
    labels: Int[Array, "groups positions"], other: Int[Array, "groups positions"]
) -> Float[Array, " groups"]:
    positions = labels.shape[1]

    def pairs(counts: Array | float) -> Array | float:
        return counts * (counts - 1) / 2

    def together(labels: Array, other: Array) -> Float[Array, ""]:
        """Pairs of positions that both put together. After sorting, equal pairs of labels are neighbors."""
        sorted_labels, sorted_other = jax.lax.sort((labels, other), num_keys=2)
        differs = (jnp.diff(sorted_labels) != 0) | (jnp.diff(sorted_other) != 0)
        run = jnp.cumsum(jnp.concatenate([jnp.zeros(1, jnp.int32), differs]))
        return jnp.sum(pairs(jnp.bincount(run, length=positions).astype(jnp.float32)))

    both, first, second = (jax.vmap(together)(*two) for two in ((labels, other), (labels, labels), (other, other)))
    expected = first * second / max(pairs(positions), 1)
    most = (first + second) / 2
    # Both put all positions together, or each by itself: they agree, and chance could do nothing else.
    trivial = most - expected <= 1e-6 * most
    return jnp.where(trivial, 1.0, (both - expected) / jnp.where(trivial, 1.0, most - expected))
