"""DropBlock: dropout of contiguous blocks of positions."""

import functools
import itertools
import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt32

from dropcluster_jax.masking.bernoulli import Draws, Words, draw, keep
from dropcluster_jax.masking.common import (
    Rate,
    Rescale,
    check_block_size,
    check_input,
    check_rate,
    mask_rescale_factor,
    rescale_factor,
)
from dropcluster_jax.masking.fill import Fill, apply_computed_mask, apply_mask, resolve_rescale
from dropcluster_jax.masking.packing import WORD, bit_at

Seeding = Literal["exact", "paper"]

# Longest last dimension that masks per channel pack into words, by a program that grows with the length.
_MAX_PACKED = 256


def drop_block(
    key: Array,
    x: Float[Array, "batch *spatial channels"],
    rate: Rate,
    *,
    block_size: int = 7,
    per_channel: bool = False,
    per_example: bool = True,
    seeding: Seeding = "exact",
    fill: Fill = "zero",
    rescale: Rescale | None = None,
) -> Float[Array, "batch *spatial channels"]:
    """Drops blocks of positions that cover a fraction `rate` of the map in expectation.

    Each location where a block fits into the map is a seed with the same probability, independently of the others.
    The blocks of all seeds are dropped.

    Args:
        key: PRNG key.
        x: Activations `(batch, *spatial, channels)`, with any number of spatial dimensions.
        rate: Expected fraction of dropped units, in [0, 1]. May be traced.
        block_size: Side of a block in positions, from 1 to the shortest side of the map.
        per_channel: Whether channels have separate masks.
        per_example: Whether examples have separate masks.
        seeding: How the probability of a seed follows from `rate`. `"exact"` accounts for overlaps. `"paper"` is the
            paper's formula, `rate / block_size^d * positions / locations` in d dimensions, which neglects them and
            drops less, e.g. 0.25 instead of 0.3 for blocks of 7 on 32 x 32.
        fill: Replacement of dropped units, as in `drop_cluster`.
        rescale: Factor for kept units, by default `"kept"` for zeros and `"none"`, the only choice, for other fills.
            `"kept"` is units / kept units per example, so that a constant input keeps its sum. `"batch"` is the same
            ratio over the batch, as in most implementations. `"rate"` is `1 / (1 - rate)`.

    Returns:
        Array of the shape and dtype of `x`. With zeros, an example whose units are all dropped is 0.

    Raises:
        TypeError: If `x` is not floating-point, `rate` is not a number, or `block_size` is not an integer.
        ValueError: If `rate` is not a scalar in [0, 1], the block does not fit the map, `seeding`, `fill` or
            `rescale` is unknown, `fill` and `rescale` contradict each other, `x` has no spatial dimension, or units are
            to be swapped in a batch of one example.

    References:
        Ghiasi, Lin, Le, "DropBlock: A regularization method for convolutional networks", NeurIPS 2018,
        arXiv:1810.12890. `seeding="paper"` is equation 1.

    Example:
        >>> y = drop_block(jax.random.key(0), jnp.ones((1, 8, 8, 2)), 0.3, block_size=3)
        >>> round(float(y.sum()), 3), bool(jnp.all(y[..., 0] == y[..., 1]))
        (128.0, True)
    """
    rescale = resolve_rescale(rescale, fill, "kept")
    seeds = _draw_seeds(key, x, rate, block_size, per_channel, per_example, seeding)
    if not (per_channel and x.shape[-2] <= _MAX_PACKED):
        mask = _expanded_mask(seeds, x.shape[1:-1], block_size)
        return apply_mask(x, mask, mask_rescale_factor(mask, rate, rescale), fill, key)
    words = _packed_blocks(seeds, x.shape[1:-1], block_size)
    units = math.prod(x.shape[1:-1]) * words[0].shape[-1]
    axes = tuple(range(1, x.ndim - 1))
    counts = (jnp.sum(jax.lax.population_count(word), axis=axes, dtype=jnp.uint32) for word in words)
    scale = rescale_factor(units - functools.reduce(jnp.add, counts).astype(jnp.int32), units, rate, rescale)
    scale = jnp.expand_dims(scale, tuple(range(1, x.ndim))) if scale.ndim else scale
    return apply_computed_mask(x, lambda words: _unit_mask(words, x.shape[-2]), words, scale, fill, key)


def drop_block_mask(
    key: Array,
    x: Float[Array, "batch *spatial channels"],
    rate: Rate,
    *,
    block_size: int = 7,
    per_channel: bool = False,
    per_example: bool = True,
    seeding: Seeding = "exact",
) -> Bool[Array, "examples *spatial maps"]:
    """Returns the mask of `drop_block`. See `drop_block`.

    Returns:
        Bool array `(batch or 1, *spatial, channels or 1)`, True where a unit is kept.

    Raises:
        TypeError: If `block_size` is not an integer.
        ValueError: If the block does not fit the map, or `seeding` is unknown.
    """
    seeds = _draw_seeds(key, x, rate, block_size, per_channel, per_example, seeding)
    return _expanded_mask(seeds, x.shape[1:-1], block_size)


def _draw_seeds(
    key: Array, x: Array, rate: Rate, block_size: int, per_channel: bool, per_example: bool, seeding: Seeding
) -> Draws:
    """Validates the arguments and draws the seeds, `(examples, *locations, maps)`; those that are False are seeds."""
    check_input(x)
    check_rate(rate)
    batch, *spatial, channels = x.shape
    check_block_size(block_size, spatial)
    if seeding not in get_args(Seeding):
        raise ValueError(f"seeding must be one of {', '.join(map(repr, get_args(Seeding)))}, got {seeding!r}")

    rate = jnp.asarray(rate, jnp.float32)
    locations = [length - block_size + 1 for length in spatial]
    if seeding == "exact":
        probability = jnp.interp(rate, *_seed_probabilities(tuple(spatial), int(block_size)))
    else:
        probability = rate * math.prod(spatial) / (block_size ** len(spatial) * math.prod(locations))
    return draw(key, probability, (batch if per_example else 1, *locations, channels if per_channel else 1))


# Each seed is expanded to a block, one dimension after the other, as a block is the product of its sides.


def _packed_blocks(
    seeds: Draws, spatial: tuple[int, ...], block_size: int
) -> list[UInt32[Array, "examples *spatial maps"]]:
    """Returns the dropped positions, with the last spatial dimension packed into words."""
    words = _expand_bits(_pack_seeds(seeds, -(-spatial[-1] // WORD)), block_size)
    for axis in range(1, len(spatial)):
        words = [_expand_axis(word, axis, block_size) for word in words]
    return words


def _expanded_mask(seeds: Draws, spatial: tuple[int, ...], block_size: int) -> Bool[Array, "examples *spatial maps"]:
    """Returns the mask, by a program whose size does not depend on the lengths of the map."""
    dropped = ~keep(seeds)
    for axis in range(1, len(spatial) + 1):
        dropped = _pad(dropped, axis, 0, block_size - 1)
        size = 1
        while size < block_size:  # doubles the sides of the blocks
            shift = min(size, block_size - size)
            length = dropped.shape[axis]
            dropped |= jax.lax.slice_in_dim(_pad(dropped, axis, shift, 0), 0, length, axis=axis)
            size += shift
    return ~dropped


def _pad(x: Array, axis: int, before: int, after: int) -> Array:
    """Pads an axis with False or 0."""
    return jnp.pad(x, [(before, after) if i == axis else (0, 0) for i in range(x.ndim)])


@functools.partial(jax.jit, static_argnames="num_words")
def _pack_seeds(draws: Draws, num_words: int) -> list[UInt32[Array, "..."]]:
    """Packs the draws that are False along the last dimension but one.

    Each position is drawn on its own, because XLA for TPUs would store the draws before reducing over that dimension.
    """
    length = max(words.shape[-2] for words in draws.words)
    rows, columns = (jnp.broadcast_to(words, (*words.shape[:-2], length, words.shape[-1])) for words in draws.words)
    *leading, maps = jnp.broadcast_shapes(rows.shape, columns.shape)
    words = [jnp.zeros((*leading[:-1], maps), jnp.uint32)] * num_words
    for position in range(length):
        seeds = ~keep(Draws(Words(rows[..., position, :], columns[..., position, :]), draws.threshold))
        words[position // WORD] |= seeds.astype(jnp.uint32) << np.uint32(position % WORD)
    return words


def _expand_bits(words: list[UInt32[Array, "..."]], block_size: int) -> list[UInt32[Array, "..."]]:
    """Sets the `block_size - 1` bits after each bit."""
    size = 1
    while size < block_size:
        shift = min(size, block_size - size, WORD - 1)
        carries = [jnp.zeros_like(words[0]), *(word >> np.uint32(WORD - shift) for word in words[:-1])]
        words = [word | (word << np.uint32(shift)) | carry for word, carry in zip(words, carries, strict=True)]
        size += shift
    return words


def _expand_axis(word: UInt32[Array, "..."], axis: int, block_size: int) -> UInt32[Array, "..."]:
    """Repeats each word at the `block_size - 1` positions after it on an axis, which becomes longer by this number."""
    return functools.reduce(jnp.bitwise_or, (_pad(word, axis, i, block_size - 1 - i) for i in range(block_size)))


def _unit_mask(words: list[UInt32[Array, "..."]], length: int) -> Bool[Array, "examples *spatial maps"]:
    """Returns the mask of the words that pack the last spatial dimension, which has this length."""
    axis = words[0].ndim - 1
    position = jnp.expand_dims(np.arange(length, dtype=np.uint32), (*range(axis), axis + 1))
    return ~bit_at([jnp.expand_dims(word, axis) for word in words], position)


@functools.cache
def _seed_probabilities(spatial: tuple[int, ...], block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Tabulates the probability p of a seed against the expected fraction of dropped positions.

    A position that n blocks can cover is kept with probability `(1 - p)^n`, so the dropped fraction is the mean of
    `1 - (1 - p)^n` over positions.
    """
    counts_per_axis = []
    for length in spatial:
        position = np.arange(length)
        blocks = np.minimum(position, length - block_size) - np.maximum(position - block_size + 1, 0) + 1
        counts_per_axis.append(np.unique(blocks, return_counts=True))
    products = [itertools.product(*arrays) for arrays in zip(*counts_per_axis, strict=True)]
    n, weights = (np.array([math.prod(factors) for factors in product]) for product in products)
    # Densest at low rates, for a uniform relative error of the dropped fraction.
    p = np.concatenate([[0.0], np.geomspace(1e-7, 1.0, 1023)])
    kept = np.exp(np.log1p(-p[:-1, None]) * n) @ (weights / weights.sum())
    return np.append(1.0 - kept, 1.0).astype(np.float32), p.astype(np.float32)
