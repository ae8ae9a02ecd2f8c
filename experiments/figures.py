"""Figures of the report. Equal numbers give equal files."""

import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from dropcluster_jax.runs.intervals import Interval
from dropcluster_jax.viz.curves import line_style

Series = Mapping[str, Sequence[Interval | None]]  # intervals at each x, by name


def interval_figure(
    means: Series, differences: Series, x: Sequence[float], labels: tuple[str, str, str], log: bool
) -> Figure:
    """Draws means on the left and differences on the right, with error bars.

    `labels` are those of the x axis, of the means and of the differences.
    """
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    styles = {name: line_style(index) for index, name in enumerate(means)}
    for ax, series, label in ((left, means, labels[1]), (right, differences, labels[2])):
        _draw(ax, series, styles, x, log)
        ax.set_xlabel(labels[0])
        ax.set_ylabel(label)
    right.axhline(0, color="gray", linewidth=1)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def _draw(ax: Any, series: Series, styles: Mapping[str, dict[str, Any]], x: Sequence[float], log: bool) -> None:
    offsets = np.linspace(-1, 1, len(series)) if len(series) > 1 else [0.0]  # so that error bars do not overlap
    for (name, intervals), offset in zip(series.items(), offsets, strict=True):
        points = [(position, value) for position, value in zip(x, intervals, strict=True) if value is not None]
        positions = [position * (1 + 0.03 * offset) if log else position + 0.08 * offset for position, _ in points]
        ax.errorbar(
            positions,
            [value.mean for _, value in points],
            yerr=_half_widths(value for _, value in points),
            label=name,
            capsize=3,
            **styles[name],
        )
    if log:
        ax.set_xscale("log")
    ax.set_xticks(x, labels=[f"{position:g}" for position in x])
    ax.set_xticks([], minor=True)
    ax.grid(alpha=0.3)


def course_figure(series: Mapping[str, Mapping[str, np.ndarray]], steps: Sequence[int], label: str) -> Figure:
    """Draws the mean over seeds and, as thin lines, each seed over the course of training.

    `series` are by place and name, each `(seeds, steps)`; `label` is that of the y axis.
    """
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for ax, (place, groups) in zip(figure.subplots(1, len(series), squeeze=False)[0], series.items(), strict=True):
        for index, (name, values) in enumerate(groups.items()):
            style = line_style(index)
            ax.plot(steps, values.T, linewidth=0.6, color=style["color"], linestyle=style["linestyle"])
            ax.plot(steps, values.mean(0), label=name, **style)
        ax.set_title(place)
        ax.set_xlabel("step")
        ax.grid(alpha=0.3)
    figure.axes[0].set_ylabel(label)
    figure.axes[0].legend(frameon=False)
    return figure


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
            xerr=_half_widths(value for _, value in rows),
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


def _half_widths(intervals: Iterable[Interval]) -> list[float]:
    """Returns the lengths of error bars; those of single values are not drawn."""
    return [value.half_width if value.num_values > 1 else math.nan for value in intervals]


def embed(figure: Figure, path: pathlib.Path, caption: str) -> list[str]:
    """Writes a figure as PNG and SVG, without dates or random ids, and returns Markdown that shows it."""
    with matplotlib.rc_context({"svg.hashsalt": "dropcluster-jax", "svg.fonttype": "path"}):
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None, "Creator": None})
        figure.savefig(path.with_suffix(".png"), dpi=150, metadata={"Software": None})
    return [f"![{caption}](figures/{path.name}.png)\n", f"*{caption}* [SVG](figures/{path.name}.svg)\n"]
