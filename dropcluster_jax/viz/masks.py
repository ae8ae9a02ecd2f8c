"""Figures of masks."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from dropcluster_jax.viz.canvas import (
    draw_boundaries,
    escape,
    min_max_scale,
    most_varying_channels,
    new_figure,
    show_image,
)

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
    r"""Draws masks of one example side by side: one column per method, one row per channel.

    Kept units have the color of their activation; dropped units are black.

    Args:
        x: Activations of one example, `(height, width, channels)`.
        masks: Bool mask of each method, by name, broadcastable to the shape of `x`. True means kept.
        labels: Integer cluster labels `(height, width, 1 or channels)`, whose boundaries are drawn on the activations.
        image: The example itself, uint8 `(height, width, 1 or 3)`, of any size. If given, it is drawn first.
        channels: Maximum number of channels, chosen by how much they vary over positions.
        title: Title of the figure.

    Returns:
        A figure with columns for the image (if given), the activations, and each mask with its dropped fraction.

    Raises:
        ValueError: If `masks` is empty, `x` is not 3-D, or the shape of a mask or of `labels` does not match `x`.

    Example:
        >>> x = np.arange(48.0).reshape(4, 4, 3)
        >>> figure = mask_figure(x, {"DropBlock": np.tri(4, dtype=bool)[..., None]}, channels=1)
        >>> [ax.get_title() for ax in figure.axes]
        ['activations', 'DropBlock\n38% dropped']
    """
    x = np.asarray(x, np.float32)
    if x.ndim != 3:
        raise ValueError(f"x must be one example of shape (height, width, channels), got shape {x.shape}")
    if labels is not None and np.shape(labels)[:2] != x.shape[:2]:
        raise ValueError(f"labels must have the spatial shape {x.shape[:2]}, got shape {np.shape(labels)}")
    kept = _broadcast_masks(masks, x.shape)
    drawn = most_varying_channels(x, channels)
    first = int(image is not None)  # column of the activations
    figure = new_figure(1.75 * (first + 1 + len(masks)) + 0.3, 1.8 * len(drawn) + 0.7, title)
    from matplotlib import colormaps  # not at the top: `new_figure` explains how to install Matplotlib

    axes = figure.subplots(len(drawn), first + 1 + len(masks), squeeze=False)
    if image is not None:
        for ax in axes[:, 0]:
            ax.set_axis_off()
        show_image(axes[0, 0], image)
        axes[0, 0].set_title("image", fontsize=9)
    columns = [np.ones(x.shape, bool), *kept.values()]
    for row, channel in zip(axes[:, first:], drawn, strict=True):
        # Skips the darkest fifth of the colormap, which is reserved for dropped units.
        colors = colormaps["cividis"](0.2 + 0.8 * min_max_scale(x[..., channel]))[..., :3]
        for ax, mask in zip(row, columns, strict=True):
            ax.imshow(np.where(mask[..., channel, None], colors, 0.0))
            ax.set_xticks([])
            ax.set_yticks([])
        if labels is not None:
            draw_boundaries(row[0], np.asarray(labels)[..., channel if np.shape(labels)[-1] > 1 else 0])
        row[0].set_ylabel(f"channel {channel}", fontsize=9)
    titles = ["activations", *(f"{name}\n{1 - mask.mean():.0%} dropped" for name, mask in kept.items())]
    for ax, text in zip(axes[0, first:], titles, strict=True):
        ax.set_title(escape(text), fontsize=9)
    return figure


def _broadcast_masks(masks: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    if not masks:
        raise ValueError("masks must contain at least one mask")
    broadcast = {}
    for name, mask in masks.items():
        try:
            broadcast[name] = np.broadcast_to(np.asarray(mask, bool), shape)
        except ValueError:
            raise ValueError(f"masks[{name!r}] must be broadcastable to {shape}, got shape {np.shape(mask)}") from None
    return broadcast
