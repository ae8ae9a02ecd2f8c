"""Drop path (stochastic depth): dropout of whole examples of a residual branch."""

from jaxtyping import Array, Bool, Float

from dropcluster_jax.masking.bernoulli import bernoulli_keep
from dropcluster_jax.masking.common import Rate, Rescale, check_input, check_rate, mask_rescale_factor
from dropcluster_jax.masking.fill import apply_mask


def drop_path(
    key: Array, x: Float[Array, "batch ..."], rate: Rate, *, per_example: bool = True, rescale: Rescale = "rate"
) -> Float[Array, "batch ..."]:
    """Drops each example of a residual branch independently with probability `rate`.

    Args:
        key: PRNG key.
        x: Output of the residual branch, `(batch, ...)`, before it is added to the shortcut.
        rate: Probability of dropping an example, in [0, 1]. May be traced.
        per_example: Whether examples are dropped separately. If False, the whole batch is kept or dropped.
        rescale: Factor for kept examples, as in `dropout`. `"kept"` is 1, because examples are kept whole.

    Returns:
        Array of the shape and dtype of `x`.

    Raises:
        TypeError: If `x` is not floating-point, or `rate` is not a number.
        ValueError: If `rate` is not a scalar in [0, 1], or `rescale` is unknown.

    References:
        Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016, arXiv:1603.09382.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x, branch = jnp.ones((8, 4, 4, 2)), jnp.ones((8, 4, 4, 2))
        >>> y = x + drop_path(jax.random.key(0), branch, 0.5)
        >>> sorted(set(y.ravel().tolist())), bool(jnp.all(y == y[:, :1, :1, :1]))
        ([1.0, 3.0], True)
    """
    mask = drop_path_mask(key, x, rate, per_example=per_example)
    return apply_mask(x, mask, mask_rescale_factor(mask, rate, rescale))


def drop_path_mask(
    key: Array, x: Float[Array, "batch ..."], rate: Rate, *, per_example: bool = True
) -> Bool[Array, "examples ..."]:
    """Returns the mask of `drop_path`. See `drop_path`.

    Returns:
        Bool array `(batch or 1, 1, ..., 1)`, True where an example is kept.
    """
    check_input(x, min_ndim=1)
    check_rate(rate)
    return bernoulli_keep(key, rate, (x.shape[0] if per_example else 1, *(1,) * (x.ndim - 1)))
