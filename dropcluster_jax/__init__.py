"""Structured dropout whose structure is learned.

Here: the two lower floors, clustering and masking, and `mc_predict`, which need JAX alone. The layers are in
`dropcluster_jax.linen`, networks in `dropcluster_jax.models`, training in `dropcluster_jax.training`.
"""

from dropcluster_jax.clustering import Clusterer, ClusterState, Grid, KMeans, ReNA, resize_clusters
from dropcluster_jax.masking import (
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
    "mc_predict",
    "resize_clusters",
    "spatial_dropout",
    "spatial_dropout_mask",
]
