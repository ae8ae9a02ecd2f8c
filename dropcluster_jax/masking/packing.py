"""Masks whose bits are packed into words."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, UInt32

WORD = 32


def bit_at(words: Sequence[UInt32[Array, "..."]], index: UInt32[Array, "..."]) -> Bool[Array, "..."]:
    """Returns bit `index % 32` of word `index // 32`, by a shift, which is several times faster than a gather.

    Args:
        words: Arrays of the first word, of the second word, and so on.
        index: Index of the bit. The shape of the result is that of a word broadcast to the shape of the index.
    """
    shape = jnp.broadcast_shapes(words[0].shape, index.shape)
    which = jnp.broadcast_to((index // np.uint32(WORD)).astype(jnp.int32), shape)
    word = jax.lax.select_n(which, *(jnp.broadcast_to(word, shape) for word in words))
    return (word >> (index % np.uint32(WORD))) & 1 == 1
