"""What all pictures are drawn on."""

from typing import TYPE_CHECKING, Any

import numpy as np

from dropcluster_jax.extras import extra

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float, **options: Any) -> "Figure":
    """An empty figure of this size in inches, whose parts do not overlap.

    Raises:
        ImportError: Matplotlib is not installed.
    """
    with extra("Matplotlib", "plot"):
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
