"""Metrics of clusterings, as functions of labels and activations."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dropcluster_jax.clustering.correlation import flatten_labels
from dropcluster_jax.clustering.explicit_axes import with_automatic_axes
from dropcluster_jax.clustering.grid import edges, measure_explained_variance
from dropcluster_jax.clustering.state import check_shapes


def explained_variance(
    labels: Int[Array | np.ndarray, "*spatial groups"],
    x: Float[Array | np.ndarray, "batch *spatial channels"],
    num_clusters: int,
    axis_name: str | None = None,
) -> Float[Array, " groups"]:
    """Computes the fraction of the units' variance that the clusters explain, `1 - within / total`.

    Each unit's response over the batch is centered and scaled to length 1. Units that do not vary are ignored.

    Args:
        labels: Cluster of each position, int32 `(*spatial, groups)`, in `[0, num_clusters)`. `groups` is 1 (shared by
            all channels) or the number of channels.
        x: Activations `(batch, *spatial, channels)`.
        num_clusters: Number of clusters.
        axis_name: Mapped axis over which the batch is split, if any.

    Returns:
        float32 `(groups,)`, in [0, 1]; 0 if no unit varies, NaN if any activation is not finite.

    Raises:
        TypeError: If `x` is not floating-point.
        ValueError: If the batch is empty, or the shape of `x` does not match the labels.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> signal = jax.random.normal(jax.random.key(0), (50, 2))
        >>> x = signal[:, jnp.array([0, 0, 1, 1]), None]  # 4 positions, the first two equal and the last two equal
        >>> explained = explained_variance(jnp.array([[0], [0], [1], [1]]), x, num_clusters=2)
        >>> explained.shape, bool(jnp.allclose(explained, 1.0))
        ((1,), True)
        >>> bool(jnp.allclose(explained_variance(jnp.zeros((4, 1), int), x, num_clusters=2), 0.0))
        True
    """
    labels, x = jnp.asarray(labels), jnp.asarray(x)
    check_shapes(x, labels)
    return with_automatic_axes(lambda labels, x: _explained_variance(labels, x, num_clusters, axis_name), labels, x)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _explained_variance(
    labels: Int[Array, "*spatial groups"],
    x: Float[Array, "batch *spatial channels"],
    num_clusters: int,
    axis_name: str | None,
) -> Float[Array, " groups"]:
    explained, finite = measure_explained_variance(labels, num_clusters, x, axis_name)
    return jnp.where(finite, explained, jnp.nan)


def is_connected(
    labels: Int[Array | np.ndarray, "*spatial groups"], num_clusters: int
) -> Bool[Array, "clusters groups"]:
    """Checks whether each cluster is connected through neighbors along single dimensions.

    Args:
        labels: Cluster of each position, int32 `(*spatial, groups)`, in `[0, num_clusters)`.
        num_clusters: Number of clusters.

    Returns:
        bool `(num_clusters, groups)`; True for empty clusters.

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

    def check_group(labels: Int[Array, " positions"]) -> Bool[Array, " clusters"]:
        same_cluster = labels[first] == labels[second]

        def spread(carry: tuple[Array, Array]) -> tuple[Array, Array]:
            """Replaces each position's root by the lowest root of its neighbors, then by the root of that root."""
            roots, _ = carry
            lowest = jnp.where(same_cluster, jnp.minimum(roots[first], roots[second]), positions)
            new_roots = roots.at[first].min(lowest).at[second].min(lowest)
            new_roots = new_roots[new_roots]
            return new_roots, jnp.any(new_roots != roots)

        roots, _ = jax.lax.while_loop(lambda carry: carry[1], spread, (jnp.arange(positions), jnp.array(True)))
        is_root = roots == jnp.arange(positions)
        components = jnp.bincount(jnp.where(is_root, labels, num_clusters), length=num_clusters)
        return components <= 1

    return jax.lax.map(check_group, flatten_labels(labels)).T


def adjusted_rand_index(
    labels: Int[Array | np.ndarray, "*spatial groups"],
    other: Int[Array | np.ndarray, "*spatial groups"],
) -> Float[Array, " groups"]:
    """Computes the adjusted Rand index of two clusterings of the same positions.

    With `n_ij` the number of positions in cluster i of one and cluster j of the other clustering, `a_i` and `b_j` its
    row and column sums, n their total, `C(m) = m (m - 1) / 2`, and the expected index
    `e = sum_i C(a_i) sum_j C(b_j) / C(n)`:

        (sum_ij C(n_ij) - e) / ((sum_i C(a_i) + sum_j C(b_j)) / 2 - e)

    Args:
        labels: Cluster of each position, int32 `(*spatial, groups)`.
        other: Clusters to compare with, of the same shape.

    Returns:
        float32 `(groups,)`: 1 for identical partitions, 0 on average for random ones, negative below chance.

    Raises:
        ValueError: If the shapes differ.

    References:
        Hubert, Arabie, "Comparing partitions", Journal of Classification 2, 1985.

    Example:
        >>> labels = jnp.array([0, 0, 1, 1])[:, None]
        >>> adjusted_rand_index(labels, 1 - labels).tolist()
        [1.0]
        >>> adjusted_rand_index(labels, jnp.array([0, 0, 0, 1])[:, None]).tolist()
        [0.0]
    """
    if labels.shape != other.shape:
        raise ValueError(f"other must have the shape of labels, {labels.shape}, got {other.shape}")
    return _adjusted_rand_index(flatten_labels(jnp.asarray(labels)), flatten_labels(jnp.asarray(other)))


@jax.jit
def _adjusted_rand_index(
    labels: Int[Array, "groups positions"], other: Int[Array, "groups positions"]
) -> Float[Array, " groups"]:
    positions = labels.shape[1]

    def num_pairs(counts: Array | float) -> Array | float:
        return counts * (counts - 1) / 2

    @jax.vmap
    def num_pairs_in_both(labels: Array, other: Array) -> Float[Array, ""]:
        """Counts the pairs of positions that share a cluster in both clusterings."""
        # Sorting puts positions with the same two labels next to each other.
        labels, other = jax.lax.sort((labels, other), num_keys=2)
        differs = (jnp.diff(labels) != 0) | (jnp.diff(other) != 0)
        run = jnp.cumsum(jnp.concatenate([jnp.zeros(1, bool), differs]), dtype=jnp.int32)
        return jnp.sum(num_pairs(jnp.bincount(run, length=positions).astype(jnp.float32)))

    pairs_in_both = num_pairs_in_both(labels, other)
    pairs, other_pairs = num_pairs_in_both(labels, labels), num_pairs_in_both(other, other)
    expected = pairs * other_pairs / max(num_pairs(positions), 1)
    maximum = (pairs + other_pairs) / 2
    # Both clusterings have a single cluster, or one cluster per position: they are identical.
    trivial = maximum - expected <= 1e-6 * maximum
    return jnp.where(trivial, 1.0, (pairs_in_both - expected) / jnp.where(trivial, 1.0, maximum - expected))
