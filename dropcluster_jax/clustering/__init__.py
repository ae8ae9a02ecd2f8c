"""Which units belong together: clusterings of a layer's positions by the correlation of their responses.

`Grid`, `KMeans` and `ReNA` are clusterers: hyper-parameters with two pure methods, `init` and `update`, that make and
renew a `ClusterState`. `quality` measures what they find. Dropping the clusters is the business of
`dropcluster_jax.masking`.
"""

from dropcluster_jax.clustering.grid import Grid
from dropcluster_jax.clustering.kmeans import KMeans
from dropcluster_jax.clustering.metrics import (
    adjusted_rand_index,
    explained_variance,
    is_connected,
    mean_within_correlation,
)
from dropcluster_jax.clustering.rena import ReNA
from dropcluster_jax.clustering.state import Clusterer, ClusterState, cluster_sizes, resize_clusters

__all__ = [
    "ClusterState",
    "Clusterer",
    "Grid",
    "KMeans",
    "ReNA",
    "adjusted_rand_index",
    "cluster_sizes",
    "explained_variance",
    "is_connected",
    "mean_within_correlation",
    "resize_clusters",
]
