"""The box of a random resized crop, for NumPy on the host and JAX on the device."""

import math
from collections.abc import Callable
from typing import Any

AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
NUM_DRAWS = 10


def log_range(ratio: tuple[float, float]) -> tuple[float, float]:
    """Returns the range of the logarithm of the aspect ratio."""
    return math.log(ratio[0]), math.log(ratio[1])


def crop_box(
    areas: Any,
    log_ratios: Any,
    draw_start: Callable[[Any], Any],
    height: int,
    width: int,
    ratio: tuple[float, float] = RATIO,
) -> tuple[Any, Any]:
    """Returns the crop of an image, or of each in a batch: the first of several draws that fits.

    If none fits, it is the largest centered crop with an allowed aspect ratio, as in torchvision.

    Args:
        areas: Areas as fractions of the image's, `(..., draws)`, a NumPy or JAX array.
        log_ratios: Logarithms of the aspect ratios, width / height, of the same shape.
        draw_start: Draws integers from 0 to exclusive limits, `(..., 2)`.
        height: Height of the images.
        width: Width of the images.
        ratio: Smallest and largest aspect ratio.

    Returns:
        The start `(row, column)` and the size `(height, width)`, int32 `(..., 2)`, in pixels.

    References:
        Szegedy et al., "Going deeper with convolutions", CVPR 2015, arXiv:1409.4842, section 6.
    """
    xp = areas.__array_namespace__()
    pixels, ratios = height * width * areas, xp.exp(log_ratios)
    candidates = xp.stack([xp.sqrt(pixels / ratios), xp.sqrt(pixels * ratios)], axis=-1)
    sizes = xp.maximum(1, xp.round(candidates)).astype(xp.int32)
    largest = [min(height, max(1, round(width / ratio[0]))), min(width, max(1, round(height * ratio[1])))]
    sides, center = (
        xp.broadcast_to(xp.asarray(pair, dtype=xp.int32), (*areas.shape[:-1], 2)) for pair in ([height, width], largest)
    )
    fits = xp.all(sizes <= sides[..., None, :], axis=-1)
    size = xp.take_along_axis(sizes, xp.argmax(fits, axis=-1)[..., None, None], axis=-2)[..., 0, :]
    start = draw_start(xp.maximum(sides - size, 0) + 1)
    fitting = xp.any(fits, axis=-1)[..., None]
    return xp.where(fitting, start, (sides - center) // 2), xp.where(fitting, size, center)
