"""Regular grids: tiles as clusters, and neighbors of positions."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dropcluster_jax.clustering import correlation
from dropcluster_jax.clustering.explicit_axes import with_automatic_axes
from dropcluster_jax.clustering.state import (
    ClusterState,
    check_num_clusters,
    check_shapes,
    cluster_sizes,
    commit_update,
    resolve_num_clusters,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """Clusters that are the tiles of a regular grid and are never learned.

    Attributes:
        num_clusters: Number of clusters, at least 1 and at most the number of positions. Give either this or
            `cluster_size`.
        cluster_size: Mean number of positions per cluster, at least 1, for `max(1, round(positions / cluster_size))`
            clusters.
        per_channel: Whether each channel has its own labels (all equal for a grid), and therefore its own masks.

    Raises:
        TypeError: If `num_clusters` is not an integer.
        ValueError: If not exactly one of `num_clusters` and `cluster_size` is given, or it is below 1.

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
        """Returns the tiles for activations of a given shape. See `Clusterer.init`."""
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
        """Keeps the labels and measures the variance that they explain. See `Clusterer.update`."""
        check_shapes(x, state.labels)
        return with_automatic_axes(lambda state, x: _update(state, x, axis_name), state, x)


# Jitted for callers outside of `jit`, for whom every call would compile the loops again.
@functools.partial(jax.jit, static_argnums=2)
def _update(state: ClusterState, x: Array, axis_name: str | None) -> ClusterState:
    explained, finite = measure_explained_variance(state.labels, state.sizes.shape[0], x, axis_name)
    return commit_update(state, state.labels, explained, finite)


def measure_explained_variance(
    labels: Int[Array, "*spatial groups"], num_clusters: int, x: Array, axis_name: str | None
) -> tuple[Float[Array, " groups"], Bool[Array, ""]]:
    """Returns the fraction of variance that given clusters explain, and whether all activations are finite."""
    units, finite = correlation.layer_units(x, axis_name)

    def measure(units: correlation.Units, labels: Int[Array, " positions"]) -> Float[Array, ""]:
        return correlation.explained_variance(units, labels, num_clusters, axis_name)

    return correlation.map_groups(measure, units, labels, elements_per_position=num_clusters), finite


def tile_labels(spatial: tuple[int, ...], num_clusters: int) -> Int[np.ndarray, "*spatial"]:
    """Divides a map into exactly `num_clusters` tiles of nearly equal size, as cubic as possible.

    The first dimension is divided into bands about as wide as the ideal tile, and each band recursively into tiles.
    """
    length, *rest = spatial
    if not rest:
        return (np.arange(length) * num_clusters // length).astype(np.int32)
    side = (math.prod(spatial) / num_clusters) ** (1 / len(spatial))
    bands = min(max(1, round(length / side)), length, num_clusters)
    tiles = _split_evenly(num_clusters, bands)
    widths = np.diff(np.rint(np.cumsum([0, *tiles]) * length / num_clusters).astype(int))
    if np.any(widths < 1) or np.any(tiles > math.prod(rest)):
        # The tiles are nearly single positions: make each row a band.
        tiles, widths = _split_evenly(num_clusters, length), np.ones(length, int)
    labels, first_label = [], 0
    for count, width in zip(tiles.tolist(), widths.tolist(), strict=True):
        labels.append(np.broadcast_to(tile_labels(tuple(rest), count) + first_label, (width, *rest)))
        first_label += count
    return np.concatenate(labels)


def _split_evenly(total: int, parts: int) -> Int[np.ndarray, " parts"]:
    """Splits `total` into parts that differ by at most 1, with the larger ones spread evenly."""
    return np.diff(np.arange(parts + 1) * total // parts)


def edges(spatial: tuple[int, ...]) -> Int[np.ndarray, "2 edges"]:
    """Returns both positions of each pair of neighbors along one dimension, the lower position first."""
    positions = np.arange(math.prod(spatial), dtype=np.int32).reshape(spatial)
    pairs = [
        (np.delete(positions, -1, axis).ravel(), np.delete(positions, 0, axis).ravel()) for axis in range(len(spatial))
    ]
    return np.concatenate(pairs, axis=1)
