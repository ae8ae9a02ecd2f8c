import numpy as np
import pytest

from dropcluster_jax.viz import corruption_figure, image_figure


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
