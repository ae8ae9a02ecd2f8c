"""Application of masks: the values that replace dropped units, and the factor for kept ones."""

import functools
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from dropcluster_jax.masking.bernoulli import draw_words, mix_words
from dropcluster_jax.masking.common import Rescale

Fill = Literal["zero", "noise", "swap"]

_24_BITS = np.float32(2**-24)
_NOISE = np.uint32(0xFFFFFFFF)  # folded into the key, so that masks do not depend on the fill


def resolve_rescale(rescale: Rescale | None, fill: Fill, default: Rescale) -> Rescale:
    """Returns `rescale`, or if it is None, `default` for zeros and `"none"` for the other fills.

    Raises:
        ValueError: If `fill` is unknown, or it keeps the statistics of `x` and `rescale` is a factor other than 1.
    """
    if fill not in get_args(Fill):
        raise ValueError(f"fill must be one of {', '.join(map(repr, get_args(Fill)))}, got {fill!r}")
    if rescale is None:
        return default if fill == "zero" else "none"
    if fill != "zero" and rescale != "none":
        raise ValueError(f"rescale must be 'none' or None if fill is {fill!r}, got {rescale!r}")
    return rescale


def apply_mask(
    x: Float[Array, "batch ..."],
    mask: Bool[Array, "..."],
    scale: Float[Array, "..."],
    fill: Fill = "zero",
    key: Array | None = None,
) -> Float[Array, "batch ..."]:
    """Returns `x * scale` where `mask` is True and the fill elsewhere, in the dtype of `x`.

    Multiplies in at least float32, because a factor rounded to bfloat16 would shift the mean. Where the factor is 1,
    `x` is copied, because a multiplication may flush denormals to 0.

    Args:
        x: Activations, with the channels in the last dimension.
        mask: True where a unit is kept, broadcastable to `x`.
        scale: Factor for kept units, broadcastable to `x`.
        fill: `"zero"`; `"noise"`, normal draws with the mean and the standard deviation of the channel over the batch
            and the positions, through which no gradient flows; or `"swap"`, the same unit of the next example, for the
            last example that of the first one.
        key: PRNG key, needed for noise.

    Raises:
        ValueError: If units are to be swapped in a batch of one example.
    """
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    product = x.astype(dtype) * scale.astype(dtype)
    kept = jnp.where(scale == 1, x, product.astype(x.dtype))
    if fill == "zero":
        return jnp.where(mask, kept, jnp.zeros((), x.dtype))
    if fill == "noise":
        assert key is not None
        return jnp.where(mask, kept, _noise(jax.random.fold_in(key, _NOISE), jax.lax.stop_gradient(x)))
    if x.shape[0] == 1:
        raise ValueError(f"fill 'swap' requires at least two examples, got x of shape {x.shape}")
    return jnp.where(mask, kept, jnp.roll(x, -1, axis=0))


def apply_computed_mask(
    x: Float[Array, "batch ..."],
    make_mask: Callable[[Any], Bool[Array, "..."]],
    draws: Any,
    scale: Float[Array, "..."],
    fill: Fill,
    key: Array,
) -> Float[Array, "batch ..."]:
    """Returns `apply_mask(x, make_mask(draws), scale, fill, key)`.

    The backward pass computes the mask again from the draws, instead of storing an array of the size of `x`.
    """

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def apply(x: Array, draws: Any, scale: Array, key: Array) -> Array:
        return apply_mask(x, make_mask(draws), scale, fill, key)

    return apply(x, draws, scale, key)


def _noise(key: Array, x: Float[Array, "batch *spatial channels"]) -> Float[Array, "batch *spatial channels"]:
    """Returns normal draws with the mean and the standard deviation of each channel, computed in one pass over `x`."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    axes = tuple(range(max(x.ndim - 1, 1)))
    # Differences from one unit of each channel are exactly 0 if the channel is constant.
    origin = x[(slice(1),) * len(axes)].astype(dtype)
    differences = x.astype(dtype) - origin
    mean = jnp.mean(differences, axes, keepdims=True)
    variance = jnp.mean(jnp.square(differences), axes, keepdims=True) - jnp.square(mean)
    deviation = jnp.sqrt(jnp.maximum(variance, jnp.zeros((), dtype)))
    return (origin + mean + deviation * _normal(key, x.shape).astype(dtype)).astype(x.dtype)


def _normal(key: Array, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Draws from approximately the standard normal distribution, elementwise from two small arrays of random words.

    The number of ones among the 32 bits of a word is binomial with variance 8. A uniform number between -0.5 and 0.5
    makes the sum continuous. Mean and variance are those of the normal distribution, the kurtosis is 2.94 instead of 3,
    and no draw is further from 0 than 5.8.
    """
    word = mix_words(draw_words(key, shape))
    ones = jax.lax.population_count(word).astype(jnp.int32).astype(jnp.float32)
    uniform = ((word * np.uint32(0x9E3779B9)) >> np.uint32(8)).astype(jnp.int32).astype(jnp.float32) * _24_BITS
    return (ones + uniform - np.float32(16.5)) * np.float32((8 + 1 / 12) ** -0.5)
