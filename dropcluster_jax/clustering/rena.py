"""ReNA, recursive nearest agglomeration: connected clusters by merging neighbors on the grid."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dropcluster_jax.clustering import correlation
from dropcluster_jax.clustering.channels import sum_over_channels
from dropcluster_jax.clustering.correlation import Units, apply_if
from dropcluster_jax.clustering.explicit_axes import with_automatic_axes
from dropcluster_jax.clustering.grid import Grid, edges
from dropcluster_jax.clustering.state import (
    ClusterState,
    check_shapes,
    commit_update,
    number_by_first_position,
)

# Costs of merges whose distance is undefined. Squared distances are at most 4.
_NO_COMMON_CHANNEL = 6.0  # Both clusters vary, but not in the same channel.
_ONE_CONSTANT = 8.0
_BOTH_CONSTANT = 16.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReNA:
    """Connected clusters of positions whose responses correlate, learned by recursive nearest agglomeration.

    Each position starts as its own cluster. In every round, each cluster merges with the neighbor on the grid whose
    mean is nearest. The mean of the merged cluster is the mean of its parts' means. If all units vary, a round at least
    halves the number of clusters; the last round merges only the closest pairs, to reach exactly the requested number.
    Ties are broken in favor of neighbors along the first dimension, then of lower positions. Time and memory are linear
    in the number of units.

    Each update starts from scratch; previous labels have no influence. Constant units, whose response does not vary
    over the batch, do not contribute to means. Positions with only constant units join a varying neighbor as soon as
    they have one, before any other merge. A channel (or layer, if labels are shared) with only constant units keeps its
    labels.

    Attributes:
        num_clusters, cluster_size: See `Grid`.
        per_channel: Whether each channel has its own labels.

    Raises:
        TypeError, ValueError: See `Grid`.

    Note:
        On GPU, XLA sums the members of a cluster in an unspecified order unless
        `XLA_FLAGS=--xla_gpu_deterministic_ops=true` is set, so near ties can differ between runs. The replicas of one
        run always agree, because they compare sums over the whole batch.

    References:
        Hoyos-Idrobo, Varoquaux, Kahn, Thirion, "Recursive Nearest Agglomeration (ReNA): fast clustering for
        approximation of structured signals", IEEE TPAMI 41(3), 2019, arXiv:1609.04608, algorithm 1.

    Example:
        >>> signal = jax.random.normal(jax.random.key(0), (64, 2))
        >>> x = signal[:, jnp.array([0, 0, 1, 1, 1, 0]), None]  # 6 positions in a row, one channel, two signals
        >>> clusterer = ReNA(num_clusters=3)
        >>> state = clusterer.update(clusterer.init(x.shape[1:]), x)
        >>> state.labels[:, 0].tolist()
        [0, 0, 1, 1, 1, 2]
        >>> bool(jnp.allclose(state.explained_variance, 1.0))
        True
    """

    num_clusters: int | None = None
    cluster_size: float | None = None
    per_channel: bool = False

    def __post_init__(self) -> None:
        self._grid()

    def _grid(self) -> Grid:
        return Grid(num_clusters=self.num_clusters, cluster_size=self.cluster_size, per_channel=self.per_channel)

    def init(self, shape: tuple[int, ...]) -> ClusterState:
        """Returns the tiles of a regular grid. See `Clusterer.init`."""
        return self._grid().init(shape)

    def update(
        self, state: ClusterState, x: Float[Array, "batch *spatial channels"], axis_name: str | None = None
    ) -> ClusterState:
        """Runs ReNA on a probe batch. See `Clusterer.update`."""
        check_shapes(x, state.labels)
        return with_automatic_axes(lambda state, x: _update(state, x, axis_name), state, x)


# Jitted for callers outside of `jit`, where control flow is slow.
@functools.partial(jax.jit, static_argnums=2)
def _update(state: ClusterState, x: Array, axis_name: str | None) -> ClusterState:
    batch, *spatial, _ = x.shape
    num_clusters = state.sizes.shape[0]
    grid_edges = jnp.asarray(edges(tuple(spatial)))
    units, finite = correlation.layer_units(x, axis_name)

    def cluster(units: Units, old_labels: Int[Array, " positions"]) -> tuple[Array, Array]:
        labels = _agglomerate(units, grid_edges, num_clusters, axis_name).astype(old_labels.dtype)
        labels = jnp.where(jnp.any(units.varying), labels, old_labels)
        labels = number_by_first_position(labels[:, None], num_clusters)[:, 0]
        return labels, correlation.explained_variance(units, labels, num_clusters, axis_name)

    # The means of the clusters, and those at both ends of each edge.
    elements_per_position = (1 + 2 * len(spatial)) * batch
    labels, explained = correlation.map_groups(
        cluster, units, state.labels, elements_per_position=elements_per_position
    )
    return commit_update(state, labels.T.reshape(state.labels.shape), explained, finite)


def _agglomerate(
    units: Units, grid_edges: Int[Array, "2 edges"], num_clusters: int, axis_name: str | None
) -> Int[Array, " positions"]:
    """Merges clusters, starting from single positions, until `num_clusters` remain."""
    positions = units.varying.shape[1]
    if positions == num_clusters:  # a single position has no edges
        return jnp.arange(positions, dtype=jnp.int32)

    def merge(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        labels, weights, count = carry
        ends = labels[grid_edges]
        varying = _varying_clusters(units.varying, labels)
        costs = _merge_costs(units.vectors, varying, labels, weights, ends, axis_name)
        parents, edge = _nearest_neighbors(ends, costs, jnp.any(varying, axis=0))
        excess = count - num_clusters
        parents = apply_if(
            jnp.sum(parents != jnp.arange(positions, dtype=jnp.int32), dtype=jnp.int32) > excess,
            lambda parents: _keep_cheapest(parents, costs[edge], excess),
            parents,
        )
        merged, count = _connected_components(parents, count)
        return merged[labels], _divide_weights(weights, varying, labels, merged), count

    # Weight of each unit in the mean of its cluster. Weights differ, because this is a mean of means.
    weights = units.varying.astype(jnp.float32)
    carry = jnp.arange(positions, dtype=jnp.int32), weights, jnp.array(positions, jnp.int32)
    return jax.lax.while_loop(lambda carry: carry[2] > num_clusters, merge, carry)[0]


def _varying_clusters(
    varying: Bool[Array, "channels positions"], labels: Int[Array, " positions"]
) -> Bool[Array, "channels clusters"]:
    """Returns whether each cluster has a varying unit in each channel."""
    counts = jax.vmap(lambda varying: jax.ops.segment_sum(varying.astype(jnp.int32), labels, len(labels)))(varying)
    return counts > 0


def _merge_costs(
    vectors: Float[Array, "channels positions batch"],
    varying: Bool[Array, "channels clusters"],
    labels: Int[Array, " positions"],
    weights: Float[Array, "channels positions"],
    ends: Int[Array, "2 edges"],
    axis_name: str | None,
) -> Float[Array, " edges"]:
    """Returns the squared distance between the means of the clusters at both ends of each edge.

    Distances are averaged over the channels in which both clusters vary. Edges within a cluster have infinite cost.
    """
    first, second = ends

    def terms(vectors: Array, weights: Array, both_vary: Array) -> Float[Array, " edges"]:
        means = jax.ops.segment_sum(weights[:, None] * vectors, labels, len(labels))
        squares = jnp.square(means[first] - means[second])
        squared_distances = correlation.matmul(squares, jnp.ones_like(squares[0]))  # faster than a sum
        return jnp.where(both_vary, squared_distances, 0.0)

    both_vary = varying[:, first] & varying[:, second]
    channels = jnp.sum(both_vary, axis=0, dtype=jnp.int32)
    total = correlation.psum(sum_over_channels(terms, vectors, weights, both_vary), axis_name)
    distances = total / jnp.maximum(channels, 1).astype(jnp.float32)
    # Also replace non-finite distances, so that the loop terminates; the update is skipped later.
    costs = jnp.where((channels > 0) & (distances < _NO_COMMON_CHANNEL), distances, _NO_COMMON_CHANNEL)

    varies = jnp.any(varying, axis=0)
    missing = jnp.where(varies[first] | varies[second], _ONE_CONSTANT, _BOTH_CONSTANT)
    costs = jnp.where(varies[first] & varies[second], costs, missing)
    return jnp.where(first == second, jnp.inf, costs)


def _nearest_neighbors(
    ends: Int[Array, "2 edges"], costs: Float[Array, " edges"], varying: Bool[Array, " clusters"]
) -> tuple[Int[Array, " clusters"], Int[Array, " clusters"]]:
    """Returns each cluster's parent in the forest of nearest neighbors, and the edge to the parent.

    The parent is the neighbor with the cheapest edge; a root is its own parent. Because edges are totally ordered (by
    cost, then by index), a path of nearest neighbors always ends in a pair of mutual nearest neighbors, never in a
    longer cycle. The lower cluster of the pair is the root. A varying cluster never chooses a constant neighbor, which
    could connect it to dissimilar clusters; the constant neighbor chooses it instead.
    """
    positions, num_edges = len(varying), costs.size
    clusters, edge_indices = jnp.arange(positions, dtype=jnp.int32), jnp.arange(num_edges, dtype=jnp.int32)
    ends_of_both, costs_of_both, indices_of_both = ends.ravel(), jnp.tile(costs, 2), jnp.tile(edge_indices, 2)
    lowest_cost = jax.ops.segment_min(costs_of_both, ends_of_both, positions)
    cheapest = jnp.where(costs_of_both == lowest_cost[ends_of_both], indices_of_both, num_edges)
    edge = jax.ops.segment_min(cheapest, ends_of_both, positions)
    has_parent = lowest_cost < jnp.where(varying, _ONE_CONSTANT, jnp.inf)
    edge = jnp.where(has_parent, edge, 0)
    neighbor = jnp.where(has_parent, ends[0, edge] + ends[1, edge] - clusters, clusters)
    is_root = (neighbor[neighbor] == clusters) & (clusters < neighbor)
    return jnp.where(is_root, clusters, neighbor), edge


def _keep_cheapest(
    parents: Int[Array, " clusters"], costs: Float[Array, " clusters"], count: Int[Array, ""]
) -> Int[Array, " clusters"]:
    """Keeps only the `count` cheapest merges, where merges of constant clusters are cheaper than all others."""
    clusters = jnp.arange(len(parents), dtype=jnp.int32)
    constant = jnp.where(costs == _ONE_CONSTANT, -2.0, -1.0)
    priorities = jnp.where(costs < _ONE_CONSTANT, costs, constant)
    priorities = jnp.where(parents == clusters, jnp.inf, priorities)
    kept = jnp.zeros(len(parents), bool).at[jnp.argsort(priorities)].set(clusters < count)
    return jnp.where(kept, parents, clusters)


def _connected_components(
    parents: Int[Array, " clusters"], count: Int[Array, ""]
) -> tuple[Int[Array, " clusters"], Int[Array, ""]]:
    """Returns the tree of each cluster, numbered by root, and the number of trees."""
    clusters = jnp.arange(len(parents), dtype=jnp.int32)
    is_root = (parents == clusters) & (clusters < count)
    _, roots = jax.lax.while_loop(
        lambda carry: jnp.any(carry[0] != carry[1]), lambda carry: (carry[1], carry[1][carry[1]]), (clusters, parents)
    )
    return (jnp.cumsum(is_root, dtype=jnp.int32) - 1)[roots], jnp.sum(is_root, dtype=jnp.int32)


def _divide_weights(
    weights: Float[Array, "channels positions"],
    varying: Bool[Array, "channels clusters"],
    labels: Int[Array, " positions"],
    merged: Int[Array, " clusters"],
) -> Float[Array, "channels positions"]:
    """Divides each unit's weight by the number of clusters that merged into its cluster and vary in its channel."""

    def count_parts(varying: Bool[Array, " clusters"]) -> Float[Array, " clusters"]:
        return jax.ops.segment_sum(varying.astype(jnp.float32), merged, len(merged))

    parts = jax.vmap(count_parts)(varying)
    return weights / jnp.maximum(parts, 1.0)[:, merged[labels]]
