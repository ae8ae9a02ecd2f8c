import io

import numpy as np
import pytest
from image_files import CORRUPT, PHOTO, encoded
from PIL import Image, ImageOps

from dropcluster_jax.data.decoding import CorruptImageError, decode, decode_center, decode_random_crop


@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
def test_lossless_formats_are_decoded_exactly(image_format):
    options = {"lossless": True} if image_format == "WEBP" else {}
    np.testing.assert_array_equal(decode(encoded(PHOTO, image_format, **options), "photo"), PHOTO)


def test_other_color_modes_are_converted():
    gray = PHOTO[..., 0]
    np.testing.assert_array_equal(decode(encoded(gray), "gray"), np.repeat(gray[..., None], 3, -1))
    np.testing.assert_array_equal(decode(encoded(gray), "gray", channels=1), gray[..., None])
    opaque = np.concatenate([PHOTO, np.full((300, 400, 1), 255, np.uint8)], -1)
    np.testing.assert_array_equal(decode(encoded(opaque), "opaque"), PHOTO)
    cmyk = decode(encoded(PHOTO, "JPEG", "CMYK", quality=95), "cmyk").astype(int)
    assert abs(cmyk - PHOTO).mean() < 6
    palette = decode(encoded(PHOTO // 64 * 64, mode="P"), "palette")
    assert palette.shape == PHOTO.shape


@pytest.mark.parametrize("read", [decode, lambda *arguments: decode_center(*arguments, 8)], ids=["whole", "center"])
@pytest.mark.parametrize("kind", CORRUPT)
def test_corrupt_images_raise_with_their_path(kind, read):
    content, message = CORRUPT[kind]
    with pytest.raises(CorruptImageError, match=f"^some/path.jpg.*{message}"):
        read(content, "some/path.jpg")


def test_center_crop_equals_pillow():
    size, side = 64, 262.5
    box = ((400 - side) / 2, (300 - side) / 2, (400 + side) / 2, (300 + side) / 2)
    expected = np.asarray(Image.fromarray(PHOTO).resize((size, size), Image.Resampling.BILINEAR, box=box))
    np.testing.assert_array_equal(decode_center(encoded(PHOTO), "photo", size), expected)
    scaled = decode_center(encoded(PHOTO, "JPEG", quality=95), "photo", size).astype(int)  # Decoded at a smaller scale.
    assert abs(scaled - expected).mean() < 4


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright_by_their_exif_data(orientation, image_format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(PHOTO, image_format, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    np.testing.assert_array_equal(decode(content, "photo"), np.asarray(upright))
    crops = [lambda data: decode_center(data, "photo", 64)]
    crops += [
        lambda data, seed=seed: decode_random_crop(data, "photo", 64, np.random.default_rng(seed)) for seed in range(4)
    ]
    for crop in crops:
        # JPEG is decoded at a smaller scale.
        difference = crop(content).astype(int) - crop(encoded(np.asarray(upright)))
        assert abs(difference).mean() < (4 if image_format == "JPEG" else 1e-9)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data", "ignore:Possibly corrupt EXIF data")
def test_damaged_exif_data_are_ignored():
    for exif in (
        b"Exif\0\0",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12",
        b"Exif\0\0junk",
        b"Exif\0\0MM\0*\xff\xff\xff\xff",
    ):
        content = encoded(PHOTO, "JPEG", exif=exif)
        np.testing.assert_array_equal(decode(content, "photo"), decode(encoded(PHOTO, "JPEG"), "photo"))


def test_random_crops_are_reproducible_and_have_the_expected_area():
    """Pixels are their column, so that a crop's range of values is the fraction of the width that it covers."""
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (200, 200, 3))
    content = encoded(np.ascontiguousarray(ramp))
    crops = [decode_random_crop(content, "ramp", 16, np.random.default_rng(seed)) for seed in range(300)]
    again = decode_random_crop(content, "ramp", 16, np.random.default_rng(7))
    np.testing.assert_array_equal(crops[7], again)
    widths = np.array([int(crop[0, -1, 0]) - int(crop[0, 0, 0]) for crop in crops]) / 15 * 16 / 200
    assert (widths > 0).all()
    # The mean of sqrt(area) is 0.71 for areas uniform in [0.08, 1] and aspect ratios around 1.
    assert abs(widths.mean() - 0.71) < 0.05
