"""The correlation geometry: responses of units as vectors of length 1, whose dot products are correlations.

A unit is one (position, channel); its vector is its response over the examples of a probe batch. Here also the
three sums that clustering is made of: centroids, distances, and the variance that clusters explain. Each is a sum
over examples, so that replicas which hold parts of the batch need only add them up.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

# A unit whose deviation is below this share of its largest value varies by rounding alone.
_LEAST_DEVIATION = 1e-6


class Units(NamedTuple):
    """The units of a layer on a probe batch.

    With labels per channel there are `channels` groups of one member each, else one group with all channels as
    members.

    Attributes:
        vectors: centred over the (whole) batch, length 1; zero for a unit that does not vary.
        live: whether the unit varies.
        finite: whether every activation was finite (and none so large that its square is not).
        axis_name: the mapped axis over which the batch is split, if any.
    """

    vectors: Float[Array, "groups batch members positions"]
    live: Bool[Array, "groups members positions"]
    finite: Bool[Array, ""]
    axis_name: str | None

    def sum(self, partial: PyTree[Array]) -> PyTree[Array]:
        """Add up partial sums over examples, over all replicas."""
        return partial if self.axis_name is None else jax.lax.psum(partial, self.axis_name)


class Centroids(NamedTuple):
    """Means of clusters.

    Attributes:
        vectors: the mean over each cluster's live units; zero where a member (channel) has none.
        live: whether the cluster has any live unit.
    """

    vectors: Float[Array, "groups batch members clusters"]
    live: Bool[Array, "groups clusters"]


def correlation_units(
    x: Float[Array, "batch *spatial channels"], per_channel: bool, axis_name: str | None = None
) -> Units:
    """Centre each unit's response over the examples and scale it to length 1.

    Then `<u_p, u_q>` is the correlation of units p and q, and `|u_p - u_q|^2 = 2 (1 - correlation)`.

    Args:
        x: activations; converted to float32.
        per_channel: whether each channel is a group of its own.
        axis_name: a mapped axis over which the batch is split, if any.

    Returns:
        The units, with a flag that is False where an activation is not finite.

    Example:
        >>> x = jnp.array([[1.0, 5.0, 0.0], [2.0, 3.0, 0.0], [3.0, 1.0, 0.0]])[..., None]  # 3 examples, 3 positions
        >>> units = correlation_units(x, per_channel=False)
        >>> round(float(units.vectors[0, :, 0, 0] @ units.vectors[0, :, 0, 1]), 4), units.live[0, 0].tolist()
        (-1.0, [True, True, False])
    """
    x = x.astype(jnp.float32).reshape(x.shape[0], -1, x.shape[-1])
    # Relative to its largest value a constant unit is exactly 0, in whatever order replicas add up.
    largest = jnp.max(x, axis=0)
    if axis_name is not None:
        largest = jax.lax.pmax(largest, axis_name)
    x = x - largest
    total = jnp.sum(x, axis=0)
    examples = x.shape[0]
    if axis_name is not None:
        total, examples = jax.lax.psum((total, examples), axis_name)
    x = x - total / examples
    square = jnp.sum(jnp.square(x), axis=0)
    if axis_name is not None:
        square = jax.lax.psum(square, axis_name)

    live = square > examples * jnp.square(_LEAST_DEVIATION * largest)
    scale = jnp.where(live, jax.lax.rsqrt(jnp.where(live, square, 1.0)), 0.0)
    vectors = jnp.transpose(x * scale, (0, 2, 1))  # (batch, channels, positions)
    live = live.T
    vectors, live = (vectors.swapaxes(0, 1)[:, :, None], live[:, None]) if per_channel else (vectors[None], live[None])
    return Units(vectors, live, jnp.all(jnp.isfinite(square)), axis_name)


def coordinates(spatial: tuple[int, ...]) -> Float[np.ndarray, "positions dims"]:
    """Where each position lies, in [0, 1]^d; a dimension of length 1 is at 0."""
    axes = np.meshgrid(*(np.linspace(0.0, 1.0, length) for length in spatial), indexing="ij")
    return np.stack(axes, axis=-1).reshape(math.prod(spatial), len(spatial)).astype(np.float32)


def centroids(units: Units, labels: Int[Array, "groups positions"], num_clusters: int) -> Centroids:
    """The mean of each cluster's live units. A label outside `[0, num_clusters)` belongs to none."""
    member = jax.nn.one_hot(labels, num_clusters)
    counts = _product("gmp,gpk->gmk", units.live, member)
    sums = _product("gbmp,gpk->gbmk", units.vectors, member)
    return Centroids(sums / jnp.maximum(counts, 1.0)[:, None], jnp.any(counts > 0, axis=1))


def squared_distances(units: Units, centres: Centroids) -> Float[Array, "groups positions clusters"]:
    """The squared distance of each position to each centroid: the mean over channels, over a position's live ones.

    Channels without any live unit do not count. A centroid without live units is infinitely far.
    """
    cross = _product("gbmp,gbmk->gpk", units.vectors, centres.vectors)
    cross, square = units.sum((cross, jnp.sum(jnp.square(centres.vectors), axis=1)))
    own = jnp.sum(units.live, axis=1, dtype=jnp.float32)[..., None]
    distances = own - 2.0 * cross + _product("gmp,gmk->gpk", units.live, square)
    channels = jnp.sum(jnp.any(units.live, axis=2), axis=1, dtype=jnp.float32)
    # Rounding can take a distance of 0 below it.
    distances = jnp.maximum(distances, 0.0) / jnp.maximum(channels, 1.0)[:, None, None]
    return jnp.where(centres.live[:, None], distances, jnp.inf)


def explained(units: Units, labels: Int[Array, "groups positions"], num_clusters: int) -> Float[Array, " groups"]:
    """1 - (variance within clusters) / (total variance) over each group's live units; 0 where nothing varies."""
    member = jax.nn.one_hot(labels, num_clusters)
    counts = _product("gmp,gpk->gmk", units.live, member)
    sums = _product("gbmp,gpk->gbmk", units.vectors, member)
    square, square_all = units.sum(
        (jnp.sum(jnp.square(sums), axis=1), jnp.sum(jnp.square(jnp.sum(sums, axis=-1)), axis=1))
    )
    live = jnp.sum(counts, axis=-1)
    overall = jnp.sum(square_all / jnp.maximum(live, 1.0), axis=1)
    between = jnp.sum(square / jnp.maximum(counts, 1.0), axis=(1, 2)) - overall
    units_live = jnp.sum(live, axis=1)
    total = units_live - overall
    # Units that all agree leave nothing to explain, but for rounding.
    varies = total > 1e-6 * units_live
    return jnp.where(varies, jnp.clip(between / jnp.where(varies, total, 1.0), 0.0, 1.0), 0.0)


def _product(subscripts: str, left: Array, right: Array) -> Array:
    """Contract in full float32: by default accelerators would round to bfloat16 or tf32."""
    left, right = left.astype(jnp.float32), right.astype(jnp.float32)
    return jnp.einsum(subscripts, left, right, precision=jax.lax.Precision.HIGHEST)
