"""Which units belong together: clusterings of a layer's positions by the correlation of their responses.

`Grid` and `KMeans` are clusterers: hyper-parameters with two pure methods, `init` and `update`, that make and renew
a `ClusterState`. Dropping the clusters is the business of `dropcluster_jax.masking`.
"""

from dropcluster_jax.clustering.grid import Grid
from dropcluster_jax.clustering.kmeans import KMeans
from dropcluster_jax.clustering.quality import agreement, explained_variance
from dropcluster_jax.clustering.state import Clusterer, ClusterState, resize

__all__ = ["ClusterState", "Clusterer", "Grid", "KMeans", "agreement", "explained_variance", "resize"]
