"""Masks: what each method drops of one example."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from dropcluster_jax.viz.canvas import draw_lines, new_figure, show_image, unit_range

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def mask_figure(
    x: np.ndarray,
    masks: Mapping[str, np.ndarray],
    labels: np.ndarray | None = None,
    image: np.ndarray | None = None,
    channels: int = 2,
    title: str | None = None,
) -> "Figure":
    r"""Masks of one example side by side: a column for each method, a row for each of some channels.

    What is kept has the color of its activation, what is dropped is black, which no activation is.

    Args:
        x: the activations of one example, `(height, width, channels)`.
        masks: for each method's name its mask, bool, True where a unit is kept: `(height, width, channels)`, or 1
            where it is the same for all of an axis.
        labels: of the clusters, integers `(height, width, 1 or channels)`: lines between them are drawn over the
            activations.
        image: that of the example, uint8 `(height, width, 1 or 3)`, of any size: it stands first.
        channels: how many channels to draw: those that vary most over positions.
        title: over the figure.

    Returns:
        A figure with a column for the image if there is one, one for the activations, and one for each mask, with the
        share that it drops.

    Raises:
        ValueError: there is no mask, one or the labels do not fit the activations, or these have not two spatial
            dimensions.

    Example:
        >>> x = np.arange(48.0).reshape(4, 4, 3)
        >>> figure = mask_figure(x, {"DropBlock": np.tri(4, dtype=bool)[..., None]}, channels=1)
        >>> [axis.get_title() for axis in figure.axes]
        ['activations', 'DropBlock\n38 % dropped']
    """
    x = np.asarray(x, np.float32)
    if x.ndim != 3:
        raise ValueError(f"x must be of one example, (height, width, channels), to be drawn, got {x.shape}")
    if not masks:
        raise ValueError("masks holds no mask")
    kept = {}
    for name, mask in masks.items():
        try:
            kept[name] = np.broadcast_to(np.asarray(mask, bool), x.shape)
        except ValueError:
            raise ValueError(f"the mask of {name} must be broadcastable to {x.shape}, got {np.shape(mask)}") from None

    chosen = np.sort(np.argsort(x.std(axis=(0, 1)), kind="stable")[::-1][:channels])
    if labels is not None and np.shape(labels)[:2] != x.shape[:2]:
        raise ValueError(f"labels must be of a map {x.shape[:2]}, got {np.shape(labels)}")
    first = int(image is not None)
    figure = new_figure(1.75 * (first + 1 + len(masks)) + 0.3, 1.8 * len(chosen) + 0.7)
    from matplotlib import colormaps  # `new_figure` has said what to do where it is not installed

    axes = figure.subplots(len(chosen), first + 1 + len(masks), squeeze=False)
    columns = [("activations", np.ones(x.shape, bool)), *kept.items()]
    if image is not None:
        for axis in axes[:, 0]:
            axis.set_axis_off()
        show_image(axes[0, 0], image)
        axes[0, 0].set_title("image", fontsize=9)
        axes = axes[:, 1:]
    for row, channel in zip(axes, chosen, strict=True):
        # The darkest fifth of the colors is left out, so that black stands for nothing else.
        colors = colormaps["cividis"](0.2 + 0.8 * unit_range(x[..., channel]))[..., :3]
        for axis, (_, mask) in zip(row, columns, strict=True):
            axis.imshow(np.where(mask[..., channel, None], colors, 0.0))
            axis.set_xticks([])
            axis.set_yticks([])
        if labels is not None:
            draw_lines(row[0], np.asarray(labels)[..., channel if np.shape(labels)[-1] > 1 else 0])
        row[0].set_ylabel(f"channel {channel}", fontsize=9)
    for axis, (name, mask) in zip(axes[0], columns, strict=True):
        share = "" if name == "activations" else f"\n{100 * (1 - mask.mean()):.0f} % dropped"
        axis.set_title(f"{name}{share}", fontsize=9)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure
