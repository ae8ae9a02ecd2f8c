"""Clusters: over activations, and over the course of training."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dropcluster_jax.clustering import ClusterState
from dropcluster_jax.viz.canvas import draw_lines, new_figure, pixels, unit_range

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# For each layer, from the first on: a step, and the labels after it, integers `(height, width, channels or 1)`.
History = Mapping[str, Sequence[tuple[int, np.ndarray]]]


def cluster_figure(
    layers: Mapping[str, tuple[ClusterState, np.ndarray]], channels: int = 4, title: str | None = None
) -> "Figure":
    """Clusters of a few channels of each layer, drawn over the channel's mean activation.

    White lines (with a dark rim) run between clusters; the color is the mean activation over examples.

    Args:
        layers: for each layer's name its clusters and its activations `(batch, height, width, channels)`.
        channels: how many channels to draw of each layer: those whose mean activation varies most over positions.
        title: over the figure.

    Returns:
        A figure with a row for each layer and a column for each channel.

    Raises:
        TypeError: a layer is no pair of a `ClusterState` and activations.
        ValueError: there is no layer, or a map has not two spatial dimensions.

    Example:
        >>> from dropcluster_jax import KMeans
        >>> x = np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype("float32")
        >>> state = KMeans(num_clusters=4).init(x.shape[1:])
        >>> figure = cluster_figure({"stage1": (state, x)}, channels=2)
        >>> len(figure.axes) >= 2
        True
    """
    if not layers:
        raise ValueError("layers holds no layer with clusters")
    for name, layer in layers.items():
        if not isinstance(layer, tuple) or len(layer) != 2 or not isinstance(layer[0], ClusterState):
            raise TypeError(
                f"layers must hold (clusters, activations) for {name}: a ClusterState, as cluster_states gives it, "
                f"and an array; got {type(layer).__name__}"
            )
    columns = max(min(channels, x.shape[-1]) for _, x in layers.values())
    figure = new_figure(2.3 * columns + 1.0, 2.6 * len(layers) + 0.6)
    axes = figure.subplots(len(layers), columns, squeeze=False)
    for row, (name, (clusters, x)) in zip(axes, layers.items(), strict=True):
        labels, explained = np.asarray(clusters.labels), np.asarray(clusters.explained_variance)
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


def draw_clusters(axis: Any, values: np.ndarray, labels: np.ndarray, scaled: bool = True) -> None:
    """One map: its values as colors, and a line along every edge between positions of different clusters.

    Args:
        axis: of Matplotlib, to draw on.
        values: `(height, width)`.
        labels: integers `(height, width)`.
        scaled: whether the least value becomes 0 and the largest 1; else they lie in [0, 1] as they are.

    Example:
        >>> from matplotlib.figure import Figure
        >>> axis = Figure().subplots()
        >>> draw_clusters(axis, np.eye(4), np.arange(16).reshape(4, 4) // 8)
        >>> axis.collections[0].get_segments()[0].tolist()  # from (x, y) to (x, y)
        [[-0.5, 1.5], [3.5, 1.5]]
    """
    axis.imshow(unit_range(values) if scaled else values, cmap="cividis", vmin=0, vmax=1)
    draw_lines(axis, labels)


def cluster_history_figure(history: History, columns: int = 6, channel: int = 0, title: str | None = None) -> "Figure":
    """Clusters over the course of training: a row for each layer, a column for each of some updates.

    A cluster keeps its shade from one map to the next, by the positions that it keeps.

    Args:
        history: for each layer's name its `(step, labels)`, the first first; labels are integers
            `(height, width, 1)`, or `(height, width, channels)` where channels have clusters of their own.
        columns: how many of the updates to draw, at least 1: the last, the first two, and others between.
        channel: which channel's clusters, from 0, where they have their own.
        title: over the figure.

    Returns:
        A figure with an axis for each layer and update.

    Raises:
        ValueError: there is no layer, one without labels, no such channel, or maps are not of one shape with two
            spatial dimensions; `columns` is below 1.

    Example:
        >>> tiles = np.arange(16).reshape(4, 4, 1) // 4
        >>> figure = cluster_history_figure({"stage1": [(0, tiles), (20, tiles.T.reshape(4, 4, 1))]})
        >>> [axis.get_title() for axis in figure.axes]
        ['step 0', 'step 20']
    """
    maps = _maps(history, channel)
    chosen = {name: _some(len(labels), columns) for name, labels in maps.items()}
    width = max(map(len, chosen.values()))
    height = sum(1.9 * min(2.0, labels[0].shape[0] / labels[0].shape[1]) + 0.3 for labels in maps.values())
    figure = new_figure(1.9 * width + 0.6, height + 0.4)
    axes = figure.subplots(len(maps), width, squeeze=False)
    for row, (name, labels) in zip(axes, maps.items(), strict=True):
        for axis, number in zip(row, chosen[name], strict=False):
            _draw_shaded(axis, labels, number)
            axis.set_title(f"step {history[name][number][0]:,}", fontsize=9)
        for axis in row[len(chosen[name]) :]:
            axis.set_axis_off()
        row[0].set_ylabel(name, fontsize=9)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def cluster_animation(
    path: str | os.PathLike[str],
    history: History,
    frames: int = 60,
    seconds: float = 0.25,
    channel: int = 0,
    title: str | None = None,
) -> "Figure":
    """Write an animated GIF of the clusters over the course of training, all layers side by side.

    A cluster keeps its shade from one frame to the next, by the positions that it keeps.

    Args:
        path: of the GIF.
        history: for each layer's name its `(step, labels)`, as for `cluster_history_figure`; all layers at the same
            steps.
        frames: how many of the updates to show, at least 1: the last, the first two, and others between.
        seconds: how long each is shown; the last four times as long.
        channel: which channel's clusters, from 0, where they have their own.
        title: before the step.

    Returns:
        The figure of the last frame.

    Raises:
        ValueError: there is no layer, layers have other steps, no such channel, or maps are not of one shape with two
            spatial dimensions; `frames` is below 1.
        OSError: the file cannot be written.

    Example:
        >>> import pathlib, tempfile
        >>> tiles = np.arange(16).reshape(4, 4, 1) // 4
        >>> path = pathlib.Path(tempfile.mkdtemp(), "clusters.gif")
        >>> figure = cluster_animation(path, {"stage1": [(0, tiles), (20, tiles.T.reshape(4, 4, 1))]})
        >>> path.read_bytes()[:6], figure.get_suptitle()
        (b'GIF89a', 'step 20')
    """
    from PIL import Image

    maps = _maps(history, channel)
    steps = [step for step, _ in next(iter(history.values()))]
    if any([step for step, _ in one] != steps for one in history.values()):
        raise ValueError("history must have the same steps for all layers")
    figure = new_figure(2.6 * len(maps) + 0.2, 3.2, layout="none")
    figure.subplots_adjust(left=0.02, right=0.98, bottom=0.02, top=0.8, wspace=0.05)
    axes = figure.subplots(1, len(maps), squeeze=False)[0]
    images = []
    for number in _some(len(steps), frames):
        for axis, (name, labels) in zip(axes, maps.items(), strict=True):
            axis.clear()
            _draw_shaded(axis, labels, number)
            axis.set_title(name, fontsize=10)
        step = f"step {steps[number]:,}"
        figure.suptitle(f"{title}, {step}" if title else step, fontsize=11)
        images.append(Image.fromarray(pixels(figure)).quantize(256))
    durations = [round(1000 * seconds)] * (len(images) - 1) + [round(4000 * seconds)]
    images[0].save(path, format="GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)
    return figure


def _maps(history: History, channel: int) -> dict[str, list[np.ndarray]]:
    """Of each layer the labels of a channel, `(height, width)`, numbered so that a cluster keeps its number."""
    if not history:
        raise ValueError("history holds no layer with clusters")
    maps = {}
    for name, updates in history.items():
        if not updates:
            raise ValueError(f"history holds no labels of {name}")
        own = [np.asarray(labels) for _, labels in updates]
        if own[0].ndim != 3:
            raise ValueError(f"{name} must have maps of two spatial dimensions to be drawn, got {own[0].shape[:-1]}")
        if any(labels.shape != own[0].shape for labels in own):
            raise ValueError(f"{name} must have maps of one shape, got {sorted({labels.shape for labels in own})}")
        groups = own[0].shape[-1]
        if not 0 <= channel < groups and groups > 1:
            raise ValueError(f"channel must be from 0 to {groups - 1} for {name}, got {channel}")
        own = [labels[..., channel if groups > 1 else 0] for labels in own]
        maps[name] = [own[0]]
        for labels in own[1:]:
            maps[name].append(renumbered(maps[name][-1], labels))
    return maps


def renumbered(before: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The labels `(height, width)` with the numbers of those before that share the most positions, each taken once."""
    from scipy.optimize import linear_sum_assignment

    number_of_clusters = max(before.max(), labels.max()) + 1
    shared = np.zeros((number_of_clusters, number_of_clusters), int)
    np.add.at(shared, (labels, before), 1)
    return linear_sum_assignment(shared, maximize=True)[1][labels]


def _draw_shaded(axis: Any, labels: Sequence[np.ndarray], number: int) -> None:
    """One map of several, each cluster in the shade that it has in all."""
    number_of_clusters = max(int(one.max()) for one in labels) + 1
    # Neighbors in number, which the grid has side by side, get shades far apart.
    shades = np.random.default_rng(0).permutation(number_of_clusters) / max(1, number_of_clusters - 1)
    draw_clusters(axis, shades[labels[number]], labels[number], scaled=False)


def _some(number: int, most: int) -> list[int]:
    """So many of the first numbers at most: the last, the first two (the grid, and what was first learned), others."""
    if most < 1:
        raise ValueError(f"at least one update must be drawn, got {most}")
    if most < 4 or number <= most:
        return sorted({round(i) for i in np.linspace(number - 1, 0, min(number, most))})
    return [0, *sorted({round(i) for i in np.linspace(1, number - 1, most - 1)})]
