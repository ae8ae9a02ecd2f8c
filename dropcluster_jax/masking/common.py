"""What all masks share: the checks of their arguments, and the rescaling of what is left."""

import math
from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Real

Rate = Real[ArrayLike, ""]
Rescale = Literal["kept", "rate", "batch", "none"]


def check_rate(rate: Rate) -> None:
    """Refuse a rate that is no probability; a traced one cannot be looked at.

    Raises:
        TypeError: `rate` is no real number.
        ValueError: `rate` is no scalar in [0, 1].
    """
    if not isinstance(rate, Tracer) and not jnp.issubdtype(np.asarray(rate).dtype, np.number):
        raise TypeError(f"rate, the probability of being dropped, must be a number, got {rate!r}")
    if jnp.shape(rate) != ():
        raise ValueError(f"rate must be a scalar, got the shape {jnp.shape(rate)}")
    if not isinstance(rate, Tracer) and not 0 <= np.asarray(rate) <= 1:
        raise ValueError(f"rate, the probability of being dropped, must be in [0, 1], got {rate}")


def check_rescale(rescale: Rescale) -> None:
    """Refuse an unknown way to rescale.

    Raises:
        ValueError: `rescale` is none of "kept", "rate", "batch" and "none".
    """
    if rescale not in get_args(Rescale):
        raise ValueError(f"rescale must be one of {', '.join(map(repr, get_args(Rescale)))}, got {rescale!r}")


def check_units(x: Array, least_ndim: int = 3) -> None:
    """Refuse what are no activations.

    Raises:
        TypeError: `x` is not of a floating-point type.
        ValueError: `x` lacks dimensions: `(batch, *spatial, channels)` is wanted where `least_ndim` is 3.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"x must be of a floating-point type, got {x.dtype}")
    if x.ndim < least_ndim:
        wanted = {1: "(batch, ...)", 2: "(batch, ..., channels)", 3: "(batch, *spatial, channels)"}[least_ndim]
        raise ValueError(f"x must have the shape {wanted}, got {x.shape}")


def rescale_factor(kept: Int[Array, " batch"], units: int | Int[Array, ""], rate: Rate, rescale: Rescale) -> Array:
    """The factor for what is left, from how many units each example keeps.

    `"kept"`: `units / kept` for each example, under which a constant map keeps its sum; 0 where nothing was kept.
    `"batch"`: the same with the units kept of all examples. `"rate"`: `1 / (1 - rate)`, under which each unit keeps its
    expectation; 0 where the rate is 1. `"none"`: 1.

    Returns:
        float32, `(batch,)` or a scalar.
    """
    check_rescale(rescale)
    if rescale == "none":
        return jnp.ones(())
    if rescale == "rate":
        whole, left = 1.0, 1.0 - jnp.clip(jnp.asarray(rate, jnp.float32), 0.0, 1.0)  # as the draw has it
    else:
        whole, left = units, (kept if rescale == "kept" else jnp.mean(kept.astype(jnp.float32)))
    return jnp.where(left > 0, whole / jnp.where(left > 0, left, 1).astype(jnp.float32), 0.0)


def mask_rescale_factor(mask: Bool[Array, "batch ..."], rate: Rate, rescale: Rescale) -> Float[Array, "..."]:
    """The factor for what is left, broadcastable to `x`, where the units kept must be counted in the mask."""
    axes = tuple(range(1, mask.ndim))
    scale = rescale_factor(jnp.sum(mask, axis=axes, dtype=jnp.int32), math.prod(mask.shape[1:]), rate, rescale)
    return jnp.expand_dims(scale, axes) if scale.ndim else scale


def apply_mask(
    x: Float[Array, "batch ..."], mask: Bool[Array, "..."], scale: Float[Array, "..."]
) -> Float[Array, "batch ..."]:
    """`x * scale` where kept, 0 elsewhere, in the type of `x`.

    The product is made in at least float32: the factor itself, rounded to bfloat16, would shift every mean. A factor
    of 1 is not multiplied by, as a product may flush the smallest numbers to 0.
    """
    precise = jnp.promote_types(x.dtype, jnp.float32)
    scaled = jnp.where(scale == 1, x, (x.astype(precise) * scale).astype(x.dtype))
    return jnp.where(mask, scaled, jnp.zeros((), x.dtype))
