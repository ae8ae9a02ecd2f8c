"""Structured dropout with learned clusters.

This module exports the clusterers, the dropout functions, and `mc_predict`, which need only JAX. Layers are in
`dropcluster_jax.linen` and `dropcluster_jax.nnx`, networks in `dropcluster_jax.models`, and training steps in
`dropcluster_jax.training`.
"""

from dropcluster_jax.clustering import Clusterer, ClusterState, Grid, KMeans, ReNA, resize_clusters
from dropcluster_jax.masking import (
    corr_drop,
    corr_drop_mask,
    cutout,
    cutout_mask,
    drop_block,
    drop_block_mask,
    drop_cluster,
    drop_cluster_mask,
    drop_path,
    drop_path_mask,
    dropout,
    dropout_mask,
    focused_dropout,
    focused_dropout_mask,
    spatial_dropout,
    spatial_dropout_mask,
)
from dropcluster_jax.uncertainty import MonteCarloPrediction, mc_predict

__version__ = "0.1.0"

__all__ = [
    "ClusterState",
    "Clusterer",
    "Grid",
    "KMeans",
    "MonteCarloPrediction",
    "ReNA",
    "corr_drop",
    "corr_drop_mask",
    "cutout",
    "cutout_mask",
    "drop_block",
    "drop_block_mask",
    "drop_cluster",
    "drop_cluster_mask",
    "drop_path",
    "drop_path_mask",
    "dropout",
    "dropout_mask",
    "focused_dropout",
    "focused_dropout_mask",
    "mc_predict",
    "resize_clusters",
    "spatial_dropout",
    "spatial_dropout_mask",
]
