"""k-means in the correlation geometry: k-means++ at the first update, warm-started afterwards."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dropcluster_jax.clustering import correlation
from dropcluster_jax.clustering.correlation import Units, apply_if
from dropcluster_jax.clustering.explicit_axes import with_automatic_axes
from dropcluster_jax.clustering.grid import Grid
from dropcluster_jax.clustering.state import (
    ClusterState,
    check_shapes,
    commit_update,
    number_by_first_position,
)

# Number of candidates per seed; greedy k-means++ keeps the best one.
_NUM_CANDIDATES = 16
# Seeding uses every n-th position, with the largest n up to _MAX_STRIDE that leaves enough positions per cluster.
_MAX_STRIDE = 5
_MIN_POSITIONS_PER_SEED = 8
# Squared distances that differ by less than this are considered equal.
_TOLERANCE = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class KMeans:
    """Clusters of positions whose responses correlate, learned with Lloyd's k-means.

    The squared distance between two units is `2 (1 - correlation)` over the examples of the probe batch. With labels
    shared by all channels (the default), distances are averaged over channels. With `per_channel=True`, each channel is
    clustered separately, as in the paper.

    The first update seeds with greedy k-means++ and a fixed key. Later updates start from the current labels and
    recompute the centroids on the new probe batch, so clusters change only as much as the data and the weights.

    Constant units, whose response does not vary over the batch, do not contribute to centroids and join the cluster
    with the nearest mean position. An empty cluster is refilled with the unit farthest from its centroid. A channel (or
    layer, if labels are shared) with only constant units keeps its labels; if these are still the tiles of the grid,
    later updates start from them.

    Attributes:
        num_clusters, cluster_size: See `Grid`.
        iterations: Maximum number of Lloyd iterations per update, at least 1. An update ends early when no unit moves.
        spatial_weight: Weight of the compactness term, at least 0. Adds `spatial_weight * |position - mean position of
            the cluster|^2` to the squared distance, with positions in [0, 1]^d.
        per_channel: Whether each channel has its own labels.

    Raises:
        TypeError, ValueError: See `Grid`.
        ValueError: If `iterations` or `spatial_weight` is invalid.

    References:
        Chen, Gautier, Aydore, "DropCluster: A structured dropout for convolutional networks", arXiv:2002.02997v1.
        Arthur, Vassilvitskii, "k-means++: The Advantages of Careful Seeding", SODA 2007.

    Example:
        >>> signal = jax.random.normal(jax.random.key(0), (64, 2))
        >>> x = signal[:, jnp.array([[0, 1], [1, 0]]), None]  # 2 x 2 positions, one channel, two signals
        >>> clusterer = KMeans(num_clusters=2)
        >>> state = clusterer.init(x.shape[1:])
        >>> state = clusterer.update(state, x)
        >>> labels = state.labels[..., 0]
        >>> bool(labels[0, 0] == labels[1, 1] != labels[0, 1] == labels[1, 0])
        True
        >>> bool(jnp.allclose(state.explained_variance, 1.0))
        True
    """

    num_clusters: int | None = None
    cluster_size: float | None = None
    iterations: int = 4
    spatial_weight: float = 0.0
    per_channel: bool = False

    def __post_init__(self) -> None:
        self._grid()
        if (
            isinstance(self.iterations, bool)
            or not isinstance(self.iterations, int | np.integer)
            or self.iterations < 1
        ):
            raise ValueError(f"iterations must be an integer of at least 1, got {self.iterations!r}")
        if not 0 <= self.spatial_weight < float("inf"):
            raise ValueError(f"spatial_weight must be finite and at least 0, got {self.spatial_weight!r}")

    def _grid(self) -> Grid:
        return Grid(num_clusters=self.num_clusters, cluster_size=self.cluster_size, per_channel=self.per_channel)

    def init(self, shape: tuple[int, ...]) -> ClusterState:
        """Returns the tiles of a regular grid. See `Clusterer.init`."""
        return self._grid().init(shape)

    def update(
        self, state: ClusterState, x: Float[Array, "batch *spatial channels"], axis_name: str | None = None
    ) -> ClusterState:
        """Runs k-means on a probe batch. See `Clusterer.update`."""
        check_shapes(x, state.labels)
        return with_automatic_axes(lambda state, x: _update(self, state, x, axis_name), state, x)


# Jitted for callers outside of `jit`, where control flow is slow.
@functools.partial(jax.jit, static_argnums=(0, 3))
def _update(clusterer: KMeans, state: ClusterState, x: Array, axis_name: str | None) -> ClusterState:
    *spatial, _ = state.labels.shape
    num_clusters = state.sizes.shape[0]
    stride = _seeding_stride(spatial, num_clusters)
    units, finite = correlation.layer_units(x, axis_name)
    is_first = state.num_updates == 0
    # The channels share the candidates' noise. The key is fixed, so replicas draw the same candidates.
    noise = apply_if(
        is_first,
        lambda noise: jax.random.gumbel(jax.random.key(0, impl="threefry2x32"), noise.shape, noise.dtype),
        jnp.zeros((num_clusters, _NUM_CANDIDATES, math.ceil(math.prod(spatial) / stride)), jnp.float32),
    )

    def cluster(units: Units, old_labels: Int[Array, " positions"]) -> tuple[Array, Array]:
        points = _Points(units, jnp.asarray(_coordinates(spatial)), clusterer.spatial_weight, axis_name)

        def seed_labels(_: Array) -> Int[Array, " positions"]:
            seeds = stride * _kmeans_plus_plus(points.every(stride), noise)
            return jnp.argmin(points.distances_to_points(seeds), axis=1).astype(jnp.int32)

        any_varying = jnp.any(points.varying)
        labels = apply_if(any_varying & is_first, seed_labels, old_labels)
        labels = _lloyd(points, labels, num_clusters, clusterer.iterations)
        labels = jnp.where(any_varying, labels, old_labels)
        labels = number_by_first_position(labels[:, None], num_clusters)[:, 0]
        return labels, correlation.explained_variance(units, labels, num_clusters, axis_name)

    labels, explained = correlation.map_groups(cluster, units, state.labels, elements_per_position=2 * num_clusters)
    return commit_update(state, labels.T.reshape(state.labels.shape), explained, finite)


@dataclasses.dataclass(frozen=True)
class _Points:
    """The positions of a layer or a channel, as points to cluster.

    Attributes:
        units: Units of each position.
        coordinates: Coordinates of each position, in [0, 1]^d.
        spatial_weight: Weight of the squared distance between coordinates.
        axis_name: Mapped axis over which the batch is split, if any.
    """

    units: Units
    coordinates: Float[Array, "positions dims"]
    spatial_weight: float
    axis_name: str | None

    @property
    def varying(self) -> Bool[Array, " positions"]:
        """Whether any unit of a position varies."""
        return jnp.any(self.units.varying, axis=0)

    def every(self, stride: int) -> "_Points":
        """Returns every `stride`-th point."""
        units = Units(self.units.vectors[:, ::stride], self.units.varying[:, ::stride])
        return dataclasses.replace(self, units=units, coordinates=self.coordinates[::stride])

    def distances_to_points(self, indices: Int[Array, " n"]) -> Float[Array, "positions n"]:
        """Returns the squared distance of each point to the points `indices`."""
        distances = correlation.distances_to_positions(self.units, indices, self.axis_name)
        return self._add_spatial_term(distances, self.coordinates[indices])

    def distances_to_centroids(
        self, membership: Float[Array, "clusters positions"]
    ) -> Float[Array, "positions clusters"]:
        """Returns the squared distance of each point to each centroid, infinite for empty clusters."""
        distances = correlation.distances_to_centroids(self.units, membership, self.axis_name)
        distances = self._add_spatial_term(distances, self.mean_coordinates(membership))
        return jnp.where(jnp.any(membership > 0, axis=1)[None], distances, jnp.inf)

    def mean_coordinates(self, membership: Float[Array, "clusters positions"]) -> Float[Array, "clusters dims"]:
        """Returns the mean coordinates of each cluster, 0 for empty clusters."""
        counts = jnp.sum(membership, axis=1)
        return correlation.matmul(membership, self.coordinates) / jnp.maximum(counts, 1.0)[:, None]

    def _add_spatial_term(
        self, distances: Float[Array, "positions n"], coordinates: Float[Array, "n dims"]
    ) -> Float[Array, "positions n"]:
        if not self.spatial_weight:
            return distances
        return distances + self.spatial_weight * _squared_distances(self.coordinates, coordinates)


def _lloyd(
    points: _Points, labels: Int[Array, " positions"], num_clusters: int, iterations: int
) -> Int[Array, " positions"]:
    """Runs Lloyd iterations until no point moves, then assigns the constant points."""
    # Until then, constant points have the label `num_clusters`, which is out of range.
    labels = jnp.where(points.varying, labels, num_clusters)

    def cond(carry: tuple[Array, Array, Array]) -> Array:
        i, moved, _ = carry
        return (i < iterations) & moved

    def body(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        i, _, labels = carry
        new_labels = _lloyd_step(points, labels, num_clusters)
        return i + 1, jnp.any(new_labels != labels), new_labels

    _, _, labels = jax.lax.while_loop(cond, body, (jnp.array(0), jnp.array(True), labels))
    return apply_if(jnp.any(labels == num_clusters), lambda labels: _join_nearest(points, labels, num_clusters), labels)


def _lloyd_step(points: _Points, labels: Int[Array, " positions"], num_clusters: int) -> Int[Array, " positions"]:
    """Assigns each varying point to the nearest centroid of the current clusters, and refills empty clusters."""
    membership = _membership(labels, num_clusters)
    # A point stays in its cluster unless another centroid is nearer by more than rounding error.
    distances = points.distances_to_centroids(membership) - _TOLERANCE * membership.T
    labels = jnp.where(points.varying, jnp.argmin(distances, axis=1).astype(labels.dtype), num_clusters)
    empty = ~jnp.any(_membership(labels, num_clusters) > 0, axis=1)
    return apply_if(jnp.any(empty), lambda labels: _refill(points, labels, jnp.min(distances, axis=1), empty), labels)


def _refill(
    points: _Points,
    labels: Int[Array, " positions"],
    distances: Float[Array, " positions"],
    empty: Bool[Array, " clusters"],
) -> Int[Array, " positions"]:
    """Moves the points farthest from their centroid into the empty clusters, one each.

    The nearest point of each cluster stays, so that no other cluster becomes empty. Constant points are moved last.
    There are always enough points, since the number of clusters is at most the number of positions.

    Args:
        points: All points.
        labels: Cluster of each point.
        distances: Squared distance of each point to the centroid of its cluster.
        empty: Whether each cluster is empty.
    """
    positions, clusters = len(labels), jnp.arange(len(empty), dtype=labels.dtype)
    nearest = jnp.argmin(jnp.where(labels[None] == clusters[:, None], distances[None], jnp.inf), axis=1)
    stays = jnp.zeros(positions, bool).at[jnp.where(empty, positions, nearest)].set(True, mode="drop")
    priority = jnp.where(stays, -2.0, jnp.where(points.varying, distances, -1.0))
    order = jnp.argsort(priority, descending=True, stable=True)
    rank = jnp.cumsum(empty) - 1  # of each empty cluster among the empty ones
    moved = jnp.where(empty, order[rank], positions)
    return labels.at[moved].set(clusters, mode="drop")


def _join_nearest(points: _Points, labels: Int[Array, " positions"], num_clusters: int) -> Int[Array, " positions"]:
    """Assigns points without a cluster to the cluster whose mean position is nearest."""
    membership = _membership(labels, num_clusters)
    distances = _squared_distances(points.coordinates, points.mean_coordinates(membership))
    nearest = jnp.argmin(jnp.where(jnp.any(membership > 0, axis=1)[None], distances, jnp.inf), axis=1)
    return jnp.where(labels < num_clusters, labels, nearest.astype(labels.dtype))


def _kmeans_plus_plus(points: _Points, noise: Float[Array, "clusters candidates positions"]) -> Int[Array, " clusters"]:
    """Chooses seeds with greedy k-means++.

    Each step draws candidates with probability proportional to their squared distance to the nearest seed, and keeps
    the one that reduces the sum of these distances the most.

    Args:
        points: Points to choose from.
        noise: Standard Gumbel noise of the candidates of each step.

    Returns:
        Indices of the seeds, with duplicates if there are fewer distinct points than clusters.
    """

    def draw(step: Array | int, weights: Float[Array, " positions"]) -> Int[Array, " candidates"]:
        """Draws candidates with probability proportional to the weights.

        By the Gumbel-max trick: rounding errors in the weights rarely change a maximum, whereas they shift every bin of
        a cumulative sum.
        """
        return jnp.argmax(jnp.log(weights)[None] + noise[step], axis=1).astype(jnp.int32)

    def distances_to(indices: Int[Array, " n"]) -> Float[Array, "n positions"]:
        distances = points.distances_to_points(indices).T
        # Constant points and duplicates of a seed (up to rounding) have weight 0 and are never drawn.
        return jnp.where(points.varying[None] & (distances > _TOLERANCE), distances, 0.0)

    def choose(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        seeds, nearest = carry
        candidates = draw(i, nearest)  # the first point if all weights are 0
        distances = jnp.minimum(distances_to(candidates), nearest[None])
        best = jnp.argmin(jnp.sum(distances, axis=1))
        return seeds.at[i].set(candidates[best]), distances[best]

    first = draw(0, points.varying.astype(jnp.float32))[:1]
    seeds = jnp.zeros(len(noise), jnp.int32).at[0].set(first[0])
    seeds, _ = jax.lax.fori_loop(1, len(noise), choose, (seeds, distances_to(first)[0]))
    return seeds


def _seeding_stride(spatial: Sequence[int], num_clusters: int) -> int:
    """Returns the stride of the positions used for seeding, coprime to the row length so that it covers all columns."""
    largest = max(1, min(_MAX_STRIDE, math.prod(spatial) // (_MIN_POSITIONS_PER_SEED * num_clusters)))
    return next(stride for stride in range(largest, 0, -1) if math.gcd(stride, spatial[-1]) == 1)


def _coordinates(spatial: Sequence[int]) -> Float[np.ndarray, "positions dims"]:
    """Returns the coordinates of all positions, in [0, 1]^d."""
    axes = np.meshgrid(*(np.linspace(0.0, 1.0, length) for length in spatial), indexing="ij")
    return np.stack(axes, axis=-1).reshape(math.prod(spatial), len(spatial)).astype(np.float32)


def _squared_distances(a: Float[Array, "n dims"], b: Float[Array, "m dims"]) -> Float[Array, "n m"]:
    return jnp.sum(jnp.square(a[:, None] - b[None]), axis=-1)


def _membership(labels: Int[Array, " positions"], num_clusters: int) -> Float[Array, "clusters positions"]:
    """Returns 1 if a position is in a cluster, else 0."""
    return (labels[None] == jnp.arange(num_clusters, dtype=labels.dtype)[:, None]).astype(jnp.float32)
