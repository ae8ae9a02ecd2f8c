import numpy as np
import pytest

from dropcluster_jax.viz import curve_figure, quality_figure
from dropcluster_jax.viz.canvas import figure_to_array


def run_entries(factor):
    train = [
        {"event": "train", "step": step, "loss": factor / step, "accuracy": 0.5, "rate": step / 1000}
        for step in (1, 10, 100)
    ]
    return [*train, {"event": "eval", "step": 100, "accuracy": factor / 4}]


def points(ax):
    return {line.get_label(): line.get_xydata().tolist() for line in ax.lines}


def test_curves_show_loss_accuracy_and_rate_of_each_run():
    figure = curve_figure({"a": run_entries(1), "b": run_entries(2)}, title="two")
    loss, accuracy, rate = figure.axes
    assert points(loss) == {f: [[1, k], [10, k / 10], [100, k / 100]] for f, k in (("a", 1.0), ("b", 2.0))}
    assert points(accuracy) == {"a": [[100, 25]], "b": [[100, 50]]}
    assert points(rate)["b"] == [[1, 0.001], [10, 0.01], [100, 0.1]]
    assert loss.get_yscale() == "log" and figure.get_suptitle() == "two"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]


def test_line_styles_differ_without_color():
    figure = curve_figure({str(index): run_entries(1) for index in range(49)})
    styles = {(line.get_marker(), str(line._unscaled_dash_pattern)) for line in figure.axes[0].lines}
    assert len(styles) == 49


def test_legend_shows_names_verbatim():
    names = ["_hidden", "d$x$", r"$\foo$"]
    figure = curve_figure({name: run_entries(1) for name in names})
    figure_to_array(figure)
    assert [text.get_text().replace("\\$", "$").strip() for text in figure.legends[0].get_texts()] == names


def test_missing_values_are_gaps_and_rates_per_layer_are_reduced_to_the_largest():
    entries = [
        {"event": "train", "step": step, "loss": loss, "rate": {"a": 0.1, "b": 0.2}}
        for step, loss in ((1, 1.0), (2, None))
    ]
    figure = curve_figure({"a": entries})
    assert np.isnan(points(figure.axes[0])["a"][1][1]) and points(figure.axes[2])["a"] == [[1, 0.2], [2, 0.2]]


def test_quality_has_one_line_per_layer():
    entries = [
        {
            "event": "clusters",
            "step": step,
            "layers": {
                "drop_a": {"explained_variance": 0.5, "adjusted_rand_index": 1.0},
                "x/y": {"explained_variance": 0.1, "adjusted_rand_index": 0.2},
            },
        }
        for step in (5, 10)
    ]
    explained, similarity = quality_figure(entries).axes
    assert points(explained) == {"drop_a": [[5, 50], [10, 50]], "x/y": [[5, 10], [10, 10]]}
    assert points(similarity) == {"drop_a": [[5, 1], [10, 1]], "x/y": [[5, 0.2], [10, 0.2]]}


def test_empty_runs_are_rejected():
    with pytest.raises(ValueError, match="runs must contain at least one run"):
        curve_figure({})
    with pytest.raises(ValueError, match="run a has no training entries yet"):
        curve_figure({"a": []})
    with pytest.raises(ValueError, match="entries must contain at least one cluster update"):
        quality_figure(run_entries(1))
