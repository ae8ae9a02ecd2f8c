"""Dropout of single units, of whole channels, and of whole examples."""

from jaxtyping import Array, Bool, Float

from dropcluster_jax.masking.bernoulli import bernoulli_keep
from dropcluster_jax.masking.common import Rate, Rescale, apply_mask, check_rate, check_units, mask_rescale_factor


def dropout(
    key: Array,
    x: Float[Array, "batch ..."],
    rate: Rate,
    *,
    per_channel: bool = True,
    per_example: bool = True,
    rescale: Rescale = "rate",
) -> Float[Array, "batch ..."]:
    """Drop each unit with probability `rate`, independently.

    Args:
        key: a PRNG key.
        x: activations `(batch, ...)`; with shared channels `(batch, ..., channels)`.
        rate: the probability of being dropped, in [0, 1]; may be traced.
        per_channel: whether each channel, the last dimension, draws for itself; else whole positions are dropped.
        per_example: whether each example draws for itself; else all share one mask.
        rescale: `"rate"` multiplies what is left by `1 / (1 - rate)`: each unit keeps its expectation; `"kept"` by
            units / units kept, per example: a constant map keeps its sum exactly; `"batch"` by the same over all
            examples; `"none"` not at all.

    Returns:
        An array like `x`; zeros where all is dropped, never NaN.

    Raises:
        TypeError: `x` is not of a floating-point type, or `rate` no number.
        ValueError: `rate` is no scalar in [0, 1], an unknown `rescale`, or shared channels where there are none.

    References:
        Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", JMLR 15, 2014.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> y = dropout(jax.random.key(0), jnp.ones((1, 4, 4, 2)), 0.5)
        >>> sorted(set(y.ravel().tolist()))
        [0.0, 2.0]
    """
    mask = dropout_mask(key, x, rate, per_channel=per_channel, per_example=per_example)
    return apply_mask(x, mask, mask_rescale_factor(mask, rate, rescale))


def dropout_mask(
    key: Array, x: Float[Array, "batch ..."], rate: Rate, *, per_channel: bool = True, per_example: bool = True
) -> Bool[Array, "..."]:
    """The mask of `dropout`; see there.

    Args:
        key: a PRNG key.
        x: activations `(batch, ...)`; only their shape and type matter.
        rate: the probability of being dropped, in [0, 1]; may be traced.
        per_channel: whether each channel, the last dimension, draws for itself; else whole positions are dropped.
        per_example: whether each example draws for itself; else all share one mask.

    Returns:
        bool, True = kept, of the shape of `x`, but 1 along what is shared.

    Raises:
        TypeError: `x` is not of a floating-point type, or `rate` no number.
        ValueError: `rate` is no scalar in [0, 1], or shared channels where there are none.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> mask = dropout_mask(jax.random.key(0), jnp.ones((1, 3, 4, 2)), 0.5, per_channel=False)
        >>> mask.shape, mask[0, ..., 0].astype(int).tolist()
        ((1, 3, 4, 1), [[0, 0, 1, 0], [0, 0, 1, 1], [1, 0, 0, 0]])
    """
    check_units(x, least_ndim=1 if per_channel else 2)
    check_rate(rate)
    shape = (len(x) if per_example else 1, *x.shape[1:])
    return bernoulli_keep(key, rate, shape if per_channel else (*shape[:-1], 1))


def spatial_dropout(
    key: Array,
    x: Float[Array, "batch *spatial channels"],
    rate: Rate,
    *,
    per_example: bool = True,
    rescale: Rescale = "rate",
) -> Float[Array, "batch *spatial channels"]:
    """Drop each channel of each example with probability `rate`, independently.

    Args:
        key: a PRNG key.
        x: activations `(batch, *spatial, channels)`.
        rate: the probability of being dropped, in [0, 1]; may be traced.
        per_example: whether each example draws for itself; else all share one mask.
        rescale: `"rate"` multiplies what is left by `1 / (1 - rate)`, `"kept"` by channels / channels kept, per
            example, `"batch"` by the same over all examples; `"none"` not at all.

    Returns:
        An array like `x`; zeros where all is dropped, never NaN.

    Raises:
        TypeError: `x` is not of a floating-point type, or `rate` no number.
        ValueError: `x` has no spatial dimension, `rate` is no scalar in [0, 1], or an unknown `rescale`.

    References:
        Tompson et al., "Efficient Object Localization Using Convolutional Networks", CVPR 2015, arXiv:1411.4280.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> y = spatial_dropout(jax.random.key(0), jnp.ones((1, 4, 4, 8)), 0.5)
        >>> bool(jnp.all(y == y[:, :1, :1]))
        True
    """
    mask = spatial_dropout_mask(key, x, rate, per_example=per_example)
    return apply_mask(x, mask, mask_rescale_factor(mask, rate, rescale))


def spatial_dropout_mask(
    key: Array, x: Float[Array, "batch *spatial channels"], rate: Rate, *, per_example: bool = True
) -> Bool[Array, "examples *ones channels"]:
    """The mask of `spatial_dropout`; see there.

    Args:
        key: a PRNG key.
        x: activations `(batch, *spatial, channels)`; only their shape and type matter.
        rate: the probability of being dropped, in [0, 1]; may be traced.
        per_example: whether each example draws for itself; else all share one mask.

    Returns:
        bool, True = kept, `(batch or 1, 1, ..., 1, channels)`.

    Raises:
        TypeError: `x` is not of a floating-point type, or `rate` no number.
        ValueError: `x` has no spatial dimension, or `rate` is no scalar in [0, 1].

    Example:
        >>> import jax, jax.numpy as jnp
        >>> spatial_dropout_mask(jax.random.key(0), jnp.ones((2, 8, 8, 4)), 0.5).astype(int).tolist()
        [[[[0, 0, 1, 0]]], [[[0, 1, 1, 0]]]]
    """
    check_units(x)
    check_rate(rate)
    return bernoulli_keep(key, rate, (len(x) if per_example else 1, *(1,) * (x.ndim - 2), x.shape[-1]))


def drop_path(
    key: Array, x: Float[Array, "batch ..."], rate: Rate, *, per_example: bool = True, rescale: Rescale = "rate"
) -> Float[Array, "batch ..."]:
    """Drop whole examples, each with probability `rate`: stochastic depth, where `x` is a residual branch.

    Args:
        key: a PRNG key.
        x: a residual branch's output `(batch, ...)`, before it is added to the shortcut.
        rate: the probability of being dropped, in [0, 1]; may be traced.
        per_example: whether each example draws for itself; else all share one draw.
        rescale: `"rate"` multiplies what is left by `1 / (1 - rate)`: each unit keeps its expectation; `"batch"` by
            examples / examples kept; `"kept"` and `"none"` not at all, as an example is kept whole.

    Returns:
        An array like `x`; zeros where all is dropped, never NaN.

    Raises:
        TypeError: `x` is not of a floating-point type, or `rate` no number.
        ValueError: `rate` is no scalar in [0, 1], or an unknown `rescale`.

    References:
        Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016, arXiv:1603.09382.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x, branch = jnp.ones((4, 8, 8, 2)), jnp.ones((4, 8, 8, 2))
        >>> y = x + drop_path(jax.random.key(1), branch, 0.5)
        >>> y[:, 0, 0, 0].tolist()
        [1.0, 1.0, 1.0, 3.0]
    """
    mask = drop_path_mask(key, x, rate, per_example=per_example)
    return apply_mask(x, mask, mask_rescale_factor(mask, rate, rescale))


def drop_path_mask(
    key: Array, x: Float[Array, "batch ..."], rate: Rate, *, per_example: bool = True
) -> Bool[Array, "examples ..."]:
    """The mask of `drop_path`; see there.

    Args:
        key: a PRNG key.
        x: a residual branch's output `(batch, ...)`; only its shape and type matter.
        rate: the probability of being dropped, in [0, 1]; may be traced.
        per_example: whether each example draws for itself; else all share one draw.

    Returns:
        bool, True = kept, `(batch or 1, 1, ..., 1)`.

    Raises:
        TypeError: `x` is not of a floating-point type, or `rate` no number.
        ValueError: `rate` is no scalar in [0, 1].

    Example:
        >>> import jax, jax.numpy as jnp
        >>> mask = drop_path_mask(jax.random.key(1), jnp.ones((4, 8, 8, 2)), 0.5)
        >>> mask.shape, mask.ravel().tolist()
        ((4, 1, 1, 1), [False, False, False, True])
    """
    check_units(x, least_ndim=1)
    check_rate(rate)
    return bernoulli_keep(key, rate, (len(x) if per_example else 1, *(1,) * (x.ndim - 1)))
