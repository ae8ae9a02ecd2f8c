"""The DropCluster layers of a run's network: what comes to them, and what has become of their clusters."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from dropcluster_jax.clustering import ClusterState
from dropcluster_jax.linen import DropCluster, cluster_inputs, cluster_states
from dropcluster_jax.models import ResNet
from dropcluster_jax.training.loop import agreement_of

DPI = 130  # of pictures that are written


def cluster_layers(model: ResNet, clusters: PyTree) -> dict[str, ClusterState]:
    """The clusters of each place, from the input to the output, on the host; `clusters` is the Flax collection."""
    states = {place_of(layer): state for layer, state in cluster_states(_on_host(clusters)).items()}
    return {place: states[place] for place in model.places if place in states}


def clusters_and_maps(
    model: ResNet, variables: PyTree, images: Float[Array, "batch height width channels"]
) -> dict[str, tuple[ClusterState, np.ndarray]]:
    """Of each place, in order, its clusters and what comes to it of normalised images: `viz.cluster_figure` draws it.

    Activations are `(batch, height, width, channels)`, in evaluation; all on the host.
    """
    inputs = jax.jit(lambda variables, images: cluster_inputs(model, variables, images))(variables, jnp.asarray(images))
    maps = {place_of(layer): each for layer, each in jax.device_get(inputs).items()}
    return {place: (state, maps[place]) for place, state in cluster_layers(model, variables["clusters"]).items()}


def summarise(model: ResNet, clusters: dict[str, ClusterState]) -> dict[str, dict[str, Any]]:
    """What `summary.json` says of each place's clusters."""
    return {
        place: {
            "updates": int(np.max(state.count)),
            "skipped": int(np.max(state.skipped)),
            "explained": float(np.mean(state.explained)),
            "agreement_with_grid": agreement_of(state, first_clusters(model, place, state.labels.shape)),
        }
        for place, state in clusters.items()
    }


def first_clusters(model: ResNet, place: str, shape: tuple[int, ...]) -> ClusterState:
    """As they were before any update; `shape` is that of the labels."""
    drop = model.drop[place]
    assert isinstance(drop, DropCluster) and drop.clusterer is not None
    return jax.device_get(drop.clusterer.init(shape))


def _on_host(tree: PyTree) -> PyTree:
    """On the host; shapes stay shapes."""
    return jax.tree.map(lambda leaf: leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.device_get(leaf), tree)


def place_of(layer: str) -> str:
    """The place of a network's drop layer; of layers that are not of `dropcluster_jax.models`, the name as it is."""
    return layer.removeprefix("drop_")
