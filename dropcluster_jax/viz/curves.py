"""Curves over the course of training, from the records that `fit` reports and `metrics.jsonl` holds."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dropcluster_jax.viz.canvas import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Records = Sequence[Mapping[str, Any]]

# Told apart also in gray and by the color-blind: Okabe and Ito's colors, each with a marker, and dashes.
_COLORS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#0072B2", "#D55E00")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)))


def line_style(number: int) -> dict[str, Any]:
    """The look of a line of a plot: 49 can be told apart, also without color.

    Args:
        number: of the line, from 0.

    Returns:
        `color`, `marker`, `linestyle` and `markersize`, as Matplotlib's `plot` takes them.

    Example:
        >>> line_style(0)
        {'color': '#000000', 'marker': 'o', 'linestyle': '-', 'markersize': 5}
        >>> line_style(7)["marker"], line_style(7)["linestyle"]
        ('o', '--')
    """
    turn, place = divmod(number, len(_MARKERS))
    dashes = _DASHES[(place + turn) % len(_DASHES)]
    return {"color": _COLORS[place], "marker": _MARKERS[place], "linestyle": dashes, "markersize": 5}


def curve_figure(runs: Mapping[str, Records], title: str | None = None) -> "Figure":
    """The learning curves of one or more runs: training loss, test accuracy, and the rate that is dropped.

    Args:
        runs: for each run's name its records, as `fit` reports them: dicts with `"event"` and `"step"`, of which
            `"train"` has `loss` and `rate`, `"test"` has `accuracy` in [0, 1].
        title: over the figure.

    Returns:
        A figure with three axes: loss (on a logarithmic scale where it falls to a tenth), test accuracy in %, rate.

    Raises:
        ValueError: there is no run, or one has no record of training.

    Example:
        >>> train = [{"event": "train", "step": step, "loss": 1 / step, "rate": 0.1} for step in (1, 10)]
        >>> figure = curve_figure({"a": [*train, {"event": "test", "step": 10, "accuracy": 0.5}]})
        >>> figure.axes[1].lines[0].get_xydata().tolist()
        [[10.0, 50.0]]
    """
    if not runs:
        raise ValueError("runs holds no run to draw")
    figure = new_figure(12, 3.8)
    loss, accuracy, rate = figure.subplots(1, 3)
    for number, (name, records) in enumerate(runs.items()):
        training = [record for record in records if record["event"] == "train"]
        if not training:
            raise ValueError(f"the run {name} has no record of training yet")
        test = [record for record in records if record["event"] == "test"]
        _line(loss, number, name, [(each["step"], each["loss"]) for each in training])
        _line(accuracy, number, name, [(each["step"], _percent(each["accuracy"])) for each in test])
        _line(rate, number, name, [(each["step"], _one_rate(each["rate"])) for each in training])
    for axis, label in ((loss, "training loss"), (accuracy, "test accuracy, %"), (rate, "rate")):
        _finish(axis, label)
    low, high = loss.dataLim.intervaly
    if low > 0 and high > 10 * low:
        loss.set_yscale("log")
    rate.set_ylim(bottom=0)
    _legend(figure, accuracy)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def quality_figure(records: Records, title: str | None = None) -> "Figure":
    """How the clusters of each layer develop: what they explain, and how much of them an update leaves as it was.

    Args:
        records: of one run, as `fit` reports them; those of the event `"clusters"` have for each of their `layers`
            `explained_variance`, the share of the variance in [0, 1], and `adjusted_rand_index`, the adjusted Rand index with the
            clusters before, at most 1.
        title: over the figure.

    Returns:
        A figure with two axes, a line for each layer.

    Raises:
        ValueError: clusters were never updated.

    Example:
        >>> layers = {"drop_stage1": {"explained_variance": 0.4, "adjusted_rand_index": 0.9}}
        >>> figure = quality_figure([{"event": "clusters", "step": 20, "layers": layers}])
        >>> [axis.lines[0].get_xydata().tolist() for axis in figure.axes]
        [[[20.0, 40.0]], [[20.0, 0.9]]]
    """
    updates = [record for record in records if record["event"] == "clusters"]
    if not updates:
        raise ValueError("records holds no update of clusters")
    figure = new_figure(9, 3.8)
    explained, agreement = figure.subplots(1, 2)
    for number, layer in enumerate(updates[0]["layers"]):
        name = layer.removeprefix("drop_")
        found = [(each["step"], each["layers"][layer]) for each in updates]
        _line(explained, number, name, [(step, _percent(one["explained_variance"])) for step, one in found])
        _line(agreement, number, name, [(step, one["adjusted_rand_index"]) for step, one in found])
    _finish(explained, "variance explained, %")
    _finish(agreement, "agreement with the clusters before")
    explained.set_ylim(bottom=0)
    agreement.set_ylim(top=1.03)
    _legend(figure, explained)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _line(axis: "Axes", number: int, name: str, points: Sequence[tuple[float, float | None]]) -> None:
    """What was not finite is null in JSON, and a gap here."""
    values = [float("nan") if value is None else value for _, value in points]
    every = max(1, len(points) // 8)  # markers, so that they do not hide the line
    look = {**line_style(number), "markevery": every}
    axis.plot([step for step, _ in points], values, label=name, **look)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _one_rate(rate: float | Mapping[str, float] | None) -> float | None:
    """The largest, where layers have rates of their own."""
    return max(rate.values(), default=None) if isinstance(rate, Mapping) else rate


def _finish(axis: "Axes", label: str) -> None:
    axis.set_xlabel("step")
    axis.set_ylabel(label)
    axis.grid(alpha=0.3)


def _legend(figure: "Figure", axis: "Axes") -> None:
    """Below the axes, where it hides nothing."""
    # Matplotlib reads mathematics into "$", and leaves out what begins with "_".
    names = [str(line.get_label()).replace("$", r"\$") for line in axis.lines]
    names = [f" {name}" if name.startswith("_") else name for name in names]
    figure.legend(axis.lines, names, loc="outside lower center", ncols=min(4, len(names)), frameon=False, fontsize=9)
