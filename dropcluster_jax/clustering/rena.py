"""ReNA, recursive nearest agglomeration: clusters that are connected, by merging neighbors on the grid."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dropcluster_jax.clustering import correlation
from dropcluster_jax.clustering.correlation import Group
from dropcluster_jax.clustering.grid import Grid, edges
from dropcluster_jax.clustering.state import ClusterState, check_activations, commit_update

# Squared distances of units are at most 4. These stand for those that do not exist: where no channel varies in both;
# where one does not vary at all; and where neither does.
_NOTHING_COMMON = 6.0
_TO_DEAD = 8.0
_BETWEEN_DEAD = 16.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReNA:
    """Connected clusters of positions whose responses correlate, by recursive nearest agglomeration.

    Each position begins as a cluster. In every round each cluster merges with that of its neighbors on the grid whose
    mean is nearest, and the mean of the new cluster is the mean of its parts' means. Where all units vary the number of
    clusters at least halves each round; in the last round only the closest pairs merge, so that exactly the number
    asked for is left. Of equally near neighbors one along the first dimension is taken before others, then that at
    the lower positions. Time and memory are linear in the number of units.

    Each update starts anew from the probe batch; the labels before have no influence. A unit that does not vary takes
    no part in means; a position of none but such units joins a neighbor that varies as soon as it has one, and such a
    join goes before all others. A channel without a unit that varies (with shared labels: a layer) keeps its labels.

    Attributes:
        num_clusters: the number of clusters K, `1 <= K <= positions`; or
        cluster_size: the mean number of positions in a cluster, at least 1:
            `K = max(1, round(positions / cluster_size))`.
        per_channel: whether each channel has labels of its own.

    Raises:
        ValueError, TypeError: both or neither of `num_clusters` and `cluster_size`, or a value out of range.

    Note:
        On GPUs XLA adds the members of a cluster up in no fixed order, unless
        `XLA_FLAGS=--xla_gpu_deterministic_ops=true` is set; near ties may then fall differently from run to run. The
        replicas of one run agree in any case, as their parts of the batch are summed up before anything is compared.

    References:
        Hoyos-Idrobo, Varoquaux, Kahn, Thirion, "Recursive Nearest Agglomeration (ReNA): fast clustering for
        approximation of structured signals", IEEE TPAMI 41(3), 2019, arXiv:1609.04608, algorithm 1.

    Example:
        >>> signal = jax.random.normal(jax.random.key(0), (64, 2))
        >>> x = signal[:, jnp.array([0, 0, 1, 1, 1, 0]), None]  # 6 positions in a row follow two signals
        >>> clusterer = ReNA(num_clusters=3)
        >>> state = clusterer.update(clusterer.init(x.shape[1:]), x)
        >>> state.labels[:, 0].tolist(), round(float(state.explained_variance[0]), 3)
        ([0, 0, 1, 1, 1, 2], 1.0)
    """

    num_clusters: int | None = None
    cluster_size: float | None = None
    per_channel: bool = False

    def __post_init__(self) -> None:
        self._grid()

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
        return _update(state, x, axis_name)


# Compiled here too, for those who call it outside of `jit`: control flow is slow op by op.
@functools.partial(jax.jit, static_argnums=2)
def _update(state: ClusterState, x: Array, axis_name: str | None) -> ClusterState:
    *spatial, _ = state.labels.shape
    num_clusters = state.sizes.shape[0]
    pairs = jnp.asarray(edges(tuple(spatial)))

    def cluster(group: Group, old: Int[Array, " positions"]) -> tuple[Array, Array]:
        labels = _agglomerate(group, pairs, num_clusters).astype(old.dtype)
        labels = jnp.where(jnp.any(group.varying), labels, old)
        return labels, correlation.explained(group, labels, num_clusters)

    per_position = (1 + 2 * len(spatial)) * x.shape[0]  # the clusters' means, and those at both ends of each edge
    (labels, explained), finite = correlation.map_groups(
        cluster, x, correlation.by_group(state.labels), axis_name=axis_name, per_position=per_position
    )
    return commit_update(state, labels.T.reshape(state.labels.shape), explained, finite)


def _agglomerate(group: Group, pairs: Int[Array, "2 edges"], num_clusters: int) -> Int[Array, " positions"]:
    """Merge until `num_clusters` are left."""
    positions = group.varying.shape[1]
    if positions == num_clusters:  # and a map of one position has no edge at all
        return jnp.arange(positions)

    def merge(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        labels, weights, number = carry
        ends = labels[pairs]
        costs = _costs(group, labels, weights, ends)
        parents, edge = _nearest(ends, costs, jnp.any(_alive(group.varying, labels), axis=0))
        excess = jnp.sum(parents != jnp.arange(positions)) > number - num_clusters
        parents = correlation.apply_if(
            excess, lambda parents: _closest(parents, costs[edge], number - num_clusters), parents
        )
        merged, number = _components(parents, number)
        return merged[labels], _share(group.varying, labels, merged, weights), number

    # What each varying unit weighs in the mean of its cluster: the mean of means is not that of all members.
    carry = jnp.arange(positions), group.varying.astype(jnp.float32), jnp.array(positions)
    return jax.lax.while_loop(lambda carry: carry[2] > num_clusters, merge, carry)[0]


def _costs(
    group: Group,
    labels: Int[Array, " positions"],
    weights: Float[Array, "members positions"],
    ends: Int[Array, "2 edges"],
) -> Float[Array, " edges"]:
    """The squared distance between the means at both ends of each edge, over the channels in which both vary.

    Infinite within a cluster. Means are zero where nothing varies.
    """
    positions = len(labels)

    def partial(vectors: Array, _: Array, weights: Array, both: Array) -> Array:
        means = jax.ops.segment_sum(weights[:, None] * vectors, labels, positions)
        squares = jnp.square(means[ends[0]] - means[ends[1]])
        return jnp.where(both, correlation.product(squares, jnp.ones_like(squares[0])), 0.0)  # faster than a sum

    alive = _alive(group.varying, labels)
    both = alive[:, ends[0]] & alive[:, ends[1]]
    channels = jnp.sum(both, axis=0)
    distances = group.sum(partial, weights, both) / jnp.maximum(channels, 1)
    somewhere = jnp.any(alive, axis=0)
    neither = ~somewhere[ends[0]] & ~somewhere[ends[1]]
    # What is not finite is refused later; here it must not keep the loop from ending.
    costs = jnp.where((channels > 0) & (distances < _NOTHING_COMMON), distances, _NOTHING_COMMON)
    costs = jnp.where(somewhere[ends[0]] & somewhere[ends[1]], costs, jnp.where(neither, _BETWEEN_DEAD, _TO_DEAD))
    return jnp.where(ends[0] == ends[1], jnp.inf, costs)


def _alive(
    varying: Bool[Array, "members positions"], labels: Int[Array, " positions"]
) -> Bool[Array, "members clusters"]:
    """In which channels a cluster has a unit that varies."""
    return jax.vmap(lambda varying: jax.ops.segment_sum(varying.astype(jnp.int32), labels, len(labels)))(varying) > 0


def _nearest(
    ends: Int[Array, "2 edges"], costs: Float[Array, " edges"], alive: Bool[Array, " clusters"]
) -> tuple[Int[Array, " clusters"], Int[Array, " clusters"]]:
    """The nearest neighbor of each cluster and the edge to it; itself at the root of each tree, and if it has none.

    Edges are ordered by their cost, equal ones by their place in the grid. As all clusters see one order, following
    the nearest neighbor ends in a pair that are each other's, never in a longer circle; its lower one is the root. A
    cluster that varies waits for neighbors that do not: it is for them to join, or they would connect what is unlike.
    """
    positions = len(alive)
    everyone = jnp.arange(positions)
    order = jnp.arange(costs.size)
    both_ends, both_costs, both_orders = ends.ravel(), jnp.tile(costs, 2), jnp.tile(order, 2)
    least = jax.ops.segment_min(both_costs, both_ends, positions)
    first = jnp.where(both_costs == least[both_ends], both_orders, costs.size)
    edge = jax.ops.segment_min(first, both_ends, positions)
    goes = least < jnp.where(alive, _TO_DEAD, jnp.inf)
    edge = jnp.where(goes, edge, 0)
    other = jnp.where(goes, ends[0, edge] + ends[1, edge] - everyone, everyone)
    root = (other[other] == everyone) & (everyone < other)
    return jnp.where(root, everyone, other), edge


def _closest(
    parents: Int[Array, " clusters"],
    costs: Float[Array, " clusters"],
    most: Int[Array, ""],
) -> Int[Array, " clusters"]:
    """Keep only so many of the merges, the closest; first those of what does not vary, as they cost nothing."""
    everyone = jnp.arange(len(parents))
    # Floating-point numbers from 0 on are in the order of their bits.
    order = jax.lax.bitcast_convert_type(costs, jnp.uint32) + 2
    order = jnp.where(costs == _TO_DEAD, 0, jnp.where(costs == _BETWEEN_DEAD, 1, order))
    order = jnp.where(parents == everyone, jnp.uint32(2**32 - 1), order)

    # Four bits at a time the greatest number that fewer than `most` are below: far faster than to sort.
    def digit(i: Array, last: Array) -> Array:
        trials = last + jnp.left_shift(jnp.arange(16, dtype=jnp.uint32), (28 - 4 * i).astype(jnp.uint32))
        below = jnp.sum(order < trials[:, None], axis=1)
        return jnp.max(jnp.where(below < most, trials, last))

    last = jax.lax.fori_loop(0, 8, digit, jnp.zeros((), jnp.uint32))
    below, tied = order < last, order == last
    keeps = below | (tied & (jnp.cumsum(tied) <= most - jnp.sum(below)))
    return jnp.where(keeps, parents, everyone)


def _components(
    parents: Int[Array, " clusters"], number: Int[Array, ""]
) -> tuple[Int[Array, " clusters"], Int[Array, ""]]:
    """The new number of each cluster, the same for all of a tree; and how many there are."""
    everyone = jnp.arange(len(parents))
    is_root = (parents == everyone) & (everyone < number)
    _, roots = jax.lax.while_loop(
        lambda carry: jnp.any(carry[0] != carry[1]), lambda carry: (carry[1], carry[1][carry[1]]), (everyone, parents)
    )
    return (jnp.cumsum(is_root) - 1)[roots], jnp.sum(is_root)


def _share(
    varying: Bool[Array, "members positions"],
    labels: Int[Array, " positions"],
    merged: Int[Array, " clusters"],
    weights: Float[Array, "members positions"],
) -> Float[Array, "members positions"]:
    """Divide the weights by the number of clusters that merged, of those which vary in the channel."""
    alive = _alive(varying, labels)
    parts = jax.vmap(lambda alive: jax.ops.segment_sum(alive.astype(jnp.float32), merged, len(merged)))(alive)
    return weights / jnp.maximum(parts, 1.0)[:, merged[labels]]
