"""Cutout: one box of positions."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dropcluster_jax.masking.common import Rate, Rescale, apply_mask, check_rate, check_units, mask_rescale_factor


def cutout(
    key: Array,
    x: Float[Array, "batch *spatial channels"],
    rate: Rate,
    *,
    per_channel: bool = False,
    per_example: bool = True,
    rescale: Rescale = "none",
) -> Float[Array, "batch *spatial channels"]:
    """Drop one box of positions, of the map's own proportions, so that a share `rate` is dropped in expectation.

    Along each of the d spatial dimensions the box is `rate^(1/d)` of the map long, rounded up or down at random to
    whole positions, so that its expected volume is exact. It lies whole inside the map, with equal probability at
    every place. (The paper's square of a fixed side may reach over the border; a side s on an H x W map is about
    `rate = s^2 / (H W)`.)

    Args:
        key: a PRNG key.
        x: activations or images `(batch, *spatial, channels)`, with any number of spatial dimensions.
        rate: the share of units that is dropped in expectation, in [0, 1]; may be traced.
        per_channel: whether each channel has a box of its own; else all share one.
        per_example: whether each example has a box of its own; else all share one mask.
        rescale: `"none"`, as in the paper, leaves what is kept as it is; `"kept"` multiplies it by units / units kept,
            per example, `"batch"` by the same over all examples, `"rate"` by `1 / (1 - rate)`.

    Returns:
        An array like `x`; zeros where all is dropped, never NaN.

    Raises:
        TypeError: `x` is not of a floating-point type, or `rate` no number.
        ValueError: `x` has no spatial dimension, `rate` is no scalar in [0, 1], or an unknown `rescale`.

    References:
        DeVries, Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", arXiv:1708.04552.

    Example:
        >>> y = cutout(jax.random.key(0), jnp.ones((1, 4, 8, 1)), 0.25)
        >>> y[0, ..., 0].astype(int).tolist()  # a quarter of the positions: half of either length
        [[1, 1, 1, 0, 0, 0, 0, 1], [1, 1, 1, 0, 0, 0, 0, 1], [1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1]]
    """
    mask = cutout_mask(key, x, rate, per_channel=per_channel, per_example=per_example)
    return apply_mask(x, mask, mask_rescale_factor(mask, rate, rescale))


def cutout_mask(
    key: Array,
    x: Float[Array, "batch *spatial channels"],
    rate: Rate,
    *,
    per_channel: bool = False,
    per_example: bool = True,
) -> Bool[Array, "examples *spatial maps"]:
    """The mask of `cutout`; see there.

    Args:
        key: a PRNG key.
        x: activations or images `(batch, *spatial, channels)`; only their shape and type matter.
        rate: the share of units that is dropped in expectation, in [0, 1]; may be traced.
        per_channel: whether each channel has a box of its own; else all share one.
        per_example: whether each example has a box of its own; else all share one mask.

    Returns:
        bool, True = kept, `(batch or 1, *spatial, channels or 1)`.

    Raises:
        TypeError: `x` is not of a floating-point type, or `rate` no number.
        ValueError: `x` has no spatial dimension, or `rate` is no scalar in [0, 1].

    Example:
        >>> mask = cutout_mask(jax.random.key(1), jnp.ones((2, 8, 3)), 0.25)
        >>> mask.shape, mask[..., 0].astype(int).tolist()
        ((2, 8, 1), [[1, 0, 0, 1, 1, 1, 1, 1], [1, 1, 0, 0, 1, 1, 1, 1]])
    """
    check_units(x)
    check_rate(rate)
    batch, *spatial, channels = x.shape
    boxes = (batch if per_example else 1, *(1,) * len(spatial), channels if per_channel else 1)
    # A root has an infinite slope at 0; the mask has none.
    share = jnp.clip(jax.lax.stop_gradient(jnp.asarray(rate, jnp.float32)), 0.0, 1.0) ** (1 / len(spatial))
    inside = jnp.array(True)
    for axis, length in enumerate(spatial, start=1):
        length_key, start_key = jax.random.split(jax.random.fold_in(key, axis))
        box = jnp.floor(length * share + jax.random.uniform(length_key, boxes, jnp.float32))
        start = jnp.floor((length - box + 1) * jax.random.uniform(start_key, boxes, jnp.float32))
        along = jax.lax.broadcasted_iota(jnp.float32, (*(1,) * axis, length, *(1,) * (x.ndim - axis - 1)), axis)
        inside &= (start <= along) & (along < start + box)
    return ~inside
