"""Drawing helpers shared by all figures."""

from typing import TYPE_CHECKING, Any

import numpy as np

from dropcluster_jax._optional import optional_import

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def new_figure(width: float, height: float, title: str | None = None, layout: Any = "constrained") -> "Figure":
    """Returns a figure without axes, `width` by `height` inches."""
    with optional_import("Matplotlib", "plot"):
        from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)
    if title:
        figure.suptitle(escape(title), fontsize=11)
    return figure


def escape(text: str) -> str:
    """Escapes text so that Matplotlib draws it as it is.

    Matplotlib parses text between two dollar signs as math. Characters that the fonts in `rcParams["font.family"]` lack
    become squares.
    """
    from matplotlib import font_manager, rcParams

    families = [font_manager.FontProperties(family=[family]) for family in rcParams["font.family"]]
    fonts = [font_manager.get_font(font_manager.findfont(family)) for family in families]

    def is_drawable(character: str) -> bool:
        return character.isspace() or any(font.get_char_index(ord(character)) for font in fonts)

    return "".join(character if is_drawable(character) else "□" for character in text).replace("$", r"\$")


def figure_to_array(figure: "Figure") -> np.ndarray:
    """Renders a figure to a uint8 array `(height, width, 3)`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def min_max_scale(values: np.ndarray) -> np.ndarray:
    """Scales values linearly to [0, 1]; constant input becomes 0."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def most_varying_channels(activations: np.ndarray, count: int) -> np.ndarray:
    """Returns the sorted indices of the channels of `(height, width, channels)` that vary most over positions."""
    return np.sort(np.argsort(activations.std(axis=(0, 1)), kind="stable")[::-1][:count])


def draw_boundaries(ax: "Axes", labels: np.ndarray) -> None:
    """Draws white lines with a dark outline between positions with different labels, and removes the ticks."""
    from matplotlib import patheffects
    from matplotlib.collections import LineCollection

    lines = [((x - 0.5, y + 0.5), (end + 0.5, y + 0.5)) for y, x, end in _true_runs(labels[1:] != labels[:-1])]
    vertical = _true_runs((labels[:, 1:] != labels[:, :-1]).T)
    lines += [((x + 0.5, y - 0.5), (x + 0.5, end + 0.5)) for x, y, end in vertical]
    outline = [patheffects.Stroke(linewidth=3.2, foreground="black"), patheffects.Normal()]
    ax.add_collection(LineCollection(lines, colors="white", linewidths=1.6, capstyle="round", path_effects=outline))
    ax.set_xticks([])
    ax.set_yticks([])


def show_image(ax: "Axes", image: np.ndarray) -> None:
    """Draws a uint8 image `(height, width, 1 or 3)`."""
    ax.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)


def _true_runs(mask: np.ndarray) -> list[tuple[int, int, int]]:
    """Returns `(row, first column, last column)` of each run of True in a 2-D mask."""
    edges = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    starts, stops = np.argwhere(edges == 1), np.argwhere(edges == -1)
    return [(int(row), int(start), int(stop) - 1) for (row, start), (_, stop) in zip(starts, stops, strict=True)]
