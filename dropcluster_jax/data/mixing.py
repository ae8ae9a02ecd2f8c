"""Augmentation that mixes the images and labels of a batch, as pure JAX functions.

Each example is mixed with the next one of its batch, and the last with the first; since batches are shuffled, all
partners are equally likely. Labels are class probabilities, `(batch, classes)`, e.g. from `jax.nn.one_hot`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dropcluster_jax.data.augment import as_images, inside_boxes
from dropcluster_jax.sharding import preserve_sharding

Images = Float[Array, "batch height width channels"]
Probabilities = Float[Array, "batch classes"]


def mixup(key: Array, images: Images, labels: Probabilities, alpha: float) -> tuple[Images, Probabilities]:
    """Mixes the images and labels of neighboring examples: `weight * own + (1 - weight) * next`.

    Args:
        key: PRNG key.
        images: Floating-point images `(batch, height, width, channels)`, e.g. from `normalize`.
        labels: Floating-point class probabilities `(batch, classes)`.
        alpha: Parameter of the distribution Beta(alpha, alpha) of each example's `weight`, positive; uniform at 1.

    Returns:
        Images and labels of the same shapes and dtypes.

    Raises:
        TypeError: If `images` or `labels` is not floating-point.
        ValueError: If `alpha` is not positive, or `images` or `labels` has another shape.

    References:
        Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018, arXiv:1710.09412.

    Example:
        >>> images = jnp.arange(2.0).reshape(2, 1, 1, 1)
        >>> mixed, labels = mixup(jax.random.key(0), images, jnp.eye(2), alpha=1.0)
        >>> bool(jnp.allclose(mixed.ravel(), labels[:, 1]))  # The values are 0 and 1, like the classes.
        True
    """
    _check(images, labels, alpha)

    def mix(key: Array, examples: tuple[Images, Probabilities]) -> tuple[Images, Probabilities]:
        images, labels = examples
        weight = jax.random.beta(key, alpha, alpha, (images.shape[0],), jnp.float32)
        return _mix_with_next(weight[:, None, None, None], images), _mix_with_next(weight[:, None], labels)

    return preserve_sharding(mix, key, (images, labels))


def cutmix(key: Array, images: Images, labels: Probabilities, alpha: float) -> tuple[Images, Probabilities]:
    """Replaces a box of each image by that of the next, and mixes the labels in proportion to the pixels.

    The box has the image's aspect ratio and, before clipping at the border, the fraction `1 - weight` of its area; its
    center is a uniformly drawn pixel. See `mixup` for the arguments and `weight`.

    References:
        Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features",
        ICCV 2019, arXiv:1905.04899, section 3.1.

    Example:
        >>> images = jnp.broadcast_to(jnp.arange(2.0).reshape(2, 1, 1, 1), (2, 8, 8, 1))
        >>> mixed, labels = cutmix(jax.random.key(0), images, jnp.eye(2), alpha=1.0)
        >>> bool(jnp.allclose(mixed.mean((1, 2, 3)), labels[:, 1]))
        True
    """
    _check(images, labels, alpha)

    def mix(key: Array, examples: tuple[Images, Probabilities]) -> tuple[Images, Probabilities]:
        images, labels = examples
        batch, height, width, _ = images.shape
        weight_key, center_key = jax.random.split(key)
        weight = jax.random.beta(weight_key, alpha, alpha, (batch,), jnp.float32)
        sides = jnp.array([[height], [width]], jnp.int32)
        lengths = (sides.astype(jnp.float32) * jnp.sqrt(1 - weight)[None]).astype(jnp.int32)
        starts = jax.random.randint(center_key, (2, batch), 0, sides, jnp.int32) - lengths // 2
        inside = inside_boxes(starts, lengths, height, width)
        kept = 1 - jnp.mean(inside, axis=(1, 2), dtype=jnp.float32)
        return jnp.where(inside, jnp.roll(images, -1, 0), images), _mix_with_next(kept, labels)

    return preserve_sharding(mix, key, (images, labels))


def _mix_with_next(weight: Float[Array, "..."], values: Float[Array, "batch ..."]) -> Float[Array, "batch ..."]:
    dtype = jnp.float64 if values.dtype == jnp.float64 else jnp.float32
    weight, own, other = weight.astype(dtype), values.astype(dtype), jnp.roll(values, -1, 0).astype(dtype)
    return (weight * own + (1 - weight) * other).astype(values.dtype)


def _check(images: Images, labels: Probabilities, alpha: float) -> None:
    as_images(images)
    if labels.ndim != 2 or labels.shape[0] != images.shape[0]:
        raise ValueError(f"labels must have shape ({images.shape[0]}, classes), got {labels.shape}")
    for name, array in (("images", images), ("labels", labels)):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"{name} must be floating-point, got {array.dtype}")
    if not alpha > 0:
        raise ValueError(f"alpha must be positive, got {alpha}")
