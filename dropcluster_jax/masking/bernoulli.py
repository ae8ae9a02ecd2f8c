"""Bernoulli draws that every unit computes from two small arrays of random words."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int32, UInt32

from dropcluster_jax.masking.common import Rate

_BITS = 31


class Words(NamedTuple):
    """Random words of shape `(batch, ...)` before `mix_words` combines them.

    Attributes:
        rows: Random words of this shape, with size 1 for the last dimension that is larger than 1, the columns.
        columns: Random words with size 1 for all dimensions but the batch and the columns.
    """

    rows: UInt32[Array, "..."]
    columns: UInt32[Array, "..."]


class Draws(NamedTuple):
    """Draws before `keep` combines the words. A draw is True if its random bits exceed the scalar `threshold`."""

    words: Words
    threshold: Int32[Array, ""]


def bernoulli_keep(key: Array, rate: Rate, shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """Draws booleans that are True with probability `1 - rate`.

    For a fixed key, draws that are True at one rate are True at every lower rate.

    Args:
        key: PRNG key of any implementation.
        rate: Probability of False, in [0, 1]. May be traced. NaN has the effect of 0.
        shape: Shape `(batch, ...)` of the result. With Threefry keys, JAX's default, the draws of an example depend on
            its index in the batch but not on the batch size.

    Returns:
        Bool array of shape `shape`. All True at rate 0, all False at rate 1.
    """
    return keep(draw(key, rate, shape))


def draw(key: Array, rate: Rate, shape: tuple[int, ...]) -> Draws:
    """Draws the random words for `keep`. See `bernoulli_keep`."""
    rate = jnp.clip(jnp.asarray(rate, jnp.float32), 0.0, 1.0)
    threshold = jnp.round(jnp.where(jnp.isnan(rate), 0.0, rate) * 2.0**_BITS).astype(jnp.uint32)
    return Draws(draw_words(key, shape), (threshold - np.uint32(1)).astype(jnp.int32))  # -1 for rate 0


def draw_words(key: Array, shape: tuple[int, ...]) -> Words:
    """Draws the random words for `mix_words`. See `bernoulli_keep`."""
    axis = max((i for i, length in enumerate(shape) if i > 0 and length != 1), default=len(shape) - 1)
    row_shape = tuple(1 if i == axis else length for i, length in enumerate(shape))
    column_shape = tuple(length if i in (0, axis) else 1 for i, length in enumerate(shape))
    return Words(
        rows=jax.random.bits(key, row_shape, jnp.uint32),
        columns=jax.random.bits(jax.random.fold_in(key, 1), column_shape, jnp.uint32),
    )


def keep(draws: Draws) -> Bool[Array, "..."]:
    """Returns the draws as booleans, elementwise, so that XLA computes them in the fusion that needs them."""
    return (mix_words(draws.words) >> np.uint32(32 - _BITS)).astype(jnp.int32) > draws.threshold


def mix_words(words: Words) -> UInt32[Array, "..."]:
    """Returns a random word per element.

    The exclusive or of a random word per row and one per column of an example (tabulation hashing) makes any three
    words of an example independent. Four words at the corners of a rectangle would depend on each other without the
    function that mixes the bits of the result, the finalizer of MurmurHash3 up to its last step, which changes only the
    lower half of the bits.

    References:
        Pătraşcu, Thorup, "The Power of Simple Tabulation Hashing", Journal of the ACM 59(3), 2012, arXiv:1011.5200.
        Appleby, MurmurHash3, https://github.com/aappleby/smhasher.
    """
    word = words.rows ^ words.columns
    word = (word ^ (word >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    return (word ^ (word >> np.uint32(13))) * np.uint32(0xC2B2AE35)
