"""Confusion matrix and reliability diagram."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dropcluster_jax.viz.canvas import escape, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAX_NAMES = 30  # classes whose names fit along the axes


def prediction_figure(
    confusion: np.ndarray, classes: Sequence[str], bins: Sequence[Mapping[str, float]], title: str | None = None
) -> "Figure":
    """Draws a confusion matrix, and accuracy over confidence.

    Args:
        confusion: Number of images by true and predicted class, integers `(classes, classes)`.
        classes: Class names; drawn if there are at most 30.
        bins: `"confidence"` and `"accuracy"`, in [0, 1], and `"count"`, of bins of predictions by confidence.
        title: Title of the figure.

    Returns:
        A figure with two axes.

    Example:
        >>> bins = [{"confidence": 0.9, "accuracy": 0.8, "count": 5}]
        >>> figure = prediction_figure(np.array([[3, 1], [0, 1]]), ["cat", "dog"], bins)
        >>> figure.axes[1].lines[1].get_xydata().tolist()
        [[90.0, 80.0]]
    """
    figure = new_figure(11, 5.2, title)
    matrix, reliability = figure.subplots(1, 2)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    matrix.imshow(shares, cmap="Greys", vmin=0, vmax=1)
    if len(classes) <= _MAX_NAMES:
        names = [escape(name) for name in classes]
        matrix.set_xticks(range(len(names)), names, rotation=90)
        matrix.set_yticks(range(len(names)), names)
        for row, column in np.argwhere(confusion):
            color = "white" if shares[row, column] > 0.5 else "black"
            matrix.text(column, row, confusion[row, column], ha="center", va="center", color=color, fontsize=7)
    matrix.set_xlabel("predicted class")
    matrix.set_ylabel("true class")
    reliability.plot([0, 100], [0, 100], "--", color="gray")
    points = [(100 * row["confidence"], 100 * row["accuracy"]) for row in bins]
    reliability.plot(*zip(*points, strict=True), "o-", color="black")
    reliability.set_xlabel("confidence (%)")
    reliability.set_ylabel("accuracy (%)")
    reliability.grid(alpha=0.3)
    return figure
