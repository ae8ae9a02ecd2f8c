"""Dropout methods as pure functions of a PRNG key, activations, and a rate.

Each method is a pair of functions. `drop(key, x, rate, ...)` drops units and rescales the ones it keeps.
`drop_mask(key, x, rate, ...)` returns only the mask: True where a unit is kept, broadcastable to `x`.

A traced rate cannot be checked: it is clipped to [0, 1], and if it is NaN, everything is kept and all results of `drop`
are NaN, so that the loss shows it.
"""

from dropcluster_jax.masking._corr_drop import corr_drop, corr_drop_mask
from dropcluster_jax.masking._cutout import cutout, cutout_mask
from dropcluster_jax.masking._drop_block import drop_block, drop_block_mask
from dropcluster_jax.masking._drop_cluster import drop_cluster, drop_cluster_mask
from dropcluster_jax.masking._drop_path import drop_path, drop_path_mask
from dropcluster_jax.masking._dropout import dropout, dropout_mask
from dropcluster_jax.masking._focused_dropout import focused_dropout, focused_dropout_mask
from dropcluster_jax.masking._spatial_dropout import spatial_dropout, spatial_dropout_mask

__all__ = [
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
    "spatial_dropout",
    "spatial_dropout_mask",
]
