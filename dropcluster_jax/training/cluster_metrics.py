"""Metrics of cluster updates."""

from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from dropcluster_jax.clustering import ClusterState, adjusted_rand_index
from dropcluster_jax.linen import cluster_states


def mean_adjusted_rand_index(state: ClusterState, other: ClusterState) -> float:
    """Returns the adjusted Rand index of two states of a layer, averaged over channels and stacked layers."""
    labels, other_labels = jax.device_put((_flat_labels(state), _flat_labels(other)))
    return float(np.mean(jax.device_get(adjusted_rand_index(labels, other_labels))))


def cluster_metrics(before: PyTree, after: PyTree) -> dict[str, dict[str, Any]]:
    """Returns the metrics of an update of the collection "clusters", by layer."""
    old_states, states = (cluster_states(jax.device_get(clusters)) for clusters in (before, after))
    return {
        layer: {
            "explained_variance": float(np.mean(state.explained_variance)),
            "adjusted_rand_index": mean_adjusted_rand_index(state, old_states[layer]),
            "num_updates": int(np.max(state.num_updates)),
            "num_skipped": int(np.max(state.num_skipped)),
        }
        for layer, state in states.items()
    }


def _flat_labels(state: ClusterState) -> np.ndarray:
    """Returns labels `(positions, groups)`, with the groups of stacked layers concatenated."""
    num_stacked_axes = np.ndim(state.num_updates)
    *_, groups = state.labels.shape
    stacked = np.reshape(state.labels, (-1, np.prod(state.labels.shape[num_stacked_axes:-1], dtype=int), groups))
    return np.moveaxis(stacked, 0, -1).reshape(stacked.shape[1], -1)
