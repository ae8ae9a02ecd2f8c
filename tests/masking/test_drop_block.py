import functools
import importlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dropcluster_jax as dc
from dropcluster_jax.masking.bernoulli import bernoulli_keep

# Compiled once for all rates.
drop_block_mask = jax.jit(dc.drop_block_mask, static_argnames=("block_size", "seeding", "per_channel"))


def is_union_of_blocks(dropped, size):
    """Whether each dropped position belongs to a fully dropped block."""
    covered = np.zeros_like(dropped)
    for start in np.ndindex(*(length - size + 1 for length in dropped.shape)):
        block = tuple(slice(i, i + size) for i in start)
        if dropped[block].all():
            covered[block] = True
    return (covered == dropped).all()


@pytest.mark.parametrize(("spatial", "size"), [((9, 7), 3), ((12,), 5), ((4, 5, 6), 2)])
def test_whole_blocks_are_dropped(spatial, size):
    x = jnp.ones((20, *spatial, 3))
    masks = np.asarray(drop_block_mask(jax.random.key(0), x, 0.3, block_size=size, per_channel=True))
    assert 0 < (~masks).mean() < 1
    for mask in masks:
        for channel in range(3):
            assert is_union_of_blocks(~mask[..., channel], size)


def numpy_mask(seeds, spatial, size):
    """Computes the mask from its seeds, block by block."""
    kept = np.ones((len(seeds), *spatial, seeds.shape[-1]), bool)
    for example, *start, channel in np.argwhere(seeds):
        kept[example, *(slice(i, i + size) for i in start), channel] = False
    return kept


@pytest.mark.parametrize(
    ("spatial", "size", "per_channel"),
    [
        ((9, 7), 3, True),
        ((9, 7), 3, False),
        ((12,), 5, True),
        ((4, 5, 6), 2, True),
        ((5, 4), 1, False),
        pytest.param((6, 8), 4, False, marks=pytest.mark.slow),
        pytest.param((7, 7), 7, True, marks=pytest.mark.slow),
    ],
)
def test_mask_matches_numpy(spatial, size, per_channel):
    assert_mask_matches_numpy(spatial, size, per_channel)


@pytest.mark.parametrize(("spatial", "size"), [((3, 40), 3), pytest.param((100,), 70, marks=pytest.mark.slow)])
def test_mask_of_several_words_per_row_matches_numpy(spatial, size):
    """Rows are packed into words of 32 positions."""
    assert_mask_matches_numpy(spatial, size, per_channel=False)


def assert_mask_matches_numpy(spatial, size, per_channel):
    x, rate, key = jnp.ones((20, *spatial, 3)), 0.3, jax.random.key(2)
    locations = [length - size + 1 for length in spatial]
    # Count the blocks that can cover each position, and find the seed probability by bisection.
    num_blocks = np.zeros(spatial)
    for start in np.ndindex(*locations):
        num_blocks[tuple(slice(i, i + size) for i in start)] += 1
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 - (1 - middle) ** num_blocks).mean() < rate else (low, middle)
    seeds = np.asarray(~bernoulli_keep(key, low, (20, *locations, 3 if per_channel else 1)))
    mask = drop_block_mask(key, x, rate, block_size=size, per_channel=per_channel)
    assert (mask == numpy_mask(seeds, spatial, size)).all()


def dropped_fraction(spatial, size, seeding="exact"):
    """Returns a compiled function from the rate to the dropped fraction, over many examples, and its standard error."""
    x = jnp.ones((min(20_000, 4_000_000 // math.prod(spatial)), *spatial, 1))

    @jax.jit
    def mean_and_error(rate):
        mask = dc.drop_block_mask(jax.random.key(1), x, rate, block_size=size, seeding=seeding)
        fractions = 1 - mask.mean(range(1, x.ndim))
        return fractions.mean(), fractions.std() / len(x) ** 0.5

    return lambda rate: tuple(map(float, mean_and_error(rate)))


@pytest.mark.parametrize(
    ("spatial", "size"),
    [((10, 13), 4), ((7, 7), 7), ((9,), 2), pytest.param((32, 32), 7, marks=pytest.mark.slow)],
)
def test_dropped_fraction_is_the_rate(spatial, size):
    measure = dropped_fraction(spatial, size)
    for rate in (0.01, 0.05, 0.1, 0.3, 0.5, 0.9):
        fraction, error = measure(rate)
        assert abs(fraction - rate) < 5 * error + 0.002 * rate


# Dropped fractions of timm's `DropBlock2d` and torchvision's `drop_block2d` with default arguments, for blocks of 7 on
# 14 x 14, measured over many masks.
OTHER_LIBRARIES = {0.1: (0.207, 0.094), 0.3: (0.504, 0.246), 0.5: (0.684, 0.357)}


def test_dropped_fraction_is_exact_unlike_in_timm_and_torchvision():
    exact, paper = dropped_fraction((14, 14), 7), dropped_fraction((14, 14), 7, "paper")
    for rate, (timm, torchvision) in OTHER_LIBRARIES.items():
        fraction, error = exact(rate)
        assert abs(fraction - rate) < 5 * error + 0.002 * rate
        assert abs(fraction - timm) > 20 * error
        if rate > 0.1:
            assert abs(fraction - torchvision) > 10 * error
        # torchvision uses the paper's formula with blocks inside the map.
        assert paper(rate)[0] == pytest.approx(torchvision, rel=0.03)


@pytest.mark.parametrize("seeding", ["exact", "paper"])
def test_blocks_of_size_1_are_dropout_of_positions(seeding):
    x, key = jnp.ones((50, 6, 5, 3)), jax.random.key(4)
    block = drop_block_mask(key, x, 0.3, block_size=1, seeding=seeding)
    positions = jax.jit(lambda key: dc.dropout_mask(key, x, 0.3, per_channel=False))(key)
    # The tabulated probability may be off in the last bits.
    assert block.shape == positions.shape and (block == positions).mean() > 0.999


@pytest.mark.parametrize(("spatial", "size"), [((6, 40), 3), ((40,), 7)])
def test_mask_does_not_depend_on_packing(monkeypatch, spatial, size):
    x, key = jax.random.normal(jax.random.key(1), (8, *spatial, 3)), jax.random.key(0)
    outputs, masks = [], []
    for longest in (256, 8):
        monkeypatch.setattr(importlib.import_module("dropcluster_jax.masking._drop_block"), "_MAX_PACKED", longest)
        for options in ({"rescale": "kept"}, {"rescale": "batch", "per_example": False}):
            y = jax.jit(functools.partial(dc.drop_block, block_size=size, **options))(key, x, 0.3)
            outputs.append(np.asarray(y))
        masks.append(np.asarray(jax.jit(functools.partial(dc.drop_block_mask, block_size=size))(key, x, 0.3)))
    assert (masks[0] == masks[1]).all() and 0 < masks[0].mean() < 1
    for packed, expanded in zip(outputs[:2], outputs[2:], strict=True):
        assert (packed == expanded).all()


def test_programs_for_long_maps_are_small():
    """One position after the other, the program of 16,000 positions would be a hundred times as large."""
    text = jax.jit(functools.partial(dc.drop_block, block_size=64)).lower(
        jax.random.key(0), jax.ShapeDtypeStruct((2, 16_000, 4), jnp.float32), 0.1
    )
    assert len(text.as_text()) < 100_000


@pytest.mark.bad_input
def test_unknown_seeding_raises():
    with pytest.raises(ValueError, match="seeding must be one of 'exact', 'paper', got 'gamma'"):
        dc.drop_block(jax.random.key(0), jnp.ones((2, 4, 6, 1)), 0.1, block_size=2, seeding="gamma")


@pytest.mark.bad_input
@pytest.mark.parametrize("size", [0, 5])
def test_block_that_does_not_fit_raises(size):
    with pytest.raises(ValueError, match=rf"block_size must be in \[1, 4\] for a map of shape \(4, 6\), got {size}"):
        dc.drop_block(jax.random.key(0), jnp.ones((2, 4, 6, 1)), 0.1, block_size=size)


@pytest.mark.bad_input
def test_block_size_must_be_an_integer_of_python_or_numpy():
    x = jnp.ones((2, 4, 6, 1))
    for size in (2.5, True):
        with pytest.raises(TypeError, match=rf"block_size must be an integer, got {size}"):
            dc.drop_block(jax.random.key(0), x, 0.1, block_size=size)
    mask = functools.partial(dc.drop_block_mask, block_size=np.int64(2))
    assert jax.eval_shape(mask, jax.random.key(0), x, 0.5).shape == x.shape
