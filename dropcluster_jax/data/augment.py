"""Variations of image batches inside the training step: pure JAX functions of a key and the images.

Shapes and types stay as they are, so they may stand in any order before `normalize`. What also varies the labels is in
`mixing.py`.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Float32, Int, Shaped, UInt8


def random_flip(
    key: Array, images: Shaped[Array | np.ndarray, "batch height width channels"]
) -> Shaped[Array, "batch height width channels"]:
    """Mirror each image left-right with probability 1/2, independently.

    Args:
        key: a PRNG key.
        images: `(batch, height, width, channels)`, of any type.

    Returns:
        An array like `images`.

    Raises:
        ValueError: `images` has another number of dimensions.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> images = jnp.broadcast_to(jnp.array([0, 1], jnp.uint8).reshape(1, 1, 2, 1), (100, 1, 2, 1))
        >>> sorted(set(map(tuple, random_flip(jax.random.key(0), images).reshape(100, 2).tolist())))
        [(0, 1), (1, 0)]
    """
    images = _as_images(images)
    flipped = jax.random.bernoulli(key, 0.5, (images.shape[0], 1, 1, 1))
    return jnp.where(flipped, images[:, :, ::-1], images)


def random_shift(
    key: Array, images: Shaped[Array | np.ndarray, "batch height width channels"], pixels: int
) -> Shaped[Array, "batch height width channels"]:
    """Move each image by up to `pixels` along height and along width; zeros move in.

    The usual "pad by `pixels`, crop at random": an image's two shifts are independent, each uniform among the
    integers from `-pixels` to `pixels`.

    Args:
        key: a PRNG key.
        images: `(batch, height, width, channels)`, of any type.
        pixels: the greatest shift in pixels, at least 0, which is the identity; static under `jit`.

    Returns:
        An array like `images`.

    Raises:
        TypeError: `pixels` is no integer, or traced.
        ValueError: `pixels` is negative, or `images` has another number of dimensions.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> images = jnp.ones((100, 3, 3, 1), jnp.uint8)
        >>> sorted(set(random_shift(jax.random.key(0), images, pixels=1).sum((1, 2, 3)).tolist()))
        [4, 6, 9]
    """
    images = _as_images(images)
    _check_pixels("pixels", pixels)
    if pixels == 0:
        return images
    offsets = jax.random.randint(key, (images.shape[0], 2), 0, 2 * pixels + 1)
    padded = jnp.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)))

    def crop(image: Shaped[Array, "_ _ channels"], offset: Shaped[Array, "2"]) -> Shaped[Array, "_ _ channels"]:
        return jax.lax.dynamic_slice(image, (offset[0], offset[1], 0), images.shape[1:])

    return jax.vmap(crop)(padded, offsets)


def random_cutout(
    key: Array,
    images: Shaped[Array | np.ndarray, "batch height width channels"],
    side: int,
    fill: Shaped[Array | np.ndarray, " channels"] | int = 0,
) -> Shaped[Array, "batch height width channels"]:
    """Fill a square of each image, its middle uniform among the pixels; what lies beyond the border is cut off.

    As in the paper, a corner loses as little as a quarter of a square. (`dropcluster_jax.cutout` drops an exact share
    in expectation instead.)

    Args:
        key: a PRNG key.
        images: `(batch, height, width, channels)`, of any type.
        side: of the square in pixels, at least 0, which is the identity; static under `jit`.
        fill: what it is filled with, a number or `(channels,)`: in the paper 0 of images that are normalized, which is
            the mean of those that are not.

    Returns:
        An array like `images`.

    Raises:
        TypeError: `side` is no integer, or traced.
        ValueError: `side` is negative, or `images` has another number of dimensions.

    References:
        DeVries, Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", arXiv:1708.04552.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> images = jnp.ones((100, 3, 3, 1), jnp.uint8)
        >>> sorted(set((9 - random_cutout(jax.random.key(0), images, side=2).sum((1, 2, 3))).tolist()))
        [1, 2, 4]
    """
    images = _as_images(images)
    _check_pixels("side", side)
    batch, height, width, _ = images.shape
    middles = jax.random.randint(key, (2, batch), 0, jnp.array([[height], [width]]))
    starts = middles - side // 2
    return jnp.where(
        inside_boxes(starts, jnp.full_like(starts, side), height, width), jnp.asarray(fill, images.dtype), images
    )


def random_resized_crop(
    key: Array,
    images: Shaped[Array | np.ndarray, "batch height width channels"],
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Shaped[Array, "batch height width channels"]:
    """Take a random part of each image and enlarge it to the image's size.

    The part's area is uniform in `area` of the image's, the logarithm of its width over its height uniform in that of
    `ratio`, its place uniform; the first of ten draws that fits is taken, else the middle, as in torchvision. Resized
    linearly, smoothed where it shrinks, as Pillow does.

    Args:
        key: a PRNG key.
        images: `(batch, height, width, channels)`, of any type; integers are rounded.
        area: the least and the greatest share of the image, in (0, 1].
        ratio: the least and the greatest width over height, above 0.

    Returns:
        An array like `images`.

    Raises:
        ValueError: a range that is none, or `images` has another number of dimensions.

    References:
        Szegedy et al., "Going deeper with convolutions", CVPR 2015, arXiv:1409.4842, section 6.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> images = jnp.broadcast_to(jnp.arange(64, dtype=jnp.uint8)[:, None], (2, 64, 64, 1))
        >>> cropped = random_resized_crop(jax.random.key(0), images)
        >>> cropped.shape, cropped.dtype
        ((2, 64, 64, 1), dtype('uint8'))
        >>> cropped[:, 0, ::21, 0].tolist()  # from left to right: a part of what was 0 to 63
        [[8, 17, 26, 35], [11, 19, 28, 36]]
    """
    images = _as_images(images)
    if not 0 < area[0] <= area[1] <= 1:
        raise ValueError(f"area, the shares of the image, must be (least, greatest) in (0, 1], got {area}")
    if not 0 < ratio[0] <= ratio[1] < math.inf:
        raise ValueError(f"ratio, width over height, must be (least, greatest) above 0, got {ratio}")
    batch, *sides, channels = images.shape
    boxes = _random_boxes(key, batch, sides[0], sides[1], area, ratio)

    def crop(image: Shaped[Array, "height width channels"], box: Shaped[Array, "2 2"]) -> Shaped[Array, "..."]:
        start, length = box.astype(jnp.float32)
        scale = jnp.array(sides) / length
        return jax.image.scale_and_translate(
            image.astype(jnp.float32), (*sides, channels), (0, 1), scale, -start * scale, "linear"
        )

    cropped = jax.vmap(crop)(images, boxes)
    if jnp.issubdtype(images.dtype, jnp.integer):
        cropped = jnp.round(cropped)
    return cropped.astype(images.dtype)


def _random_boxes(
    key: Array, batch: int, height: int, width: int, area: tuple[float, float], ratio: tuple[float, float]
) -> Int[Array, "batch 2 2"]:
    """For each image where its part starts, down and across, and how long it is."""
    area_key, ratio_key, place_key = jax.random.split(key, 3)
    pixels = height * width * jax.random.uniform(area_key, (batch, 10), minval=area[0], maxval=area[1])
    ratios = jnp.exp(jax.random.uniform(ratio_key, (batch, 10), minval=math.log(ratio[0]), maxval=math.log(ratio[1])))
    drawn = jnp.stack([jnp.sqrt(pixels / ratios), jnp.sqrt(pixels * ratios)], axis=-1)
    lengths = jnp.maximum(1, jnp.round(drawn)).astype(jnp.int32)
    sides = jnp.array([height, width])
    fits = jnp.all(lengths <= sides, axis=-1)
    chosen = jnp.take_along_axis(lengths, jnp.argmax(fits, axis=1)[:, None, None], axis=1)[:, 0]
    starts = jax.random.randint(place_key, (batch, 2), 0, jnp.maximum(sides - chosen, 0) + 1)
    # Where none fits: the largest part in the middle whose proportions are allowed.
    middle = jnp.array(
        [min(height, max(1, round(width / ratio[0]))), min(width, max(1, round(height * ratio[1])))], jnp.int32
    )
    found = jnp.any(fits, axis=1)[:, None, None]
    return jnp.where(found, jnp.stack([starts, chosen], axis=1), jnp.stack([(sides - middle) // 2, middle]))


def inside_boxes(
    starts: Shaped[Array, "2 batch"], lengths: Shaped[Array, "2 batch"], height: int, width: int
) -> Bool[Array, "batch height width 1"]:
    """Which pixels of each image lie in its box: from `starts`, down and across, `lengths` pixels far."""
    down, across = (
        (start[:, None] <= jnp.arange(side)) & (jnp.arange(side) < (start + length)[:, None])
        for start, length, side in zip(starts, lengths, (height, width), strict=True)
    )
    return (down[:, :, None] & across[:, None, :])[..., None]


def normalize(
    images: UInt8[Array | np.ndarray, "*batch channels"],
    mean: Float[Array | np.ndarray, " channels"] | Sequence[float],
    std: Float[Array | np.ndarray, " channels"] | Sequence[float],
) -> Float32[Array, "*batch channels"]:
    """Scale images to mean 0 and standard deviation 1: `(images / 255 - mean) / std`.

    Args:
        images: uint8 `(..., channels)`, values 0 to 255.
        mean: of each channel of images scaled to [0, 1], `(channels,)`, such as `DatasetSpec.mean`.
        std: the standard deviations, `(channels,)`, above 0, such as `DatasetSpec.std`.

    Returns:
        float32, of the shape of `images`.

    Raises:
        TypeError: `images` is not uint8: floats may be scaled already.
        ValueError: `std` is not above 0; a traced one cannot be looked at.

    Example:
        >>> import numpy as np
        >>> images = np.array([0, 255], np.uint8).reshape(2, 1, 1, 1)
        >>> normalize(images, mean=np.array([0.5]), std=np.array([0.25])).ravel().tolist()
        [-2.0, 2.0]
    """
    if images.dtype != jnp.uint8:
        raise TypeError(f"images must be uint8, values 0 to 255, got {images.dtype}")
    if not isinstance(std, Tracer) and not np.all(np.asarray(std) > 0):
        raise ValueError(f"std must be above 0 in every channel, got {std}")
    scaled = jnp.asarray(images).astype(jnp.float32) / 255
    return (scaled - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)


def _as_images(images: Shaped[Array | np.ndarray, "..."]) -> Shaped[Array, "batch height width channels"]:
    if images.ndim != 4:
        raise ValueError(f"images must have the shape (batch, height, width, channels), got {images.shape}")
    return jnp.asarray(images)


def _check_pixels(name: str, number: int) -> None:
    if not isinstance(number, int | np.integer):
        raise TypeError(f"{name} must be an integer, static under jit, got {number!r}")
    if number < 0:
        raise ValueError(f"{name}, a number of pixels, must be at least 0, got {number}")
