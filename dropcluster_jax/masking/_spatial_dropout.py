"""Spatial dropout: dropout of whole channels."""

from jaxtyping import Array, Bool, Float

from dropcluster_jax.masking.bernoulli import bernoulli_keep
from dropcluster_jax.masking.common import Rate, Rescale, check_input, check_rate, mask_rescale_factor
from dropcluster_jax.masking.fill import Fill, apply_mask, resolve_rescale


def spatial_dropout(
    key: Array,
    x: Float[Array, "batch *spatial channels"],
    rate: Rate,
    *,
    per_example: bool = True,
    fill: Fill = "zero",
    rescale: Rescale | None = None,
) -> Float[Array, "batch *spatial channels"]:
    """Drops each channel of each example independently with probability `rate`.

    Args:
        key: PRNG key.
        x: Activations `(batch, *spatial, channels)`.
        rate: Probability of dropping a channel, in [0, 1]. May be traced.
        per_example: Whether examples have separate masks.
        fill: Replacement of dropped units, as in `drop_cluster`.
        rescale: Factor for kept channels, as in `dropout`.

    Returns:
        Array of the shape and dtype of `x`.

    Raises:
        TypeError: If `x` is not floating-point, or `rate` is not a number.
        ValueError: If `rate` is not a scalar in [0, 1], `fill` or `rescale` is unknown, they contradict each other,
            `x` has no spatial dimension, or units are to be swapped in a batch of one example.

    References:
        Tompson et al., "Efficient Object Localization Using Convolutional Networks", CVPR 2015, arXiv:1411.4280.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> y = spatial_dropout(jax.random.key(0), jnp.ones((1, 4, 4, 8)), 0.5)
        >>> bool(jnp.all(y == y[:, :1, :1]))
        True
    """
    rescale = resolve_rescale(rescale, fill, "rate")
    mask = spatial_dropout_mask(key, x, rate, per_example=per_example)
    return apply_mask(x, mask, mask_rescale_factor(mask, rate, rescale), fill, key)


def spatial_dropout_mask(
    key: Array, x: Float[Array, "batch *spatial channels"], rate: Rate, *, per_example: bool = True
) -> Bool[Array, "examples *ones channels"]:
    """Returns the mask of `spatial_dropout`. See `spatial_dropout`.

    Returns:
        Bool array `(batch or 1, 1, ..., 1, channels)`, True where a channel is kept.
    """
    check_input(x)
    check_rate(rate)
    return bernoulli_keep(key, rate, (x.shape[0] if per_example else 1, *(1,) * (x.ndim - 2), x.shape[-1]))
