"""Paired differences between methods."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dropcluster_jax.viz.canvas import escape, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def difference_figure(rows: Sequence[Mapping[str, Any]], title: str | None = None) -> "Figure":
    """Draws differences from the network without drop layers, and from the best network, with their intervals.

    Args:
        rows: For each network, `"name"`, and `"from_none"` and `"from_best"`: dicts with `"mean"`, `"low"` and
            `"high"`, in points of accuracy, or None for the reference itself.
        title: Title of the figure.

    Returns:
        A figure with two axes that share their rows.

    Example:
        >>> difference = {"mean": 1.5, "low": 0.5, "high": 2.5}
        >>> rows = [{"name": "none", "from_none": None, "from_best": None}]
        >>> figure = difference_figure([*rows, {"name": "drop_block", "from_none": difference, "from_best": None}])
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['none', 'drop_block']
    """
    figure = new_figure(10, 1.4 + 0.45 * len(rows), title)
    axes = figure.subplots(1, 2, sharey=True)
    for ax, name, label in zip(
        axes, ("from_none", "from_best"), ("minus no drop layer", "minus the best network"), strict=True
    ):
        ax.axvline(0, color="black", linewidth=0.8)
        for index, difference in enumerate(row[name] for row in rows):
            if difference is None:
                ax.plot(0, index, "o", markerfacecolor="white", color="black")
                continue
            mean, low, high = (difference[bound] for bound in ("mean", "low", "high"))
            ax.errorbar(mean, index, xerr=[[mean - low], [high - mean]], fmt="o", color="black", capsize=4)
        ax.set_title(f"accuracy {label}", fontsize=10)
        ax.set_xlabel("points, with 95% intervals")
        ax.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(rows)), [escape(row["name"]) for row in rows])
    axes[0].invert_yaxis()
    return figure
