"""The correlation geometry: units as vectors of length 1 whose dot products are correlations.

A unit is one (position, channel). Its vector u is its response over the examples of a probe batch, centered and scaled
to length 1:

    u = (x - mean(x)) / |x - mean(x)|,    <u, v> = correlation of u and v,    |u - v|^2 = 2 (1 - <u, v>).

Distances are averages over channels, and every dot product is a sum over examples. If the batch is split over a mapped
axis, each replica sums over its own examples, and a `psum` adds up the replicas.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from dropcluster_jax.clustering.channels import map_channels, map_channels_in_place, sum_over_channels

# Units whose standard deviation is below this fraction of their maximum are constant up to rounding.
_MIN_DEVIATION = 1e-6


class Units(NamedTuple):
    """Units of all channels of a layer, or of one channel.

    Attributes:
        vectors: Correlation vectors, float32 `(channels, positions, batch)`; zero for constant units.
        varying: Whether each unit varies over the batch, bool `(channels, positions)`.
    """

    vectors: Float[Array, "channels positions batch"]
    varying: Bool[Array, "channels positions"]


def correlation_vectors(
    x: Float[Array, "*units batch"], axis_name: str | None = None
) -> tuple[Float[Array, "*units batch"], Bool[Array, "*units"], Bool[Array, ""]]:
    """Centers the response of each unit over the batch and scales it to length 1.

    Args:
        x: Activations `(*units, batch)`, float32.
        axis_name: Mapped axis over which the batch is split, if any.

    Returns:
        The vectors, zero for constant units; whether each unit varies; and whether all activations and norms are
        finite.

    Example:
        >>> x = jnp.array([[1.0, 2.0, 3.0], [5.0, 3.0, 1.0], [0.0, 0.0, 0.0]])  # 3 units, 3 examples
        >>> vectors, varying, finite = correlation_vectors(x)
        >>> vectors.shape, varying.tolist(), bool(finite)
        ((3, 3), [True, True, False], True)
        >>> bool(jnp.isclose(vectors[0] @ vectors[1], -1.0))
        True
    """
    # Subtracting the maximum first makes constant units exactly zero, whatever the order of summation.
    maximum = jnp.max(x, axis=-1)
    if axis_name is not None:
        maximum = jax.lax.pmax(maximum, axis_name)
    x = x - maximum[..., None]
    batch = psum(x.shape[-1], axis_name)
    mean = psum(jnp.sum(x, axis=-1), axis_name) / batch
    # Correlation has no scale: with the mean distance from the maximum near 1, no square overflows or underflows.
    _, exponent = jnp.frexp(mean)
    scale = jnp.ldexp(jnp.ones_like(mean), jnp.clip(-exponent, -126, 126))  # a power of two, which is exact
    x = x - mean[..., None]
    squared_norm = psum(jnp.sum(jnp.square(x * scale[..., None]), axis=-1), axis_name)
    varying = squared_norm > batch * jnp.square(_MIN_DEVIATION * maximum * scale)
    inverse_norm = jnp.where(varying, scale * jax.lax.rsqrt(jnp.where(varying, squared_norm, 1.0)), 0.0)
    finite = jnp.isfinite(squared_norm) & (varying == (inverse_norm > 0))  # else, the norm overflows
    return x * inverse_norm[..., None], varying, jnp.all(finite)


def layer_units(x: Float[Array, "batch *spatial channels"], axis_name: str | None) -> tuple[Units, Bool[Array, ""]]:
    """Returns the units of a layer, and whether all activations are finite.

    Raises:
        ValueError: If the batch is empty.
    """
    batch, *spatial, channels = x.shape
    if batch < 1:
        raise ValueError(f"x must have at least one example, got shape {x.shape}")
    # Transpose before reshaping; in the other order XLA makes an extra copy.
    x = jnp.moveaxis(x.astype(jnp.float32), (0, -1), (-1, 0)).reshape(channels, math.prod(spatial), batch)

    def normalize(x: Array) -> tuple[Array, tuple[Array, Array]]:
        vectors, varying, finite = correlation_vectors(x, axis_name)
        return vectors, (varying, finite)

    vectors, (varying, finite) = map_channels_in_place(normalize, x)
    return Units(vectors, varying), jnp.all(finite)


def map_groups(
    function: Callable[..., PyTree[Array]],
    units: Units,
    labels: Int[Array, "*spatial groups"],
    elements_per_position: int,
) -> Any:
    """Applies `function(units, labels)` to each group of units that share their labels.

    Args:
        function: Function of the units of one group and their labels, `(positions,)`.
        units: Units of a layer.
        labels: Labels, of one group with all channels or of one group per channel.
        elements_per_position: Number of float32 values per position that `function` needs in memory for each channel,
            in addition to the vectors.

    Returns:
        The results, stacked along a leading axis of groups.
    """
    _, positions, batch = units.vectors.shape
    labels = flatten_labels(labels)
    if len(labels) == 1:
        return jax.tree.map(lambda result: result[None], function(units, labels[0]))

    def map_channel(vectors: Array, varying: Array, labels: Array) -> PyTree[Array]:
        return function(Units(vectors[None], varying[None]), labels)

    return map_channels(map_channel, *units, labels, elements=positions * (batch + elements_per_position))


def distances_to_centroids(
    units: Units, membership: Float[Array, "clusters positions"], axis_name: str | None
) -> Float[Array, "positions clusters"]:
    """Returns the mean over channels of the squared distance of each position to each cluster's centroid.

    In each channel, the centroid is the mean vector of the cluster's varying units, and zero if all are constant.

    Args:
        units: Units that share their clusters.
        membership: 1 if a position is in a cluster, else 0.
        axis_name: Mapped axis over which the batch is split, if any.
    """

    def terms(vectors: Float[Array, "positions batch"], varying: Bool[Array, " positions"]) -> Array:
        counts = matmul(membership, varying.astype(jnp.float32))
        centroids = matmul(membership, vectors) / jnp.maximum(counts, 1.0)[:, None]
        return _distance_terms(vectors, varying, centroids)

    return _mean_distances(units, psum(sum_over_channels(terms, *units), axis_name))


def distances_to_positions(
    units: Units, indices: Int[Array, " points"], axis_name: str | None
) -> Float[Array, "positions points"]:
    """Returns the mean over channels of the squared distance of each position to the positions `indices`."""

    def terms(vectors: Float[Array, "positions batch"], varying: Bool[Array, " positions"]) -> Array:
        return _distance_terms(vectors, varying, vectors[indices])

    return _mean_distances(units, psum(sum_over_channels(terms, *units), axis_name))


def _distance_terms(
    vectors: Float[Array, "positions batch"], varying: Bool[Array, " positions"], points: Float[Array, "points batch"]
) -> Float[Array, "positions points"]:
    """Returns the terms with v of `|u - v|^2 = |u|^2 + |v|^2 - 2 <u, v>` in one channel; 0 if u is constant."""
    squared_norms = jnp.sum(jnp.square(points), axis=1)
    return jnp.where(varying[:, None], squared_norms[None], 0.0) - 2.0 * matmul(vectors, points.T)


def _mean_distances(units: Units, terms: Float[Array, "positions points"]) -> Float[Array, "positions points"]:
    """Adds the terms `|u|^2` and divides by the number of channels that vary at all."""
    squared_norms = jnp.sum(units.varying, axis=0, dtype=jnp.float32)
    channels = jnp.sum(jnp.any(units.varying, axis=1), dtype=jnp.float32)
    # Rounding can make a zero distance negative.
    return jnp.maximum(squared_norms[:, None] + terms, 0.0) / jnp.maximum(channels, 1.0)


def explained_variance(
    units: Units, labels: Int[Array, " positions"], num_clusters: int, axis_name: str | None
) -> Float[Array, ""]:
    """Returns `between / total`, the fraction of the varying units' variance between clusters; 0 if total is 0.

    With s_k the sum of the n_k varying units of cluster k, and s and n the sum and number of all varying units, each of
    length 1, the variances of one channel are:

        total = sum_u |u - s / n|^2 = n - |s|^2 / n
        between = sum_k n_k |s_k / n_k - s / n|^2 = sum_k |s_k|^2 / n_k - |s|^2 / n
    """

    def terms(vectors: Float[Array, "positions batch"], varying: Bool[Array, " positions"]) -> Array:
        counts = jax.ops.segment_sum(varying.astype(jnp.float32), labels, num_clusters)
        sums = jax.ops.segment_sum(vectors, labels, num_clusters)
        clusters = jnp.sum(jnp.sum(jnp.square(sums), axis=1) / jnp.maximum(counts, 1.0))
        overall = jnp.sum(jnp.square(jnp.sum(sums, axis=0))) / jnp.maximum(jnp.sum(counts), 1.0)
        return jnp.stack([clusters, overall])

    clusters, overall = psum(sum_over_channels(terms, *units), axis_name)
    count = jnp.sum(units.varying, dtype=jnp.float32)
    total, between = count - overall, clusters - overall
    varies = total > 1e-6 * count  # otherwise all units are equal, up to rounding
    return jnp.where(varies, jnp.clip(between / jnp.where(varies, total, 1.0), 0.0, 1.0), 0.0)


def flatten_labels(labels: Int[Array, "*spatial groups"]) -> Int[Array, "groups positions"]:
    """Returns the labels of each group in one row."""
    return labels.reshape(-1, labels.shape[-1]).T


def matmul(left: Float[Array, "..."], right: Float[Array, "..."]) -> Float[Array, "..."]:
    """Multiplies matrices in full float32; by default, accelerators round the inputs to bfloat16 or TF32."""
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)


def psum(x: Any, axis_name: str | None) -> Any:
    """Sums over replicas; returns `x` unchanged if `axis_name` is None."""
    return x if axis_name is None else jax.lax.psum(x, axis_name)


def apply_if(predicate: Bool[Array, ""], function: Callable[[Array], Array], operand: Array) -> Array:
    """Returns `function(operand)` if the predicate is true, else `operand`.

    This is a loop of at most one iteration, because `vmap` with a batched predicate turns `jax.lax.cond` into a select
    that always runs `function`.
    """

    def body(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        return jnp.array(False), function(carry[1])

    return jax.lax.while_loop(lambda carry: carry[0], body, (predicate, operand))[1]
