"""Clusterings of a layer's positions by the correlation of their responses.

`Grid`, `KMeans` and `ReNA` are clusterers: hyperparameters with pure methods `init` and `update` that return a
`ClusterState`. `Voronoi` and `Shuffled` are random controls for experiments. The metrics compare and evaluate
clusterings. `dropcluster_jax.masking` drops the clusters.
"""

from dropcluster_jax.clustering.controls import Shuffled, Voronoi
from dropcluster_jax.clustering.grid import Grid
from dropcluster_jax.clustering.kmeans import KMeans
from dropcluster_jax.clustering.metrics import adjusted_rand_index, explained_variance, is_connected
from dropcluster_jax.clustering.rena import ReNA
from dropcluster_jax.clustering.state import Clusterer, ClusterState, cluster_sizes, resize_clusters

__all__ = [
    "ClusterState",
    "Clusterer",
    "Grid",
    "KMeans",
    "ReNA",
    "Shuffled",
    "Voronoi",
    "adjusted_rand_index",
    "cluster_sizes",
    "explained_variance",
    "is_connected",
    "resize_clusters",
]
