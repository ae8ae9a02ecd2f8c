"""Cutout: dropout of one box of positions."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dropcluster_jax.masking.common import Rate, Rescale, check_input, check_rate, mask_rescale_factor
from dropcluster_jax.masking.fill import Fill, apply_mask, resolve_rescale


def cutout(
    key: Array,
    x: Float[Array, "batch *spatial channels"],
    rate: Rate,
    *,
    per_channel: bool = False,
    per_example: bool = True,
    fill: Fill = "zero",
    rescale: Rescale | None = None,
) -> Float[Array, "batch *spatial channels"]:
    """Drops one box of positions, whose expected volume is a fraction `rate` of the map.

    The box has the proportions of the map: with d spatial dimensions, each side is `rate^(1/d)` times that of the map,
    rounded up or down at random so that the expected volume is exact. Its location is uniform among those inside the
    map. (In the paper the box is a square of fixed side s and may extend beyond the border. On an H x W map, it
    corresponds to `rate = s^2 / (H W)`.)

    Args:
        key: PRNG key.
        x: Activations or images `(batch, *spatial, channels)`, with any number of spatial dimensions.
        rate: Expected fraction of dropped units, in [0, 1]. May be traced.
        per_channel: Whether channels have separate boxes.
        per_example: Whether examples have separate boxes.
        fill: Replacement of dropped units, as in `drop_cluster`.
        rescale: Factor for kept units, as in `dropout`, but by default `"none"` for all fills.

    Returns:
        Array of the shape and dtype of `x`.

    Raises:
        TypeError: If `x` is not floating-point, or `rate` is not a number.
        ValueError: If `rate` is not a scalar in [0, 1], `fill` or `rescale` is unknown, they contradict each other,
            `x` has no spatial dimension, or units are to be swapped in a batch of one example.

    References:
        DeVries, Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", arXiv:1708.04552.

    Example:
        >>> y = cutout(jax.random.key(0), jnp.ones((1, 16, 1)), 0.25)
        >>> int((y == 0).sum())
        4
    """
    rescale = resolve_rescale(rescale, fill, "none")
    mask = cutout_mask(key, x, rate, per_channel=per_channel, per_example=per_example)
    return apply_mask(x, mask, mask_rescale_factor(mask, rate, rescale), fill, key)


def cutout_mask(
    key: Array,
    x: Float[Array, "batch *spatial channels"],
    rate: Rate,
    *,
    per_channel: bool = False,
    per_example: bool = True,
) -> Bool[Array, "examples *spatial maps"]:
    """Returns the mask of `cutout`. See `cutout`.

    Returns:
        Bool array `(batch or 1, *spatial, channels or 1)`, True where a unit is kept.
    """
    check_input(x)
    check_rate(rate)
    batch, *spatial, channels = x.shape
    boxes = (batch if per_example else 1, *(1,) * len(spatial), channels if per_channel else 1)
    # The gradient of the root is infinite at 0, that of the mask is 0 everywhere.
    side = jnp.clip(jax.lax.stop_gradient(jnp.asarray(rate, jnp.float32)), 0.0, 1.0) ** (1 / len(spatial))
    inside = jnp.array(True)
    for axis, length in enumerate(spatial, start=1):
        length_key, start_key = jax.random.split(jax.random.fold_in(key, axis))
        box = jnp.floor(length * side + jax.random.uniform(length_key, boxes, jnp.float32))
        start = jnp.floor((length - box + 1) * jax.random.uniform(start_key, boxes, jnp.float32))
        positions = jax.lax.broadcasted_iota(jnp.float32, (*(1,) * axis, length, *(1,) * (x.ndim - axis - 1)), axis)
        inside &= (start <= positions) & (positions < start + box)
    return ~inside
