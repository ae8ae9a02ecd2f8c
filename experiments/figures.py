"""The report's figures, and how they are written: the same numbers give the same bytes."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from dropcluster_jax.viz import line_style
from experiments.intervals import Interval

Series = Mapping[str, Sequence[Interval | None]]


def curves(series: Series, differences: Series, x: Sequence[float], labels: tuple[str, str, str], log: bool) -> Figure:
    """On the left a curve for each name, on the right the differences of some of them to another, with intervals.

    Args:
        series: for each name the interval at each x; None where there is none.
        differences: of some of these names, likewise.
        x: where.
        labels: of the x axis, of the curves, and of the differences.
        log: whether x goes by a logarithm.
    """
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    looks = {name: line_style(number) for number, name in enumerate(series)}
    for axis, drawn, label in ((left, series, labels[1]), (right, differences, labels[2])):
        _draw(axis, drawn, looks, x, log)
        axis.set_xlabel(labels[0])
        axis.set_ylabel(label)
    right.axhline(0, color="gray", linewidth=1)
    left.legend(frameon=False)
    return figure


def _draw(axis: Any, series: Series, looks: Mapping[str, dict[str, Any]], x: Sequence[float], log: bool) -> None:
    beside = np.linspace(-1, 1, len(series)) if len(series) > 1 else [0.0]
    for (name, found), aside in zip(series.items(), beside, strict=True):
        known = [(at, one) for at, one in zip(x, found, strict=True) if one is not None]
        places = [at * (1 + 0.03 * aside) if log else at + 0.08 * aside for at, _ in known]  # bars beside each other
        halves = [one.high - one.mean if one.number > 1 else 0.0 for _, one in known]
        axis.errorbar(places, [one.mean for _, one in known], yerr=halves, label=name, capsize=3, **looks[name])
    if log:
        axis.set_xscale("log")
    axis.set_xticks(x, labels=[f"{at:g}" for at in x])
    axis.set_xticks([], minor=True)
    axis.grid(alpha=0.3)


def save(figure: Figure, path: pathlib.Path) -> None:
    """Write it as PNG and SVG, without a date or a random number in it."""
    with matplotlib.rc_context({"svg.hashsalt": "dropcluster-jax", "svg.fonttype": "path"}):
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None, "Creator": None})
        figure.savefig(path.with_suffix(".png"), dpi=150, metadata={"Software": None})
