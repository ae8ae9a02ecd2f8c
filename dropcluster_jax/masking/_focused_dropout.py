"""FocusedDropout: dropout of the positions where the strongest channel is weak."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dropcluster_jax.masking.bernoulli import bernoulli_keep
from dropcluster_jax.masking.common import Rate, check_input, check_rate, mask_rescale_factor
from dropcluster_jax.masking.fill import apply_mask

FocusedRescale = Literal["kept", "batch", "none"]


def focused_dropout(
    key: Array,
    x: Float[Array, "batch *spatial channels"],
    rate: Rate,
    *,
    threshold_range: tuple[float, float] = (0.3, 0.6),
    rescale: FocusedRescale = "none",
) -> Float[Array, "batch *spatial channels"]:
    """Keeps only the positions where the strongest channel is strong, in a fraction `rate` of the calls.

    Unlike in other methods, `rate` is not the fraction of dropped units: with probability `rate`, the method is applied
    to the whole batch, and otherwise `x` is returned unchanged. The fraction of units that it then drops depends on the
    activations.

    The reference channel of an example is the one with the highest mean. Positions where it is below a random fraction
    of its maximum are dropped in all channels.

    Args:
        key: PRNG key.
        x: Activations `(batch, *spatial, channels)`, with any number of spatial dimensions, usually nonnegative (after
            a ReLU). No gradient flows through the mask.
        rate: Probability of applying the method to a batch, in [0, 1]. May be traced.
        threshold_range: Bounds of the fraction of the maximum, drawn uniformly for each example,
            `0 <= low <= high <= 1`.
        rescale: Factor for kept units. `"none"` is 1. `"kept"` is units / kept units per example. `"batch"` is the same
            ratio over the batch.

    Returns:
        Array of the shape and dtype of `x`. At least the maximum of the reference channel is kept.

    Raises:
        TypeError: If `x` is not floating-point, or `rate` is not a number.
        ValueError: If `rate` is not a scalar in [0, 1], `threshold_range` is invalid, `rescale` is unknown, or `x` has
            no spatial dimension.

    References:
        Xie et al., "FocusedDropout for Convolutional Neural Network", arXiv:2103.15425, which applies the method to
        10% of the batches (`rate=0.1`). Like public implementations, the default does not rescale. Choices where these
        implementations differ: The fraction of the maximum is drawn once per example, not for each position, and
        batches are selected whole, by each layer separately. A position at exactly the threshold is kept, so that
        constant maps are.

    Example:
        >>> x = jax.random.uniform(jax.random.key(0), (4, 8, 8, 16))
        >>> y = focused_dropout(jax.random.key(1), x, 1.0)
        >>> bool((y == 0).any()), bool((focused_dropout(jax.random.key(1), x, 0.0) == x).all())
        (True, True)
    """
    if rescale not in get_args(FocusedRescale):
        raise ValueError(f"rescale must be one of {', '.join(map(repr, get_args(FocusedRescale)))}, got {rescale!r}")
    mask = focused_dropout_mask(key, x, rate, threshold_range=threshold_range)
    return apply_mask(x, mask, mask_rescale_factor(mask, rate, rescale))


def focused_dropout_mask(
    key: Array,
    x: Float[Array, "batch *spatial channels"],
    rate: Rate,
    *,
    threshold_range: tuple[float, float] = (0.3, 0.6),
) -> Bool[Array, "batch *spatial 1"]:
    """Returns the mask of `focused_dropout`. See `focused_dropout`.

    Returns:
        Bool array `(batch, *spatial, 1)`, True where a unit is kept.
    """
    check_input(x)
    check_rate(rate)
    low, high = threshold_range
    if not 0 <= low <= high <= 1:
        raise ValueError(f"threshold_range must be (low, high) with 0 <= low <= high <= 1, got {threshold_range}")
    apply_key, threshold_key = jax.random.split(key)
    activations, axes = jax.lax.stop_gradient(x), tuple(range(1, x.ndim - 1))
    index = jnp.argmax(jnp.mean(activations, axis=axes, keepdims=True, dtype=jnp.float32), axis=-1, keepdims=True)
    # A sum instead of a gather, for which XLA would store the activations.
    channels = jax.lax.broadcasted_iota(index.dtype, (*(1,) * (x.ndim - 1), x.shape[-1]), x.ndim - 1)
    zero = jnp.zeros((), x.dtype)
    reference = jnp.sum(jnp.where(channels == index, activations, zero), axis=-1, keepdims=True, dtype=jnp.float32)
    peak = jnp.max(reference, axis=axes, keepdims=True)
    fraction = jax.random.uniform(threshold_key, peak.shape, jnp.float32, low, high)
    # The minimum matters for negative maxima. NaN positions are kept, so that the loss shows them.
    weak = reference < jnp.minimum(fraction * peak, peak)
    unchanged = bernoulli_keep(apply_key, rate, (1,) * x.ndim)
    return unchanged | ~weak
