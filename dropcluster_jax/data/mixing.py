"""Variations that mix the examples of a batch, images and labels: pure JAX functions of a key.

Each example is mixed with the next of its batch, the last with the first: batches are shuffled, so that any partner is
as likely. Labels are probabilities of classes, `(batch, classes)`; `jax.nn.one_hot` makes them of integers.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dropcluster_jax.data.augment import inside_boxes

Images = Float[Array, "batch height width channels"]
Probabilities = Float[Array, "batch classes"]


def mixup(key: Array, images: Images, labels: Probabilities, alpha: float) -> tuple[Images, Probabilities]:
    """Mix each example with the next: `share * own + (1 - share) * next`, images and labels alike.

    Args:
        key: a PRNG key.
        images: floating-point `(batch, height, width, channels)`, such as `normalize` gives.
        labels: probabilities `(batch, classes)`, in [0, 1], floating-point.
        alpha: each example's `share` is drawn from Beta(alpha, alpha); above 0. The smaller, the less is mixed.

    Returns:
        Images and labels of the same shapes and types.

    Raises:
        TypeError: the images or the labels are not of a floating-point type.
        ValueError: `alpha` is not above 0, the labels are not `(batch, classes)`, or the images not
            `(batch, height, width, channels)`.

    References:
        Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018, arXiv:1710.09412.

    Example:
        >>> images = jnp.arange(2.0).reshape(2, 1, 1, 1)
        >>> mixed, labels = mixup(jax.random.key(0), images, jnp.eye(2), alpha=1.0)
        >>> bool(jnp.allclose(mixed.ravel(), labels[:, 1]))  # 0 and 1, as their classes are
        True
    """
    _check(images, labels, alpha)
    share = jax.random.beta(key, alpha, alpha, (len(images),), jnp.float32)
    return (
        _mixed(share[:, None, None, None], images, jnp.roll(images, -1, 0)),
        _mixed(share[:, None], labels, jnp.roll(labels, -1, 0)),
    )


def cutmix(key: Array, images: Images, labels: Probabilities, alpha: float) -> tuple[Images, Probabilities]:
    """Put a box of the next image over each, and mix the labels by the share of the pixels that each image keeps.

    The box has the image's proportions and, before it is cut off at the border, the share 1 - s of its area, s drawn
    from Beta(alpha, alpha); its middle is uniform among the pixels.

    Args:
        key: a PRNG key.
        images: floating-point `(batch, height, width, channels)`, such as `normalize` gives.
        labels: probabilities `(batch, classes)`, in [0, 1], floating-point.
        alpha: of the distribution; above 0, at 1 all shares are as likely.

    Returns:
        Images and labels of the same shapes and types.

    Raises:
        TypeError, ValueError: as of `mixup`.

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
    batch, height, width, _ = images.shape
    share_key, middle_key = jax.random.split(key)
    share = jax.random.beta(share_key, alpha, alpha, (batch,), jnp.float32)
    sides = jnp.array([[height], [width]])
    lengths = (sides * jnp.sqrt(1 - share)).astype(jnp.int32)
    starts = jax.random.randint(middle_key, (2, batch), 0, sides) - lengths // 2
    inside = inside_boxes(starts, lengths, height, width)
    kept = 1 - jnp.mean(inside, axis=(1, 2), dtype=jnp.float32)
    return (
        jnp.where(inside, jnp.roll(images, -1, 0), images),
        _mixed(kept, labels, jnp.roll(labels, -1, 0)),
    )


def _mixed(share: Float[Array, "..."], own: Float[Array, "..."], other: Float[Array, "..."]) -> Float[Array, "..."]:
    return (share * own + (1 - share) * other).astype(own.dtype)


def _check(images: Images, labels: Probabilities, alpha: float) -> None:
    if images.ndim != 4:
        raise ValueError(f"images must have the shape (batch, height, width, channels), got {images.shape}")
    if labels.ndim != 2 or len(labels) != len(images):
        raise ValueError(f"labels must have the shape ({len(images)}, classes), got {labels.shape}")
    for name, array in (("images", images), ("labels", labels)):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"{name} must be of a floating-point type, got {array.dtype}")
    if not alpha > 0:
        raise ValueError(f"alpha must be above 0, got {alpha}")
