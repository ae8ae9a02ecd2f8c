"""Dropout of single units."""

from jaxtyping import Array, Bool, Float

from dropcluster_jax.masking.bernoulli import Draws, draw, keep
from dropcluster_jax.masking.common import Rate, Rescale, check_input, check_rate, mask_rescale_factor
from dropcluster_jax.masking.fill import Fill, apply_computed_mask, resolve_rescale


def dropout(
    key: Array,
    x: Float[Array, "batch ..."],
    rate: Rate,
    *,
    per_channel: bool = True,
    per_example: bool = True,
    fill: Fill = "zero",
    rescale: Rescale | None = None,
) -> Float[Array, "batch ..."]:
    """Drops each unit independently with probability `rate`.

    Args:
        key: PRNG key.
        x: Activations `(batch, ...)`, or `(batch, ..., channels)` if `per_channel` is False.
        rate: Probability of dropping a unit, in [0, 1]. May be traced.
        per_channel: Whether channels have separate masks. If False, whole positions are dropped.
        per_example: Whether examples have separate masks.
        fill: Replacement of dropped units, as in `drop_cluster`.
        rescale: Factor for kept units, by default `"rate"` for zeros and `"none"`, the only choice, for other fills.
            `"rate"` is `1 / (1 - rate)`, so that each unit keeps its expectation. `"kept"`
            is units / kept units per example, so that a constant input keeps its sum. `"batch"` is the same ratio over
            the batch. `"none"` is 1.

    Returns:
        Array of the shape and dtype of `x`. With zeros, an example whose units are all dropped is 0.

    Raises:
        TypeError: If `x` is not floating-point, or `rate` is not a number.
        ValueError: If `rate` is not a scalar in [0, 1], `fill` or `rescale` is unknown, they contradict each other,
            `x` has too few dimensions, or units are to be swapped in a batch of one example.

    References:
        Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", JMLR 15, 2014.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> y = dropout(jax.random.key(0), jnp.ones((1, 4, 4, 2)), 0.5)
        >>> sorted(set(y.ravel().tolist()))
        [0.0, 2.0]
    """
    rescale = resolve_rescale(rescale, fill, "rate")
    draws = _draw_units(key, x, rate, per_channel, per_example)
    return apply_computed_mask(x, keep, draws, mask_rescale_factor(keep(draws), rate, rescale), fill, key)


def dropout_mask(
    key: Array, x: Float[Array, "batch ..."], rate: Rate, *, per_channel: bool = True, per_example: bool = True
) -> Bool[Array, "..."]:
    """Returns the mask of `dropout`. See `dropout`.

    Returns:
        Bool array, True where a unit is kept. Its shape is that of `x`, with size 1 for shared dimensions.
    """
    return keep(_draw_units(key, x, rate, per_channel, per_example))


def _draw_units(key: Array, x: Array, rate: Rate, per_channel: bool, per_example: bool) -> Draws:
    """Validates the arguments and draws the random words."""
    check_input(x, min_ndim=1 if per_channel else 2)
    check_rate(rate)
    shape = (x.shape[0] if per_example else 1, *x.shape[1:])
    return draw(key, rate, shape if per_channel else (*shape[:-1], 1))
