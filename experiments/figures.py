"""Figures of the report. Equal numbers give equal files."""

import math
import pathlib
from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from dropcluster_jax.runs.intervals import Interval
from dropcluster_jax.viz.curves import line_style


def forest_figure(intervals: Mapping[str, Mapping[str, Interval]], label: str) -> Figure:
    """Draws intervals as horizontal lines: a row for each name, with a line for each condition.

    `intervals` are by name and condition; `label` is that of the axis.
    """
    conditions = list(dict.fromkeys(condition for row in intervals.values() for condition in row))
    figure = Figure(figsize=(8, 1 + 0.12 * len(intervals) * (len(conditions) + 1)), layout="constrained")
    ax = figure.subplots()
    offsets = 0.7 * ((np.arange(len(conditions)) + 0.5) / len(conditions) - 0.5)
    for index, condition in enumerate(conditions):
        rows = [
            (row + offsets[index], values[condition])
            for row, values in enumerate(intervals.values())
            if condition in values
        ]
        style = {**line_style(index), "linestyle": "none"}
        ax.errorbar(
            [value.mean for _, value in rows],
            [y for y, _ in rows],
            xerr=[value.half_width if value.num_values > 1 else math.nan for _, value in rows],
            label=condition,
            capsize=2,
            **style,
        )
    ax.axvline(0, color="gray", linewidth=1)
    ax.set_yticks(range(len(intervals)), labels=list(intervals))
    ax.set_ylim(len(intervals) - 0.5, -0.5)
    ax.set_xlabel(label)
    ax.grid(axis="x", alpha=0.3)
    if len(conditions) > 1:
        ax.legend(frameon=False, fontsize="small")
    return figure


def embed(figure: Figure, path: pathlib.Path, caption: str) -> list[str]:
    """Writes a figure as PNG and SVG, without dates or random ids, and returns Markdown that shows it."""
    with matplotlib.rc_context({"svg.hashsalt": "dropcluster-jax", "svg.fonttype": "path"}):
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None, "Creator": None})
        figure.savefig(path.with_suffix(".png"), dpi=150, metadata={"Software": None})
    return [f"![{caption}](figures/{path.name}.png)\n", f"*{caption}* [SVG](figures/{path.name}.svg)\n"]
