"""Which units are dropped now: pure functions of a key, activations and a rate, and the masks on their own.

All speak alike: `drop(key, x, rate, ...)` drops and rescales, `drop_mask(key, x, rate, ...)` gives the mask, True =
kept, broadcastable to `x`. What the clusters of `drop_cluster` are is the business of `dropcluster_jax.clustering`.
"""

from dropcluster_jax.masking.cutout import cutout, cutout_mask
from dropcluster_jax.masking.drop_block import drop_block, drop_block_mask
from dropcluster_jax.masking.drop_cluster import drop_cluster, drop_cluster_mask
from dropcluster_jax.masking.dropout import (
    drop_path,
    drop_path_mask,
    dropout,
    dropout_mask,
    spatial_dropout,
    spatial_dropout_mask,
)

__all__ = [
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
    "spatial_dropout",
    "spatial_dropout_mask",
]
