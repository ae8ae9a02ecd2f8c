"""k-means in the correlation geometry: seeded anew at the first update, warm from the current labels ever after."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dropcluster_jax.clustering import correlation
from dropcluster_jax.clustering.correlation import Group
from dropcluster_jax.clustering.grid import Grid
from dropcluster_jax.clustering.grid import coordinates as coordinates_of
from dropcluster_jax.clustering.state import ClusterState, check_activations, commit_update

# Candidates tried for each seed, of which the best is taken (greedy k-means++, as in scikit-learn).
_CANDIDATES = 16
# Seeds are sought among every n-th position, n at most this, where that leaves so many positions for each cluster.
_MOST_STRIDE = 5
_LEAST_SAMPLE = 8
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
    labels: a layer) keeps its labels; should it come to life after the first update, it starts from the tiles.

    Attributes:
        num_clusters: the number of clusters K, `1 <= K <= positions`; or
        cluster_size: the mean number of positions in a cluster, at least 1:
            `K = max(1, round(positions / cluster_size))`.
        iterations: Lloyd iterations in an update, at most, at least 1; it ends early where no unit moves.
        spatial_weight: adds `spatial_weight * |position - mean position of the cluster|^2` to the squared distance,
            with positions in [0, 1]^d: keeps clusters compact. At least 0, which is off.
        per_channel: whether each channel has labels of its own.

    Raises:
        ValueError, TypeError: both or neither of `num_clusters` and `cluster_size`, or a value out of range.

    References:
        Chen, Gautier, Aydore, "DropCluster: A structured dropout for convolutional networks", arXiv:2002.02997v1.
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
        >>> bool(labels[0, 0] == labels[1, 1] != labels[0, 1] == labels[1, 0]), round(float(state.explained_variance[0]), 3)
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

        Returns:
            A state whose clusters explain nothing yet, updated 0 times.

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
                `num_skipped` goes up by one.
            axis_name: a mapped axis over which the batch is split, if any. All replicas find the same labels: up to
                rounding those that one device with the whole batch would find.

        Returns:
            The next state, all arithmetic in float32.

        Raises:
            TypeError: `x` is not of a floating-point type.
            ValueError: `x` has another shape than the clusters.
        """
        check_activations(x, state)
        return _update(self, state, x, axis_name)


# Compiled here too, for those who call it outside of `jit`: control flow is slow op by op.
@functools.partial(jax.jit, static_argnums=(0, 3))
def _update(clusterer: KMeans, state: ClusterState, x: Array, axis_name: str | None) -> ClusterState:
    *spatial, groups = state.labels.shape
    num_clusters = state.sizes.shape[0]
    first = state.num_updates == 0
    seeds = correlation.apply_if(
        first,
        lambda _: _seeds(clusterer, x, groups, num_clusters, axis_name),
        jnp.zeros((groups, num_clusters), jnp.int32),
    )
    if axis_name is not None:
        x = correlation.depend_on(x, seeds)

    def cluster(
        group: Group, old: Int[Array, " positions"], seeds: Int[Array, " clusters"]
    ) -> tuple[Int[Array, " positions"], Float[Array, ""]]:
        space = _Space(group, tuple(spatial), clusterer.spatial_weight, num_clusters)
        labels = correlation.apply_if(first, lambda _: space.nearest(seeds), old)
        labels = _iterate(space, labels, clusterer.iterations)
        labels = jnp.where(jnp.any(space.varying), labels, old)
        return labels, correlation.explained(group, labels, num_clusters)

    (labels, explained), finite = correlation.map_groups(
        cluster, x, correlation.by_group(state.labels), seeds, axis_name=axis_name, per_position=2 * num_clusters
    )
    return commit_update(state, labels.T.reshape(state.labels.shape), explained, finite)


class _Space:
    """The units of a group together with where they lie: what distances are measured in."""

    def __init__(self, group: Group, spatial: tuple[int, ...], spatial_weight: float, num_clusters: int):
        self.group = group
        self.varying = jnp.any(group.varying, axis=0)  # (positions,)
        self.coordinates = jnp.asarray(coordinates_of(spatial))  # (positions, dims)
        self.spatial_weight = spatial_weight
        self.num_clusters = num_clusters

    def distances_to_centroids(self, member: Float[Array, "clusters positions"]) -> Float[Array, "positions clusters"]:
        """The squared distance of each unit to each cluster's centroid; infinite where it has no member."""
        distances = correlation.squared_distances(self.group, correlation.centroids(member))
        if self.spatial_weight:
            distances += self.spatial_weight * _spatial_distances(self.coordinates, self.mean_positions(member))
        return jnp.where(jnp.any(member > 0, axis=1), distances, jnp.inf)

    def nearest(self, seeds: Int[Array, " clusters"]) -> Int[Array, " positions"]:
        """Which of the units at some positions is the nearest, the first of equals."""
        distances = correlation.squared_distances(self.group, lambda vectors, varying: vectors[seeds])
        if self.spatial_weight:
            distances += self.spatial_weight * _spatial_distances(self.coordinates, self.coordinates[seeds])
        return jnp.argmin(distances, axis=1).astype(jnp.int32)

    def mean_positions(self, member: Float[Array, "clusters positions"]) -> Float[Array, "clusters dims"]:
        """The mean position of each cluster's members; 0 where it has none."""
        return correlation.product(member, self.coordinates) / jnp.maximum(jnp.sum(member, axis=1), 1.0)[:, None]


def _spatial_distances(places: Float[Array, "n dims"], others: Float[Array, "m dims"]) -> Float[Array, "n m"]:
    """The squared distance of each place to each other one."""
    return jnp.sum(jnp.square(places[:, None] - others), axis=-1)


def _iterate(space: _Space, labels: Int[Array, " positions"], iterations: int) -> Int[Array, " positions"]:
    """Lloyd iterations until no unit moves, at most so many; then the positions that do not vary join."""
    # While they iterate, dead positions belong to no cluster: their label is out of range.
    labels = jnp.where(space.varying, labels, space.num_clusters)

    def goes_on(carry: tuple[Array, Array, Array]) -> Array:
        i, moved, _ = carry
        return (i < iterations) & moved

    def iteration(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        i, _, labels = carry
        moved_to = _lloyd(space, labels)
        return i + 1, jnp.any(moved_to != labels), moved_to

    labels = jax.lax.while_loop(goes_on, iteration, (jnp.array(0), jnp.array(True), labels))[2]
    return correlation.apply_if(
        jnp.any(labels == space.num_clusters), lambda labels: _join_nearest(space, labels), labels
    )


def _lloyd(space: _Space, labels: Int[Array, " positions"]) -> Int[Array, " positions"]:
    """One Lloyd iteration: centroids of the labels, each varying unit to the nearest, emptied clusters filled again."""
    member = correlation.membership(labels, space.num_clusters)
    # A unit's own cluster is favored by what rounding could make of a tie.
    distances = space.distances_to_centroids(member) - _LEAST_GAIN * member.T
    labels = jnp.where(space.varying, jnp.argmin(distances, axis=1).astype(labels.dtype), space.num_clusters)
    empty = ~jnp.any(correlation.membership(labels, space.num_clusters) > 0, axis=1)
    return correlation.apply_if(
        jnp.any(empty), lambda labels: _fill(space, labels, jnp.min(distances, axis=1), empty), labels
    )


def _fill(
    space: _Space,
    labels: Int[Array, " positions"],
    own: Float[Array, " positions"],
    empty: Bool[Array, " clusters"],
) -> Int[Array, " positions"]:
    """Give each empty cluster the unit farthest from its centroid, of those that are not the nearest to theirs.

    The nearest stay, so that no cluster is emptied to fill another; dead positions come last, in their order. There
    are always enough, as there are at least as many positions as clusters.
    """
    positions, clusters = len(labels), jnp.arange(space.num_clusters)
    nearest = jnp.argmin(jnp.where(labels == clusters[:, None], own, jnp.inf), axis=1)
    stays = jnp.zeros(positions, bool).at[jnp.where(empty, positions, nearest)].set(True, mode="drop")
    order = jnp.argsort(jnp.where(stays, -2.0, jnp.where(space.varying, own, -1.0)), descending=True, stable=True)
    nth_empty = jnp.cumsum(empty) - 1
    chosen = jnp.where(empty, order[nth_empty], positions)
    return labels.at[chosen].set(clusters.astype(labels.dtype), mode="drop")


def _join_nearest(space: _Space, labels: Int[Array, " positions"]) -> Int[Array, " positions"]:
    """Positions that belong to no cluster join the one whose mean position is nearest."""
    member = correlation.membership(labels, space.num_clusters)
    distances = _spatial_distances(space.coordinates, space.mean_positions(member))
    nearest = jnp.argmin(jnp.where(jnp.any(member > 0, axis=1), distances, jnp.inf), axis=1)
    return jnp.where(labels < space.num_clusters, labels, nearest.astype(labels.dtype))


def _seeds(
    clusterer: KMeans,
    x: Float[Array, "batch *spatial channels"],
    groups: int,
    num_clusters: int,
    axis_name: str | None,
) -> Int[Array, "groups clusters"]:
    """Greedy k-means++: each next seed is the best of a few candidates drawn by their squared distance so far.

    Where there are many more positions than clusters, every n-th stands for its neighbors. The choices depend on
    distances summed over replicas alone.

    Returns:
        The positions of the seeds, some repeated where there are fewer different units than clusters.
    """
    batch, *spatial, channels = x.shape
    positions = math.prod(spatial)
    stride = _stride(spatial, num_clusters)
    sample = np.arange(0, positions, stride, dtype=np.int32)
    coordinates = jnp.asarray(coordinates_of(tuple(spatial))[sample])
    # A fixed key: the same draws everywhere. Each step draws from these bits, moved on by the golden ratio: that costs
    # nothing, and seeds need no independent draws.
    key = jax.random.key(0, impl="threefry2x32")
    bits = jax.random.bits(key, (_CANDIDATES, len(sample)), jnp.uint32)

    def draw(step: Array | int, weights: Float[Array, " sample"]) -> Int[Array, " candidates"]:
        # A race: the one that arrives first, after an exponential time at the rate of its weight, is drawn. Rounding
        # in one weight then changes no draw but of near ties, whereas it shifts all of a cumulative sum.
        moved = bits + jnp.asarray(step, jnp.uint32) * jnp.uint32(0x9E3779B9)
        times = -jnp.log((moved >> 8).astype(jnp.float32) * 2**-24 + 2**-25)
        return jnp.argmin(jnp.where(weights > 0, times / weights, jnp.inf), axis=1).astype(jnp.int32)

    def seeds_of(group: Group, _: Array) -> Int[Array, " clusters"]:
        varying = jnp.any(group.varying, axis=0)

        def distances_to(index: Int[Array, " n"]) -> Float[Array, "n sample"]:
            distances = correlation.squared_distances(group, lambda vectors, varying: vectors[index]).T
            if clusterer.spatial_weight:
                distances += clusterer.spatial_weight * _spatial_distances(coordinates[index], coordinates)
            # None is drawn and none is far where nothing varies; nor at a distance that rounding could make.
            return jnp.where(varying & (distances > _LEAST_GAIN), distances, 0.0)

        def step(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            seeds, least = carry
            # Weights of 0 everywhere (fewer different units than clusters) draw the first position.
            candidates = draw(i, least)
            distances = distances_to(candidates)
            best = jnp.argmin(jnp.sum(jnp.minimum(least, distances), axis=1))
            return seeds.at[i].set(candidates[best]), jnp.minimum(distances[best], least)

        first = draw(0, varying.astype(jnp.float32))[:1]
        seeds = jnp.zeros(num_clusters, jnp.int32).at[0].set(first[0])
        return jax.lax.fori_loop(1, num_clusters, step, (seeds, distances_to(first)[0]))[0]

    some = x.reshape(batch, positions, channels)[:, ::stride]
    seeds, _ = correlation.map_groups(
        seeds_of, some, jnp.arange(groups), axis_name=axis_name, per_position=2 * _CANDIDATES
    )
    return jnp.asarray(sample)[seeds]


def _stride(spatial: Sequence[int], num_clusters: int) -> int:
    """Of how many positions one is looked at while seeding: coprime to the rows, so that all columns are among them."""
    most = max(1, min(_MOST_STRIDE, math.prod(spatial) // (_LEAST_SAMPLE * num_clusters)))
    return next(stride for stride in range(most, 0, -1) if math.gcd(stride, spatial[-1]) == 1)
