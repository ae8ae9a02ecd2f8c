import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
from hypothesis import given
from hypothesis import strategies as st
from jax import export

import dropcluster_jax as dc

KEY = jax.random.key(5)
VARIANTS = ["spatial", "channel"]
MAPS = [((9, 7), 3), ((12,), 5), ((4, 5, 6), 2), ((8, 8), 4), ((7, 5), 2), ((5, 4), 1)]

# Compiled once for all rates.
corr_drop = jax.jit(dc.corr_drop, static_argnames=("variant", "block_size"))
corr_drop_mask = jax.jit(dc.corr_drop_mask, static_argnames=("variant", "block_size"))


def activations(shape, seed=0):
    """Returns nonnegative activations with regions and channels of different strength and correlation."""
    keys = jax.random.split(jax.random.key(seed), 3)
    pattern = jax.random.normal(keys[0], (shape[0], *(1,) * (len(shape) - 2), shape[-1]))
    weights = jax.random.uniform(keys[1], (*shape[:-1], 1), maxval=3.0)
    return jax.nn.relu(weights * pattern + jax.random.normal(keys[2], shape))


def probabilities(x, rate, variant="spatial", block_size=7):
    """Returns the probability of dropping each cell `(batch, cells)` in NumPy, and the cell of each unit."""
    x = np.asarray(x, np.float64)
    *spatial, channels = x.shape[1:]
    if variant == "channel":
        index = np.broadcast_to(np.arange(channels), x.shape[1:])
    else:
        index = np.broadcast_to(references.cells(tuple(spatial), block_size)[..., None], x.shape[1:])
    areas = np.bincount(index.ravel()) / index.size

    def features(example):
        if variant == "channel":
            return list(example.reshape(-1, channels).T)
        return [example[index[..., 0] == cell].mean(0) for cell in range(len(areas))]

    return np.array([references.corr_drop_probabilities(features(example), areas, rate) for example in x]), index


@pytest.mark.parametrize(
    ("variant", "spatial", "block_size"),
    [
        *(pytest.param("spatial", *map, marks=pytest.mark.slow if i > 2 else ()) for i, map in enumerate(MAPS)),
        *(("channel", *map) for map in MAPS[:2]),
    ],
)
def test_mask_matches_numpy(spatial, block_size, variant):
    x = activations((20, *spatial, 5))
    for rate in (0.1, 0.4, 0.95):
        probability, index = probabilities(x, rate, variant, block_size)
        kept = np.asarray(jax.random.uniform(KEY, probability.shape)) >= probability
        mask = corr_drop_mask(KEY, x, rate, variant=variant, block_size=block_size)
        assert mask.shape == ((20, *spatial, 1) if variant == "spatial" else (20, *(1,) * len(spatial), 5))
        assert (np.broadcast_to(mask, x.shape) == kept[:, index]).all()


@pytest.mark.parametrize(
    ("variant", "shape", "block_size"),
    [("spatial", (10, 8, 8, 16), 3), ("spatial", (10, 9, 4), 7), ("channel", (10, 6, 6, 16), 7)],
)
def test_dropped_fraction_of_each_example_is_the_rate(variant, shape, block_size):
    x, samples = activations(shape), 4000
    mask = functools.partial(dc.corr_drop_mask, variant=variant, block_size=block_size)
    sample = jax.jit(lambda keys, rate: jax.vmap(lambda key: mask(key, x, rate))(keys))
    for rate in (0.05, 0.3, 0.8, 0.97):
        masks = np.asarray(sample(jax.random.split(KEY, samples), rate))
        dropped = 1 - masks.reshape(samples, shape[0], -1).mean(-1)
        error = dropped.std(0) / samples**0.5
        assert (np.abs(dropped.mean(0) - rate) < 5 * error).all()


@pytest.mark.parametrize("variant", ["spatial", pytest.param("channel", marks=pytest.mark.slow)])
def test_two_stage_sampling_over_a_batch_has_the_same_probabilities(variant):
    """The authors protect cells at random, and then drop others so that the fraction of the batch is the rate."""
    rate, batch, rng = 0.3, 100_000, np.random.default_rng(0)
    x = activations((1, 6, 6, 4))
    probability, _ = probabilities(x, rate, variant, 3)
    protection = 1 - probability[0] * (probability.shape[1] - 1) / (probability[0].sum())  # the softmax, sums to 1
    eligible = rng.random((batch, len(protection))) >= protection
    dropped = eligible & (rng.random(eligible.shape) < rate / eligible.mean())
    assert protection.sum() == pytest.approx(1)
    assert np.abs(dropped.mean(0) - probability[0]).max() < 5 * (rate / batch) ** 0.5
    masks = np.asarray(corr_drop_mask(KEY, np.repeat(x, batch, axis=0), rate, variant=variant, block_size=3))
    cells = masks[:, ::3, ::3].reshape(batch, -1) if variant == "spatial" else masks.reshape(batch, -1)
    assert np.abs(1 - cells.mean(0) - probability[0]).max() < 5 * (rate / batch) ** 0.5


def test_uncorrelated_cells_are_dropped_more_often():
    """Three equal quadrants and an orthogonal one; the strength of a quadrant does not matter."""
    x = jnp.zeros((20_000, 4, 4, 2)).at[..., 0].set(1.0).at[:, :2, :2].set(jnp.array([0.0, 5.0]))
    dropped = 1 - np.asarray(corr_drop_mask(KEY, x, 0.3, block_size=2)).mean(0)[::2, ::2, 0].ravel()
    assert (dropped[0] - dropped[1:] > 0.02).all() and (np.abs(dropped[1:] - dropped[3]) < 0.015).all()


def test_uncorrelated_channels_are_dropped_more_often():
    x = jax.random.uniform(jax.random.key(0), (20_000, 8, 1)) * jnp.ones(4)
    x = x.at[..., 0].set(jnp.where(jnp.arange(8) == 0, 1.0, 0.0))
    dropped = 1 - np.asarray(corr_drop_mask(KEY, x, 0.3, variant="channel")).mean(0).ravel()
    assert (dropped[0] - dropped[1:] > 0.02).all()


@given(seed=st.integers(0, 2**31), rate=st.floats(0, 1, width=32), size=st.integers(1, 4))
def test_whole_cells_are_dropped_in_all_channels(seed, rate, size):
    x = activations((3, 7, 4, 3), seed % 100)
    y = np.asarray(corr_drop(jax.random.key(seed), x + 1, rate, block_size=size))
    index = references.cells((7, 4), size)
    for cell in range(index.max() + 1):
        dropped = (y == 0)[:, index == cell]
        assert (dropped.any((1, 2)) == dropped.all((1, 2))).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_degenerate_maps_are_dropped_at_the_rate_without_nans(variant):
    """Constant maps, and a map of which a cell and a channel are zero."""

    @jax.jit
    def mask_output_and_gradient(x):
        drop = functools.partial(dc.corr_drop, KEY, rate=0.3, variant=variant, block_size=2, rescale="none")
        mask = dc.corr_drop_mask(KEY, x, 0.3, variant=variant, block_size=2)
        return mask, drop(x), jax.grad(lambda x: drop(x).sum())(x)

    maps = [np.full((2000, 4, 4, 3), value, np.float32) for value in (0.0, 1.0, -2.0, 1e-38, 1e30)]
    for x in (*maps, np.asarray(activations((2000, 4, 4, 3)).at[:, :2, :2].set(0).at[..., 0].set(0))):
        mask, y, gradient = map(np.asarray, mask_output_and_gradient(x))
        assert abs(1 - float(mask.mean()) - 0.3) < 0.03
        assert (y == np.where(mask, x, 0)).all() and (gradient == np.broadcast_to(mask, x.shape)).all()


@pytest.mark.parametrize(("variant", "shape", "size"), [("spatial", (4000, 3, 3, 2), 3), ("channel", (4000, 3, 1), 7)])
def test_a_single_cell_is_dropped_with_the_rate(variant, shape, size):
    x = activations(shape)
    for rate in (0.0, 0.3, 1.0):
        fraction = 1 - np.asarray(corr_drop_mask(KEY, x, rate, variant=variant, block_size=size)).mean()
        assert abs(fraction - rate) < (0.03 if rate == 0.3 else 1e-6)


def test_scale_and_offset_of_nonfinite_examples_do_not_affect_others():
    x = activations((4, 6, 6, 3))
    mask = corr_drop_mask(KEY, x, 0.4, block_size=2)
    assert (corr_drop_mask(KEY, 8 * x, 0.4, block_size=2) == mask).all()
    for value in (jnp.nan, jnp.inf):
        assert (corr_drop_mask(KEY, x.at[0, 0, 0, 0].set(value), 0.4, block_size=2)[1:] == mask[1:]).all()
    assert (corr_drop_mask(KEY, jnp.full((4, 6, 6, 3), jnp.nan), 0.4, block_size=2) == 0).any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_statistics_are_float32(variant):
    x = activations((50, 8, 8, 16)).astype(jnp.bfloat16)
    masks = [corr_drop_mask(KEY, x.astype(dtype), 0.4, variant=variant) for dtype in (jnp.bfloat16, jnp.float32)]
    assert (masks[0] == masks[1]).all()


def test_products_are_computed_in_float32():
    """By default, accelerators round the factors to bfloat16 or TF32. On a CPU, only the program shows it."""
    program = jax.jit(functools.partial(dc.corr_drop_mask, block_size=2)).lower(KEY, activations((2, 4, 4, 3)), 0.1)
    (product,) = (line for line in program.as_text().splitlines() if "dot_general" in line)
    assert product.count("HIGHEST") == 2


@pytest.mark.bad_input  # a symbolic size is not an int
def test_channels_may_be_symbolic():
    (channels,) = export.symbolic_shape("channels")
    shape = jax.ShapeDtypeStruct((4, 8, 8, channels), jnp.float32)
    drop = jax.jit(lambda key, x: dc.corr_drop(key, x, 0.3, variant="channel"))
    exported = export.export(drop)(jax.eval_shape(lambda: jax.random.key(0)), shape)
    key, x = jax.random.key(1), jax.random.normal(jax.random.key(2), (4, 8, 8, 6))
    np.testing.assert_allclose(exported.call(key, x), drop(key, x), rtol=1e-6)


@pytest.mark.bad_input
def test_invalid_arguments_raise():
    x = jnp.ones((2, 4, 6, 3))
    with pytest.raises(ValueError, match="variant must be one of 'spatial', 'channel', got 'cell'"):
        dc.corr_drop(KEY, x, 0.1, variant="cell")
    for size in (0, 5):
        with pytest.raises(
            ValueError, match=rf"block_size must be in \[1, 4\] for a map of shape \(4, 6\), got {size}"
        ):
            dc.corr_drop(KEY, x, 0.1, block_size=size)
    with pytest.raises(TypeError, match=r"block_size must be an integer, got 2\.5"):
        dc.corr_drop(KEY, x, 0.1, block_size=2.5)
    assert dc.corr_drop(KEY, x, 0.1, variant="channel", block_size=5).shape == x.shape
