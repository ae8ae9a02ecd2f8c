"""What all pictures are drawn on."""

from typing import TYPE_CHECKING, Any

import numpy as np

from dropcluster_jax._optional import optional_import

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float, **options: Any) -> "Figure":
    """An empty figure of this size in inches, whose parts do not overlap.

    Raises:
        ImportError: Matplotlib is not installed.
    """
    with optional_import("Matplotlib", "plot"):
        from matplotlib.figure import Figure

    return Figure(figsize=(width, height), **{"layout": "constrained", **options})


def pixels(figure: "Figure") -> np.ndarray:
    """A figure as an image.

    Args:
        figure: of Matplotlib.

    Returns:
        uint8 `(height, width, 3)`, by the figure's size in inches and its dots per inch.

    Example:
        >>> from matplotlib.figure import Figure
        >>> pixels(Figure(figsize=(2, 1), dpi=50)).shape
        (50, 100, 3)
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def unit_range(values: np.ndarray) -> np.ndarray:
    """Scaled so that the least is 0 and the largest 1; of equal ones all 0."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def draw_lines(axis: Any, labels: np.ndarray) -> None:
    """White lines with a dark rim along every edge between positions of different clusters; and no ticks."""
    from matplotlib import patheffects
    from matplotlib.collections import LineCollection

    lines = [((x - 0.5, y + 0.5), (end + 0.5, y + 0.5)) for y, x, end in _runs(labels[1:] != labels[:-1])]
    lines += [((x + 0.5, y - 0.5), (x + 0.5, end + 0.5)) for x, y, end in _runs((labels[:, 1:] != labels[:, :-1]).T)]
    rim = [patheffects.Stroke(linewidth=3.2, foreground="black"), patheffects.Normal()]
    axis.add_collection(LineCollection(lines, colors="white", linewidths=1.6, capstyle="round", path_effects=rim))
    axis.set_xticks([])
    axis.set_yticks([])


def show_image(axis: Any, image: np.ndarray) -> None:
    """An image, uint8 `(height, width, 1 or 3)`."""
    axis.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)


def _runs(there: np.ndarray) -> list[tuple[int, int, int]]:
    """Of each row the first and the last place of each run of what is true."""
    edges = np.diff(np.pad(there.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    begins, ends = np.argwhere(edges == 1), np.argwhere(edges == -1)
    return [(int(row), int(begin), int(end) - 1) for (row, begin), (_, end) in zip(begins, ends, strict=True)]
