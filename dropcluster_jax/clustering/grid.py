"""The regular grid of tiles: clusters that need no data. Where every clusterer starts, and an ablation of its own."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dropcluster_jax.clustering import correlation
from dropcluster_jax.clustering.state import (
    ClusterState,
    check_activations,
    check_num_clusters,
    cluster_sizes,
    commit_update,
    resolve_num_clusters,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """Clusters that stay the tiles of a regular grid.

    Attributes:
        num_clusters: the number of clusters K, `1 <= K <= positions`; or
        cluster_size: the mean number of positions in a cluster, at least 1, which fits every map:
            `K = max(1, round(positions / cluster_size))`.
        per_channel: whether each channel has labels (all the same here) and draws of its own.

    Raises:
        ValueError, TypeError: both or neither of `num_clusters` and `cluster_size`, or one below 1.

    Example:
        >>> Grid(num_clusters=4).init((2, 4, 3)).labels[..., 0].tolist()
        [[0, 1, 2, 3], [0, 1, 2, 3]]
        >>> Grid(cluster_size=4).init((4, 4, 3)).labels[..., 0].tolist()
        [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    """

    num_clusters: int | None = None
    cluster_size: float | None = None
    per_channel: bool = False

    def __post_init__(self) -> None:
        check_num_clusters(self.num_clusters, self.cluster_size)

    def init(self, shape: tuple[int, ...]) -> ClusterState:
        """The tiles of a map.

        Args:
            shape: `(*spatial, channels)`, an activation's shape without the batch.

        Returns:
            A state whose clusters explain nothing yet, updated 0 times.

        Raises:
            ValueError: no spatial dimension, a length below 1, or more clusters than positions.
        """
        *spatial, channels = shape
        if not spatial or min(shape) < 1:
            raise ValueError(f"shape must be (*spatial, channels) with at least one spatial dimension, got {shape}")
        num_clusters = resolve_num_clusters(self.num_clusters, self.cluster_size, math.prod(spatial))
        groups = channels if self.per_channel else 1
        labels = jnp.asarray(np.repeat(tile_labels(tuple(spatial), num_clusters)[..., None], groups, axis=-1))
        return ClusterState(
            labels=labels,
            sizes=cluster_sizes(labels, num_clusters),
            explained_variance=jnp.zeros(groups, jnp.float32),
            num_updates=jnp.zeros((), jnp.int32),
            num_skipped=jnp.zeros((), jnp.int32),
        )

    def update(
        self, state: ClusterState, x: Float[Array, "batch *spatial channels"], axis_name: str | None = None
    ) -> ClusterState:
        """The same labels, with the variance that they explain on a probe batch.

        Args:
            state: the clusters.
            x: the layer's activations in evaluation mode, unmasked. If any is not finite the state is kept, and
                `num_skipped` goes up by one.
            axis_name: a mapped axis over which the batch is split, if any.

        Returns:
            The state with a new `explained_variance`, and `num_updates` up by one.

        Raises:
            TypeError: `x` is not of a floating-point type.
            ValueError: `x` has another shape than the clusters.
        """
        check_activations(x, state)
        return _update(state, x, axis_name)


# Compiled here too, for those who call it outside of `jit`: loops would be compiled anew by every call.
@functools.partial(jax.jit, static_argnums=2)
def _update(state: ClusterState, x: Array, axis_name: str | None) -> ClusterState:
    num_clusters = state.sizes.shape[0]
    explained, finite = correlation.map_groups(
        lambda group, labels: correlation.explained(group, labels, num_clusters),
        x,
        correlation.by_group(state.labels),
        axis_name=axis_name,
        per_position=num_clusters,
    )
    return commit_update(state, state.labels, explained, finite)


def tile_labels(spatial: tuple[int, ...], num_clusters: int) -> Int[np.ndarray, "*spatial"]:
    """Cut a map into exactly `num_clusters` tiles, as equal and as cubic as whole rows allow.

    The first dimension is cut into bands of about the ideal tile's side, each band into its share of the tiles.
    """
    length, *rest = spatial
    if not rest:
        return (np.arange(length) * num_clusters // length).astype(np.int32)
    side = (math.prod(spatial) / num_clusters) ** (1 / len(spatial))
    bands = min(max(1, round(length / side)), length, num_clusters)
    tiles = _shares(num_clusters, bands)
    rows = np.diff(np.rint(np.cumsum([0, *tiles]) * length / num_clusters).astype(int))
    if np.any(rows < 1) or np.any(tiles > math.prod(rest)):
        # There are nearly as many tiles as positions: each row is a band.
        tiles, rows = _shares(num_clusters, length), np.ones(length, int)
    labels, first = [], 0
    for count, height in zip(tiles.tolist(), rows.tolist(), strict=True):
        labels.append(np.broadcast_to(tile_labels(tuple(rest), count) + first, (height, *rest)))
        first += count
    return np.concatenate(labels)


def coordinates(spatial: tuple[int, ...]) -> Float[np.ndarray, "positions dims"]:
    """Where each position lies, in [0, 1]^d; a dimension of length 1 is at 0."""
    axes = np.meshgrid(*(np.linspace(0.0, 1.0, length) for length in spatial), indexing="ij")
    return np.stack(axes, axis=-1).reshape(math.prod(spatial), len(spatial)).astype(np.float32)


def edges(spatial: tuple[int, ...]) -> Int[np.ndarray, "2 edges"]:
    """The two ends of each pair of positions that are neighbors along one dimension, the lower one first."""
    positions = np.arange(math.prod(spatial), dtype=np.int32).reshape(spatial)
    ends = [
        (np.delete(positions, -1, axis).ravel(), np.delete(positions, 0, axis).ravel()) for axis in range(len(spatial))
    ]
    return np.concatenate(ends, axis=1)


def _shares(total: int, parts: int) -> Int[np.ndarray, " parts"]:
    """Split `total` into parts that differ by at most 1, the larger ones spread evenly."""
    return np.diff(np.arange(parts + 1) * total // parts)
