"""Argument checks and rescaling, shared by all masks."""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Real

Rate = Real[ArrayLike, ""]
Rescale = Literal["kept", "rate", "batch", "none"]

_WITHOUT_ZERO_OR_NAN = (jnp.float8_e8m0fnu, jnp.float4_e2m1fn)


def check_rate(rate: Rate) -> None:
    """Checks that `rate` is a probability. The value of a tracer is not checked.

    Raises:
        TypeError: If `rate` is not a number.
        ValueError: If `rate` is not a scalar in [0, 1].
    """
    if not isinstance(rate, Tracer) and not jnp.issubdtype(np.asarray(rate).dtype, np.number):
        raise TypeError(f"rate must be a number in [0, 1], got {rate!r}")
    if jnp.shape(rate) != ():
        raise ValueError(f"rate must be a scalar, got shape {jnp.shape(rate)}")
    if not isinstance(rate, Tracer) and not 0 <= np.asarray(rate) <= 1:
        raise ValueError(f"rate must be in [0, 1], got {rate}")


def check_input(x: Array, min_ndim: int = 3) -> None:
    """Checks that `x` is a floating-point array with at least `min_ndim` dimensions.

    Raises:
        TypeError: If `x` is not floating-point, or its dtype has no zero or no NaN.
        ValueError: If `x` has too few dimensions.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"x must have a floating-point dtype, got {x.dtype}")
    if x.dtype in _WITHOUT_ZERO_OR_NAN:
        raise TypeError(f"x must have a dtype with zero and NaN, got {x.dtype}")
    if x.ndim < min_ndim:
        layout = {1: "(batch, ...)", 2: "(batch, ..., channels)", 3: "(batch, *spatial, channels)"}[min_ndim]
        raise ValueError(f"x must have shape {layout}, got {x.shape}")


def check_block_size(block_size: int, spatial: Sequence[int]) -> None:
    """Checks that `block_size` is a side of a block that fits the map.

    Raises:
        TypeError: If `block_size` is not an integer.
        ValueError: If the block does not fit.
    """
    if isinstance(block_size, bool) or not isinstance(block_size, (int, np.integer)):
        raise TypeError(f"block_size must be an integer, got {block_size!r}")
    if not 1 <= block_size <= min(spatial):
        raise ValueError(
            f"block_size must be in [1, {min(spatial)}] for a map of shape {tuple(spatial)}, got {block_size}"
        )


def rescale_factor(kept: Int[Array, " batch"], units: int | Int[Array, ""], rate: Rate, rescale: Rescale) -> Array:
    """Returns the factor for kept units: 0 if nothing is kept, NaN if the rate is NaN.

    Args:
        kept: Number of units kept in each example.
        units: Number of units of an example.
        rate: Dropout rate.
        rescale: `"kept"` is `units / kept` per example, so that a constant input keeps its sum. `"batch"` is the same
            ratio over the batch. `"rate"` is `1 / (1 - rate)`, so that each unit keeps its expectation. `"none"` is 1.

    Returns:
        float32 array of shape `(batch,)` for `"kept"`, else a scalar.

    Raises:
        ValueError: If `rescale` is unknown.
    """
    if rescale not in get_args(Rescale):
        raise ValueError(f"rescale must be one of {', '.join(map(repr, get_args(Rescale)))}, got {rescale!r}")
    rate = jnp.asarray(rate, jnp.float32)
    if rescale == "none":
        total = remaining = jnp.ones((), jnp.float32)
    elif rescale == "rate":
        total, remaining = jnp.ones((), jnp.float32), 1.0 - jnp.clip(rate, 0.0, 1.0)
    else:
        total, remaining = jnp.asarray(units, jnp.float32), kept.astype(jnp.float32)
        if rescale == "batch":
            remaining = jnp.mean(remaining)
    factor = jnp.where(remaining > 0, total / jnp.where(remaining > 0, remaining, 1.0), 0.0)
    return jnp.where(jnp.isnan(rate), jnp.nan, factor)


def mask_rescale_factor(mask: Bool[Array, "batch ..."], rate: Rate, rescale: Rescale) -> Float[Array, "..."]:
    """Returns `rescale_factor` for a mask, broadcastable to the input."""
    axes = tuple(range(1, mask.ndim))
    scale = rescale_factor(jnp.sum(mask, axis=axes, dtype=jnp.int32), math.prod(mask.shape[1:]), rate, rescale)
    return jnp.expand_dims(scale, axes) if scale.ndim else scale


def options_of(layer: Any, function: Callable[..., Array]) -> dict[str, Any]:
    """Returns the keyword-only arguments of a function, whose values are the layer's attributes of the same names."""
    parameters = inspect.signature(function).parameters.values()
    return {each.name: getattr(layer, each.name) for each in parameters if each.kind is each.KEYWORD_ONLY}
