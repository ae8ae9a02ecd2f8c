"""Encoded images, sound and damaged, made by tests."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

RNG = np.random.default_rng(0)
PHOTO = np.asarray(Image.fromarray(RNG.integers(0, 256, (12, 16, 3)).astype(np.uint8)).resize((400, 300)))


def encoded(pixels, kind="PNG", mode=None, **options):
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(file, kind, **options)
    return file.getvalue()


def claiming(width, height):
    """A PNG whose header claims a size, and that holds nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return start + struct.pack(">I", 4) + b"IDAT" + bytes(8)


# What no network can be trained on, and what is said of it.
BAD = {
    "truncated": (encoded(PHOTO, "JPEG")[:2000], "truncated"),
    "truncated_header": (encoded(PHOTO, "JPEG")[:12], "cannot be read as a JPEG, PNG or WebP image"),
    "text": (b"not a picture", "cannot be read as a JPEG, PNG or WebP image"),
    "empty": (b"", "cannot be read as a JPEG, PNG or WebP image"),
    "broken_png": (encoded(PHOTO)[:3000], "cannot be read as a JPEG, PNG or WebP image"),
    "one_pixel": (encoded(PHOTO[:1, :1]), "has 1x1 pixels, each side must have at least 2"),
    "transparent": (encoded(np.full((4, 4, 4), 100, np.uint8)), "has transparent pixels"),
    "sixteen_bits": (encoded(np.full((4, 4), 40000, np.uint16)), "has 16 bits a value"),
    "absurd": (claiming(9000, 9000), "claims 9000x9000 pixels, more than 67,108,864; it was not decoded"),
    "more_absurd": (claiming(100_000, 100_000), "claims more than 67,108,864 pixels; it was not decoded"),
    "other_kind": (encoded(PHOTO, "GIF"), "cannot be read as a JPEG, PNG or WebP image"),
}
