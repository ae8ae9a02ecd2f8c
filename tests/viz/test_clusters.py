import itertools

import numpy as np
import pytest
from PIL import Image, ImageSequence

import dropcluster_jax as dc
from dropcluster_jax.viz import cluster_animation, cluster_figure, cluster_history_figure


@pytest.fixture(scope="module")
def features():
    return np.random.default_rng(0).normal(size=(16, 8, 6, 5)).astype(np.float32)


@pytest.fixture(scope="module")
def history():
    """Tiles that shift by one column per update and whose labels are permuted."""
    tiles = np.arange(48).reshape(8, 6) // 12
    shifted = [np.roll(tiles, update, axis=1) for update in range(5)]
    return {
        "one": [(10 * update, ((labels + update) % 4)[..., None]) for update, labels in enumerate(shifted)],
        "two": [(10 * update, np.stack([labels, 3 - labels], axis=-1)) for update, labels in enumerate(shifted)],
    }


def grid_layer(features, **options):
    return dc.Grid(num_clusters=4, **options).init(features.shape[1:]), features


def shades(ax):
    return np.asarray(ax.images[0].get_array())


def test_one_row_per_layer_and_one_column_per_channel(features):
    figure = cluster_figure({"one": grid_layer(features), "two": grid_layer(features, per_channel=True)}, channels=3)
    maps = [ax for ax in figure.axes if ax.images and ax.collections]
    assert len(maps) == 6
    assert {ax.get_ylabel().split("\n")[0] for ax in maps} >= {"one", "two"}


def test_boundaries_separate_exactly_the_clusters(features):
    clusters, x = grid_layer(features)
    figure = cluster_figure({"one": (clusters, x)}, channels=1)
    (lines,) = figure.axes[0].collections
    drawn = set()
    for (x0, y0), (x1, y1) in lines.get_segments():
        offsets = np.arange(round(x1 - x0 + y1 - y0)) + 0.5
        drawn |= {(x0 + offset, y0) if y0 == y1 else (x0, y0 + offset) for offset in offsets.tolist()}
    labels = np.asarray(clusters.labels)[..., 0]
    expected = {(x, y + 0.5) for y, x in np.argwhere(labels[1:] != labels[:-1])}
    expected |= {(x + 0.5, y) for y, x in np.argwhere(labels[:, 1:] != labels[:, :-1])}
    assert drawn == expected


def test_colors_show_the_mean_activation(features):
    figure = cluster_figure({"one": grid_layer(features)}, channels=5)
    mean = features.mean(0)
    for channel in range(5):
        assert np.corrcoef(shades(figure.axes[channel]).ravel(), mean[..., channel].ravel())[0, 1] == pytest.approx(1)


@pytest.mark.bad_input
def test_cluster_figure_rejects_invalid_layers(features):
    with pytest.raises(ValueError, match="layers must contain at least one layer"):
        cluster_figure({})
    one_dimensional = dc.Grid(num_clusters=4).init((9, 3))
    with pytest.raises(ValueError, match=r"one must have two spatial dimensions, got shape \(9,\)"):
        cluster_figure({"one": (one_dimensional, np.zeros((2, 9, 3)))})
    clusters, x = grid_layer(features)
    for invalid in (clusters, (clusters._asdict(), x)):
        with pytest.raises(TypeError, match=r"layers\['one'\] must be a pair of a ClusterState"):
            cluster_figure({"one": invalid})


def test_clusters_keep_their_color_when_labels_are_permuted(history):
    figure = cluster_history_figure(history)
    first, second, *_ = (shades(ax) for ax in figure.axes[:5])
    assert len(np.unique(first)) == 4
    np.testing.assert_array_equal(np.roll(first, 1, axis=1)[:, 1:], second[:, 1:])


def test_history_shows_the_first_last_and_intermediate_updates(history):
    figure = cluster_history_figure(history, columns=3, channel=1, title="all")
    assert [ax.get_title() for ax in figure.axes] == ["step 0", "step 20", "step 40"] * 2
    assert figure.axes[3].get_ylabel() == "two" and figure.get_suptitle() == "all"


def test_history_includes_the_grid_and_the_first_update():
    history = {"one": [(step, np.full((2, 2, 1), 0)) for step in range(100)]}
    titles = [ax.get_title() for ax in cluster_history_figure(history, columns=4).axes]
    assert titles == ["step 0", "step 1", "step 50", "step 99"]
    assert [ax.get_title() for ax in cluster_history_figure(history, columns=1).axes] == ["step 99"]


@pytest.mark.parametrize(
    ("history", "options", "message"),
    [
        ({}, {}, "history must contain at least one layer"),
        ({"one": []}, {}, r"history\['one'\] must contain at least one update"),
        ({"one": [(0, np.zeros((4, 1), int))]}, {}, r"one must have two spatial dimensions, got shape \(4,\)"),
        ({"two": [(0, np.zeros((4, 4, 2), int))]}, {"channel": 2}, r"channel must be in \[0, 1\] for two, got 2"),
        ({"one": [(0, np.zeros((4, 4, 1), int))]}, {"columns": 0}, "columns must be at least 1, got 0"),
    ],
)
def test_history_rejects_invalid_arguments(history, options, message):
    with pytest.raises(ValueError, match=message):
        cluster_history_figure(history, **options)


def test_animation_has_one_frame_per_update(history, tmp_path):
    figure = cluster_animation(tmp_path / "clusters.gif", history, seconds=0.1)
    assert figure.get_suptitle() == "step 40" and [ax.get_title() for ax in figure.axes] == ["one", "two"]
    with Image.open(tmp_path / "clusters.gif") as gif:
        frames = [(frame.info["duration"], np.asarray(frame.convert("RGB"))) for frame in ImageSequence.Iterator(gif)]
    assert [duration for duration, _ in frames] == [100, 100, 100, 100, 400]
    assert all((after != before).any() for (_, before), (_, after) in itertools.pairwise(frames))
    cluster_animation(tmp_path / "short.gif", history, frames=2)
    with Image.open(tmp_path / "short.gif") as gif:
        assert gif.n_frames == 2


def test_animation_requires_the_same_steps_for_all_layers(history, tmp_path):
    with pytest.raises(ValueError, match="same steps for all layers"):
        cluster_animation(tmp_path / "clusters.gif", {**history, "three": history["one"][1:]})
    assert not list(tmp_path.iterdir())
