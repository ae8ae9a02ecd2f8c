"""What is a picture is decoded as Pillow does; what is none, or an absurd one, is named by its path."""

import numpy as np
import pytest
from image_files import BAD, PHOTO, encoded
from PIL import Image

from dropcluster_jax.data.decoding import CorruptImageError, decode, decode_center, decode_random_crop
from dropcluster_jax.data.examples import FileExamples, decode_all


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_without_loss_all_pixels_come_back(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(decode(encoded(PHOTO, kind, **options), "photo"), PHOTO)


def test_other_ways_to_say_a_colour_become_red_green_and_blue():
    gray = PHOTO[..., 0]
    np.testing.assert_array_equal(decode(encoded(gray), "gray"), np.repeat(gray[..., None], 3, -1))
    np.testing.assert_array_equal(decode(encoded(gray), "gray", channels=1), gray[..., None])
    opaque = np.concatenate([PHOTO, np.full((300, 400, 1), 255, np.uint8)], -1)
    np.testing.assert_array_equal(decode(encoded(opaque), "opaque"), PHOTO)
    cmyk = decode(encoded(PHOTO, "JPEG", "CMYK", quality=95), "cmyk").astype(int)
    assert abs(cmyk - PHOTO).mean() < 6
    few = decode(encoded(PHOTO // 64 * 64, mode="P"), "palette")
    assert few.shape == PHOTO.shape


@pytest.mark.parametrize("read", [decode, lambda *arguments: decode_center(*arguments, 8)], ids=["whole", "center"])
@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_trained_on_is_named(kind, read):
    content, message = BAD[kind]
    with pytest.raises(CorruptImageError, match=f"^some/path.jpg.*{message}"):
        read(content, "some/path.jpg")


def test_the_centre_is_what_pillow_cuts_from_a_photo():
    size, side = 64, 262.5
    box = ((400 - side) / 2, (300 - side) / 2, (400 + side) / 2, (300 + side) / 2)
    expected = np.asarray(Image.fromarray(PHOTO).resize((size, size), Image.Resampling.BILINEAR, box=box))
    np.testing.assert_array_equal(decode_center(encoded(PHOTO), "photo", size), expected)
    smaller = decode_center(encoded(PHOTO, "JPEG", quality=95), "photo", size).astype(int)  # decoded at a scale
    assert abs(smaller - expected).mean() < 4


def test_random_crops_are_functions_of_their_generator_and_cover_the_area():
    """On an image that says where its pixels lie, a crop's mean range is the share of the side that it covers."""
    across = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (200, 200, 3))
    content = encoded(np.ascontiguousarray(across))
    crops = [decode_random_crop(content, "ramp", 16, np.random.default_rng(seed)) for seed in range(300)]
    again = decode_random_crop(content, "ramp", 16, np.random.default_rng(7))
    np.testing.assert_array_equal(crops[7], again)
    steps = np.array([int(crop[0, -1, 0]) - int(crop[0, 0, 0]) for crop in crops]) / 15 * 16 / 200
    assert (steps > 0).all()
    # The mean of sqrt(area), area uniform in [0.08, 1], proportions around 1: 0.71.
    assert abs(np.abs(steps).mean() - 0.71) < 0.05


@pytest.fixture
def files(tmp_path):
    """Three sound images and two bad ones."""
    contents = {
        "a": encoded(PHOTO),
        "b": b"text",
        "c": encoded(PHOTO[::-1]),
        "d": BAD["truncated"][0],
        "e": encoded(PHOTO),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return FileExamples([str(tmp_path / name) for name in contents], np.array([0, 1, 1, 0, 5], np.int32))


def test_a_bad_file_stops_the_reading_or_is_skipped_and_counted(files):
    with pytest.raises(CorruptImageError, match=r"/b cannot be read as a JPEG"):
        decode_all("some", files, 3, 2)
    examples, skipped = decode_all("some", files, 3, 2, skip_corrupt=True)
    assert examples.labels.tolist() == [0, 1] and len(skipped) == 3
    np.testing.assert_array_equal(examples.images, [PHOTO, PHOTO[::-1]])
    assert "/b cannot" in skipped[0] and "/d cannot" in skipped[1] and "/e has the label 5" in skipped[2]


def test_files_that_are_gone_and_sizes_that_differ_are_said(files, tmp_path):
    (tmp_path / "a").unlink()
    with pytest.raises(CorruptImageError, match="/a cannot be read: No such file"):
        decode_all("some", files.take(slice(0, 1)), 3, 2)
    (tmp_path / "b").write_bytes(encoded(PHOTO[:100]))
    with pytest.raises(ValueError, match=r"of one size.* got \(100, 400, 3\), \(300, 400, 3\)"):
        decode_all("some", files.take(slice(1, 3)), 3, 2)
    with pytest.raises(ValueError, match="no image of 'some' is left: 1 were skipped"):
        decode_all("some", files.take(slice(3, 4)), 3, 2, skip_corrupt=True)
    with pytest.raises(ValueError, match="'some' holds no image"):
        decode_all("some", files.take(slice(0)), 3, 2)
