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
    check_rate,
    check_units,
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
    """Drop blocks of `block_size` positions along each spatial dimension, so that a share `rate` is dropped.

    Each block lies whole inside the map. Blocks are seeded independently, with the probability under which their
    union covers a share `rate` of the units in expectation.

    Args:
        key: a PRNG key.
        x: activations `(batch, *spatial, channels)`, with any number of spatial dimensions.
        rate: the share of units that is dropped in expectation, in [0, 1]; may be traced.
        block_size: the side of a block in positions, from 1, which is dropout of positions, to the map's shortest.
        per_channel: whether each channel draws blocks of its own; else all share one mask.
        per_example: whether each example draws for itself; else all share one mask.
        seeding: `"exact"` uses the exact relation between the probability of a seed and the share dropped; `"paper"`
            the paper's formula, `rate / block_size^d * positions / (places for a block)` in d dimensions, which
            neglects that blocks overlap and so drops less: 0.25 instead of 0.3 for blocks of 7 on 32 x 32.
        rescale: `"kept"` multiplies what is left by units / units kept, per example: a constant map keeps its sum
            exactly; `"batch"` by the same over all examples, so that one example's mask changes another's output, as
            in most implementations; `"rate"` by `1 / (1 - rate)`; `"none"` not at all.

    Returns:
        An array like `x`; zeros where all is dropped, never NaN.

    Raises:
        TypeError: `x` is not of a floating-point type, `block_size` no integer, or `rate` no number.
        ValueError: `x` has no spatial dimension, a block that does not fit the map, `rate` is no scalar in [0, 1], an
            unknown `seeding` or `rescale`.

    References:
        Ghiasi, Lin, Le, "DropBlock: A regularization method for convolutional networks", NeurIPS 2018,
        arXiv:1810.12890, algorithm 1; of `seeding="paper"` equation 1.

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
    """The mask of `drop_block`; see there.

    Args:
        key: a PRNG key.
        x: activations `(batch, *spatial, channels)`; only their shape and type matter.
        rate: the share of units that is dropped in expectation, in [0, 1]; may be traced.
        block_size: the side of a block in positions, from 1 to the map's shortest.
        per_channel: whether each channel draws blocks of its own; else all share one mask.
        per_example: whether each example draws for itself; else all share one mask.
        seeding: `"exact"`, or `"paper"`, which drops less than `rate`.

    Returns:
        bool, True = kept, `(batch or 1, *spatial, channels or 1)`.

    Raises:
        TypeError: `x` is not of a floating-point type, `block_size` no integer, or `rate` no number.
        ValueError: `x` has no spatial dimension, a block that does not fit the map, `rate` is no scalar in [0, 1], or
            an unknown `seeding`.

    Example:
        >>> mask = drop_block_mask(jax.random.key(1), jnp.ones((1, 4, 6, 3)), 0.3, block_size=2)
        >>> mask[0, ..., 0].astype(int).tolist()  # blocks of 2 x 2, some side by side
        [[0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]]
        >>> round(float(drop_block_mask(jax.random.key(0), jnp.ones((512, 14, 14, 1)), 0.3, block_size=5).mean()), 2)
        0.7
    """
    check_units(x)
    check_rate(rate)
    batch, *spatial, channels = x.shape
    if isinstance(block_size, bool) or not isinstance(block_size, (int, np.integer)):
        raise TypeError(f"block_size must be an integer, got {block_size!r}")
    if not 1 <= block_size <= min(spatial):
        raise ValueError(f"block_size must be from 1 to {min(spatial)} for the map {tuple(spatial)}, got {block_size}")
    if seeding not in get_args(Seeding):
        raise ValueError(f"seeding must be one of {', '.join(map(repr, get_args(Seeding)))}, got {seeding!r}")

    rate = jnp.asarray(rate, jnp.float32)
    starts = [length - block_size + 1 for length in spatial]  # where a block may start and stay inside
    if seeding == "exact":
        probability = jnp.interp(rate, *_seed_probabilities(tuple(spatial), int(block_size)))
    else:
        probability = rate * math.prod(spatial) / (block_size ** len(spatial) * math.prod(starts))
    seeds = ~bernoulli_keep(key, probability, (batch if per_example else 1, *starts, channels if per_channel else 1))
    for axis in range(1, x.ndim - 1):  # a block is the product of its sides: one dimension after the other
        window, padding = [1] * x.ndim, [(0, 0)] * x.ndim
        window[axis], padding[axis] = block_size, (block_size - 1, block_size - 1)
        seeds = jax.lax.reduce_window(seeds, False, jax.lax.bitwise_or, tuple(window), (1,) * x.ndim, padding)
    return ~seeds


@functools.cache
def _seed_probabilities(spatial: tuple[int, ...], block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """A table from the dropped share to the probability of a seed, exact at its nodes.

    A position that n blocks can cover stays with probability `(1 - p)^n`; the share dropped is the mean of
    `1 - (1 - p)^n` over positions, which grows with p from 0 to 1.
    """
    blocks = []  # along each dimension: how many blocks can cover a position
    for length in spatial:
        at = np.arange(length)
        blocks.append(np.minimum(at, length - block_size) - np.maximum(at - block_size + 1, 0) + 1)
    counts = [np.unique(along, return_counts=True) for along in blocks]
    covers = np.array([math.prod(n) for n in itertools.product(*(values for values, _ in counts))])
    weights = np.array([math.prod(n) for n in itertools.product(*(times for _, times in counts))], float)
    # Densest where the rate is small, so that the relative error of the share is small everywhere.
    probabilities = np.concatenate([[0.0], np.geomspace(1e-7, 1.0, 1023)])
    kept = np.exp(np.log1p(-probabilities[:-1, None]) * covers) @ (weights / weights.sum())
    return np.append(1.0 - kept, 1.0).astype(np.float32), probabilities.astype(np.float32)
