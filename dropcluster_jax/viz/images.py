"""Images as they are, and corrupted."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dropcluster_jax.viz.canvas import new_figure, show_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    if not len(images) or len(images) != len(titles):
        raise ValueError(f"there must be an image, and a title for each, got {len(images)} and {len(titles)}")
    rows = -(-len(images) // columns)
    figure = new_figure(1.15 * columns, 1.3 * rows + 0.4)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, image, text in zip(axes, images, titles, strict=False):
        show_image(axis, image)
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
    if len(severities := {len(images) for images in corrupted.values()}) != 1:
        raise ValueError(f"corrupted must hold equally many severities of each corruption, got {sorted(severities)}")
    width, rows = 1 + severities.pop(), -(-len(corrupted) // 2)
    figure = new_figure(2 * width + 1.6, rows + 0.6)
    axes = figure.subplots(rows, 2 * width, squeeze=False)
    for axis in axes.ravel():
        axis.set_axis_off()
    for number, (name, images) in enumerate(corrupted.items()):
        column, row = divmod(number, rows)
        group = axes[row, column * width : (column + 1) * width]
        for severity, (axis, each) in enumerate(zip(group, (image, *images), strict=True)):
            show_image(axis, each)
            if row == 0:
                axis.set_title(f"severity {severity}" if severity else "as it was", fontsize=8)
        group[0].text(
            -0.12, 0.5, name.replace("_", "\n"), transform=group[0].transAxes, fontsize=8, ha="right", va="center"
        )
    if title:
        figure.suptitle(title, fontsize=10)
    return figure
