import numpy as np
import pytest

from dropcluster_jax.viz import image_figure


@pytest.mark.parametrize("channels", [1, 3])
def test_each_image_is_drawn_with_its_title(channels):
    images = np.random.default_rng(0).integers(0, 256, (11, 6, 5, channels)).astype(np.uint8)
    titles = [f"{'long' * 8 if i == 3 else 'class'} {i}" for i in range(11)]
    figure = image_figure(images, titles, columns=4, title="all")
    drawn = [ax for ax in figure.axes if ax.images]
    assert len(figure.axes) == 12 and len(drawn) == 11
    for ax, image, title in zip(drawn, images, titles, strict=True):
        np.testing.assert_array_equal(np.asarray(ax.images[0].get_array()).reshape(image.shape), image)
        assert ax.get_title() == (title if len(title) <= 18 else title[:17] + "…")
    for invalid in (images[:0], images[:3]):
        with pytest.raises(ValueError, match="images and titles must have the same nonzero length"):
            image_figure(invalid, titles)
