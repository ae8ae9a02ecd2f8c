"""DropBlock: dropout of contiguous blocks of positions."""

import functools
import itertools
import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from dropcluster_jax.masking.bernoulli import bernoulli_keep
from dropcluster_jax.masking.common import (
    Rate,
    Rescale,
    apply_mask,
    check_block_size,
    check_input,
    check_rate,
    mask_rescale_factor,
)

Seeding = Literal["exact", "paper"]


def drop_block(
    key: Array,
    x: Float[Array, "batch *spatial channels"],
    rate: Rate,
    *,
    block_size: int = 7,
    per_channel: bool = False,
    per_example: bool = True,
    seeding: Seeding = "exact",
    rescale: Rescale = "kept",
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
        rescale: Factor for kept units. `"kept"` is units / kept units per example, so that a constant input keeps its
            sum. `"batch"` is the same ratio over the batch, as in most implementations. `"rate"` is `1 / (1 - rate)`.
            `"none"` is 1.

    Returns:
        Array of the shape and dtype of `x`. An example whose units are all dropped is 0.

    Raises:
        TypeError: If `x` is not floating-point, `rate` is not a number, or `block_size` is not an integer.
        ValueError: If `rate` is not a scalar in [0, 1], the block does not fit the map, `seeding` or `rescale` is
            unknown, or `x` has no spatial dimension.

    References:
        Ghiasi, Lin, Le, "DropBlock: A regularization method for convolutional networks", NeurIPS 2018,
        arXiv:1810.12890. `seeding="paper"` is equation 1.

    Example:
        >>> y = drop_block(jax.random.key(0), jnp.ones((1, 8, 8, 2)), 0.3, block_size=3)
        >>> round(float(y.sum()), 3), bool(jnp.all(y[..., 0] == y[..., 1]))
        (128.0, True)
    """
    mask = drop_block_mask(
        key, x, rate, block_size=block_size, per_channel=per_channel, per_example=per_example, seeding=seeding
    )
    return apply_mask(x, mask, mask_rescale_factor(mask, rate, rescale))


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
    seeds = ~bernoulli_keep(key, probability, (batch if per_example else 1, *locations, channels if per_channel else 1))
    return ~_expand_seeds(seeds, block_size)


def _expand_seeds(
    seeds: Bool[Array, "examples *locations maps"], block_size: int
) -> Bool[Array, "examples *spatial maps"]:
    """Expands each seed to a block, one dimension after the other, as a block is the product of its sides."""
    for axis in range(1, seeds.ndim - 1):
        window, padding = [1] * seeds.ndim, [(0, 0)] * seeds.ndim
        window[axis], padding[axis] = block_size, (block_size - 1, block_size - 1)
        strides = (1,) * seeds.ndim
        seeds = jax.lax.reduce_window(seeds, False, jax.lax.bitwise_or, tuple(window), strides, padding)
    return seeds


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
