"""CorrDrop: dropout of the regions or channels that correlate least with the others."""

import itertools
import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from dropcluster_jax.masking.common import (
    Rate,
    Rescale,
    check_block_size,
    check_input,
    check_rate,
    mask_rescale_factor,
)
from dropcluster_jax.masking.fill import Fill, apply_mask, resolve_rescale
from dropcluster_jax.sharding import preserve_sharding

CorrVariant = Literal["spatial", "channel"]


def corr_drop(
    key: Array,
    x: Float[Array, "batch *spatial channels"],
    rate: Rate,
    *,
    variant: CorrVariant = "spatial",
    block_size: int = 7,
    fill: Fill = "zero",
    rescale: Rescale | None = None,
) -> Float[Array, "batch *spatial channels"]:
    """Drops cells of a grid, preferably those whose features correlate little with those of the other cells.

    The information of a cell is the mean absolute cosine similarity of its mean feature vector to those of the other
    cells. A softmax over the cells turns it into the probability that a cell is protected. Of the other cells, each is
    dropped with the probability that makes the expected fraction of dropped units `rate`. If more has to be dropped
    than is unprotected, protected cells are dropped as well.

    The preference is weak, because the softmax over values between 0 and 1 is flat: with n cells, the probabilities of
    dropping two of them differ by less than a factor of `(e + n - 1) / (n - 1)`, e.g. 1.2 for 16 cells.

    Args:
        key: PRNG key.
        x: Activations `(batch, *spatial, channels)`, with any number of spatial dimensions. The mask of an example
            depends on its own activations only. No gradient flows through it.
        rate: Expected fraction of dropped units, in [0, 1]. May be traced.
        variant: `"spatial"` drops cells of positions in all channels. `"channel"` drops channels: the cells are the
            channels, and their features are the activations at all positions.
        block_size: Side of a cell in positions, from 1 to the shortest side of the map. If it does not divide a side,
            the first and last cells are smaller. Not used by the variant `"channel"`.
        fill: Replacement of dropped units, as in `drop_cluster`.
        rescale: Factor for kept units, as in `drop_block`.

    Returns:
        Array of the shape and dtype of `x`. With zeros, an example whose units are all dropped is 0.

    Raises:
        TypeError: If `x` is not floating-point, `rate` is not a number, or `block_size` is not an integer.
        ValueError: If `rate` is not a scalar in [0, 1], the cell does not fit the map, `variant`, `fill` or `rescale`
            is unknown, `fill` and `rescale` contradict each other, `x` has no spatial dimension, or units are to be
            swapped in a batch of one example.

    References:
        Zeng, Dai, Xia, "Corrdrop: Correlation Based Dropout for Convolutional Neural Networks", ICASSP 2020.
        Zeng, Dai, Chen, Xia, Lu, "Correlation-based structural dropout for convolutional neural networks", Pattern
        Recognition 120, 2021.
        Definitions follow the authors' code, https://github.com/Sandy-Zeng/CorrDrop, with these differences: The
        fraction of protected cells is the expected one of each example, not the realized one of the batch, so that
        examples do not affect each other. The expected fraction of dropped units is `rate` also if `block_size` does
        not divide the map, and at rates that exceed the unprotected fraction. The similarity of a zero cell to itself
        does not count. The grid is centered on the map. The authors rescale by `"batch"`.

    Example:
        >>> x = jax.random.normal(jax.random.key(0), (2, 8, 8, 16))
        >>> y = corr_drop(jax.random.key(1), x, 0.5, block_size=4)
        >>> dropped = (y[:, :4, :4] == 0)  # a cell
        >>> bool((dropped.any((1, 2, 3)) == dropped.all((1, 2, 3))).all())
        True
    """
    rescale = resolve_rescale(rescale, fill, "kept")
    mask = corr_drop_mask(key, x, rate, variant=variant, block_size=block_size)
    return apply_mask(x, mask, mask_rescale_factor(mask, rate, rescale), fill, key)


def corr_drop_mask(
    key: Array,
    x: Float[Array, "batch *spatial channels"],
    rate: Rate,
    *,
    variant: CorrVariant = "spatial",
    block_size: int = 7,
) -> Bool[Array, "batch *positions maps"]:
    """Returns the mask of `corr_drop`. See `corr_drop`.

    Returns:
        Bool array, True where a unit is kept: `(batch, *spatial, 1)` for the variant `"spatial"`,
        `(batch, 1, ..., 1, channels)` for `"channel"`.
    """
    check_input(x)
    check_rate(rate)
    if variant not in get_args(CorrVariant):
        raise ValueError(f"variant must be one of {', '.join(map(repr, get_args(CorrVariant)))}, got {variant!r}")
    if variant == "spatial":
        check_block_size(block_size, x.shape[1:-1])
    reduced = (x.ndim - 1,) if variant == "spatial" else range(1, x.ndim - 1)

    def draw(inputs: tuple[Array, Array], x: Array) -> Array:
        return (_spatial_mask if variant == "spatial" else _channel_mask)(*inputs, x, block_size)

    # Cells and channels are compared with all others, so they can't be drawn shard by shard.
    inputs = key, jnp.asarray(rate, jnp.float32)
    return preserve_sharding(draw, inputs, jax.lax.stop_gradient(x), reduced)


def _channel_mask(
    key: Array, rate: Array, x: Float[Array, "batch *spatial channels"], block_size: int
) -> Bool[Array, "batch *ones channels"]:
    batch, *spatial, channels = x.shape
    features = jnp.swapaxes(x.reshape(batch, math.prod(spatial), channels), 1, 2)
    kept = _draw(key, features, jnp.full(channels, 1 / channels, jnp.float32), rate)
    return kept.reshape(batch, *(1,) * len(spatial), channels)


def _spatial_mask(
    key: Array, rate: Array, x: Float[Array, "batch *spatial channels"], block_size: int
) -> Bool[Array, "batch *spatial 1"]:
    batch, *spatial, _ = x.shape
    grid = [-(-length // block_size) for length in spatial]
    before = [(cells * block_size - length) // 2 for cells, length in zip(grid, spatial, strict=True)]
    features = _pool(x, grid, before, block_size)
    kept = _draw(key, features, _cell_areas(spatial, grid, before, block_size), rate).reshape(batch, *grid, 1)
    for axis, (start, length) in enumerate(zip(before, spatial, strict=True), start=1):
        kept = jax.lax.slice_in_dim(jnp.repeat(kept, block_size, axis), start, start + length, axis=axis)
    return kept


def _pool(
    x: Float[Array, "batch *spatial channels"], grid: list[int], before: list[int], block_size: int
) -> Float[Array, "batch cells channels"]:
    """Returns the sum of each cell, which has the direction of its mean, in float32."""
    batch, *spatial, channels = x.shape
    for axis, (cells, start, length) in enumerate(zip(grid, before, spatial, strict=True), start=1):
        edges = np.clip(np.arange(cells + 1) * block_size - start, 0, length).tolist()
        # Sums of slices, because XLA for TPUs would store `x` in float32 before it splits the dimension into blocks.
        slices = (jax.lax.slice_in_dim(x, *limits, axis=axis) for limits in itertools.pairwise(edges))
        x = jnp.stack([jnp.sum(part, axis=axis, dtype=jnp.float32) for part in slices], axis=axis)
    return x.reshape(batch, math.prod(grid), channels)


def _cell_areas(spatial: list[int], grid: list[int], before: list[int], block_size: int) -> np.ndarray:
    """Returns the fraction of the map that each cell covers."""
    areas = np.ones(1)
    for length, cells, start in zip(spatial, grid, before, strict=True):
        sizes = np.bincount((np.arange(length) + start) // block_size, minlength=cells)
        areas = np.outer(areas, sizes / length).ravel()
    return areas


def _draw(
    key: Array, features: Float[Array, "batch cells features"], areas: Float[Array, " cells"] | np.ndarray, rate: Rate
) -> Bool[Array, "batch cells"]:
    """Draws the cells to keep."""
    protected = jax.nn.softmax(_information(features), axis=-1)
    protected_area = jnp.sum(protected * jnp.asarray(areas, jnp.float32)[None], axis=-1, keepdims=True)
    free, free_area = 1 - protected, 1 - protected_area
    rate = jnp.clip(jnp.asarray(rate, jnp.float32), 0.0, 1.0)
    # Up to `free_area`, only unprotected cells are dropped. Beyond, all of them and some of the protected ones.
    tiny = jnp.finfo(jnp.float32).tiny  # both areas can be 0, e.g. if there is one cell
    below = free * (rate / jnp.maximum(free_area, tiny))
    above = free + protected * ((rate - free_area) / jnp.maximum(1 - free_area, tiny))
    probability = jnp.where(rate <= free_area, below, above)
    # Not `>=`, so that everything is kept if the rate is NaN.
    return ~(jax.random.uniform(key, probability.shape, jnp.float32) < probability)


def _information(features: Float[Array, "batch cells features"]) -> Float[Array, "batch cells"]:
    """Returns the mean over all cells of |cosine similarity|, with 0 for the cell itself and for zero cells."""
    if features.dtype != jnp.bfloat16:  # products of bfloat16 are exact in float32
        features = features.astype(jnp.float32)
    norm = jnp.sqrt(jnp.sum(jnp.square(features.astype(jnp.float32)), axis=-1))
    valid = (norm > 0) & jnp.isfinite(norm)
    inverse = jnp.where(valid, 1 / jnp.where(valid, norm, 1.0), 0.0)
    products = jnp.einsum("bif,bjf->bij", features, features, precision="highest", preferred_element_type=jnp.float32)
    similarity = jnp.where(valid[:, :, None] & valid[:, None], jnp.abs(products), 0.0)
    similarity = similarity * inverse[:, :, None] * inverse[:, None]  # the product of both may overflow
    return jnp.mean(jnp.where(jnp.eye(features.shape[1], dtype=bool)[None], 0.0, similarity), axis=-1)
