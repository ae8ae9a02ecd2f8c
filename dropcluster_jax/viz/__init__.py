"""Matplotlib figures of clusters, masks, images and learning curves.

Each function returns a `matplotlib.figure.Figure` and neither shows nor saves it, except `cluster_animation`, which
writes a GIF. All figures are readable without color.
"""

from dropcluster_jax.viz.clusters import cluster_animation, cluster_figure, cluster_history_figure
from dropcluster_jax.viz.curves import curve_figure, quality_figure
from dropcluster_jax.viz.differences import difference_figure
from dropcluster_jax.viz.images import image_figure
from dropcluster_jax.viz.masks import mask_figure
from dropcluster_jax.viz.predictions import prediction_figure

__all__ = [
    "cluster_animation",
    "cluster_figure",
    "cluster_history_figure",
    "curve_figure",
    "difference_figure",
    "image_figure",
    "mask_figure",
    "prediction_figure",
    "quality_figure",
]
