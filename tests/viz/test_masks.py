import jax
import numpy as np
import pytest

import dropcluster_jax as dc
from dropcluster_jax.viz import mask_figure


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(0), (1, 8, 6, 5))


def luminance(axis):
    """Of what an axis shows, as a gray print has it."""
    return np.asarray(axis.images[0].get_array()) @ [0.299, 0.587, 0.114]


def test_what_is_dropped_is_black_and_what_is_kept_is_not(x):
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
        assert axes[0, column].get_title() == f"{name}\n{100 * (1 - kept.mean()):.0f} % dropped"
        for channel in range(5):
            shown = luminance(axes[channel, column])
            assert (shown[~kept[..., channel]] == 0).all() and (shown[kept[..., channel]] > 0.2).all()
            unmasked = luminance(axes[channel, 0])
            np.testing.assert_array_equal(shown[kept[..., channel]], unmasked[kept[..., channel]])


def test_the_channels_that_vary_most_are_drawn(x):
    figure = mask_figure(x[0] * np.array([1, 9, 2, 8, 3]), {"all": np.ones((1, 1, 1), bool)}, channels=2)
    assert [axis.get_ylabel() for axis in figure.axes[::2]] == ["channel 1", "channel 3"]


def test_what_cannot_be_drawn_is_refused(x):
    with pytest.raises(ValueError, match="masks holds no mask"):
        mask_figure(x[0], {})
    with pytest.raises(ValueError, match=r"x must be of one example.*\(1, 8, 6, 5\)"):
        mask_figure(x, {"all": np.ones((1, 1, 1), bool)})
    with pytest.raises(ValueError, match=r"the mask of wide must be broadcastable to \(8, 6, 5\), got \(8, 7, 1\)"):
        mask_figure(x[0], {"wide": np.ones((8, 7, 1), bool)})


def test_the_image_stands_first_and_lines_run_between_clusters(x):
    labels = np.arange(8 * 6).reshape(8, 6, 1) // 24
    image = np.full((16, 12, 3), 200, np.uint8)
    figure = mask_figure(x[0], {"all": np.ones((1, 1, 1), bool)}, labels, image)
    shown = [axis.get_title() for axis in figure.axes if axis.axison or axis.images]
    assert shown == ["image", "activations", "all\n0 % dropped", "", ""]
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), image)
    drawn = [len(axis.collections[0].get_segments()) if axis.collections else 0 for axis in figure.axes]
    assert drawn == [0, 1, 0, 0, 1, 0]
    with pytest.raises(ValueError, match=r"labels must be of a map \(8, 6\), got \(4, 6, 1\)"):
        mask_figure(x[0], {"all": np.ones((1, 1, 1), bool)}, labels[:4])
