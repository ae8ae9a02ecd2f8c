import jax
import numpy as np
import pytest

import dropcluster_jax as dc
from dropcluster_jax.viz import mask_figure

KEEP_ALL = {"all": np.ones((1, 1, 1), bool)}


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(0), (1, 8, 6, 5))


def luminance(ax):
    """The drawn image converted to grayscale."""
    return np.asarray(ax.images[0].get_array()) @ [0.299, 0.587, 0.114]


def test_only_dropped_units_are_black(x):
    masks = {
        "dropout": dc.dropout_mask(jax.random.key(0), x, 0.4)[0],
        "spatial dropout": dc.spatial_dropout_mask(jax.random.key(1), x, 0.4)[0],
        "DropBlock": dc.drop_block_mask(jax.random.key(2), x, 0.4, block_size=3)[0],
    }
    figure = mask_figure(x[0], masks, channels=5)
    axes = np.array(figure.axes).reshape(5, 4)
    assert axes[0, 0].get_title() == "activations"
    for column, (name, mask) in enumerate(masks.items(), 1):
        kept = np.broadcast_to(mask, x.shape[1:])
        assert axes[0, column].get_title() == f"{name}\n{1 - kept.mean():.0%} dropped"
        for channel in range(5):
            drawn = luminance(axes[channel, column])
            assert (drawn[~kept[..., channel]] == 0).all() and (drawn[kept[..., channel]] > 0.2).all()
            unmasked = luminance(axes[channel, 0])
            np.testing.assert_array_equal(drawn[kept[..., channel]], unmasked[kept[..., channel]])


def test_the_most_varying_channels_are_drawn(x):
    figure = mask_figure(x[0] * np.array([1, 9, 2, 8, 3]), KEEP_ALL, channels=2)
    assert [ax.get_ylabel() for ax in figure.axes[::2]] == ["channel 1", "channel 3"]


def test_image_and_cluster_boundaries_are_drawn(x):
    labels = np.arange(8 * 6).reshape(8, 6, 1) // 24
    image = np.full((16, 12, 3), 200, np.uint8)
    figure = mask_figure(x[0], KEEP_ALL, labels, image)
    titles = [ax.get_title() for ax in figure.axes if ax.axison or ax.images]
    assert titles == ["image", "activations", "all\n0% dropped", "", ""]
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), image)
    num_lines = [len(ax.collections[0].get_segments()) if ax.collections else 0 for ax in figure.axes]
    assert num_lines == [0, 1, 0, 0, 1, 0]


def test_mismatched_shapes_are_rejected(x):
    with pytest.raises(ValueError, match="masks must contain at least one mask"):
        mask_figure(x[0], {})
    with pytest.raises(ValueError, match=r"x must be one example of shape .*, got shape \(1, 8, 6, 5\)"):
        mask_figure(x, KEEP_ALL)
    with pytest.raises(
        ValueError, match=r"masks\['wide'\] must be broadcastable to \(8, 6, 5\), got shape \(8, 7, 1\)"
    ):
        mask_figure(x[0], {"wide": np.ones((8, 7, 1), bool)})
    with pytest.raises(ValueError, match=r"labels must have the spatial shape \(8, 6\), got shape \(4, 6, 1\)"):
        mask_figure(x[0], KEEP_ALL, np.zeros((4, 6, 1), int))
