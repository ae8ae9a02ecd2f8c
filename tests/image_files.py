"""Encoded images for tests, valid and corrupt."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

RNG = np.random.default_rng(0)
PHOTO = np.asarray(Image.fromarray(RNG.integers(0, 256, (12, 16, 3)).astype(np.uint8)).resize((400, 300)))


def encoded(pixels, image_format="PNG", mode=None, **options):
    """Returns the contents of an image file, converted to a Pillow mode if given."""
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(file, image_format, **options)
    return file.getvalue()


def png_header(width, height, depth=8):
    """Returns a PNG file of RGB images whose header claims a size and a depth in bits, without pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return start + struct.pack(">I", 4) + b"IDAT" + bytes(8)


# Corrupt images and the expected error messages.
CORRUPT = {
    "truncated": (encoded(PHOTO, "JPEG")[:2000], "truncated"),
    "truncated_header": (encoded(PHOTO, "JPEG")[:12], "cannot be read as a JPEG, PNG or WebP image"),
    "text": (b"not an image", "cannot be read as a JPEG, PNG or WebP image"),
    "empty": (b"", "cannot be read as a JPEG, PNG or WebP image"),
    "broken_png": (encoded(PHOTO)[:3000], "cannot be read as a JPEG, PNG or WebP image"),
    "one_pixel": (encoded(PHOTO[:1, :1]), "has 1x1 pixels and was not decoded; each side must have at least 2"),
    "transparent": (encoded(np.full((4, 4, 4), 100, np.uint8)), "has transparent pixels"),
    "sixteen_bits": (encoded(np.full((4, 4), 40000, np.uint16)), "has more than 8 bits per channel"),
    "sixteen_bit_colors": (png_header(4, 4, 16), "has more than 8 bits per channel"),
    "too_large": (png_header(9000, 9000), "has 9000x9000 pixels and was not decoded"),
    "far_too_large": (png_header(100_000, 100_000), "cannot be read as a JPEG, PNG or WebP image: Image size"),
    "gif": (encoded(PHOTO, "GIF"), "cannot be read as a JPEG, PNG or WebP image"),
}
