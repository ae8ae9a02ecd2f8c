"""Contact sheets of images."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dropcluster_jax.viz.canvas import escape, new_figure, show_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def image_figure(images: np.ndarray, titles: Sequence[str], columns: int = 8, title: str | None = None) -> "Figure":
    """Draws images in a grid, each with a title.

    Args:
        images: uint8 array `(num_images, height, width, 1 or 3)`.
        titles: Title of each image, whose lines are truncated to 18 characters.
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
        lines = (line if len(line) <= 18 else f"{line[:17]}…" for line in text.splitlines())
        ax.set_title(escape("\n".join(lines)), fontsize=7)
    return figure
