"""Dropout of single units, and of whole channels."""

from jaxtyping import Array, Bool, Float

from dropcluster_jax.masking.common import (
    Rate,
    Rescale,
    apply_mask,
    check_rate,
    check_units,
    draw_kept,
    scale_of_mask,
)


def dropout(
    key: Array, x: Float[Array, "batch ..."], rate: Rate, *, rescale: Rescale = "rate"
) -> Float[Array, "batch ..."]:
    """Drop each unit with probability `rate`, independently.

    Args:
        key: a PRNG key.
        x: activations.
        rate: the probability of being dropped, in [0, 1]; may be traced.
        rescale: `"rate"` multiplies what is left by `1 / (1 - rate)`: each unit keeps its expectation; `"kept"` by
            units / units kept, per example: a constant map keeps its sum exactly.

    Returns:
        An array like `x`; zeros where all is dropped, never NaN.

    Raises:
        TypeError: `x` is not of a floating-point type.
        ValueError: a rate outside [0, 1], or an unknown `rescale`.

    References:
        Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", JMLR 15, 2014.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> y = dropout(jax.random.key(0), jnp.ones((1, 4, 4, 2)), 0.5)
        >>> sorted(set(y.ravel().tolist()))
        [0.0, 2.0]
    """
    mask = dropout_mask(key, x, rate)
    return apply_mask(x, mask, scale_of_mask(mask, rate, rescale))


def dropout_mask(key: Array, x: Float[Array, "batch ..."], rate: Rate) -> Bool[Array, "batch ..."]:
    """The mask of `dropout`: True = kept, of the shape of `x`. Arguments and errors are the same."""
    check_units(x, least_ndim=1)
    check_rate(rate)
    return draw_kept(key, rate, x.shape)


def spatial_dropout(
    key: Array, x: Float[Array, "batch *spatial channels"], rate: Rate, *, rescale: Rescale = "rate"
) -> Float[Array, "batch *spatial channels"]:
    """Drop each channel of each example with probability `rate`, independently.

    Args:
        key: a PRNG key.
        x: activations `(batch, *spatial, channels)`.
        rate: the probability of being dropped, in [0, 1]; may be traced.
        rescale: `"rate"` multiplies what is left by `1 / (1 - rate)`, `"kept"` by channels / channels kept, per
            example.

    Returns:
        An array like `x`; zeros where all is dropped, never NaN.

    Raises:
        TypeError: `x` is not of a floating-point type.
        ValueError: `x` has no spatial dimension, a rate outside [0, 1], or an unknown `rescale`.

    References:
        Tompson et al., "Efficient Object Localization Using Convolutional Networks", CVPR 2015.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> y = spatial_dropout(jax.random.key(0), jnp.ones((1, 4, 4, 8)), 0.5)
        >>> bool(jnp.all(y == y[:, :1, :1]))
        True
    """
    mask = spatial_dropout_mask(key, x, rate)
    return apply_mask(x, mask, scale_of_mask(mask, rate, rescale))


def spatial_dropout_mask(
    key: Array, x: Float[Array, "batch *spatial channels"], rate: Rate
) -> Bool[Array, "batch *ones channels"]:
    """The mask of `spatial_dropout`: True = kept, `(batch, 1, ..., channels)`. Arguments and errors are the same."""
    check_units(x)
    check_rate(rate)
    return draw_kept(key, rate, (x.shape[0], *(1,) * (x.ndim - 2), x.shape[-1]))
