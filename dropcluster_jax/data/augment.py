"""Variations of image batches inside the training step: pure JAX functions of a key and the images.

Shapes and types stay as they are, so they may stand in any order before `normalize`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Float32, Shaped, UInt8


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
    if not isinstance(pixels, int | np.integer):
        raise TypeError(f"pixels must be an integer, static under jit, got {pixels!r}")
    if pixels < 0:
        raise ValueError(f"pixels, the greatest shift, must be at least 0, got {pixels}")
    if pixels == 0:
        return images
    offsets = jax.random.randint(key, (images.shape[0], 2), 0, 2 * pixels + 1)
    padded = jnp.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)))

    def crop(image: Shaped[Array, "_ _ channels"], offset: Shaped[Array, "2"]) -> Shaped[Array, "_ _ channels"]:
        return jax.lax.dynamic_slice(image, (offset[0], offset[1], 0), images.shape[1:])

    return jax.vmap(crop)(padded, offsets)


def normalize(
    images: UInt8[Array | np.ndarray, "*batch channels"],
    mean: Float[Array | np.ndarray, " channels"],
    std: Float[Array | np.ndarray, " channels"],
) -> Float32[Array, "*batch channels"]:
    """Scale images to mean 0 and standard deviation 1: `(images / 255 - mean) / std`.

    Args:
        images: uint8, channels last.
        mean: of each channel of images scaled to [0, 1], such as `Dataset.mean`.
        std: the standard deviations, above 0, such as `Dataset.std`.

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
