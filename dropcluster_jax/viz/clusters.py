"""Figures of clusters: over activations, and over the course of training."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dropcluster_jax.clustering import ClusterState
from dropcluster_jax.viz.canvas import (
    draw_boundaries,
    escape,
    figure_to_array,
    min_max_scale,
    most_varying_channels,
    new_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Maps a layer's name to its (step, labels) pairs in order; labels are integers `(height, width, channels or 1)`.
History = Mapping[str, Sequence[tuple[int, np.ndarray]]]


def cluster_figure(
    layers: Mapping[str, tuple[ClusterState, np.ndarray]], channels: int = 4, title: str | None = None
) -> "Figure":
    """Draws the clusters of each layer over the mean activations of a few of its channels, scaled per channel.

    Args:
        layers: Clusters and activations `(batch, height, width, channels)` of each layer, by name.
        channels: Maximum number of channels per layer, chosen by how much they vary over positions.
        title: Title of the figure.

    Returns:
        A figure with one row per layer and one column per channel.

    Raises:
        TypeError: If a layer is not a pair of a `ClusterState` and activations.
        ValueError: If `layers` is empty or a layer does not have two spatial dimensions.

    Example:
        >>> from dropcluster_jax import KMeans
        >>> x = np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype("float32")
        >>> state = KMeans(num_clusters=4).init(x.shape[1:])
        >>> figure = cluster_figure({"stage1": (state, x)}, channels=2)
        >>> len(figure.axes)  # two channels and the color bar
        3
    """
    if not layers:
        raise ValueError("layers must contain at least one layer")
    for name, layer in layers.items():
        if not isinstance(layer, tuple) or len(layer) != 2 or not isinstance(layer[0], ClusterState):
            raise TypeError(
                f"layers[{name!r}] must be a pair of a ClusterState, as returned by cluster_states, and activations, "
                f"got {type(layer).__name__}"
            )
    columns = max(min(channels, x.shape[-1]) for _, x in layers.values())
    figure = new_figure(2.3 * columns + 1.0, 2.6 * len(layers) + 0.6, title)
    axes = figure.subplots(len(layers), columns, squeeze=False)
    for row, (name, (clusters, x)) in zip(axes, layers.items(), strict=True):
        labels, explained = np.asarray(clusters.labels), np.asarray(clusters.explained_variance)
        _check_map(name, labels)
        mean = np.asarray(x, np.float32).mean(axis=0)
        drawn = most_varying_channels(mean, columns)
        shared = labels.shape[-1] == 1
        for ax, channel in zip(row, drawn, strict=False):
            group = 0 if shared else channel
            ax.imshow(min_max_scale(mean[..., channel]), cmap="cividis", vmin=0, vmax=1)
            draw_boundaries(ax, labels[..., group])
            ax.set_title(f"channel {channel}" + ("" if shared else f" ({explained[group]:.0%})"), fontsize=9)
        for ax in row[len(drawn) :]:
            ax.set_axis_off()
        kind = "shared by all channels" if shared else "per channel"
        summary = f"{len(clusters.sizes)} clusters, {kind}\nexplained variance {explained.mean():.0%}"
        row[0].set_ylabel(f"{escape(name)}\n{summary}", fontsize=9)
    colorbar = figure.colorbar(axes[0, 0].images[0], ax=axes, shrink=0.6, ticks=[0, 1])
    colorbar.ax.set_yticklabels(["min", "max"], fontsize=8)
    colorbar.set_label("mean activation, scaled per channel", fontsize=8)
    return figure


def cluster_history_figure(history: History, columns: int = 6, channel: int = 0, title: str | None = None) -> "Figure":
    """Draws the clusters of each layer after selected updates.

    Clusters are matched by overlap from one update to the next, so a cluster keeps its color.

    Args:
        history: Pairs `(step, labels)` of each layer, by name; labels are integers `(height, width, 1 or channels)`.
        columns: Maximum number of updates to draw, at least 1. The last one is always drawn.
        channel: Channel to draw in layers with clusters per channel.
        title: Title of the figure.

    Returns:
        A figure with one row per layer and one column per update.

    Raises:
        ValueError: If `history` or a layer is empty, labels have another shape, or an argument is out of range.

    Example:
        >>> tiles = np.arange(16).reshape(4, 4, 1) // 4
        >>> figure = cluster_history_figure({"stage1": [(0, tiles), (20, tiles.T.reshape(4, 4, 1))]})
        >>> [ax.get_title() for ax in figure.axes]
        ['step 0', 'step 20']
    """
    maps = _aligned_maps(history, channel)
    frames = {name: _select_frames(len(labels), columns, "columns") for name, labels in maps.items()}
    width = max(map(len, frames.values()))
    height = sum(1.9 * min(2.0, labels[0].shape[0] / labels[0].shape[1]) + 0.3 for labels in maps.values())
    figure = new_figure(1.9 * width + 0.6, height + 0.4, title)
    axes = figure.subplots(len(maps), width, squeeze=False)
    for row, (name, labels) in zip(axes, maps.items(), strict=True):
        for ax, frame in zip(row, frames[name], strict=False):
            _draw_labels(ax, labels, frame)
            ax.set_title(f"step {history[name][frame][0]:,}", fontsize=9)
        for ax in row[len(frames[name]) :]:
            ax.set_axis_off()
        row[0].set_ylabel(escape(name), fontsize=9)
    return figure


def cluster_animation(
    path: str | os.PathLike[str],
    history: History,
    frames: int = 60,
    seconds: float = 0.25,
    channel: int = 0,
    title: str | None = None,
) -> "Figure":
    """Writes an animated GIF of the clusters of all layers over the course of training.

    Args:
        path: Path of the GIF.
        history: See `cluster_history_figure`. All layers must have the same steps.
        frames: Maximum number of updates to show, at least 1. The last one is always shown.
        seconds: Duration of a frame. The last frame is shown four times as long.
        channel: Channel to draw in layers with clusters per channel.
        title: Title of the figure, followed by the step.

    Returns:
        The figure of the last frame.

    Raises:
        ValueError: See `cluster_history_figure`; also if layers have different steps.

    Example:
        >>> import pathlib, tempfile
        >>> tiles = np.arange(16).reshape(4, 4, 1) // 4
        >>> path = pathlib.Path(tempfile.mkdtemp(), "clusters.gif")
        >>> figure = cluster_animation(path, {"stage1": [(0, tiles), (20, tiles.T.reshape(4, 4, 1))]})
        >>> path.read_bytes()[:6], figure.get_suptitle()
        (b'GIF89a', 'step 20')
    """
    from PIL import Image

    maps = _aligned_maps(history, channel)
    steps = [step for step, _ in next(iter(history.values()))]
    if any([step for step, _ in updates] != steps for updates in history.values()):
        raise ValueError("history must have the same steps for all layers")
    figure = new_figure(2.6 * len(maps) + 0.2, 3.2, layout="none")
    figure.subplots_adjust(left=0.02, right=0.98, bottom=0.02, top=0.8, wspace=0.05)
    axes = figure.subplots(1, len(maps), squeeze=False)[0]
    images = []
    for frame in _select_frames(len(steps), frames, "frames"):
        for ax, (name, labels) in zip(axes, maps.items(), strict=True):
            ax.clear()
            _draw_labels(ax, labels, frame)
            ax.set_title(escape(name), fontsize=10)
        step = f"step {steps[frame]:,}"
        figure.suptitle(escape(f"{title}, {step}" if title else step), fontsize=11)
        images.append(Image.fromarray(figure_to_array(figure)).quantize(256))
    durations = [round(1000 * seconds)] * (len(images) - 1) + [round(4000 * seconds)]
    images[0].save(path, format="GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)
    return figure


def match_labels(reference: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Renumbers `labels` `(height, width)` one-to-one to maximize the number of positions equal to `reference`."""
    from scipy.optimize import linear_sum_assignment

    num_clusters = max(reference.max(), labels.max()) + 1
    overlap = np.zeros((num_clusters, num_clusters), int)
    np.add.at(overlap, (labels, reference), 1)
    return linear_sum_assignment(overlap, maximize=True)[1][labels]


def _aligned_maps(history: History, channel: int) -> dict[str, list[np.ndarray]]:
    """Returns one channel's label maps `(height, width)` of each layer, with matched labels over time."""
    if not history:
        raise ValueError("history must contain at least one layer")
    aligned = {}
    for name, updates in history.items():
        if not updates:
            raise ValueError(f"history[{name!r}] must contain at least one update")
        maps = [np.asarray(labels) for _, labels in updates]
        _check_map(name, maps[0])
        if any(labels.shape != maps[0].shape for labels in maps):
            raise ValueError(f"{name} must have labels of one shape, got {sorted({labels.shape for labels in maps})}")
        groups = maps[0].shape[-1]
        if groups > 1 and not 0 <= channel < groups:
            raise ValueError(f"channel must be in [0, {groups - 1}] for {name}, got {channel}")
        maps = [labels[..., channel if groups > 1 else 0] for labels in maps]
        aligned[name] = maps[:1]
        for labels in maps[1:]:
            aligned[name].append(match_labels(aligned[name][-1], labels))
    return aligned


def _check_map(name: str, labels: np.ndarray) -> None:
    if labels.ndim != 3:
        raise ValueError(f"{name} must have two spatial dimensions, got shape {labels.shape[:-1]}")


def _draw_labels(ax: "Axes", maps: Sequence[np.ndarray], frame: int) -> None:
    """Draws one of several label maps, with colors that are fixed across the maps."""
    num_clusters = max(int(labels.max()) for labels in maps) + 1
    # Shuffled, so that adjacent tiles of a grid, which have consecutive labels, get distinct colors.
    shades = np.random.default_rng(0).permutation(num_clusters) / max(1, num_clusters - 1)
    ax.imshow(shades[maps[frame]], cmap="cividis", vmin=0, vmax=1)
    draw_boundaries(ax, maps[frame])


def _select_frames(total: int, limit: int, argument: str) -> list[int]:
    """Returns at most `limit` indices below `total`, evenly spaced and including the last.

    With `limit >= 4` the first two, which are the grid and the first learned clusters, are included too.
    """
    if limit < 1:
        raise ValueError(f"{argument} must be at least 1, got {limit}")
    if limit < 4 or total <= limit:
        return sorted({round(index) for index in np.linspace(total - 1, 0, min(total, limit))})
    return [0, *sorted({round(index) for index in np.linspace(1, total - 1, limit - 1)})]
