import numpy as np
import pytest
from PIL import Image, ImageSequence

import dropcluster_jax as dc
from dropcluster_jax.viz import cluster_animation, cluster_figure, cluster_history_figure


@pytest.fixture(scope="module")
def features():
    return np.random.default_rng(0).normal(size=(16, 8, 6, 5)).astype(np.float32)


def layer(features, **arguments):
    return dc.Grid(num_clusters=4, **arguments).init(features.shape[1:]), features


def test_a_row_for_each_layer_and_a_column_for_each_channel(features):
    figure = cluster_figure({"one": layer(features), "two": layer(features, per_channel=True)}, channels=3)
    maps = [axis for axis in figure.axes if axis.images and axis.collections]
    assert len(maps) == 6
    assert {axis.get_ylabel().split("\n")[0] for axis in maps} >= {"one", "two"}


def test_lines_run_exactly_between_clusters(features):
    clusters, x = layer(features)
    figure = cluster_figure({"one": (clusters, x)}, channels=1)
    (lines,) = figure.axes[0].collections
    drawn = set()
    for (x0, y0), (x1, y1) in lines.get_segments():
        middles = np.arange(round(x1 - x0 + y1 - y0)) + 0.5
        drawn |= {(x0 + m, y0) if y0 == y1 else (x0, y0 + m) for m in middles.tolist()}
    labels = np.asarray(clusters.labels)[..., 0]
    between = {(x, y + 0.5) for y, x in np.argwhere(labels[1:] != labels[:-1])}
    between |= {(x + 0.5, y) for y, x in np.argwhere(labels[:, 1:] != labels[:, :-1])}
    assert drawn == between


def test_the_picture_shows_the_mean_activation(features):
    figure = cluster_figure({"one": layer(features)}, channels=5)
    mean = features.mean(0)
    for channel in range(5):
        shown = np.asarray(figure.axes[channel].images[0].get_array())
        assert np.corrcoef(shown.ravel(), mean[..., channel].ravel())[0, 1] == pytest.approx(1)


@pytest.mark.bad_input
def test_what_cannot_be_drawn_is_refused(features):
    with pytest.raises(ValueError, match="no layer"):
        cluster_figure({})
    flat = dc.Grid(num_clusters=4).init((9, 3))
    with pytest.raises(ValueError, match=r"one must have maps of two spatial dimensions.*\(9,\)"):
        cluster_figure({"one": (flat, np.zeros((2, 9, 3)))})


@pytest.fixture(scope="module")
def history():
    """Tiles that move by a column each time, under other numbers each time."""
    tiles = np.arange(48).reshape(8, 6) // 12
    moved = [np.roll(tiles, step, axis=1) for step in range(5)]
    return {
        "one": [(10 * step, ((labels + step) % 4)[..., None]) for step, labels in enumerate(moved)],
        "two": [(10 * step, np.stack([labels, labels.max() - labels], axis=-1)) for step, labels in enumerate(moved)],
    }


def shades(axis):
    return np.asarray(axis.images[0].get_array())


def test_a_cluster_keeps_its_shade_whatever_its_number(history):
    figure = cluster_history_figure(history)
    first, second, *_ = (shades(axis) for axis in figure.axes[:5])
    assert len(np.unique(first)) == 4
    np.testing.assert_array_equal(np.roll(first, 1, axis=1)[:, 1:], second[:, 1:])


def test_the_history_shows_the_first_the_last_and_others_between(history):
    figure = cluster_history_figure(history, columns=3, channel=1, title="all")
    assert [axis.get_title() for axis in figure.axes] == ["step 0", "step 20", "step 40"] * 2
    assert figure.axes[3].get_ylabel() == "two" and figure.get_suptitle() == "all"


def test_the_animation_shows_every_update_and_ends_with_the_last(history, tmp_path):
    figure = cluster_animation(tmp_path / "clusters.gif", history, seconds=0.1)
    assert figure.get_suptitle() == "step 40" and [axis.get_title() for axis in figure.axes] == ["one", "two"]
    with Image.open(tmp_path / "clusters.gif") as gif:
        frames = [(frame.info["duration"], np.asarray(frame.convert("RGB"))) for frame in ImageSequence.Iterator(gif)]
    assert [duration for duration, _ in frames] == [100, 100, 100, 100, 400]
    assert all((one != other).any() for (_, one), (_, other) in zip(frames[1:], frames[:-1], strict=True))
    cluster_animation(tmp_path / "few.gif", history, frames=2)
    with Image.open(tmp_path / "few.gif") as gif:
        assert gif.n_frames == 2


@pytest.mark.parametrize(
    ("history", "message"),
    [
        ({}, "history holds no layer"),
        ({"one": []}, "history holds no labels of one"),
        ({"one": [(0, np.zeros((4, 1), int))]}, r"one must have maps of two spatial dimensions.*\(4,\)"),
    ],
)
def test_a_history_that_cannot_be_drawn_is_refused(history, message):
    with pytest.raises(ValueError, match=message):
        cluster_history_figure(history)


def test_an_animation_needs_all_layers_at_the_same_steps(history, tmp_path):
    with pytest.raises(ValueError, match="same steps for all layers"):
        cluster_animation(tmp_path / "clusters.gif", {**history, "three": history["one"][1:]})
    assert not list(tmp_path.iterdir())


def test_the_grid_and_what_was_first_learned_are_always_drawn():
    history = {"one": [(step, np.full((2, 2, 1), 0)) for step in range(100)]}
    titles = [axis.get_title() for axis in cluster_history_figure(history, columns=4).axes]
    assert titles == ["step 0", "step 1", "step 50", "step 99"]
    assert [axis.get_title() for axis in cluster_history_figure(history, columns=1).axes] == ["step 99"]


def test_what_is_no_pair_of_clusters_and_activations_is_named(features):
    clusters, x = layer(features)
    for wrong in (clusters, (clusters._asdict(), x)):
        with pytest.raises(TypeError, match="layers must hold \\(clusters, activations\\) for one: a ClusterState"):
            cluster_figure({"one": wrong})
    with pytest.raises(ValueError, match="channel must be from 0 to 1 for two, got 2"):
        cluster_history_figure({"two": [(0, np.zeros((4, 4, 2), int))]}, channel=2)
