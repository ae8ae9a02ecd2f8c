"""Properties of all masks, each checked over many keys."""

import collections
import functools
import itertools

import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

import dropcluster_jax as dc
from dropcluster_jax import testing

SHAPE = (8, 6, 6, 3)
SIGMAS = 5.5  # allowed deviation in standard errors; high, because of thousands of comparisons


def uneven(groups: int, num_clusters: int = 7, spatial=SHAPE[1:-1]) -> dc.ClusterState:
    """Returns clusters of very different sizes."""
    odds = jnp.arange(num_clusters) ** 2.0 + 1
    labels = jax.random.categorical(jax.random.key(groups), jnp.log(odds), shape=(*spatial, groups)).astype(jnp.int32)
    sizes = (labels.reshape(-1, 1, groups) == jnp.arange(num_clusters)[:, None]).sum(0).astype(jnp.int32)
    state = dc.Grid(num_clusters=num_clusters, per_channel=groups > 1).init((*spatial, groups))
    return state._replace(labels=labels, sizes=sizes)


DROPS = {
    "dropout": (dc.dropout, {}),
    "spatial_dropout": (dc.spatial_dropout, {}),
    "drop_block": (dc.drop_block, {"block_size": 3}),
    "drop_block per channel": (dc.drop_block, {"block_size": 3, "per_channel": True}),
    "drop_block of even size": (dc.drop_block, {"block_size": 4}),
    "drop_cluster": (dc.drop_cluster, {"state": uneven(1)}),
    "drop_cluster per channel": (dc.drop_cluster, {"state": uneven(3)}),
    "drop_cluster, shared labels, per channel": (dc.drop_cluster, {"state": uneven(1), "per_channel": True}),
    "drop_path": (dc.drop_path, {}),
    "corr_drop": (dc.corr_drop, {"block_size": 2}),
    "corr_drop of uneven cells": (dc.corr_drop, {"block_size": 5}),
    "corr_drop of channels": (dc.corr_drop, {"variant": "channel"}),
    "cutout": (dc.cutout, {}),
    "cutout per channel": (dc.cutout, {"per_channel": True}),
}
MASKS = {
    dc.dropout: dc.dropout_mask,
    dc.spatial_dropout: dc.spatial_dropout_mask,
    dc.drop_block: dc.drop_block_mask,
    dc.drop_cluster: dc.drop_cluster_mask,
    dc.drop_path: dc.drop_path_mask,
    dc.corr_drop: dc.corr_drop_mask,
    dc.cutout: dc.cutout_mask,
}
# Methods that drop every unit with the same probability. Blocks and boxes cover the center more often than the border,
# and the probabilities of `corr_drop` depend on the activations.
UNIFORM = [name for name in DROPS if not name.startswith(("drop_block", "cutout", "corr_drop"))]
# Methods whose examples can share a mask.
SHAREABLE = [name for name in DROPS if not name.startswith("corr_drop")]
RESCALINGS = ["kept", "rate", "batch", "none"]
every_drop = pytest.mark.parametrize("name", DROPS)


# One method for each way in which masks are computed. The others are slow.
FEW = ("dropout", "drop_block", "drop_cluster per channel", "corr_drop")


def few_drops(*marks_of_few):
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=marks_of_few if name in FEW else pytest.mark.slow) for name in DROPS]
    )


X = jax.random.normal(jax.random.key(0), SHAPE)


def drop_of(name, **options):
    drop, arguments = DROPS[name]
    return functools.partial(drop, **arguments, **options)


def mask_of(name, **options):
    drop, arguments = DROPS[name]
    return functools.partial(MASKS[drop], **arguments, **options)


def outputs(name, key, x, rate):
    """Returns the outputs by rescaling."""
    return {rescale: drop_of(name, rescale=rescale)(key, x, rate) for rescale in RESCALINGS}


TRACES = collections.Counter()


@functools.cache
def compiled(name):
    """Returns the mask, the outputs by rescaling, and a mask shared by all examples with its output, as one program.

    Tests share its compiled program if they pass arrays of the same shape and dtype, and the rate as a Python float.
    """

    @jax.jit
    def results(key, x, rate):
        TRACES[name] += 1
        shared = {}
        if name in SHAREABLE:
            shared["mask"] = mask_of(name, per_example=False)(key, x, rate)
            shared["output"] = drop_of(name, per_example=False, rescale="none")(key, x, rate)
        return mask_of(name)(key, x, rate), outputs(name, key, x, rate), shared

    return lambda seed, x, rate: results(jax.random.key(seed), x, rate)


@functools.cache
def compiled_samples(name):
    @jax.jit
    def sample(keys, rate):
        def masks(key):
            options = [{}, {"per_example": False}] if name in SHAREABLE else [{}]
            x = jnp.ones((2, *SHAPE[1:]))
            return [jnp.broadcast_to(mask_of(name, **option)(key, x, rate), x.shape) for option in options]

        return jax.vmap(masks)(keys)

    return sample


SAMPLES = 6000


def sample_masks(name, rate):
    """Returns masks of two examples for many keys, and masks that the two examples share if the method has them."""
    return [np.asarray(masks) for masks in compiled_samples(name)(jax.random.split(jax.random.key(7), SAMPLES), rate)]


@functools.cache
def compiled_gradient(name):
    """Returns the gradients of the weighted sum of the outputs for both rescalings by `x` and the rate."""

    def loss(x, rate, weights):
        return sum(
            jnp.sum(weights[rescale] * drop_of(name, rescale=rescale)(jax.random.key(1), x, rate))
            for rescale in ("kept", "rate")
        )

    return jax.jit(jax.grad(loss, argnums=(0, 1)))


@pytest.mark.parametrize("name", UNIFORM)
def test_rescale_rate_preserves_the_mean_of_each_unit(name):
    x = X[:2] + 2
    for rate in (0.1, 0.85):
        drop = drop_of(name, rescale="rate")
        testing.assert_mean_preserved(lambda key, x, drop=drop, rate=rate: drop(key, x, rate), x)


@every_drop
@given(seed=st.integers(0, 2**31), rate=st.floats(0, 1, width=32), constant=st.floats(0.125, 100, width=32))
def test_rescale_kept_preserves_the_sum_of_constant_inputs(name, seed, rate, constant):
    x = np.full(SHAPE, constant, np.float32)
    for example in np.asarray(compiled(name)(seed, x, rate)[1]["kept"]):
        assert not example.any() or example.sum() == pytest.approx(float(x[0].sum()), rel=1e-5)


@every_drop
def test_rescale_batch_preserves_the_sum_over_the_batch_by_one_factor(name):
    x = np.ones(SHAPE, np.float32)
    for seed in range(5):
        y = np.asarray(compiled(name)(seed, x, 0.4)[1]["batch"])
        assert float(y.sum()) == pytest.approx(x.size, rel=1e-5) and len(np.unique(y)) == 2


@every_drop
def test_rescale_none_leaves_kept_units_unchanged(name):
    mask, y, _ = compiled(name)(1, X, 0.4)
    assert mask.dtype == bool and jnp.broadcast_shapes(mask.shape, SHAPE) == SHAPE
    assert (y["none"] == jnp.where(mask, X, 0)).all()


@every_drop
def test_examples_do_not_affect_each_other(name):
    """The result for an example depends on its index in the batch, but not on other examples or the batch size."""
    drop = jax.jit(drop_of(name, rescale="kept"))
    y, other = (compiled(name)(1, x, 0.4)[1]["kept"] for x in (X, X.at[3:].set(1 - X[3:])))
    assert (y[:3] == other[:3]).all()
    if not name.startswith("cutout"):
        assert (drop(jax.random.key(1), X[:3], 0.4) == y[:3]).all()


@every_drop
def test_empty_batch(name):
    types = jax.eval_shape(functools.partial(outputs, name), jax.random.key(0), X[:0], 0.4)
    assert all(y.shape == (0, *SHAPE[1:]) for y in types.values())


@pytest.mark.parametrize("name", ["dropout", "drop_block", "drop_cluster"])
def test_traced_rates_are_clipped(name):
    (_, below, _), (_, above, _) = (compiled(name)(0, X, rate) for rate in (-0.5, 1.5))
    assert (below["rate"] == X).all() and not above["rate"].any()


@every_drop
def test_traced_rates_of_nan_give_nan(name):
    mask, y, _ = compiled(name)(0, X, jnp.nan)
    assert mask.all() and all(jnp.isnan(output).all() for output in y.values())


def test_traced_rates_of_nan_give_nan_in_channels_that_are_not_droppable():
    drop = jax.jit(drop_of("drop_cluster per channel", min_explained_variance=0.5))
    assert jnp.isnan(drop(jax.random.key(0), X, jnp.nan)).all()


@pytest.mark.parametrize("name", SHAREABLE)
def test_examples_can_share_a_mask(name):
    for seed in range(5):
        _, _, shared = compiled(name)(seed, X, 0.4)
        assert shared["mask"].shape[0] == 1 and (shared["output"] == jnp.where(shared["mask"], X, 0)).all()


@every_drop
def test_masks_have_the_rate(name):
    """Also those that examples share."""
    for rate in (0.05, 0.5):
        for masks in sample_masks(name, rate):
            fractions = 1 - masks.mean((1, 2, 3, 4))
            error = max(fractions.std(), np.sqrt(rate * (1 - rate) / masks[0].size)) / np.sqrt(SAMPLES)
            assert abs(fractions.mean() - rate) < SIGMAS * error + 1e-3 * rate


@every_drop
def test_higher_rates_drop_supersets(name):
    for seed in range(8):
        masks = [compiled(name)(seed, X, rate)[0] for rate in (0.1, 0.3, 0.7)]
        if name.startswith("cutout"):
            assert masks[0].sum() > masks[1].sum() > masks[2].sum()
        else:
            assert all((high <= low).all() for low, high in itertools.pairwise(masks))


@pytest.mark.parametrize("num_clusters", [1, 6, 29])
def test_rate_and_variance_are_exact_for_any_cluster_sizes(num_clusters):
    rate, examples = 0.3, 10_000
    state = uneven(1, num_clusters, (9, 5))
    x = np.ones((examples, 9, 5, 1), np.float32)
    mask = np.asarray(jax.jit(dc.drop_cluster_mask)(jax.random.key(num_clusters), x, rate, state))
    fractions = 1 - mask.mean(axis=(1, 2, 3))
    variance = rate * (1 - rate) * np.square(np.asarray(state.sizes) / 45).sum()
    assert abs(float(fractions.mean()) - rate) < SIGMAS * np.sqrt(variance / examples)
    assert float(fractions.var()) == pytest.approx(variance, rel=0.1)


@every_drop
def test_examples_are_independent(name):
    masks = sample_masks(name, 0.4)[0].astype(float)
    first, second = masks[:, 0].reshape(SAMPLES, -1), masks[:, 1].reshape(SAMPLES, -1)
    for unit in range(0, first.shape[1], 17):
        assert abs(np.corrcoef(first[:, unit], second[:, unit])[0, 1]) < SIGMAS / np.sqrt(SAMPLES)


@pytest.mark.parametrize(
    "name",
    [name for name in DROPS if "per channel" in name] + ["dropout", "spatial_dropout", "corr_drop of channels"],
)
def test_channels_are_independent(name):
    masks = sample_masks(name, 0.4)[0][:, 0].astype(float)
    for position in [(0, 0), (3, 2), (5, 5)]:
        correlation = np.corrcoef(masks[:, *position].T)
        assert (np.abs(correlation - np.eye(3)) < SIGMAS / np.sqrt(SAMPLES)).all()


@pytest.mark.parametrize("name", ["drop_block", "drop_cluster", "cutout", "corr_drop"])
def test_channels_share_the_mask_by_default(name):
    masks = sample_masks(name, 0.4)[0]
    assert (masks == masks[..., :1]).all()


@pytest.mark.parametrize("groups", [1, 3])
def test_masks_are_constant_within_clusters_and_independent_between_them(groups):
    state = uneven(groups)
    mask = functools.partial(dc.drop_cluster_mask, rate=0.4, state=state)
    testing.assert_constant_within_clusters(mask, jnp.ones(SHAPE), state.labels)
    masks = np.asarray(mask(jax.random.key(0), jnp.ones((4000, *SHAPE[1:]))))
    for group in range(groups):
        labels = np.asarray(state.labels[..., group])
        draws = []
        for cluster in np.unique(labels):
            members = masks[:, labels == cluster, group]
            assert (members == members[:, :1]).all()
            draws.append(members[:, 0].astype(float))
        correlation = np.corrcoef(np.array(draws))
        assert (np.abs(correlation - np.eye(len(draws))) < SIGMAS / np.sqrt(4000)).all()


@every_drop
def test_rate_0_is_the_identity_bit_for_bit(name):
    assert_identity_at_rate_0(name, jnp.float32)


@few_drops(pytest.mark.optimized)
def test_rate_0_is_the_identity_bit_for_bit_in_bfloat16(name):
    assert_identity_at_rate_0(name, jnp.bfloat16)


def assert_identity_at_rate_0(name, dtype):
    x = X.at[0, 0, 0, 0].set(-0.0).at[0, 0, 0, 1].set(jnp.inf).at[0, 0, 0, 2].set(1e-40).astype(dtype)
    for y in compiled(name)(0, x, 0.0)[1].values():
        if dtype == jnp.bfloat16 and jaxlib.version.__version_info__ >= (0, 11) and y[0, 0, 0, 2] == 0:
            y = y.at[0, 0, 0, 2].set(x[0, 0, 0, 2])  # The CPU's conversion to bfloat16 flushes denormals.
        assert y.dtype == dtype and np.asarray(y).tobytes() == np.asarray(x).tobytes()


@every_drop
@pytest.mark.parametrize("rescale", ["kept", "rate"])
def test_gradients(name, rescale):
    """The gradient is the mask times the factor. At rate 1, it is 0, and that of the rate is finite."""
    weights = {other: X[::-1] * (other == rescale) for other in ("kept", "rate")}
    factor = compiled(name)(1, X, 0.4)[1][rescale] / X
    x_gradient, _ = compiled_gradient(name)(X, 0.4, weights)
    np.testing.assert_allclose(x_gradient, factor * weights[rescale], rtol=1e-6)
    x_gradient, rate_gradient = compiled_gradient(name)(X, 1.0, weights)
    assert not x_gradient.any() and jnp.isfinite(rate_gradient)
    assert not compiled(name)(0, X, 1.0)[1][rescale].any()


@every_drop
def test_dropped_nans_become_zero(name):
    mask, outputs, _ = compiled(name)(0, np.full(SHAPE, np.nan, np.float32), 0.6)
    expected = np.where(np.broadcast_to(mask, SHAPE), np.nan, 0)
    for y in outputs.values():
        np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("name", ["drop_cluster", pytest.param("corr_drop", marks=pytest.mark.slow)])
def test_drops_are_pure(name):
    testing.assert_pure(lambda key, x: drop_of(name)(key, x, 0.5), X)


@every_drop
def test_dtype_is_preserved(name):
    def gradient(x):
        return jax.grad(lambda x: sum(y.astype(jnp.float32).sum() for y in drop(jax.random.key(0), x, 0.3).values()))(x)

    drop = functools.partial(outputs, name)
    for dtype in (jnp.bfloat16, jnp.float16):
        x = jax.ShapeDtypeStruct(SHAPE, dtype)
        for rate in (0, 0.3, np.float64(0.3), jnp.float32(0.3)) if dtype == jnp.bfloat16 else (0.3,):
            types = jax.eval_shape(lambda x, rate=rate: drop(jax.random.key(0), x, rate), x)
            assert all(y.dtype == dtype for y in types.values())
        assert jax.eval_shape(gradient, x).dtype == dtype


@few_drops()
def test_rescaling_in_bfloat16_preserves_the_mean(name):
    """A factor of 1 / (1 - 0.1) rounded to bfloat16 would be 0.16% too small."""
    x = jnp.exp(X).astype(jnp.bfloat16)
    (_, rounded, _), (_, exact, _) = (compiled(name)(0, x.astype(dtype), 0.1) for dtype in (jnp.bfloat16, jnp.float32))
    for rescale in RESCALINGS:
        assert float(np.float32(rounded[rescale]).sum()) == pytest.approx(float(exact[rescale].sum()), rel=4e-4)


@every_drop
@pytest.mark.slow
def test_gradients_match_finite_differences(name):
    """In forward mode, too."""
    drop = jax.jit(drop_of(name))
    check_grads(
        lambda x: drop(jax.random.key(1), jnp.tanh(x), 0.4),
        (X,),
        order=1,
        modes=("fwd", "rev"),
        atol=1e-2,
        rtol=1e-2,
    )


@pytest.mark.parametrize("groups", [1, 3])
def test_no_gradient_flows_to_the_clusters(groups):
    def loss(state):
        return dc.drop_cluster(jax.random.key(1), X, 0.4, state).sum()

    gradient = jax.jit(jax.grad(loss, allow_int=True))(uneven(groups))
    assert not gradient.explained_variance.any()
    assert {leaf.dtype for leaf in (gradient.labels, gradient.sizes, gradient.num_updates)} == {jax.dtypes.float0}


@every_drop
def test_changing_the_rate_does_not_recompile(name):
    compiled(name)(0, X, 0.0)
    traces = TRACES[name]
    for rate in (0.1, 0.5, 1.0):
        compiled(name)(0, X, rate)
    assert TRACES[name] == traces > 0


def test_clusters_and_blocks_of_one_unit_are_dropout_in_distribution():
    """The number of kept units is binomial, and units are uncorrelated."""
    rate, examples, units = 0.3, 4000, 27
    x = jnp.ones((examples, 3, 3, 3))
    singletons = dc.Grid(num_clusters=9, per_channel=True).init((3, 3, 3))
    masks = {
        "cluster": dc.drop_cluster_mask(jax.random.key(0), x, rate, singletons),
        "block": dc.drop_block_mask(jax.random.key(1), x, rate, block_size=1, per_channel=True),
        "dropout": dc.dropout_mask(jax.random.key(2), x, rate),
    }
    edges = np.arange(14, 26)
    expected = np.diff(scipy.stats.binom.cdf(np.concatenate([[-1], edges, [units]]), units, 1 - rate)) * examples
    for name, mask in masks.items():
        flat = np.asarray(jnp.broadcast_to(mask, x.shape)).reshape(examples, -1).astype(float)
        counts = np.histogram(flat.sum(1), np.concatenate([[-0.5], edges + 0.5, [units + 0.5]]))[0]
        assert scipy.stats.chisquare(counts, expected).pvalue > 1e-4, name
        correlation = np.corrcoef(flat.T)
        assert (np.abs(correlation - np.eye(units)) < SIGMAS / np.sqrt(examples)).all(), name


@every_drop
@pytest.mark.bad_input
def test_rates_outside_0_and_1_raise(name):
    for rate in (-0.1, 1.1, float("nan"), jnp.float32(2.0)):
        with pytest.raises(ValueError, match=rf"rate must be in \[0, 1\], got {float(rate):.3g}"):
            drop_of(name)(jax.random.key(0), X, rate)


@every_drop
@pytest.mark.bad_input
def test_invalid_arguments_raise(name):
    drop, key = drop_of(name), jax.random.key(0)
    with pytest.raises(TypeError, match="x must have a floating-point dtype, got int32"):
        drop(key, jnp.ones(SHAPE, jnp.int32), 0.1)
    for dtype in (jnp.float8_e8m0fnu, jnp.float4_e2m1fn):
        with pytest.raises(TypeError, match=f"x must have a dtype with zero and NaN, got {jnp.dtype(dtype)}"):
            drop(key, jnp.ones(SHAPE, dtype), 0.1)
    for rate in ("a", None, True):
        with pytest.raises(TypeError, match=rf"rate must be a number in \[0, 1\], got {rate!r}"):
            drop(key, jnp.ones(SHAPE), rate)
    with pytest.raises(ValueError, match=r"rate must be a scalar, got shape \(2,\)"):
        drop(key, jnp.ones(SHAPE), jnp.array([0.1, 0.2]))
    with pytest.raises(ValueError, match="rescale must be one of 'kept', 'rate', 'batch', 'none', got 'mean'"):
        jax.eval_shape(drop_of(name, rescale="mean"), key, X, 0.1)
    if name == "drop_path":
        with pytest.raises(ValueError, match=r"x must have shape \(batch, \.\.\.\), got \(\)"):
            drop(key, jnp.ones(()), 0.1)
    elif name != "dropout":
        with pytest.raises(ValueError, match=r"x must have shape .*spatial.*, got \(2, 3\)"):
            drop(key, jnp.ones((2, 3)), 0.1)
