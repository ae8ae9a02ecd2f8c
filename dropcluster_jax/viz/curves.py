"""Learning curves, drawn from the log entries that `fit` reports and `metrics.jsonl` stores."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dropcluster_jax.viz.canvas import escape, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Entries = Sequence[Mapping[str, Any]]

# The colorblind-safe palette of Okabe and Ito, with a marker and a dash pattern per line for grayscale prints.
_COLORS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#0072B2", "#D55E00")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)))


def line_style(index: int) -> dict[str, Any]:
    """Returns keyword arguments of `Axes.plot` for a line; the first 49 styles differ even in grayscale."""
    cycle, position = divmod(index, len(_MARKERS))
    dashes = _DASHES[(position + cycle) % len(_DASHES)]
    return {"color": _COLORS[position], "marker": _MARKERS[position], "linestyle": dashes, "markersize": 5}


def curve_figure(runs: Mapping[str, Entries], title: str | None = None) -> "Figure":
    """Draws training loss, evaluation accuracy and drop rate of one or more runs.

    Args:
        runs: Log entries of each run, by name. Entries are dicts with `"event"` and `"step"`; `"train"` entries have
            `"loss"` and `"rate"`, `"eval"` entries have `"accuracy"` in [0, 1].
        title: Title of the figure.

    Returns:
        A figure with three axes: loss (on a log scale if it spans a factor of 10), accuracy in percent, and rate.

    Raises:
        ValueError: If `runs` is empty or a run has no `"train"` entries.

    Example:
        >>> train = [{"event": "train", "step": step, "loss": 1 / step, "rate": 0.1} for step in (1, 10)]
        >>> figure = curve_figure({"a": [*train, {"event": "eval", "step": 10, "accuracy": 0.5}]})
        >>> figure.axes[1].lines[0].get_xydata().tolist()
        [[10.0, 50.0]]
    """
    if not runs:
        raise ValueError("runs must contain at least one run")
    figure = new_figure(12, 3.8, title)
    loss, accuracy, rate = figure.subplots(1, 3)
    for index, (name, entries) in enumerate(runs.items()):
        train = [entry for entry in entries if entry["event"] == "train"]
        if not train:
            raise ValueError(f"run {name} has no training entries yet")
        evaluations = [entry for entry in entries if entry["event"] == "eval"]
        _plot(loss, index, name, [(entry["step"], entry["loss"]) for entry in train])
        _plot(accuracy, index, name, [(entry["step"], _percent(entry["accuracy"])) for entry in evaluations])
        _plot(rate, index, name, [(entry["step"], _max_rate(entry["rate"])) for entry in train])
    for ax, label in ((loss, "training loss"), (accuracy, "eval accuracy (%)"), (rate, "drop rate")):
        _label_axes(ax, label)
    low, high = loss.dataLim.intervaly
    if low > 0 and high > 10 * low:
        loss.set_yscale("log")
    rate.set_ylim(bottom=0)
    _add_legend(figure, accuracy)
    return figure


def quality_figure(entries: Entries, title: str | None = None) -> "Figure":
    """Draws the explained variance of each layer's clusters and their similarity to the previous clusters.

    Args:
        entries: Log entries of one run. In `"clusters"` entries, `"layers"` maps each layer's name to a dict with
            `"explained_variance"`, in [0, 1], and `"adjusted_rand_index"` with the previous clusters.
        title: Title of the figure.

    Returns:
        A figure with two axes and one line per layer.

    Raises:
        ValueError: If there are no `"clusters"` entries.

    Example:
        >>> layers = {"stage1": {"explained_variance": 0.4, "adjusted_rand_index": 0.9}}
        >>> figure = quality_figure([{"event": "clusters", "step": 20, "layers": layers}])
        >>> [ax.lines[0].get_xydata().tolist() for ax in figure.axes]
        [[[20.0, 40.0]], [[20.0, 0.9]]]
    """
    updates = [entry for entry in entries if entry["event"] == "clusters"]
    if not updates:
        raise ValueError("entries must contain at least one cluster update")
    figure = new_figure(9, 3.8, title)
    explained, similarity = figure.subplots(1, 2)
    for index, layer in enumerate(updates[0]["layers"]):
        metrics = [(entry["step"], entry["layers"][layer]) for entry in updates]
        _plot(explained, index, layer, [(step, _percent(values["explained_variance"])) for step, values in metrics])
        _plot(similarity, index, layer, [(step, values["adjusted_rand_index"]) for step, values in metrics])
    _label_axes(explained, "explained variance (%)")
    _label_axes(similarity, "ARI with previous clusters")
    explained.set_ylim(bottom=0)
    similarity.set_ylim(top=1.03)
    _add_legend(figure, explained)
    return figure


def _plot(ax: "Axes", index: int, name: str, points: Sequence[tuple[float, float | None]]) -> None:
    """Plots `(step, value)` points; None, which is how JSON stores non-finite values, leaves a gap."""
    values = [float("nan") if value is None else value for _, value in points]
    marker_spacing = max(1, len(points) // 8)  # sparse, so that markers do not hide the line
    ax.plot([step for step, _ in points], values, label=name, markevery=marker_spacing, **line_style(index))


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else 100 * fraction


def _max_rate(rate: float | Mapping[str, float] | None) -> float | None:
    """Returns the largest rate if layers have individual rates."""
    return max(rate.values(), default=None) if isinstance(rate, Mapping) else rate


def _label_axes(ax: "Axes", label: str) -> None:
    ax.set_xlabel("step")
    ax.set_ylabel(label)
    ax.grid(alpha=0.3)


def _add_legend(figure: "Figure", ax: "Axes") -> None:
    names = [escape(str(line.get_label())) for line in ax.lines]
    names = [f" {name}" if name.startswith("_") else name for name in names]  # Matplotlib omits labels such as "_name"
    figure.legend(ax.lines, names, loc="outside lower center", ncols=min(4, len(names)), frameon=False, fontsize=9)
