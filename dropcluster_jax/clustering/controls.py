"""Random clusters, as controls for experiments on what learned clusters contribute."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dropcluster_jax.clustering.explicit_axes import with_automatic_axes
from dropcluster_jax.clustering.grid import Grid, measure_explained_variance
from dropcluster_jax.clustering.state import (
    Clusterer,
    ClusterState,
    check_num_clusters,
    check_shapes,
    commit_update,
    number_by_first_position,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Voronoi:
    """Voronoi cells of random points, drawn again at each update and independent of the activations.

    Compact like learned clusters, but random: a control for whether learning matters.

    Attributes:
        num_clusters, cluster_size: See `Grid`.
        per_channel: Whether each channel has its own cells.
        seed: Seed of the points. The n-th update draws the same points in every run with this seed.

    Raises:
        TypeError, ValueError: See `Grid`.

    Example:
        >>> x = jax.random.normal(jax.random.key(0), (8, 4, 6, 3))
        >>> clusterer = Voronoi(num_clusters=3)
        >>> state = clusterer.update(clusterer.init(x.shape[1:]), x)
        >>> state.labels.shape, int(state.sizes.sum()), int(state.num_updates)
        ((4, 6, 1), 24, 1)
    """

    num_clusters: int | None = None
    cluster_size: float | None = None
    per_channel: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_num_clusters(self.num_clusters, self.cluster_size)

    def init(self, shape: tuple[int, ...]) -> ClusterState:
        """Returns the tiles of a regular grid. See `Clusterer.init`."""
        grid = Grid(num_clusters=self.num_clusters, cluster_size=self.cluster_size, per_channel=self.per_channel)
        return grid.init(shape)

    def update(
        self, state: ClusterState, x: Float[Array, "batch *spatial channels"], axis_name: str | None = None
    ) -> ClusterState:
        """Draws new cells and measures the variance that they explain. See `Clusterer.update`."""
        check_shapes(x, state.labels)
        return with_automatic_axes(lambda state, x: _update_voronoi(state, x, self.seed, axis_name), state, x)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _update_voronoi(state: ClusterState, x: Array, seed: int, axis_name: str | None) -> ClusterState:
    *spatial, groups = state.labels.shape
    num_clusters = state.sizes.shape[0]
    key = _update_key(seed, state.num_updates)
    # The nearest of K distinct positions; distinct, so that no cell is empty.
    centers = jax.vmap(lambda key: jax.random.choice(key, math.prod(spatial), (num_clusters,), replace=False))(
        jax.random.split(key, groups)
    )
    positions = jnp.stack(jnp.unravel_index(jnp.arange(math.prod(spatial)), tuple(spatial)), axis=-1)
    distances = jnp.sum(jnp.square(positions[:, None, None] - positions[centers][None]), axis=-1)
    labels = jnp.argmin(distances, axis=-1).astype(jnp.int32).reshape(state.labels.shape)
    labels = number_by_first_position(labels, num_clusters)
    explained, finite = measure_explained_variance(labels, num_clusters, x, axis_name)
    return commit_update(state, labels, explained, finite)


@dataclasses.dataclass(frozen=True)
class Shuffled:
    """Clusters of another clusterer with all positions permuted at random: random partitions with learned sizes.

    The permutation is drawn again at each update. Clusters before the first update are the other clusterer's. Since
    clusters are numbered by their first positions, the sizes are those of the other clusterer in another order.

    Attributes:
        clusterer: Clusterer that determines the sizes.
        seed: Seed of the permutations. The n-th update draws the same permutation in every run with this seed.

    Example:
        >>> from dropcluster_jax.clustering import KMeans
        >>> x = jax.random.normal(jax.random.key(0), (8, 4, 6, 3))
        >>> state = (clusterer := KMeans(num_clusters=3)).init(x.shape[1:])
        >>> learned, shuffled = clusterer.update(state, x), Shuffled(clusterer).update(state, x)
        >>> sorted(learned.sizes) == sorted(shuffled.sizes), bool(jnp.all(learned.labels == shuffled.labels))
        (True, False)
    """

    clusterer: Clusterer
    seed: int = 0

    def init(self, shape: tuple[int, ...]) -> ClusterState:
        """Returns the other clusterer's clusters. See `Clusterer.init`."""
        return self.clusterer.init(shape)

    def update(
        self, state: ClusterState, x: Float[Array, "batch *spatial channels"], axis_name: str | None = None
    ) -> ClusterState:
        """Updates the other clusterer's clusters and permutes their positions. See `Clusterer.update`.

        `explained_variance` is that of the permuted clusters.
        """
        check_shapes(x, state.labels)
        return with_automatic_axes(lambda state, x: _update_shuffled(self, state, x, axis_name), state, x)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _update_shuffled(shuffled: Shuffled, state: ClusterState, x: Array, axis_name: str | None) -> ClusterState:
    num_clusters, shape = state.sizes.shape[0], state.labels.shape

    def permutation(num_updates: Int[Array, ""]) -> Int[Array, " positions"]:
        positions = jnp.arange(math.prod(shape[:-1]), dtype=jnp.int32)
        return jax.random.permutation(_update_key(shuffled.seed, num_updates), positions)

    # The learned labels are restored, so that the other clusterer starts from its own clusters.
    permuted = _flat(state.labels)
    restored = permuted.at[permutation(state.num_updates)].set(permuted).reshape(shape)
    learned = jnp.where(state.num_updates > 0, number_by_first_position(restored, num_clusters), state.labels)
    updated = shuffled.clusterer.update(state._replace(labels=learned), x, axis_name)
    labels = _flat(updated.labels)[permutation(updated.num_updates)].reshape(shape)
    labels = number_by_first_position(labels, num_clusters)
    explained, _ = measure_explained_variance(labels, num_clusters, x, axis_name)
    return commit_update(state, labels, explained, finite=updated.num_updates > state.num_updates)


def _update_key(seed: int, num_updates: Int[Array, ""]) -> Array:
    # Threefry, so that clusters do not depend on the device or on jax_default_prng_impl.
    return jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), num_updates)


def _flat(labels: Int[Array, "*spatial groups"]) -> Int[Array, "positions groups"]:
    return labels.reshape(-1, labels.shape[-1])
