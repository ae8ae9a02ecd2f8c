import numpy as np
import pytest

import dropcluster_jax as dc
from dropcluster_jax.viz import cluster_figure


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
    drawn = {tuple(np.round(np.mean(segment, axis=0), 2)) for segment in lines.get_segments()}
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
