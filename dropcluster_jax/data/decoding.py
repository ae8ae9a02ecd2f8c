"""Validation, decoding and cropping of encoded images, with Pillow."""

import contextlib
import io
import math
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import UInt8

from dropcluster_jax._optional import optional_import
from dropcluster_jax.data.crops import AREA, NUM_DRAWS, RATIO, crop_box, log_range

Pixels = UInt8[np.ndarray, "height width channels"]

MAX_PIXELS = 2**26  # Larger than any camera's images, small enough to fit in memory.
MIN_SIDE = 2  # Pixels; image hosts serve 1x1 placeholders for deleted images.
_FORMATS = ("JPEG", "PNG", "WEBP")
# Pillow raises these for damaged images.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)
_ORIENTATION_TAG = 0x0112  # in EXIF data
# Name of the transposition that turns a stored image upright, by orientation. Pillow's `ImageOps.exif_transpose` does
# the same, but also rewrites the EXIF data, which can fail.
_TRANSPOSITIONS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


class CorruptImageError(ValueError):
    """An image that is damaged or of an unsupported format or size; the message begins with its location."""


def decode(encoded: bytes, location: str, channels: int = 3) -> Pixels:
    """Decodes a JPEG, PNG or WebP image to `(height, width, channels)`: RGB, or grayscale for 1 channel.

    The image is turned upright by the orientation in its EXIF data, if any, here and before it is cropped.
    Transparent and 16-bit images raise an error, because there is no canonical conversion to 8-bit colors. So do images
    with a side shorter than `MIN_SIDE` or more than `MAX_PIXELS` pixels, which are not decoded.

    Example:
        >>> import io, numpy as np
        >>> from PIL import Image
        >>> file = io.BytesIO()
        >>> Image.fromarray(np.full((4, 5), 7, np.uint8)).save(file, "PNG")
        >>> decode(file.getvalue(), "seven.png")[0, 0].tolist()
        [7, 7, 7]
    """
    with _located_errors(location):
        pixels = np.asarray(_convert_colors(_turn_upright(_open(encoded)), channels))
    return pixels.reshape(*pixels.shape[:2], channels)


def decode_center(encoded: bytes, location: str, size: int) -> Pixels:
    """Decodes the center of an image: a square of 7/8 of its shorter side, resized to `(size, size, 3)`.

    This is the usual evaluation crop, e.g. the central 224 pixels of an image whose shorter side is resized to 256.
    """
    with _located_errors(location):
        image = _open(encoded)
        width, height = _upright_size(image)
        side = min(width, height) * 0.875
        left, top = (width - side) / 2, (height - side) / 2
        return _crop(image, (left, top, left + side, top + side), size)


def decode_random_crop(encoded: bytes, location: str, size: int, rng: np.random.Generator) -> Pixels:
    """Decodes a random crop of an image, resized to `(size, size, 3)`; see `random_resized_crop`.

    JPEG images are decoded at the smallest scale that has enough pixels.
    """
    with _located_errors(location):
        image = _open(encoded)
        width, height = _upright_size(image)
        areas, log_ratios = rng.uniform(*AREA, NUM_DRAWS), rng.uniform(*log_range(RATIO), NUM_DRAWS)
        start, sides = crop_box(areas, log_ratios, rng.integers, height, width)
        (top, left), (crop_height, crop_width) = start.tolist(), sides.tolist()
        return _crop(image, (left, top, left + crop_width, top + crop_height), size)


def _open(encoded: bytes) -> Any:
    """Reads and validates the header, and returns a Pillow image that is not decoded yet, unless it is PNG."""
    from PIL import Image

    image = Image.open(io.BytesIO(encoded), formats=_FORMATS)
    if image.width * image.height > MAX_PIXELS or min(image.size) < MIN_SIDE:
        raise CorruptImageError(
            f"has {image.width}x{image.height} pixels and was not decoded; each side must have at least {MIN_SIDE}, "
            f"and the image at most {MAX_PIXELS:,}"
        )
    # Pillow reads the high byte of 16-bit colors. The header of a PNG has the depth in its 25th byte.
    if image.mode.startswith(("I", "F")) or (image.format == "PNG" and encoded[24] > 8):
        raise CorruptImageError("has more than 8 bits per channel; convert it to 8 bits")
    if image.format == "PNG":  # The EXIF data can follow the pixels.
        image.load()
    return image


def _orientation(image: Any) -> int:
    """Returns the EXIF orientation, 1 if there is none; damaged EXIF data do not make an image unreadable."""
    try:
        return image.getexif().get(_ORIENTATION_TAG, 1)
    except (*_DAMAGE, TypeError, KeyError):
        return 1


def _upright_size(image: Any) -> tuple[int, int]:
    """Returns the width and height of an image once it is turned upright."""
    return image.size[::-1] if _orientation(image) in (5, 6, 7, 8) else image.size


def _turn_upright(image: Any) -> Any:
    from PIL import Image

    transposition = _TRANSPOSITIONS.get(_orientation(image))
    return image if transposition is None else image.transpose(Image.Transpose[transposition])


def _convert_colors(image: Any, channels: int = 3) -> Any:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getextrema()[3][0] < 255:
            raise CorruptImageError("has transparent pixels; flatten it onto a background")
    return image.convert("L" if channels == 1 else "RGB")


def _crop(image: Any, box: tuple[float, float, float, float], size: int) -> Pixels:
    """Decodes a box `(left, top, right, bottom)` of the upright image and resizes it to `(size, size, 3)`."""
    from PIL import Image

    width, height = _upright_size(image)
    required = (math.ceil(width * size / (box[2] - box[0])), math.ceil(height * size / (box[3] - box[1])))
    if required[0] < width and required[1] < height:
        # Decodes a JPEG at 1/2, 1/4 or 1/8 of its size.
        image.draft(None, required if image.width == width else required[::-1])
    image = _turn_upright(image)
    scale_x, scale_y = image.width / width, image.height / height
    scaled = (box[0] * scale_x, box[1] * scale_y, box[2] * scale_x, box[3] * scale_y)
    return np.asarray(_convert_colors(image).resize((size, size), Image.Resampling.BILINEAR, box=scaled))


@contextlib.contextmanager
def _located_errors(location: str) -> Iterator[None]:
    """Adds the location to `CorruptImageError`, which also replaces the errors that Pillow raises for damaged files."""
    with optional_import("Pillow"):
        from PIL import Image

    try:
        yield
    except CorruptImageError as error:
        raise CorruptImageError(f"{location} {error}") from None
    except (*_DAMAGE, Image.DecompressionBombError) as error:
        reason = str(error).split(" <_io")[0].removesuffix("cannot identify image file")
        detail = f": {reason}" if reason else ""
        raise CorruptImageError(f"{location} cannot be read as a JPEG, PNG or WebP image{detail}") from error
