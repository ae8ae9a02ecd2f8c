import numpy as np
import pytest

from dropcluster_jax.viz import curve_figure, pixels, quality_figure


def run(factor):
    train = [
        {"event": "train", "step": step, "loss": factor / step, "accuracy": 0.5, "rate": step / 1000}
        for step in (1, 10, 100)
    ]
    return [*train, {"event": "test", "step": 100, "accuracy": factor / 4}]


def points(axis):
    return {line.get_label(): line.get_xydata().tolist() for line in axis.lines}


def test_every_run_is_a_line_of_loss_accuracy_and_rate():
    figure = curve_figure({"a": run(1), "b": run(2)}, title="two")
    loss, accuracy, rate = figure.axes
    assert points(loss) == {f: [[1, k], [10, k / 10], [100, k / 100]] for f, k in (("a", 1.0), ("b", 2.0))}
    assert points(accuracy) == {"a": [[100, 25]], "b": [[100, 50]]}
    assert points(rate)["b"] == [[1, 0.001], [10, 0.01], [100, 0.1]]
    assert loss.get_yscale() == "log" and figure.get_suptitle() == "two"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]


def test_lines_are_told_apart_without_colour():
    figure = curve_figure({str(number): run(1) for number in range(49)})
    looks = {(line.get_marker(), str(line._unscaled_dash_pattern)) for line in figure.axes[0].lines}
    assert len(looks) == 49


def test_every_name_stands_in_the_legend_as_it_is():
    names = ["_hidden", "d$x$", r"$\foo$"]
    figure = curve_figure({name: run(1) for name in names})
    pixels(figure)
    assert [text.get_text().replace("\\$", "$").strip() for text in figure.legends[0].get_texts()] == names


def test_what_was_not_finite_is_a_gap():
    records = [
        {"event": "train", "step": step, "loss": loss, "rate": {"a": 0.1, "b": 0.2}}
        for step, loss in ((1, 1.0), (2, None))
    ]
    figure = curve_figure({"a": records})
    assert np.isnan(points(figure.axes[0])["a"][1][1]) and points(figure.axes[2])["a"] == [[1, 0.2], [2, 0.2]]


def test_quality_has_a_line_for_each_layer():
    records = [
        {
            "event": "clusters",
            "step": step,
            "layers": {
                "drop_stage1": {"explained_variance": 0.5, "adjusted_rand_index": 1.0},
                "x/y": {"explained_variance": 0.1, "adjusted_rand_index": 0.2},
            },
        }
        for step in (5, 10)
    ]
    explained, agreement = quality_figure(records).axes
    assert points(explained) == {"stage1": [[5, 50], [10, 50]], "x/y": [[5, 10], [10, 10]]}
    assert points(agreement) == {"stage1": [[5, 1], [10, 1]], "x/y": [[5, 0.2], [10, 0.2]]}


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="runs holds no run"):
        curve_figure({})
    with pytest.raises(ValueError, match="the run a has no record of training yet"):
        curve_figure({"a": []})
    with pytest.raises(ValueError, match="no update of clusters"):
        quality_figure(run(1))
