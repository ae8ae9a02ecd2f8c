"""One encoded image to pixels: checked before it is decoded, cropped while it is. Pillow does the work.

What cannot be read, or would be read as something that it is not, raises `CorruptImageError` with its place.
"""

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

Pixels = UInt8[np.ndarray, "height width channels"]

MAX_PIXELS = 2**26  # of one image: 67 million, more than any camera's, less than what fills a memory
MIN_SIDE = 2  # pixels; smaller is the placeholder of a picture that is gone
_FORMATS = ("JPEG", "PNG", "WEBP")


class CorruptImageError(ValueError):
    """An image that is damaged, of another kind, or of an absurd size; the message begins with where it lies.

    Example:
        >>> decode(b"no image at all", "cat/7.jpg")
        Traceback (most recent call last):
        ...
        dropcluster_jax.data.decoding.CorruptImageError: cat/7.jpg cannot be read as a JPEG, PNG or WebP image
    """


def decode(encoded: bytes, where: str, channels: int = 3) -> Pixels:
    """All pixels of a JPEG, PNG or WebP image.

    Grayscale, palettes and CMYK become red, green and blue. Transparency and 16 bits a value are refused: there is no
    one way to make 8-bit colors of them.

    Args:
        encoded: the content of the file.
        where: what errors call it: its path.
        channels: 3, or 1 for grayscale.

    Returns:
        uint8 `(height, width, channels)`.

    Raises:
        CorruptImageError: it is damaged or no such image, has fewer than `MIN_SIDE` pixels a side or more than
            `MAX_PIXELS` (which is found before it is decoded), has transparent pixels, or 16 bits a value.

    Example:
        >>> import io, numpy as np
        >>> from PIL import Image
        >>> file = io.BytesIO()
        >>> Image.fromarray(np.full((4, 5), 7, np.uint8)).save(file, "PNG")
        >>> decode(file.getvalue(), "seven.png")[0, 0].tolist()
        [7, 7, 7]
    """
    image = _open(encoded, where)
    with _as_bad_image(where):
        pixels = np.asarray(_in_colours(image, where, channels))
    return pixels.reshape(*pixels.shape[:2], channels)


def decode_center(encoded: bytes, where: str, size: int) -> Pixels:
    """The middle of an image: a square of 7/8 of its shorter side, resized to `(size, size, 3)`.

    That is the usual way to evaluate: the shorter side to 256, then the middle 224, say.

    Args:
        encoded: the content of the file.
        where: what errors call it: its path.
        size: the side of what is returned, in pixels.

    Returns:
        uint8 `(size, size, 3)`.

    Raises:
        CorruptImageError: as of `decode`.
    """
    image = _open(encoded, where)
    side = min(image.size) * 0.875
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return _crop(image, where, (left, top, left + side, top + side), size)


def decode_random_crop(encoded: bytes, where: str, size: int, rng: np.random.Generator) -> Pixels:
    """A random part of an image, resized to `(size, size, 3)`.

    Its area is uniform in [0.08, 1] of the image's, the logarithm of its proportions in those of [3/4, 4/3]; ten tries
    without one that fits end in the middle, as in torchvision. A JPEG is decoded at the smallest scale that has the
    pixels that are needed.

    Args:
        encoded: the content of the file.
        where: what errors call it: its path.
        size: the side of what is returned, in pixels.
        rng: what the part depends on.

    Returns:
        uint8 `(size, size, 3)`.

    Raises:
        CorruptImageError: as of `decode`.

    References:
        Szegedy et al., "Going deeper with convolutions", CVPR 2015, https://arxiv.org/abs/1409.4842
    """
    image = _open(encoded, where)
    width, height = image.size
    for _ in range(10):
        area, ratio = width * height * rng.uniform(0.08, 1), math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        wide, high = max(1, round(math.sqrt(area * ratio))), max(1, round(math.sqrt(area / ratio)))
        if wide <= width and high <= height:
            left, top = int(rng.integers(0, width - wide + 1)), int(rng.integers(0, height - high + 1))
            break
    else:
        wide, high = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        left, top = (width - wide) // 2, (height - high) // 2
    return _crop(image, where, (left, top, left + wide, top + high), size)


def _open(encoded: bytes, where: str) -> Any:
    """A Pillow image, its header read, not yet decoded."""
    with optional_import("Pillow"):
        from PIL import Image

    with _as_bad_image(where):
        try:
            image = Image.open(io.BytesIO(encoded), formats=_FORMATS)
            width, height = image.size
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise CorruptImageError(f"{where} claims more than {MAX_PIXELS:,} pixels; it was not decoded") from error
    if width * height > MAX_PIXELS:
        raise CorruptImageError(f"{where} claims {width}x{height} pixels, more than {MAX_PIXELS:,}; it was not decoded")
    if min(width, height) < MIN_SIDE:
        raise CorruptImageError(f"{where} has {width}x{height} pixels, each side must have at least {MIN_SIDE}")
    if image.mode.startswith(("I", "F")):
        raise CorruptImageError(f"{where} has 16 bits a value or more; convert it to 8")
    return image


def _in_colours(image: Any, where: str, channels: int = 3) -> Any:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getextrema()[3][0] < 255:
            raise CorruptImageError(f"{where} has transparent pixels; put it on a background")
    return image.convert("L" if channels == 1 else "RGB")


def _crop(image: Any, where: str, box: tuple[float, float, float, float], size: int) -> Pixels:
    from PIL import Image

    with _as_bad_image(where):
        width, height = image.size
        least = (math.ceil(width * size / (box[2] - box[0])), math.ceil(height * size / (box[3] - box[1])))
        if least[0] < width and least[1] < height:
            image.draft(None, least)  # of a JPEG: decode at 1/2, 1/4 or 1/8
        across, down = image.width / width, image.height / height
        scaled = (box[0] * across, box[1] * down, box[2] * across, box[3] * down)
        return np.asarray(_in_colours(image, where).resize((size, size), Image.Resampling.BILINEAR, box=scaled))


@contextlib.contextmanager
def _as_bad_image(where: str) -> Iterator[None]:
    """Whatever Pillow says of a damaged file, said with its place."""
    try:
        yield
    except CorruptImageError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        reason = str(error).split(" <_io")[0].removesuffix("cannot identify image file")
        said = f": {reason}" if reason else ""
        raise CorruptImageError(f"{where} cannot be read as a JPEG, PNG or WebP image{said}") from error
