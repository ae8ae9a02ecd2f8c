"""Contact sheets of images and of corrupted images."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dropcluster_jax.viz.canvas import escape, new_figure, show_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def image_figure(images: np.ndarray, titles: Sequence[str], columns: int = 8, title: str | None = None) -> "Figure":
    """Draws images in a grid, each with a title.

    Args:
        images: uint8 array `(num_images, height, width, 1 or 3)`.
        titles: Title of each image, truncated to 16 characters.
        columns: Images per row.
        title: Title of the figure.

    Returns:
        A figure with one axis per image.

    Raises:
        ValueError: If there are no images, or `titles` has a different length.

    Example:
        >>> figure = image_figure(np.zeros((3, 8, 8, 1), np.uint8), ["one", "two", "three"], columns=2)
        >>> [ax.get_title() for ax in figure.axes]
        ['one', 'two', 'three', '']
    """
    if not len(images) or len(images) != len(titles):
        raise ValueError(
            f"images and titles must have the same nonzero length, got {len(images)} images and {len(titles)} titles"
        )
    rows = -(-len(images) // columns)
    figure = new_figure(1.15 * columns, 1.3 * rows + 0.4, title)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes:
        ax.set_axis_off()
    for ax, image, text in zip(axes, images, titles, strict=False):
        show_image(ax, image)
        ax.set_title(escape(text if len(text) <= 16 else f"{text[:15]}…"), fontsize=7)
    return figure


def corruption_figure(
    image: np.ndarray, corrupted: Mapping[str, Sequence[np.ndarray]], title: str | None = None
) -> "Figure":
    """Draws an image next to its corrupted versions at each severity.

    Args:
        image: uint8 image `(height, width, 1 or 3)`.
        corrupted: Images at severity 1, 2, ... of each corruption, by name.
        title: Title of the figure.

    Returns:
        A figure with two corruptions per row, each starting with the original image.

    Raises:
        ValueError: If `corrupted` is empty, or corruptions differ in their number of severities.

    Example:
        >>> image = np.full((8, 8, 3), 100, np.uint8)
        >>> figure = corruption_figure(image, {"darker": [image // 2, image // 4]})
        >>> [ax.get_title() for ax in figure.axes[:3]]
        ['original', 'severity 1', 'severity 2']
    """
    if len(lengths := {len(images) for images in corrupted.values()}) != 1:
        raise ValueError(f"all corruptions must have the same number of severities, got {sorted(lengths)}")
    width, rows = 1 + lengths.pop(), -(-len(corrupted) // 2)
    figure = new_figure(2 * width + 1.6, rows + 0.6, title)
    axes = figure.subplots(rows, 2 * width, squeeze=False)
    for ax in axes.ravel():
        ax.set_axis_off()
    for index, (name, images) in enumerate(corrupted.items()):
        column, row = divmod(index, rows)
        group = axes[row, column * width : (column + 1) * width]
        for severity, (ax, version) in enumerate(zip(group, (image, *images), strict=True)):
            show_image(ax, version)
            if row == 0:
                ax.set_title(f"severity {severity}" if severity else "original", fontsize=8)
        label = escape(name.replace("_", "\n"))
        group[0].text(-0.12, 0.5, label, transform=group[0].transAxes, fontsize=8, ha="right", va="center")
    return figure
