"""Pictures of clusters, masks, images and runs.

Every function returns a Matplotlib figure; nothing is shown, and nothing but the animation is written. Figures can be
told apart without color.
"""

from dropcluster_jax.viz.canvas import pixels
from dropcluster_jax.viz.clusters import (
    cluster_animation,
    cluster_figure,
    cluster_history_figure,
    draw_clusters,
)
from dropcluster_jax.viz.curves import curve_figure, line_style, quality_figure
from dropcluster_jax.viz.images import corruption_figure, image_figure
from dropcluster_jax.viz.masks import mask_figure

__all__ = [
    "cluster_animation",
    "cluster_figure",
    "cluster_history_figure",
    "corruption_figure",
    "curve_figure",
    "draw_clusters",
    "image_figure",
    "line_style",
    "mask_figure",
    "pixels",
    "quality_figure",
]
