import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
from hypothesis import given
from hypothesis import strategies as st

import dropcluster_jax as dc
from dropcluster_jax import testing

KEY = jax.random.key(5)
SHAPE = (8, 6, 5, 4)

# Compiled once for all rates.
focused_dropout = jax.jit(dc.focused_dropout, static_argnames=("threshold_range", "rescale"))
focused_dropout_mask = jax.jit(dc.focused_dropout_mask, static_argnames="threshold_range")


def activations(shape=SHAPE, seed=0):
    return jax.nn.relu(jax.random.normal(jax.random.key(seed), shape) + jnp.arange(shape[-1]) / 4)


@pytest.mark.parametrize(
    ("spatial", "threshold_range"),
    [
        ((6, 5), (0.0, 0.2)),
        ((6, 5), (0.5, 0.5)),
        ((6, 5), (0.9, 1.0)),
        ((12,), (0.3, 0.6)),
        ((3, 4, 2), (0.3, 0.6)),
    ],
)
def test_mask_matches_numpy(spatial, threshold_range):
    x = activations((20, *spatial, 4))
    low, high = threshold_range
    fractions = np.ravel(jax.random.uniform(jax.random.split(KEY)[1], (20, 1, 1), jnp.float32, low, high))
    expected = [references.focused_mask(*pair) for pair in zip(np.asarray(x), fractions, strict=True)]
    mask = focused_dropout_mask(KEY, x, 1.0, threshold_range=threshold_range)
    assert mask.shape == (20, *spatial, 1) and (mask[..., 0] == np.array(expected)).all()


def test_the_rate_is_the_fraction_of_calls_that_drop():
    x, samples = activations(), 4000
    sample = jax.jit(jax.vmap(dc.focused_dropout_mask, in_axes=(0, None, None)))
    for rate in (0.1, 0.5, 0.8):
        changed = ~np.asarray(sample(jax.random.split(KEY, samples), x, rate)).all((2, 3, 4))
        assert (changed == changed[:, :1]).all()  # the whole batch
        assert abs(float(changed[:, 0].mean()) - rate) < 5 * (rate * (1 - rate) / samples) ** 0.5


def test_dropped_fraction_of_half_normal_activations():
    """The number in `docs/how-it-works.md`."""
    x = jax.nn.relu(jax.random.normal(jax.random.key(0), (256, 16, 16, 64)))
    dropped = 1 - float(focused_dropout_mask(KEY, x, 1.0).mean())
    assert dropped == pytest.approx(0.87, abs=0.03)


def test_rate_0_is_the_identity_bit_for_bit():
    x = activations().at[0, 0, 0, 0].set(-0.0).at[0, 0, 0, 1].set(jnp.inf).at[1, 0, 0, 2].set(jnp.nan)
    y = focused_dropout(KEY, x, 0.0)
    assert np.asarray(y).tobytes() == np.asarray(x).tobytes()


@pytest.mark.parametrize("rescale", ["none", "kept", "batch"])
def test_a_traced_rate_of_nan_gives_nan(rescale):
    assert jnp.isnan(focused_dropout(KEY, activations(), jnp.nan, rescale=rescale)).all()
    assert focused_dropout_mask(KEY, activations(), jnp.nan).all()


def test_higher_rates_drop_supersets():
    x = activations()
    for seed in range(20):
        masks = [focused_dropout_mask(jax.random.key(seed), x, rate) for rate in (0.1, 0.4, 1.0)]
        assert (masks[2] <= masks[1]).all() and (masks[1] <= masks[0]).all()


@given(st.integers(0, 2**31), st.sampled_from([(0.0, 0.0), (0.0, 1.0), (0.3, 0.6), (1.0, 1.0)]))
def test_the_maximum_of_the_reference_channel_is_kept(seed, threshold_range):
    x = jax.random.normal(jax.random.key(seed), (3, 5, 4, 3)) - seed % 3  # also mostly negative activations
    y = focused_dropout(KEY, x, 1.0, threshold_range=threshold_range)
    for example, output in zip(np.asarray(x), np.asarray(y), strict=True):
        channel = example.mean((0, 1)).argmax()
        position = np.unravel_index(example[..., channel].argmax(), (5, 4))
        assert (output[position] == example[position]).all()


@pytest.mark.parametrize("value", [0.0, 1.0, -2.0, 1e-38, 1e30])
def test_constant_maps_are_kept(value):
    x = jnp.full(SHAPE, value)
    assert (focused_dropout(KEY, x, 1.0, rescale="kept") == x).all()


def test_nans_stay_visible():
    y = focused_dropout(KEY, activations().at[0, 1, 2, 3].set(jnp.nan), 1.0)
    assert jnp.isnan(y[0, 1, 2, 3]) and jnp.isfinite(y[1:]).all()


def test_examples_do_not_affect_each_other():
    x = activations()
    y = focused_dropout(KEY, x, 1.0, rescale="kept")
    assert (focused_dropout(KEY, x.at[3:].set(1 - x[3:]), 1.0, rescale="kept")[:3] == y[:3]).all()
    assert (focused_dropout(KEY, x[:3], 1.0, rescale="kept") == y[:3]).all()


@pytest.mark.parametrize("rescale", ["kept", "batch", "none"])
def test_rescaling(rescale):
    x = activations()
    mask = focused_dropout_mask(KEY, x, 1.0)
    y = focused_dropout(KEY, x, 1.0, rescale=rescale)
    kept = {"kept": mask.mean((1, 2, 3), keepdims=True), "batch": mask.mean(), "none": 1.0}[rescale]
    np.testing.assert_allclose(y, jnp.where(mask, x / kept, 0), rtol=1e-6)
    assert (focused_dropout(KEY, x, 0.0, rescale=rescale) == x).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, pytest.param(jnp.float16, marks=pytest.mark.slow)])
def test_dtypes(dtype):
    x = activations().astype(dtype)
    assert focused_dropout(KEY, x, 1.0).dtype == dtype
    assert (focused_dropout_mask(KEY, x, 1.0) == focused_dropout_mask(KEY, x.astype(jnp.float32), 1.0)).all()
    gradient = jax.jit(jax.grad(lambda x: dc.focused_dropout(KEY, x, 1.0).astype(jnp.float32).sum()))(x)
    assert gradient.dtype == dtype and (gradient == focused_dropout_mask(KEY, x, 1.0)).all()


@pytest.mark.slow
def test_purity():
    testing.assert_pure(lambda key, x: dc.focused_dropout(key, x, 0.9), activations())


def test_new_rates_without_recompilation():
    x, traces = activations(), []

    @jax.jit
    def traced(rate):
        traces.append(rate)
        return dc.focused_dropout(KEY, x, rate)

    outputs = [traced(rate) for rate in (0.0, 0.1, 1.0)]
    assert len(traces) == 1 and (outputs[0] == x).all() and (outputs[2] == 0).sum() > (x == 0).sum()
    assert dc.focused_dropout(KEY, x[:0], 0.5).shape == (0, *SHAPE[1:])
    assert jnp.isfinite(jax.jit(jax.grad(lambda rate: dc.focused_dropout(KEY, x, rate).sum()))(0.5))


@pytest.mark.bad_input
def test_invalid_arguments_raise():
    x = activations()
    for bounds in ((0.6, 0.3), (-0.1, 0.5), (0.5, 1.1), (float("nan"), 0.5)):
        with pytest.raises(ValueError, match=r"threshold_range must be \(low, high\) with 0 <= low <= high <= 1, got"):
            dc.focused_dropout(KEY, x, 0.1, threshold_range=bounds)
    for rescale in ("rate", "mean"):
        with pytest.raises(ValueError, match=f"rescale must be one of 'kept', 'batch', 'none', got '{rescale}'"):
            dc.focused_dropout(KEY, x, 0.1, rescale=rescale)
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\], got 1\.5"):
        dc.focused_dropout(KEY, x, 1.5)
    with pytest.raises(TypeError, match="x must have a floating-point dtype, got int32"):
        dc.focused_dropout(KEY, jnp.ones(SHAPE, jnp.int32), 0.1)
    with pytest.raises(ValueError, match=r"x must have shape .*spatial.*, got \(2, 3\)"):
        dc.focused_dropout(KEY, jnp.ones((2, 3)), 0.1)
