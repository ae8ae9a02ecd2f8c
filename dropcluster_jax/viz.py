"""Pictures. Every function returns a Matplotlib figure; nothing is shown or written here."""

from collections.abc import Mapping, Sequence
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
            draw_clusters(axis, mean[..., channel], labels[..., group])
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


def image_figure(images: np.ndarray, titles: Sequence[str], columns: int = 8, title: str | None = None) -> "Figure":
    """A contact sheet: images with a title each.

    Args:
        images: uint8 `(number, height, width, 1 or 3)`.
        titles: one for each; cut where they are longer than an image is wide.
        columns: images in a row.
        title: over the figure.

    Returns:
        A figure with an axis for each image.

    Raises:
        ValueError: there is no image, or not a title for each.

    Example:
        >>> figure = image_figure(np.zeros((3, 8, 8, 1), np.uint8), ["one", "two", "three"], columns=2)
        >>> [axis.get_title() for axis in figure.axes]
        ['one', 'two', 'three', '']
    """
    from matplotlib.figure import Figure

    if not len(images) or len(images) != len(titles):
        raise ValueError(f"there must be an image, and a title for each, got {len(images)} and {len(titles)}")
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.15 * columns, 1.3 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, image, text in zip(axes, images, titles, strict=False):
        _show(axis, image)
        axis.set_title(text if len(text) <= 16 else f"{text[:15]}…", fontsize=7)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def corruption_figure(
    image: np.ndarray, corrupted: Mapping[str, Sequence[np.ndarray]], title: str | None = None
) -> "Figure":
    """One image, and under each corruption at each severity.

    Args:
        image: uint8 `(height, width, 1 or 3)`.
        corrupted: for each corruption's name the image at each severity, from 1 on.
        title: over the figure.

    Returns:
        A figure with two corruptions in a row, each with the image as it was before its severities.

    Raises:
        ValueError: there is no corruption, or not equally many severities of each.

    Example:
        >>> image = np.full((8, 8, 3), 100, np.uint8)
        >>> figure = corruption_figure(image, {"darker": [image // 2, image // 4]})
        >>> [axis.get_title() for axis in figure.axes[:3]]
        ['as it was', 'severity 1', 'severity 2']
    """
    from matplotlib.figure import Figure

    if len(severities := {len(images) for images in corrupted.values()}) != 1:
        raise ValueError(f"corrupted must hold equally many severities of each corruption, got {sorted(severities)}")
    width, rows = 1 + severities.pop(), -(-len(corrupted) // 2)
    figure = Figure(figsize=(2 * width + 1.6, rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, 2 * width, squeeze=False)
    for axis in axes.ravel():
        axis.set_axis_off()
    for number, (name, images) in enumerate(corrupted.items()):
        column, row = divmod(number, rows)
        group = axes[row, column * width : (column + 1) * width]
        for severity, (axis, each) in enumerate(zip(group, (image, *images), strict=True)):
            _show(axis, each)
            if row == 0:
                axis.set_title(f"severity {severity}" if severity else "as it was", fontsize=8)
        group[0].text(
            -0.12, 0.5, name.replace("_", "\n"), transform=group[0].transAxes, fontsize=8, ha="right", va="center"
        )
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def _show(axis: Any, image: np.ndarray) -> None:
    axis.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)


def draw_clusters(axis: Any, values: np.ndarray, labels: np.ndarray) -> None:
    """One map: values scaled to [0, 1], and a line along every edge between positions of different clusters.

    Args:
        axis: of Matplotlib, to draw on.
        values: `(height, width)`.
        labels: integers `(height, width)`.

    Example:
        >>> from matplotlib.figure import Figure
        >>> axis = Figure().subplots()
        >>> draw_clusters(axis, np.eye(4), np.arange(16).reshape(4, 4) // 8)
        >>> len(axis.collections[0].get_segments())
        4
    """
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
