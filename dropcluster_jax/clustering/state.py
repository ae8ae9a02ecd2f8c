"""The state of a clustering, the protocol of those that make it, and what all of them share."""

from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


class ClusterState(NamedTuple):
    """Clusters of one layer: plain arrays, a pytree.

    `groups` is 1 where all channels share their labels, else the number of channels.

    Attributes:
        labels: int32 `(*spatial, groups)`, the cluster of each position, in `[0, num_clusters)`.
        sizes: int32 `(num_clusters, groups)`, positions in each cluster.
        explained_variance: float32 `(groups,)`, in [0, 1]: the share of the units' variance between clusters, on the last
            probe batch.
        num_updates: int32 scalar, updates so far.
        num_skipped: int32 scalar, updates refused because the activations were not finite.

    Example:
        >>> from dropcluster_jax import Grid
        >>> state = Grid(num_clusters=2).init((4, 3, 8))  # a map of 4 x 3 positions, 8 channels
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
    """What every clusterer is: hashable hyper-parameters with two pure methods.

    `KMeans`, `ReNA` and `Grid` are clusterers; so is any frozen dataclass with these two methods.

    Example:
        >>> import dataclasses
        >>> from dropcluster_jax import Grid
        >>> @dataclasses.dataclass(frozen=True)
        ... class Stripes:
        ...     def init(self, shape):
        ...         state = Grid(num_clusters=shape[-2]).init(shape)  # as many clusters as columns
        ...         columns = jnp.arange(shape[-2], dtype=jnp.int32)[:, None]
        ...         labels = jnp.broadcast_to(columns, state.labels.shape)
        ...         return state._replace(labels=labels, sizes=cluster_sizes(labels, shape[-2]))
        ...     def update(self, state, x, axis_name=None):
        ...         return state._replace(num_updates=state.num_updates + 1)
        >>> isinstance(Stripes(), Clusterer), Stripes().init((2, 3, 8)).labels[..., 0].tolist()
        (True, [[0, 1, 2], [0, 1, 2]])
    """

    def init(self, shape: tuple[int, ...]) -> ClusterState:
        """The clusters before the first update.

        Args:
            shape: `(*spatial, channels)`, an activation's shape without the batch.

        Returns:
            A state; its arrays' shapes stay as they are ever after.
        """
        ...

    def update(
        self, state: ClusterState, x: Float[Array, "batch *spatial channels"], axis_name: str | None = None
    ) -> ClusterState:
        """The clusters after one update.

        Args:
            state: the clusters so far.
            x: a probe batch of activations, `(batch, *spatial, channels)`.
            axis_name: a mapped axis over which the batch is split, if any: sums over examples go over it, so that all
                replicas find the same clusters.

        Returns:
            The next state.
        """
        ...


def check_num_clusters(num_clusters: int | None, cluster_size: float | None) -> None:
    """Refuse what can be no number and no size of clusters, for maps of any shape.

    Raises:
        ValueError: both or neither are given, or one is too small.
        TypeError: `num_clusters` is not an integer.
    """
    if (num_clusters is None) == (cluster_size is None):
        raise ValueError(
            f"give either num_clusters or cluster_size, got num_clusters={num_clusters}, cluster_size={cluster_size}"
        )
    if num_clusters is not None:
        if isinstance(num_clusters, bool) or not isinstance(num_clusters, (int, np.integer)):
            raise TypeError(f"num_clusters must be an integer, got {num_clusters!r}")
        if num_clusters < 1:
            raise ValueError(f"num_clusters must be at least 1, got {num_clusters}")
    elif cluster_size is not None and not 1 <= cluster_size < float("inf"):
        raise ValueError(
            f"cluster_size, the mean number of positions in a cluster, must be at least 1, got {cluster_size}"
        )


def resolve_num_clusters(num_clusters: int | None, cluster_size: float | None, positions: int) -> int:
    """The number of clusters for a map of so many positions: `num_clusters`, or round(positions / cluster_size).

    Raises:
        ValueError: there are fewer positions than clusters.
    """
    if cluster_size is not None:
        return max(1, round(positions / cluster_size))
    assert num_clusters is not None  # exactly one is given
    if num_clusters > positions:
        raise ValueError(
            f"num_clusters must be at most the number of positions, {positions} here, got {num_clusters}; "
            "cluster_size fits every map"
        )
    return int(num_clusters)


def cluster_sizes(labels: Int[Array, "*spatial groups"], num_clusters: int) -> Int[Array, "clusters groups"]:
    """How many positions each cluster has.

    Args:
        labels: int32 `(*spatial, groups)`, in `[0, num_clusters)`.
        num_clusters: the number of clusters.

    Returns:
        int32 `(num_clusters, groups)`, as `ClusterState.sizes`.

    Example:
        >>> cluster_sizes(jnp.array([[0], [0], [2]]), 3).tolist()
        [[2], [0], [1]]
    """
    flat = labels.reshape(-1, labels.shape[-1])
    counts = jax.vmap(lambda one: jnp.bincount(one, length=num_clusters), in_axes=1, out_axes=1)(flat)
    return counts.astype(jnp.int32)


def check_activations(x: Array, state: ClusterState) -> None:
    """Refuse activations that do not belong to these clusters.

    Raises:
        TypeError: `x` is not of a floating-point type.
        ValueError: the spatial shape, or the channels where each has its own labels, differ from the clusters'.
    """
    check_shapes(x, state.labels)


def check_shapes(x: Array, labels: Array) -> None:
    """Refuse activations that do not belong to these labels; the errors of `check_activations`."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"x must be of a floating-point type, got {x.dtype}")
    *spatial, groups = labels.shape
    if x.ndim != len(spatial) + 2 or x.shape[1:-1] != tuple(spatial):
        raise ValueError(
            f"x has shape {x.shape}, its spatial shape must be that of the clusters, {tuple(spatial)}. To go on at "
            "another resolution, resample the clusters: dropcluster_jax.resize_clusters(state, spatial) for one layer, "
            "dropcluster_jax.linen.resize_clusters(model, variables, x) for a network of Flax Linen, "
            "layer.set_clusters(dropcluster_jax.resize_clusters(layer.clusters, spatial)) for a layer of NNX"
        )
    if groups not in (1, x.shape[-1]):
        raise ValueError(f"x has {x.shape[-1]} channels, but the clusters are per channel, for {groups} channels")


def commit_update(
    state: ClusterState,
    labels: Int[Array, "*spatial groups"],
    explained_variance: Float[Array, " groups"],
    finite: Bool[Array, ""],
) -> ClusterState:
    """The next state: these labels where the activations were finite, else the old ones and `num_skipped` up by one."""
    sizes = cluster_sizes(labels, state.sizes.shape[0])
    updated = ClusterState(labels, sizes, explained_variance, state.num_updates + 1, state.num_skipped)
    refused = state._replace(num_skipped=state.num_skipped + 1)
    return jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, refused)


def resize_clusters(state: ClusterState, spatial: tuple[int, ...]) -> ClusterState:
    """The same clusters on a map of another spatial shape, by nearest neighbor.

    Args:
        state: clusters of a map with as many spatial dimensions, labels `(*spatial_before, groups)`.
        spatial: the new spatial shape, lengths of at least 1.

    Returns:
        A state with labels `(*spatial, groups)` and the same number of clusters. On a smaller map a cluster may lose
        all its positions; the next update fills it again.

    Raises:
        ValueError: the number of dimensions differs, or a length is below 1.

    Example:
        >>> from dropcluster_jax import Grid
        >>> state = Grid(num_clusters=2).init((4, 3))
        >>> resize_clusters(state, (8,)).labels[:, 0].tolist()
        [0, 0, 0, 0, 1, 1, 1, 1]
    """
    old = state.labels.shape[:-1]
    if len(spatial) != len(old) or min(spatial) < 1:
        raise ValueError(f"spatial must be {len(old)} lengths of at least 1, as the clusters' {old}, got {spatial}")
    labels = state.labels
    for axis, (length, new) in enumerate(zip(old, spatial, strict=True)):
        # The old position under the center of each new one.
        labels = jnp.take(labels, (2 * np.arange(new) + 1) * length // (2 * new), axis=axis)
    return state._replace(labels=labels, sizes=cluster_sizes(labels, state.sizes.shape[0]))
