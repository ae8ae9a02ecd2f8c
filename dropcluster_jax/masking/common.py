"""What all masks share: the checks of their arguments, the draw, and the rescaling of what is left."""

import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Real, Shaped

Rate = Real[ArrayLike, ""]
Rescale = Literal["kept", "rate"]


def check_rate(rate: Rate) -> None:
    """Refuse a rate that is no probability; a traced one cannot be looked at.

    Raises:
        ValueError: `rate` is no scalar in [0, 1].
    """
    if jnp.shape(rate) != ():
        raise ValueError(f"rate must be a scalar, got the shape {jnp.shape(rate)}")
    if not isinstance(rate, Tracer) and not 0 <= np.asarray(rate) <= 1:
        raise ValueError(f"rate, the probability of being dropped, must be in [0, 1], got {rate}")


def check_rescale(rescale: Rescale) -> None:
    """Refuse an unknown way to rescale.

    Raises:
        ValueError: `rescale` is neither "kept" nor "rate".
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
        wanted = "(batch, *spatial, channels)" if least_ndim == 3 else "(batch, ...)"
        raise ValueError(f"x must have the shape {wanted}, got {x.shape}")


def draw_kept(key: Array, rate: Rate, shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """Independent draws, True with probability 1 - rate, to 23 bits; exactly all at 0 and none at 1."""
    return jax.random.uniform(key, shape) >= rate


def rate_scale(rate: Rate) -> Float[Array, ""]:
    """`1 / (1 - rate)`, under which each unit keeps its expectation; 0 where the rate is 1."""
    kept = 1.0 - jnp.asarray(rate, jnp.float32)
    return jnp.where(kept > 0, 1.0 / jnp.where(kept > 0, kept, 1.0), 0.0)


def kept_scale(kept: Shaped[Array, " batch"], units: int | Int[Array, ""]) -> Float[Array, " batch"]:
    """`units / kept` for each example, under which a constant map keeps its sum; 0 where nothing was kept."""
    return jnp.where(kept > 0, units / jnp.maximum(kept, 1).astype(jnp.float32), 0.0)


def scale_of_mask(mask: Bool[Array, "batch ..."], rate: Rate, rescale: Rescale) -> Float[Array, "..."]:
    """The factor for what is left, broadcastable to `x`, where the units kept must be counted in the mask."""
    check_rescale(rescale)
    if rescale == "rate":
        return rate_scale(rate)
    axes = tuple(range(1, mask.ndim))
    scale = kept_scale(jnp.sum(mask, axis=axes, dtype=jnp.int32), math.prod(mask.shape[1:]))
    return jnp.expand_dims(scale, axes)


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
