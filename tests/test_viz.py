import numpy as np
import pytest

import dropcluster_jax as dc
from dropcluster_jax.viz import cluster_figure, corruption_figure, image_figure


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


@pytest.mark.parametrize("channels", [1, 3])
def test_every_image_is_on_the_sheet_with_its_title(channels):
    images = np.random.default_rng(0).integers(0, 256, (11, 6, 5, channels)).astype(np.uint8)
    titles = [f"{'long' * 8 if i == 3 else 'class'} {i}" for i in range(11)]
    figure = image_figure(images, titles, columns=4, title="all")
    shown = [axis for axis in figure.axes if axis.images]
    assert len(figure.axes) == 12 and len(shown) == 11
    for axis, image, title in zip(shown, images, titles, strict=True):
        np.testing.assert_array_equal(np.asarray(axis.images[0].get_array()).reshape(image.shape), image)
        assert axis.get_title() == (title if len(title) <= 16 else title[:15] + "…")
    for wrong in (images[:0], images[:3]):
        with pytest.raises(ValueError, match="an image, and a title for each"):
            image_figure(wrong, titles)


def test_corruptions_stand_beside_the_image_as_it_was():
    image = np.full((4, 4, 3), 90, np.uint8)
    corrupted = {name: [image - 10 * severity - number for severity in (1, 2, 3)] for number, name in enumerate("abc")}
    figure = corruption_figure(image, corrupted)
    drawn = [[int(axis.images[0].get_array()[0, 0, 0]) for axis in figure.axes if axis.images]]
    # Two corruptions in a row: a and c, then b.
    assert drawn == [[90, 80, 70, 60, 90, 78, 68, 58, 90, 79, 69, 59]]
    assert {text.get_text() for axis in figure.axes for text in axis.texts} == {"a", "b", "c"}
    with pytest.raises(ValueError, match=r"equally many severities of each corruption, got \[1, 3\]"):
        corruption_figure(image, {**corrupted, "d": [image]})
