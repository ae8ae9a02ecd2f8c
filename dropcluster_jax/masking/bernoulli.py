"""Independent draws at the price of a quarter of a random number each."""

import math

import jax
import jax.numpy as jnp
from jax.extend.random import threefry2x32_p
from jaxtyping import Array, Bool, UInt32

from dropcluster_jax.masking.common import Rate

_BITS = 16


def bernoulli_keep(key: Array, rate: Rate, shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """Independent draws, True with probability 1 - rate; exactly all at 0 and none at 1.

    A draw is 16 random bits, at or above a threshold. The threshold, `2^16 rate`, is rounded up or down at random for
    each example, so that the probability is exact to 39 bits. (It makes two draws of one example correlate by less
    than `1e-10 / (rate (1 - rate))`.) With one key, what is kept at a rate is kept at every lower one.

    Args:
        key: a PRNG key.
        rate: the probability of False, in [0, 1]; may be traced.
        shape: `(batch, ...)`. With a Threefry key, JAX's default, an example's draws depend on its place in the batch,
            not on the batch's size.

    Raises:
        ValueError: `key` is no single key.
    """
    batch, number, *rest = shape if len(shape) > 1 else (*shape, 1)
    if rest and number % 4:  # in one row fewer bits are left over
        return bernoulli_keep(key, rate, (batch, math.prod(shape[1:]))).reshape(shape)
    quarter = -(-number // 4)
    threshold = jnp.clip(jnp.asarray(rate, jnp.float32), 0.0, 1.0) * 2.0**_BITS
    below = jnp.floor(threshold)
    rounding, _ = _words(key, (batch, *(1,) * (2 + len(rest))), first=quarter * math.prod(rest))
    uniform = (rounding >> 8).astype(jnp.float32) * 2.0**-24
    threshold = below.astype(jnp.uint32) + (uniform < threshold - below)
    words = _words(key, (batch, quarter, *rest))
    draws = jnp.stack([half for word in words for half in (word >> _BITS, word & (2**_BITS - 1))], axis=1)
    return (draws >= threshold).reshape(batch, 4 * quarter, *rest)[:, :number].reshape(shape)


def _words(key: Array, shape: tuple[int, ...], first: int = 0) -> tuple[UInt32[Array, "..."], UInt32[Array, "..."]]:
    """Random words `(batch, ...)`, twice: of each block of Threefry `jax.random.bits` would throw one away.

    Args:
        key: a PRNG key of any kind; only Threefry's has two words to a block.
        shape: of each array.
        first: the number of each example's first block.
    """
    if jax.random.key_impl(key) != "threefry2x32":
        bits = jax.random.bits(jax.random.fold_in(key, first), (2, *shape), jnp.uint32)
        return bits[0], bits[1]
    data = jax.random.key_data(key)
    if data.ndim != 1:
        raise ValueError(f"key must be a single key, got keys of the shape {data.shape[:-1]}")
    block = first + jnp.arange(math.prod(shape[1:]), dtype=jnp.uint32).reshape(shape[1:])
    counters = jax.lax.broadcasted_iota(jnp.uint32, shape, 0), jnp.broadcast_to(block, shape)
    high, low = threefry2x32_p.bind(data[0], data[1], *counters)
    return high, low
