"""Pictures. Every function returns a Matplotlib figure; nothing is shown or written here."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dropcluster_jax.clustering import ClusterState

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def cluster_figure(
    layers: Mapping[str, tuple[ClusterState, np.ndarray]], channels: int = 4, title: str | None = None
) -> "Figure":
    """Clusters of a few channels of each layer, drawn over the channel's mean activation.

    White lines (with a dark rim) run between clusters; the colour is the mean activation over examples.

    Args:
        layers: for each layer's name its clusters and its activations `(batch, height, width, channels)`.
        channels: how many channels to draw of each layer: those whose mean activation varies most over positions.
        title: over the figure.

    Returns:
        A figure with a row for each layer and a column for each channel.

    Raises:
        ValueError: there is no layer, or a map has not two spatial dimensions.

    Example:
        >>> from dropcluster_jax import KMeans
        >>> x = np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype("float32")
        >>> state = KMeans(num_clusters=4).init(x.shape[1:])
        >>> figure = cluster_figure({"stage1": (state, x)}, channels=2)
        >>> len(figure.axes) >= 2
        True
    """
    from matplotlib.figure import Figure

    if not layers:
        raise ValueError("layers holds no layer with clusters")
    columns = max(min(channels, x.shape[-1]) for _, x in layers.values())
    figure = Figure(figsize=(2.3 * columns + 1.0, 2.6 * len(layers) + 0.6), layout="constrained")
    axes = figure.subplots(len(layers), columns, squeeze=False)
    for row, (name, (clusters, x)) in zip(axes, layers.items(), strict=True):
        labels, explained = np.asarray(clusters.labels), np.asarray(clusters.explained)
        if labels.ndim != 3:
            raise ValueError(f"{name} must have maps of two spatial dimensions to be drawn, got {labels.shape[:-1]}")
        mean = np.asarray(x, np.float32).mean(axis=0)
        chosen = np.sort(np.argsort(mean.std(axis=(0, 1)), kind="stable")[::-1][:columns])
        shared = labels.shape[-1] == 1
        for axis, channel in zip(row, chosen, strict=False):
            group = 0 if shared else channel
            _draw_map(axis, mean[..., channel], labels[..., group])
            axis.set_title(f"channel {channel}" + ("" if shared else f", {explained[group]:.0%}"), fontsize=9)
        for axis in row[len(chosen) :]:
            axis.set_axis_off()
        kind = "shared by all channels" if shared else "per channel"
        row[0].set_ylabel(f"{name}\n{len(clusters.sizes)} clusters, {kind}\nexplain {explained.mean():.0%}", fontsize=9)
    mesh = axes[0, 0].images[0]
    bar = figure.colorbar(mesh, ax=axes, shrink=0.6, ticks=[0, 1])
    bar.ax.set_yticklabels(["least", "most"], fontsize=8)
    bar.set_label("mean activation, each channel by itself", fontsize=8)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _draw_map(axis: Any, values: np.ndarray, labels: np.ndarray) -> None:
    """One map: values scaled to [0, 1], and a line along every edge between positions of different clusters."""
    from matplotlib import patheffects
    from matplotlib.collections import LineCollection

    low, high = values.min(), values.max()
    axis.imshow((values - low) / (high - low) if high > low else np.zeros_like(values), cmap="cividis", vmin=0, vmax=1)
    down = np.argwhere(labels[1:] != labels[:-1])
    right = np.argwhere(labels[:, 1:] != labels[:, :-1])
    lines = [((x - 0.5, y + 0.5), (x + 0.5, y + 0.5)) for y, x in down]
    lines += [((x + 0.5, y - 0.5), (x + 0.5, y + 0.5)) for y, x in right]
    rim = [patheffects.Stroke(linewidth=3.2, foreground="black"), patheffects.Normal()]
    axis.add_collection(LineCollection(lines, colors="white", linewidths=1.6, capstyle="round", path_effects=rim))
    axis.set_xticks([])
    axis.set_yticks([])
