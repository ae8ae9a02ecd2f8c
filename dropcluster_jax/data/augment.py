"""Augmentation of image batches inside the training step, as pure JAX functions.

All functions preserve shape and dtype and can be composed in any order before `normalize`. Augmentations that also
change the labels are in `mixing.py`.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Float32, Int, Shaped, UInt8

from dropcluster_jax.data.crops import AREA, NUM_DRAWS, RATIO, crop_box, log_range
from dropcluster_jax.data.sampling import check_integer
from dropcluster_jax.sharding import preserve_sharding

InputImages = Shaped[Array | np.ndarray, "batch height width channels"]
Images = Shaped[Array, "batch height width channels"]
Range = tuple[float, float]


def random_flip(key: Array, images: InputImages) -> Images:
    """Mirrors each image horizontally with probability 1/2.

    Args:
        key: PRNG key.
        images: Images of any dtype, `(batch, height, width, channels)`.

    Returns:
        An array of the shape and dtype of `images`.

    Raises:
        ValueError: If `images` does not have four dimensions.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> images = jnp.broadcast_to(jnp.array([0, 1], jnp.uint8).reshape(1, 1, 2, 1), (100, 1, 2, 1))
        >>> sorted(set(map(tuple, random_flip(jax.random.key(0), images).reshape(100, 2).tolist())))
        [(0, 1), (1, 0)]
    """
    images = as_images(images)
    flipped = jax.random.bernoulli(key, jnp.float32(0.5), (images.shape[0], 1, 1, 1))
    return jnp.where(flipped, images[:, :, ::-1], images)


def random_shift(key: Array, images: InputImages, pixels: int) -> Images:
    """Shifts each image by up to `pixels` vertically and horizontally, filling with zeros.

    This is the usual "pad and crop at random". The two shifts are independent and uniform over the integers in
    [-pixels, pixels]. `pixels` must be at least 0 (the identity) and static under `jit`. See `random_flip`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> images = jnp.ones((100, 3, 3, 1), jnp.uint8)
        >>> sorted(set(random_shift(jax.random.key(0), images, pixels=1).sum((1, 2, 3)).tolist()))
        [4, 6, 9]
    """
    images = as_images(images)
    check_integer("pixels", pixels, 0)
    if pixels == 0:
        return images
    return preserve_sharding(functools.partial(_shift, pixels=pixels), key, images)


def _shift(key: Array, images: Shaped[Array, "..."], pixels: int) -> Shaped[Array, "..."]:
    offsets = jax.random.randint(key, (images.shape[0], 2), 0, 2 * pixels + 1, jnp.int32)
    padded = jnp.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)))

    def crop(image: Shaped[Array, "..."], offset: Int[Array, "2"]) -> Shaped[Array, "height width channels"]:
        return jax.lax.dynamic_slice(image, (*offset, jnp.zeros_like(offset[0])), images.shape[1:])

    return jax.vmap(crop)(padded, offsets)


def random_cutout(
    key: Array, images: InputImages, side: int, fill: Shaped[Array | np.ndarray, " channels"] | int = 0
) -> Images:
    """Fills a square of each image, centered at a uniformly drawn pixel and clipped at the border.

    As in the paper, as little as a quarter of the square is filled in a corner. (`dropcluster_jax.cutout` instead drops
    an exact fraction in expectation.) See `random_flip`.

    Args:
        key: PRNG key.
        images: Images of any dtype.
        side: Side of the square in pixels, at least 0 (the identity). Static under `jit`.
        fill: Fill value, a scalar or `(channels,)`. The paper fills normalized images with 0.

    References:
        DeVries, Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", arXiv:1708.04552.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> images = jnp.ones((100, 3, 3, 1), jnp.uint8)
        >>> sorted(set((9 - random_cutout(jax.random.key(0), images, side=2).sum((1, 2, 3))).tolist()))
        [1, 2, 4]
    """
    images = as_images(images)
    check_integer("side", side, 0)
    batch, height, width, _ = images.shape
    centers = jax.random.randint(key, (2, batch), 0, jnp.array([[height], [width]], jnp.int32), jnp.int32)
    starts = centers - side // 2
    fill = jnp.asarray(fill, images.dtype).reshape(1, 1, 1, -1)
    return jnp.where(inside_boxes(starts, jnp.full_like(starts, side), height, width), fill, images)


def random_resized_crop(key: Array, images: InputImages, area: Range = AREA, ratio: Range = RATIO) -> Images:
    """Crops a random part of each image and resizes it to the image's size.

    The crop's relative area is uniform in `area`, the logarithm of its aspect ratio uniform in that of `ratio`, its
    position uniform. The first of ten draws that fits is used, otherwise the center, as in torchvision. Resizing is
    bilinear with antialiasing, as in Pillow; integers are rounded. See `random_flip`.

    Args:
        key: PRNG key.
        images: Images of any dtype.
        area: Smallest and largest area as fractions of the image's, in (0, 1].
        ratio: Smallest and largest aspect ratio (width / height), positive.

    References:
        Szegedy et al., "Going deeper with convolutions", CVPR 2015, arXiv:1409.4842, section 6.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> images = jnp.zeros((2, 64, 64, 1), jnp.uint8)
        >>> cropped = random_resized_crop(jax.random.key(0), images)
        >>> cropped.shape, cropped.dtype
        ((2, 64, 64, 1), dtype('uint8'))
    """
    images = as_images(images)
    if not 0 < area[0] <= area[1] <= 1:
        raise ValueError(f"area must be an increasing pair in (0, 1], got {area}")
    if not 0 < ratio[0] <= ratio[1] < math.inf:
        raise ValueError(f"ratio must be an increasing pair of positive numbers, got {ratio}")
    return preserve_sharding(functools.partial(_resized_crop, area=area, ratio=ratio), key, images)


def _resized_crop(key: Array, images: Shaped[Array, "..."], area: Range, ratio: Range) -> Shaped[Array, "..."]:
    batch, height, width, channels = images.shape
    area_key, ratio_key, start_key = jax.random.split(key, 3)
    starts, sizes = crop_box(
        jax.random.uniform(area_key, (batch, NUM_DRAWS), jnp.float32, *area),
        jax.random.uniform(ratio_key, (batch, NUM_DRAWS), jnp.float32, *log_range(ratio)),
        lambda limits: jax.random.randint(start_key, (batch, 2), 0, limits, jnp.int32),
        height,
        width,
        ratio,
    )

    def crop(image: Shaped[Array, "..."], start: Float[Array, "2"], size: Float[Array, "2"]) -> Shaped[Array, "..."]:
        scale = jnp.array([height, width], jnp.float32) / size
        return jax.image.scale_and_translate(
            image.astype(jnp.float32), (height, width, channels), (0, 1), scale, -start * scale, "linear"
        )

    cropped = jax.vmap(crop)(images, starts.astype(jnp.float32), sizes.astype(jnp.float32))
    if jnp.issubdtype(images.dtype, jnp.integer):
        cropped = jnp.round(cropped)
    return cropped.astype(images.dtype)


def inside_boxes(
    starts: Shaped[Array, "2 batch"], lengths: Shaped[Array, "2 batch"], height: int, width: int
) -> Bool[Array, "batch height width 1"]:
    """Returns the mask of one box per image, given its first row and column, and its height and width."""

    def inside(start: Int[Array, " batch"], length: Int[Array, " batch"], side: int) -> Bool[Array, "batch side"]:
        positions = jnp.arange(side, dtype=start.dtype)[None]
        return (start[:, None] <= positions) & (positions < (start + length)[:, None])

    rows, columns = (inside(*axis) for axis in zip(starts, lengths, (height, width), strict=True))
    return (rows[:, :, None] & columns[:, None, :])[..., None]


def normalize(
    images: UInt8[Array | np.ndarray, "*batch channels"],
    mean: Float[Array | np.ndarray, " channels"] | Sequence[float],
    std: Float[Array | np.ndarray, " channels"] | Sequence[float],
) -> Float32[Array, "*batch channels"]:
    """Normalizes images to zero mean and unit variance: `(images / 255 - mean) / std`.

    Args:
        images: Images, uint8 `(..., channels)`.
        mean: Mean of each channel of images scaled to [0, 1], `(channels,)`, e.g. `DatasetSpec.mean`.
        std: Standard deviation of each channel, positive, `(channels,)`, e.g. `DatasetSpec.std`.

    Returns:
        A float32 array of the shape of `images`.

    Raises:
        TypeError: If `images` is not uint8, because floats may already be scaled.
        ValueError: If `std` is not positive; tracers are not checked.

    Example:
        >>> import numpy as np
        >>> images = np.array([0, 255], np.uint8).reshape(2, 1, 1, 1)
        >>> normalize(images, mean=np.array([0.5]), std=np.array([0.25])).ravel().tolist()
        [-2.0, 2.0]
    """
    if images.dtype != jnp.uint8:
        raise TypeError(f"images must be uint8, got {images.dtype}")
    if not isinstance(std, Tracer) and not np.all(np.asarray(std) > 0):
        raise ValueError(f"std must be positive, got {std}")
    scaled = jnp.asarray(images).astype(jnp.float32) / 255
    last_axis = (1,) * (images.ndim - 1) + (-1,)
    mean, std = (jnp.asarray(values, jnp.float32).reshape(last_axis) for values in (mean, std))
    return (scaled - mean) / std


def as_images(images: Shaped[Array | np.ndarray, "..."]) -> Images:
    """Checks the number of dimensions and converts to JAX."""
    if images.ndim != 4:
        raise ValueError(f"images must have shape (batch, height, width, channels), got {images.shape}")
    return jnp.asarray(images)
