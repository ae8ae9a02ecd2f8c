"""Cluster state, the clusterer protocol, and argument checks."""

from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


class ClusterState(NamedTuple):
    """Clusters of one layer.

    `groups` is 1 if all channels share their labels, else the number of channels.

    Attributes:
        labels: Cluster of each position, int32 `(*spatial, groups)`, in `[0, num_clusters)`. Clusterers number clusters
            in the order of their first positions, so that equal partitions have equal labels.
        sizes: Number of positions in each cluster, int32 `(num_clusters, groups)`.
        explained_variance: Fraction of the units' variance that the clusters explain on the last probe batch, float32
            `(groups,)`, in [0, 1].
        num_updates: Number of updates so far, int32 scalar.
        num_skipped: Number of updates that were skipped because of non-finite activations, int32 scalar.

    Example:
        >>> from dropcluster_jax import Grid
        >>> state = Grid(num_clusters=2).init((4, 3, 8))  # 4 x 3 positions, 8 channels
        >>> state.labels.shape, state.sizes.tolist(), state.explained_variance.tolist(), int(state.num_updates)
        ((4, 3, 1), [[6], [6]], [0.0], 0)
    """

    labels: Int[Array, "*spatial groups"]
    sizes: Int[Array, "clusters groups"]
    explained_variance: Float[Array, " groups"]
    num_updates: Int[Array, ""]
    num_skipped: Int[Array, ""]


@runtime_checkable
class Clusterer(Protocol):
    """Interface of clusterers: hashable hyperparameters with two pure methods.

    `KMeans`, `ReNA` and `Grid` implement it, and so does any frozen dataclass with these two methods.

    Example:
        >>> import dataclasses
        >>> from dropcluster_jax import Grid
        >>> @dataclasses.dataclass(frozen=True)
        ... class Columns:
        ...     def init(self, shape):
        ...         state = Grid(num_clusters=shape[-2]).init(shape)
        ...         columns = jnp.arange(shape[-2], dtype=jnp.int32)[:, None]
        ...         labels = jnp.broadcast_to(columns, state.labels.shape)
        ...         return state._replace(labels=labels, sizes=cluster_sizes(labels, shape[-2]))
        ...     def update(self, state, x, axis_name=None):
        ...         return state._replace(num_updates=state.num_updates + 1)
        >>> isinstance(Columns(), Clusterer), Columns().init((2, 3, 8)).labels[..., 0].tolist()
        (True, [[0, 1, 2], [0, 1, 2]])
    """

    def init(self, shape: tuple[int, ...]) -> ClusterState:
        """Returns the clusters before the first update.

        Args:
            shape: Shape of the activations without the batch, `(*spatial, channels)`.

        Returns:
            State with `num_updates` 0. The shapes of its arrays never change.

        Raises:
            ValueError: If there is no spatial dimension, a length is below 1, or there are more clusters than
                positions.
        """
        ...

    def update(
        self, state: ClusterState, x: Float[Array, "batch *spatial channels"], axis_name: str | None = None
    ) -> ClusterState:
        """Updates the clusters on a probe batch.

        Args:
            state: Current clusters.
            x: Activations of the layer in evaluation mode, without dropout, `(batch, *spatial, channels)`. If any of
                them is not finite, or their norm over the batch overflows in float32, the update is skipped and
                `num_skipped` is incremented instead. Otherwise, their scale does not matter.
            axis_name: Mapped axis over which the batch is split, if any. All replicas compute the same clusters, which
                are those of the whole batch up to rounding.

        Returns:
            Next state. All arithmetic is in float32, whatever the dtype of `x`.

        Raises:
            TypeError: If `x` is not floating-point.
            ValueError: If the batch is empty, or the shape of `x` does not match the clusters.
        """
        ...


def check_num_clusters(num_clusters: int | None, cluster_size: float | None) -> None:
    """Validates the arguments that set the number of clusters.

    Raises:
        TypeError: If `num_clusters` is not an integer.
        ValueError: If not exactly one argument is given, or it is below 1.
    """
    if (num_clusters is None) == (cluster_size is None):
        raise ValueError(
            "exactly one of num_clusters and cluster_size must be given, "
            f"got num_clusters={num_clusters}, cluster_size={cluster_size}"
        )
    if num_clusters is not None:
        if isinstance(num_clusters, bool) or not isinstance(num_clusters, (int, np.integer)):
            raise TypeError(f"num_clusters must be an integer, got {num_clusters!r}")
        if num_clusters < 1:
            raise ValueError(f"num_clusters must be at least 1, got {num_clusters}")
    elif cluster_size is not None and not 1 <= cluster_size < float("inf"):
        raise ValueError(
            f"cluster_size, the mean number of positions per cluster, must be at least 1, got {cluster_size}"
        )


def resolve_num_clusters(num_clusters: int | None, cluster_size: float | None, positions: int) -> int:
    """Returns `num_clusters`, or `max(1, round(positions / cluster_size))`.

    Raises:
        ValueError: If there are more clusters than positions.
    """
    if cluster_size is not None:
        return max(1, round(positions / cluster_size))
    assert num_clusters is not None
    if num_clusters > positions:
        raise ValueError(
            f"num_clusters must be at most the number of positions, {positions} here, got {num_clusters}; "
            "use cluster_size to scale the number of clusters with the number of positions"
        )
    return int(num_clusters)


def cluster_sizes(labels: Int[Array, "*spatial groups"], num_clusters: int) -> Int[Array, "clusters groups"]:
    """Counts the positions in each cluster.

    Args:
        labels: Cluster of each position, int32 `(*spatial, groups)`, in `[0, num_clusters)`.
        num_clusters: Number of clusters.

    Returns:
        int32 `(num_clusters, groups)`, like `ClusterState.sizes`.

    Example:
        >>> cluster_sizes(jnp.array([[0], [0], [2]]), 3).tolist()
        [[2], [0], [1]]
    """
    flat = labels.reshape(-1, labels.shape[-1])
    counts = jax.vmap(lambda group: jnp.bincount(group, length=num_clusters), in_axes=1, out_axes=1)(flat)
    return counts.astype(jnp.int32)


def number_by_first_position(labels: Int[Array, "*spatial groups"], num_clusters: int) -> Int[Array, "*spatial groups"]:
    """Renumbers the clusters of each group in the order of their first positions, with empty clusters last."""
    flat = labels.reshape(-1, labels.shape[-1])
    positions = jnp.arange(len(flat), dtype=jnp.int32)

    def renumber(labels: Int[Array, " positions"]) -> Int[Array, " positions"]:
        first_positions = jax.ops.segment_min(positions, labels, num_clusters)
        ranks = jnp.argsort(jnp.argsort(first_positions)).astype(jnp.int32)
        return ranks[labels]

    return jax.vmap(renumber, in_axes=1, out_axes=1)(flat).reshape(labels.shape)


def check_shapes(x: Array, labels: Array) -> None:
    """Validates the dtype and the shape of activations against labels.

    Raises:
        TypeError: If `x` is not floating-point.
        ValueError: If the spatial shapes differ, or the number of channels for labels per channel.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"x must have a floating-point dtype, got {x.dtype}")
    *spatial, groups = labels.shape
    if x.ndim != len(spatial) + 2 or x.shape[1:-1] != tuple(spatial):
        raise ValueError(
            f"x must have the spatial shape of the clusters, {tuple(spatial)}, got shape {x.shape}. To change the "
            "resolution, use dropcluster_jax.resize_clusters(state, spatial) for one layer, "
            "dropcluster_jax.linen.resize_clusters(model, variables, x) for a Flax Linen network, or "
            "layer.set_clusters(dropcluster_jax.resize_clusters(layer.clusters, spatial)) for an NNX layer"
        )
    if groups not in (1, x.shape[-1]):
        raise ValueError(
            f"x has {x.shape[-1]} channels, but the clusters are per channel, for {groups} channels; for new clusters, "
            "call clusterer.init(x.shape[1:])"
        )


def commit_update(
    state: ClusterState,
    labels: Int[Array, "*spatial groups"],
    explained_variance: Float[Array, " groups"],
    finite: Bool[Array, ""],
) -> ClusterState:
    """Returns the state with the new labels, or, if `finite` is False, the old state with `num_skipped` incremented."""
    sizes = cluster_sizes(labels, state.sizes.shape[0])
    updated = ClusterState(labels, sizes, explained_variance, state.num_updates + 1, state.num_skipped)
    skipped = state._replace(num_skipped=state.num_skipped + 1)
    return jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, skipped)


def resize_clusters(state: ClusterState, spatial: tuple[int, ...]) -> ClusterState:
    """Resamples clusters to another spatial shape by nearest-neighbor interpolation.

    Args:
        state: Clusters with labels `(*old_spatial, groups)`.
        spatial: New spatial shape, with the same number of dimensions.

    Returns:
        State with labels `(*spatial, groups)` and the same number of clusters. At a lower resolution some clusters may
        be empty until the next update.

    Raises:
        ValueError: If the number of dimensions differs, or a length is below 1.

    Example:
        >>> from dropcluster_jax import Grid
        >>> state = Grid(num_clusters=2).init((4, 3))
        >>> resize_clusters(state, (8,)).labels[:, 0].tolist()
        [0, 0, 0, 0, 1, 1, 1, 1]
    """
    old_spatial = state.labels.shape[:-1]
    if len(spatial) != len(old_spatial) or min(spatial) < 1:
        raise ValueError(
            f"spatial must be {len(old_spatial)} lengths of at least 1, like the clusters' {old_spatial}, got {spatial}"
        )
    labels = state.labels
    for axis, (old_length, length) in enumerate(zip(old_spatial, spatial, strict=True)):
        centers = (2 * np.arange(length) + 1) * old_length // (2 * length)
        labels = jnp.take(labels, centers, axis=axis)
    return state._replace(labels=labels, sizes=cluster_sizes(labels, state.sizes.shape[0]))
