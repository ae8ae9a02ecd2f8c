"""k-means in the correlation geometry: seeded anew at the first update, warm from the current labels ever after."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dropcluster_jax.clustering import units as geometry
from dropcluster_jax.clustering.grid import Grid
from dropcluster_jax.clustering.state import ClusterState, accept, check_activations
from dropcluster_jax.clustering.units import Centroids, Units

# Candidates tried for each seed, of which the best is taken (greedy k-means++, as scikit-learn does).
_CANDIDATES = 4
# A unit leaves its cluster only for one that is nearer by more than rounding could make it.
_LEAST_GAIN = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class KMeans:
    """Clusters of positions whose responses correlate, by Lloyd's k-means.

    The distance of two units is `2 (1 - correlation)` over the examples of the probe batch. With labels shared by all
    channels (the default) the distance of two positions is its mean over channels; with `per_channel` each channel is
    clustered on its own, as in the paper.

    The first update seeds by greedy k-means++ with a fixed key. Later ones start from the current labels, whose
    centroids are recomputed on the new probe batch, so that clusters move no more than data and weights make them. A
    unit that does not vary takes no part in centroids and joins the cluster whose mean position is nearest. A cluster
    that lost all its units gets the one farthest from its centroid. A channel without a unit that varies (with shared
    labels: a layer) keeps its labels.

    Attributes:
        num_clusters: the number of clusters K, `1 <= K <= positions`; or
        cluster_size: the mean number of positions in a cluster: `K = max(1, round(positions / cluster_size))`.
        iterations: Lloyd iterations in an update.
        spatial_weight: adds `spatial_weight * |position - mean position of the cluster|^2` to the squared distance,
            with positions in [0, 1]^d: keeps clusters compact.
        per_channel: whether each channel has labels of its own.

    Raises:
        ValueError, TypeError: both or neither of `num_clusters` and `cluster_size`, or a value out of range.

    References:
        Chen, Gautier, Aydore, "DropCluster: A structured dropout for convolutional networks", arXiv:2002.02997.
        Arthur, Vassilvitskii, "k-means++: The Advantages of Careful Seeding", SODA 2007.

    Example:
        >>> signal = jax.random.normal(jax.random.key(0), (64, 2))
        >>> x = signal[:, jnp.array([[0, 1], [1, 0]]), None]  # 2x2 positions follow two signals
        >>> clusterer = KMeans(num_clusters=2)
        >>> state = clusterer.init(x.shape[1:])
        >>> state.labels[..., 0].tolist()
        [[0, 1], [0, 1]]
        >>> state = clusterer.update(state, x)
        >>> labels = state.labels[..., 0]
        >>> bool(labels[0, 0] == labels[1, 1] != labels[0, 1] == labels[1, 0]), round(float(state.explained[0]), 3)
        (True, 1.0)
    """

    num_clusters: int | None = None
    cluster_size: float | None = None
    iterations: int = 4
    spatial_weight: float = 0.0
    per_channel: bool = False

    def __post_init__(self) -> None:
        self._grid()
        if isinstance(self.iterations, bool) or not isinstance(self.iterations, int) or self.iterations < 1:
            raise ValueError(f"iterations must be an integer of at least 1, got {self.iterations!r}")
        if not 0 <= self.spatial_weight < float("inf"):
            raise ValueError(f"spatial_weight must be finite and at least 0, got {self.spatial_weight!r}")

    def _grid(self) -> Grid:
        return Grid(num_clusters=self.num_clusters, cluster_size=self.cluster_size, per_channel=self.per_channel)

    def init(self, shape: tuple[int, ...]) -> ClusterState:
        """The tiles of a regular grid; see `Grid.init`.

        Args:
            shape: `(*spatial, channels)`, an activation's shape without the batch.

        Raises:
            ValueError: no spatial dimension, a length below 1, or more clusters than positions.
        """
        return self._grid().init(shape)

    def update(
        self, state: ClusterState, x: Float[Array, "batch *spatial channels"], axis_name: str | None = None
    ) -> ClusterState:
        """Learn the clusters from a probe batch.

        Args:
            state: the clusters so far; it decides the number of clusters.
            x: the layer's activations in evaluation mode, unmasked. If any is not finite the state is kept, and
                `skipped` goes up by one.
            axis_name: a mapped axis over which the batch is split, if any. All replicas find the same labels: up to
                rounding those that one device with the whole batch would find.

        Returns:
            The next state, all arithmetic in float32.

        Raises:
            TypeError: `x` is not of a floating-point type.
            ValueError: `x` has another shape than the clusters.
        """
        check_activations(x, state)
        *spatial, groups = state.labels.shape
        num_clusters = state.sizes.shape[0]
        units = geometry.correlation_units(x, self.per_channel, axis_name)
        space = _Space(units, tuple(spatial), self.spatial_weight, num_clusters)
        old = state.labels.reshape(-1, groups).T

        labels = jax.lax.cond(state.count == 0, lambda: _seed(space), lambda: old)
        # While they iterate, dead positions belong to no cluster: their label is out of range.
        labels = jnp.where(space.live, labels, num_clusters)
        labels = jax.lax.fori_loop(0, self.iterations, lambda _, labels: _lloyd(space, labels), labels)
        labels = _join_nearest(space, labels)
        labels = jnp.where(jnp.any(space.live, axis=1, keepdims=True), labels, old)

        explained = geometry.explained(units, labels, num_clusters)
        return accept(state, labels.T.reshape(state.labels.shape), explained, units.finite)


class _Space:
    """The units of a probe batch together with where they lie: what distances are measured in."""

    def __init__(self, units: Units, spatial: tuple[int, ...], spatial_weight: float, num_clusters: int):
        self.units = units
        self.live = jnp.any(units.live, axis=1)  # (groups, positions)
        self.coordinates = jnp.asarray(geometry.coordinates(spatial))  # (positions, dims)
        self.spatial_weight = spatial_weight
        self.num_clusters = num_clusters

    def mean_positions(self, labels: Int[Array, "groups positions"]) -> Float[Array, "groups clusters dims"]:
        """The mean position of each cluster's members; 0 where it has none."""
        member = jax.nn.one_hot(labels, self.num_clusters)
        sums = jnp.einsum("gpk,pd->gkd", member, self.coordinates, precision=jax.lax.Precision.HIGHEST)
        return sums / jnp.maximum(jnp.sum(member, axis=1), 1.0)[..., None]

    def spatial_distances(self, places: Float[Array, "groups n dims"]) -> Float[Array, "groups positions n"]:
        """The squared distance of each position to each place."""
        return jnp.sum(jnp.square(self.coordinates[:, None] - places[:, None]), axis=-1)

    def distances(
        self, centres: Centroids, places: Float[Array, "groups n dims"]
    ) -> Float[Array, "groups positions n"]:
        """The squared distance of each unit to each centre, with the spatial term if there is one."""
        distances = geometry.squared_distances(self.units, centres)
        if self.spatial_weight:
            distances += self.spatial_weight * self.spatial_distances(places)
        return distances


def _lloyd(space: _Space, labels: Int[Array, "groups positions"]) -> Int[Array, "groups positions"]:
    """One Lloyd iteration: centroids of the labels, each live unit to the nearest, emptied clusters filled again."""
    centres = geometry.centroids(space.units, labels, space.num_clusters)
    distances = space.distances(centres, space.mean_positions(labels))
    own = jnp.take_along_axis(distances, jnp.minimum(labels, space.num_clusters - 1)[..., None], axis=-1)[..., 0]
    least = jnp.min(distances, axis=-1)
    leave = least < own - _LEAST_GAIN
    labels = jnp.where(leave, jnp.argmin(distances, axis=-1), labels)
    labels = jnp.where(space.live, labels, space.num_clusters)
    own = jnp.where(leave, least, own)

    empty = ~jnp.any(jax.nn.one_hot(labels, space.num_clusters, dtype=bool), axis=1)
    return jax.lax.cond(jnp.any(empty), lambda: _fill(space, labels, own, empty), lambda: labels)


def _fill(
    space: _Space,
    labels: Int[Array, "groups positions"],
    own: Float[Array, "groups positions"],
    empty: Array,
) -> Int[Array, "groups positions"]:
    """Give each empty cluster the unit farthest from its centroid, of those that are not the nearest to theirs.

    The nearest stay, so that no cluster is emptied to fill another; dead positions come last, in their order. There
    are always enough, as there are at least as many positions as clusters.
    """
    positions = labels.shape[1]

    def one(labels: Array, own: Array, empty: Array, live: Array) -> Array:
        member = labels[:, None] == jnp.arange(space.num_clusters)
        nearest = jnp.argmin(jnp.where(member, own[:, None], jnp.inf), axis=0)
        stays = jnp.zeros(positions, bool).at[jnp.where(empty, positions, nearest)].set(True, mode="drop")
        order = jnp.argsort(jnp.where(stays, -2.0, jnp.where(live, own, -1.0)), descending=True, stable=True)
        nth_empty = jnp.cumsum(empty) - 1
        chosen = jnp.where(empty, order[nth_empty], positions)
        return labels.at[chosen].set(jnp.arange(space.num_clusters, dtype=labels.dtype), mode="drop")

    return jax.vmap(one)(labels, own, empty, space.live)


def _join_nearest(space: _Space, labels: Int[Array, "groups positions"]) -> Int[Array, "groups positions"]:
    """Positions that belong to no cluster join the one whose mean position is nearest."""
    has_members = jnp.any(jax.nn.one_hot(labels, space.num_clusters, dtype=bool), axis=1)
    distances = space.spatial_distances(space.mean_positions(labels))
    nearest = jnp.argmin(jnp.where(has_members[:, None], distances, jnp.inf), axis=-1)
    return jnp.where(labels < space.num_clusters, labels, nearest.astype(labels.dtype))


def _seed(space: _Space) -> Int[Array, "groups positions"]:
    """Greedy k-means++: each next seed is the best of a few candidates drawn by their squared distance so far.

    Returns the label of the nearest seed. The choices depend on distances summed over replicas alone.
    """
    groups, positions = space.live.shape
    key = jax.random.key(0, impl="threefry2x32")  # fixed, and the same draws on every backend

    def pick(step: Array | int, weights: Float[Array, "groups positions"], candidates: int) -> Array:
        cumulative = jnp.cumsum(weights, axis=1)
        draw = jax.random.uniform(jax.random.fold_in(key, step), (groups, candidates)) * cumulative[:, -1:]
        index = jnp.sum(cumulative[:, None] <= draw[..., None], axis=-1)
        return jnp.minimum(index, positions - 1)

    def distances_to(index: Int[Array, "groups n"]) -> Float[Array, "groups positions n"]:
        units = space.units
        vectors = jnp.take_along_axis(units.vectors, index[:, None, None], axis=-1)
        live = jnp.take_along_axis(space.live, index, axis=1)
        distances = space.distances(Centroids(vectors, live), space.coordinates[index])
        # None is drawn and none is far where nothing varies.
        return jnp.where(space.live[..., None], distances, 0.0)

    def step(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        labels, least = carry
        # A weight of 0 everywhere (fewer different units than clusters) draws the last position: a cluster that
        # stays empty and is filled later.
        candidates = distances_to(pick(i, least, _CANDIDATES))
        best = jnp.argmin(jnp.sum(jnp.minimum(least[..., None], candidates), axis=1), axis=1)
        distances = jnp.take_along_axis(candidates, best[:, None, None], axis=-1)[..., 0]
        return jnp.where(distances < least, i, labels), jnp.minimum(distances, least)

    first = distances_to(pick(0, space.live.astype(jnp.float32), 1))[..., 0]
    labels = jnp.zeros((groups, positions), jnp.int32)
    return jax.lax.fori_loop(1, space.num_clusters, step, (labels, first))[0]
