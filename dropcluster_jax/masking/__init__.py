"""Which units are dropped now: pure functions of a key, activations and a rate, and the masks on their own.

All speak alike: `drop(key, x, rate, ...)` drops and rescales, `drop_mask(key, x, rate, ...)` gives the mask, True =
kept, broadcastable to `x`. What the clusters of `drop_cluster` are is the business of `dropcluster_jax.clustering`.
"""

from dropcluster_jax.masking.drop_block import drop_block, drop_block_mask
from dropcluster_jax.masking.drop_cluster import drop_cluster, drop_cluster_mask
from dropcluster_jax.masking.dropout import dropout, dropout_mask, spatial_dropout, spatial_dropout_mask

__all__ = [
    "drop_block",
    "drop_block_mask",
    "drop_cluster",
    "drop_cluster_mask",
    "dropout",
    "dropout_mask",
    "spatial_dropout",
    "spatial_dropout_mask",
]
