"""The report's figures, and how they are written: the same numbers give the same bytes."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from dropcluster_jax.viz import draw_clusters
from experiments.intervals import Interval
from experiments.training import decode

# Told apart also in grey and by the colour-blind: Okabe and Ito's colours, each with a marker and dashes of its own.
_STYLES = [
    ("#000000", "o", "-"),
    ("#E69F00", "s", "--"),
    ("#56B4E9", "^", "-."),
    ("#009E73", "D", ":"),
    ("#CC79A7", "v", (0, (5, 1))),
    ("#0072B2", "P", (0, (1, 1))),
]


def curves(
    series: Mapping[str, Sequence[Interval | None]],
    x: Sequence[float],
    x_label: str,
    y_label: str,
    log: bool = False,
) -> Figure:
    """A curve for each name, with its intervals.

    Args:
        series: for each name the interval at each x; None where there is none.
        x: where.
        x_label: of the axis.
        y_label: of the axis.
        log: whether x goes by a logarithm.
    """
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis: Any = figure.subplots()
    spread = np.linspace(-1, 1, len(series)) if len(series) > 1 else [0.0]
    for (name, found), (colour, marker, dashes), beside in zip(series.items(), _STYLES, spread, strict=False):
        drawn = [(at, one) for at, one in zip(x, found, strict=True) if one is not None]
        places = [at * (1 + 0.02 * beside) if log else at + 0.06 * beside for at, _ in drawn]
        means = [one.mean for _, one in drawn]
        halves = [one.high - one.mean if one.number > 1 else 0.0 for _, one in drawn]
        axis.errorbar(
            places,
            means,
            yerr=halves,
            label=name,
            color=colour,
            marker=marker,
            linestyle=dashes,
            capsize=3,
            markersize=5,
        )
    if log:
        axis.set_xscale("log")
    axis.set_xticks(x, labels=[f"{at:g}" for at in x])
    axis.set_xticks([], minor=True)
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    return figure


def snapshots(found: Sequence[Mapping[str, Any]]) -> Figure:
    """Maps of clusters side by side, each with the step it is from."""
    figure = Figure(figsize=(2.1 * len(found), 2.4), layout="constrained")
    axes: Any = figure.subplots(1, len(found), squeeze=False)[0]
    number_of_clusters = max(int(decode(one["labels"]).max()) for one in found) + 1
    # A cluster keeps its shade; neighbours in number, which the grid has side by side, get shades far apart.
    shades = np.random.default_rng(0).permutation(number_of_clusters).astype(float)
    for number, (axis, one) in enumerate(zip(axes, found, strict=True)):
        labels = decode(one["labels"])
        draw_clusters(axis, shades[labels], labels)
        axis.set_title("the grid" if number == 0 else f"step {one['step']:,}", fontsize=10)
    return figure


def save(figure: Figure, path: pathlib.Path) -> None:
    """Write it as PNG and SVG, without a date or a random number in it."""
    with matplotlib.rc_context({"svg.hashsalt": "dropcluster-jax", "svg.fonttype": "path"}):
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None, "Creator": None})
        figure.savefig(path.with_suffix(".png"), dpi=150, metadata={"Software": None})
