"""Bernoulli draws from 16 random bits each."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, UInt32

from dropcluster_jax.masking.common import Rate

try:
    from jax.extend.random import threefry2x32_p
except ImportError:  # `jax.extend` may change; `_random_words` then uses `jax.random.bits`.
    threefry2x32_p = None

_BITS = 16
_DRAWS_PER_BLOCK = 4  # a block of Threefry-2x32 is two words of 32 bits


def bernoulli_keep(key: Array, rate: Rate, shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """Draws independent booleans that are True with probability `1 - rate`.

    A draw is True if 16 random bits are at or above a threshold. For a fixed key, draws that are True at one rate are
    True at every lower rate.

    Args:
        key: PRNG key of any implementation.
        rate: Probability of False, in [0, 1]. May be traced. NaN has the effect of 0.
        shape: Shape `(batch, ...)` of the result. With Threefry keys, JAX's default, the draws of an example depend on
            its index in the batch but not on the batch size.

    Returns:
        Bool array of shape `shape`. All True at rate 0, all False at rate 1.

    Raises:
        ValueError: If `key` is not a single key.
    """
    batch, length, *trailing = shape if len(shape) > 1 else (*shape, 1)
    if trailing and length % _DRAWS_PER_BLOCK:  # one long row leaves fewer bits unused
        return bernoulli_keep(key, rate, (batch, math.prod(shape[1:]))).reshape(shape)
    blocks = -(-length // _DRAWS_PER_BLOCK)
    threshold = _threshold(key, rate, (batch, *(1,) * (2 + len(trailing))), first_block=blocks * math.prod(trailing))
    words = _random_words(key, (batch, blocks, *trailing))
    bits = jnp.stack([half for word in words for half in (word >> _BITS, word & (2**_BITS - 1))], axis=1)
    return (bits >= threshold).reshape(batch, _DRAWS_PER_BLOCK * blocks, *trailing)[:, :length].reshape(shape)


def _threshold(key: Array, rate: Rate, shape: tuple[int, ...], first_block: int) -> UInt32[Array, "..."]:
    """Rounds `2^16 rate` up or down at random, so that its expectation is exact to 39 bits.

    The draws of an example share one threshold, which correlates them by less than `1e-10 / (rate (1 - rate))`.
    """
    rate = jnp.clip(jnp.asarray(rate, jnp.float32), 0.0, 1.0)
    exact = jnp.where(jnp.isnan(rate), 0.0, rate) * 2.0**_BITS
    below = jnp.floor(exact)
    words, _ = _random_words(key, shape, first_block)
    uniform = (words >> 8).astype(jnp.float32) * 2.0**-24
    return below.astype(jnp.uint32) + (uniform < exact - below).astype(jnp.uint32)


def _random_words(
    key: Array, shape: tuple[int, ...], first_block: int = 0
) -> tuple[UInt32[Array, "..."], UInt32[Array, "..."]]:
    """Returns two arrays of random words of shape `(batch, ...)`.

    Calls Threefry directly if possible, because `jax.random.bits` returns one word per block and not two.

    Args:
        key: PRNG key of any implementation.
        shape: Shape of each array.
        first_block: Index of the first random block of each example.
    """
    if threefry2x32_p is None or jax.random.key_impl(key) != "threefry2x32":
        bits = jax.random.bits(jax.random.fold_in(key, first_block), (2, *shape), jnp.uint32)
        return bits[0], bits[1]
    data = jax.random.key_data(key)
    if data.ndim != 1:
        raise ValueError(f"key must be a single key, got an array of keys of shape {data.shape[:-1]}")
    block = first_block + jnp.arange(math.prod(shape[1:]), dtype=jnp.uint32).reshape(shape[1:])
    counters = jax.lax.broadcasted_iota(jnp.uint32, shape, 0), jnp.broadcast_to(block, shape)
    high, low = threefry2x32_p.bind(data[0], data[1], *counters)
    return high, low
