"""Properties of all masks, each checked over many keys."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

import dropcluster_jax as dc
from dropcluster_jax import testing

SHAPE = (2, 6, 6, 3)
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


def drop_of(name, **options):
    drop, arguments = DROPS[name]
    return functools.partial(drop, **arguments, **options)


def mask_of(name, **options):
    drop, arguments = DROPS[name]
    return functools.partial(MASKS[drop], **arguments, **options)


def sample_masks(name, rate, count):
    """Returns masks for `count` keys, broadcast to `(count, *SHAPE)`."""
    x, mask = jnp.ones(SHAPE), mask_of(name)
    keys = jax.random.split(jax.random.key(7), count)
    return jnp.broadcast_to(jax.jit(jax.vmap(lambda key: mask(key, x, rate)))(keys), (count, *SHAPE))


@functools.cache
def jitted(name, rescale):
    return jax.jit(drop_of(name, rescale=rescale))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.85])
@pytest.mark.parametrize("name", UNIFORM)
def test_rescale_rate_preserves_the_mean_of_each_unit(name, rate):
    x = jax.random.normal(jax.random.key(1), SHAPE) + 2
    drop = drop_of(name, rescale="rate")
    testing.assert_mean_preserved(lambda key, x: drop(key, x, rate), x)


@every_drop
@given(seed=st.integers(0, 2**31), rate=st.floats(0, 1, width=32), constant=st.floats(0.125, 100, width=32))
def test_rescale_kept_preserves_the_sum_of_constant_inputs(name, seed, rate, constant):
    x = jnp.full(SHAPE, constant)
    y = jitted(name, "kept")(jax.random.key(seed), x, rate)
    for example in y:
        assert not example.any() or example.sum() == pytest.approx(float(x[0].sum()), rel=1e-5)


@every_drop
def test_rescale_batch_preserves_the_sum_over_the_batch_by_one_factor(name):
    x = jnp.ones((8, *SHAPE[1:]))
    for seed in range(5):
        y = jitted(name, "batch")(jax.random.key(seed), x, 0.4)
        assert float(y.sum()) == pytest.approx(x.size, rel=1e-5) and len(np.unique(y)) == 2


@every_drop
def test_rescale_none_leaves_kept_units_unchanged(name):
    x = jax.random.normal(jax.random.key(0), SHAPE)
    y = drop_of(name, rescale="none")(jax.random.key(1), x, 0.4)
    assert (y == jnp.where(mask_of(name)(jax.random.key(1), x, 0.4), x, 0)).all()


@every_drop
def test_examples_do_not_affect_each_other(name):
    """The result for an example depends on its index in the batch, but not on other examples or the batch size."""
    x = jax.random.normal(jax.random.key(0), (6, *SHAPE[1:]))
    drop, key = drop_of(name, rescale="kept"), jax.random.key(1)
    y = drop(key, x, 0.4)
    assert (drop(key, x.at[3:].set(-x[3:] + 1), 0.4)[:3] == y[:3]).all()
    if not name.startswith("cutout"):
        assert (drop(key, x[:3], 0.4) == y[:3]).all()


@every_drop
@pytest.mark.parametrize("rescale", RESCALINGS)
def test_empty_batch(name, rescale):
    assert drop_of(name, rescale=rescale)(jax.random.key(0), jnp.ones((0, *SHAPE[1:])), 0.4).shape == (0, *SHAPE[1:])


@pytest.mark.parametrize("name", ["dropout", "drop_block", "drop_cluster"])
def test_traced_rates_are_clipped(name):
    x = jax.random.normal(jax.random.key(0), SHAPE)
    drop = jitted(name, "rate")
    assert (drop(jax.random.key(0), x, -0.5) == x).all() and not drop(jax.random.key(0), x, 1.5).any()


@pytest.mark.parametrize("rescale", ["default", "none"])
@every_drop
def test_traced_rates_of_nan_give_nan(name, rescale):
    """With a threshold, also in the channels that are not droppable."""
    x = jax.random.normal(jax.random.key(0), SHAPE)
    options = {} if rescale == "default" else {"rescale": rescale}
    if name == "drop_cluster per channel":
        options |= {"min_explained": 0.5}
    assert jnp.isnan(jax.jit(drop_of(name, **options))(jax.random.key(0), x, jnp.nan)).all()
    assert jax.jit(mask_of(name))(jax.random.key(0), x, jnp.nan).all()


@pytest.mark.parametrize("name", SHAREABLE)
def test_examples_can_share_a_mask(name):
    x = jax.random.normal(jax.random.key(0), (6, *SHAPE[1:]))
    for seed in range(5):
        mask = mask_of(name, per_example=False)(jax.random.key(seed), x, 0.4)
        y = drop_of(name, per_example=False, rescale="none")(jax.random.key(seed), x, 0.4)
        assert mask.shape[0] == 1 and (y == jnp.where(mask, x, 0)).all()


@pytest.mark.parametrize("name", SHAREABLE)
def test_shared_masks_have_the_rate(name):
    mask = mask_of(name, per_example=False)
    testing.assert_rate(lambda key, x: mask(key, x, 0.3), jnp.ones(SHAPE), 0.3)


@pytest.mark.parametrize("rate", [0.05, 0.5])
@every_drop
def test_masks_have_the_rate(name, rate):
    mask = mask_of(name)
    testing.assert_rate(lambda key, x: mask(key, x, rate), jnp.ones(SHAPE), rate, samples=6000, tolerance=1e-3)


@every_drop
def test_higher_rates_drop_supersets(name):
    x = jnp.ones((50, *SHAPE[1:]))
    for seed in range(3):
        masks = [mask_of(name)(jax.random.key(seed), x, rate) for rate in (0.1, 0.3, 0.7)]
        if name.startswith("cutout"):
            assert masks[0].sum() > masks[1].sum() > masks[2].sum()
        else:
            assert all((high <= low).all() for low, high in itertools.pairwise(masks))


@pytest.mark.parametrize("seed", range(5))
def test_rate_and_variance_are_exact_for_any_cluster_sizes(seed):
    key, rate, examples = jax.random.key(seed), 0.3, 10_000
    num_clusters = int(jax.random.randint(key, (), 1, 30))
    state = uneven(1, num_clusters, (9, 5))
    x = jnp.ones((examples, 9, 5, 1))
    fractions = 1 - jax.jit(dc.drop_cluster_mask)(key, x, rate, state).mean(axis=(1, 2, 3))
    variance = rate * (1 - rate) * np.square(np.asarray(state.sizes) / 45).sum()
    assert abs(float(fractions.mean()) - rate) < SIGMAS * np.sqrt(variance / examples)
    assert float(fractions.var()) == pytest.approx(variance, rel=0.1)


@every_drop
def test_examples_are_independent(name):
    masks = np.asarray(sample_masks(name, 0.4, 4000), float)
    first, second = masks[:, 0].reshape(4000, -1), masks[:, 1].reshape(4000, -1)
    for unit in range(0, first.shape[1], 17):
        assert abs(np.corrcoef(first[:, unit], second[:, unit])[0, 1]) < SIGMAS / np.sqrt(4000)


@pytest.mark.parametrize(
    "name",
    [name for name in DROPS if "per channel" in name] + ["dropout", "spatial_dropout", "corr_drop of channels"],
)
def test_channels_are_independent(name):
    masks = np.asarray(sample_masks(name, 0.4, 4000), float)[:, 0]
    for position in [(0, 0), (3, 2), (5, 5)]:
        correlation = np.corrcoef(masks[:, *position].T)
        assert (np.abs(correlation - np.eye(3)) < SIGMAS / np.sqrt(4000)).all()


@pytest.mark.parametrize("name", ["drop_block", "drop_cluster", "cutout", "corr_drop"])
def test_channels_share_the_mask_by_default(name):
    masks = sample_masks(name, 0.4, 50)
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
@pytest.mark.parametrize(("rescale", "dtype"), [("kept", jnp.bfloat16), ("rate", jnp.float32), ("batch", jnp.float32)])
def test_rate_0_is_the_identity_bit_for_bit(name, rescale, dtype):
    x = jax.random.normal(jax.random.key(3), SHAPE).astype(dtype)
    x = x.at[0, 0, 0, 0].set(-0.0).at[0, 0, 0, 1].set(jnp.inf).at[0, 0, 0, 2].set(1e-40)
    y = jitted(name, rescale)(jax.random.key(0), x, 0.0)
    assert y.dtype == dtype and np.asarray(y).tobytes() == np.asarray(x).tobytes()


@every_drop
@pytest.mark.parametrize("rescale", ["kept", "rate"])
def test_rate_1_gives_zeros_and_finite_gradients(name, rescale):
    x = jax.random.normal(jax.random.key(3), SHAPE)
    drop = drop_of(name, rescale=rescale)
    assert not drop(jax.random.key(0), x, 1.0).any()
    gradient = jax.jit(jax.grad(lambda x, rate: jnp.sum(drop(jax.random.key(0), x, rate) ** 2), argnums=(0, 1)))
    x_gradient, rate_gradient = gradient(x, 1.0)
    assert not x_gradient.any() and jnp.isfinite(rate_gradient)


@every_drop
def test_dropped_nans_become_zero(name):
    x = jnp.full(SHAPE, jnp.nan)
    y = drop_of(name)(jax.random.key(0), x, 0.6)
    mask = jnp.broadcast_to(mask_of(name)(jax.random.key(0), x, 0.6), x.shape)
    assert (jnp.isnan(y) == mask).all() and (y[~mask] == 0).all()


@pytest.mark.parametrize(
    "name",
    [
        *("dropout", "spatial_dropout", "drop_block", "drop_cluster", "drop_path", "cutout"),
        *("corr_drop", "corr_drop of channels"),
    ],
)
def test_drops_are_pure_and_masks_broadcast(name):
    x = jax.random.normal(jax.random.key(0), (8, *SHAPE[1:]))
    testing.assert_pure(lambda key, x: drop_of(name)(key, x, 0.5), x)
    mask = mask_of(name)(jax.random.key(0), x, 0.5)
    assert mask.dtype == bool and jnp.broadcast_shapes(mask.shape, x.shape) == x.shape


@every_drop
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("rescale", RESCALINGS)
def test_dtype_is_preserved(name, rescale, dtype):
    x, drop = jnp.ones(SHAPE, dtype), drop_of(name, rescale=rescale)
    for rate in (0, 0.3, np.float64(0.3), jnp.float32(0.3)):
        assert jax.eval_shape(drop, jax.random.key(0), x, rate).dtype == dtype
    gradient = jax.grad(lambda x: drop(jax.random.key(0), x, 0.3).astype(jnp.float32).sum())
    assert jax.eval_shape(gradient, x).dtype == dtype


@every_drop
def test_rescaling_in_bfloat16_preserves_the_mean(name):
    """A factor of 1 / (1 - 0.1) rounded to bfloat16 would be 0.16 % too small."""
    x = jnp.exp(jax.random.normal(jax.random.key(0), (64, *SHAPE[1:]))).astype(jnp.bfloat16)
    drop = drop_of(name)
    bfloat16_sum = drop(jax.random.key(0), x, 0.1).astype(jnp.float32).sum()
    float32_sum = drop(jax.random.key(0), x.astype(jnp.float32), 0.1).sum()
    assert bfloat16_sum == pytest.approx(float(float32_sum), rel=3e-4)


@every_drop
@pytest.mark.parametrize("rescale", ["kept", "rate"])
def test_gradients_match_finite_differences(name, rescale):
    drop = drop_of(name, rescale=rescale)
    x = jax.random.normal(jax.random.key(0), SHAPE)
    check_grads(
        lambda x: drop(jax.random.key(1), jnp.tanh(x), 0.4),
        (x,),
        order=1,
        modes=("fwd", "rev"),
        atol=1e-2,
        rtol=1e-2,
    )


@pytest.mark.parametrize("groups", [1, 3])
def test_no_gradient_flows_to_the_clusters(groups):
    state = uneven(groups)
    x = jax.random.normal(jax.random.key(0), SHAPE)
    gradient = jax.grad(lambda state: dc.drop_cluster(jax.random.key(1), x, 0.4, state).sum(), allow_int=True)(state)
    assert not gradient.explained_variance.any()
    assert {leaf.dtype for leaf in (gradient.labels, gradient.sizes, gradient.num_updates)} == {jax.dtypes.float0}


@every_drop
def test_changing_the_rate_does_not_recompile(name):
    traces = []

    @jax.jit
    def traced(key, x, rate):
        traces.append(rate)
        return drop_of(name)(key, x, rate)

    for rate in (0.0, 0.1, 0.5, 1.0):
        traced(jax.random.key(0), jnp.ones(SHAPE), rate)
    assert len(traces) == 1


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
@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan"), jnp.float32(2.0)])
def test_rates_outside_0_and_1_raise(name, rate):
    with pytest.raises(ValueError, match=rf"rate must be in \[0, 1\], got {float(rate):.3g}"):
        drop_of(name)(jax.random.key(0), jnp.ones(SHAPE), rate)


@every_drop
@pytest.mark.bad_input
def test_invalid_arguments_raise(name):
    drop, key = drop_of(name), jax.random.key(0)
    with pytest.raises(TypeError, match="x must have a floating-point dtype, got int32"):
        drop(key, jnp.ones(SHAPE, jnp.int32), 0.1)
    for dtype in (jnp.float8_e8m0fnu, jnp.float4_e2m1fn):
        with pytest.raises(TypeError, match=f"x must have a dtype with zero and NaN, got {jnp.dtype(dtype)}"):
            drop(key, jnp.ones(SHAPE, dtype), 0.1)
    for rate in ("a", None):
        with pytest.raises(TypeError, match=rf"rate must be a number in \[0, 1\], got {rate!r}"):
            drop(key, jnp.ones(SHAPE), rate)
    with pytest.raises(ValueError, match=r"rate must be a scalar, got shape \(2,\)"):
        drop(key, jnp.ones(SHAPE), jnp.array([0.1, 0.2]))
    with pytest.raises(ValueError, match="rescale must be one of 'kept', 'rate', 'batch', 'none', got 'mean'"):
        drop_of(name, rescale="mean")(key, jnp.ones(SHAPE), 0.1)
    if name not in ("dropout", "drop_path"):
        with pytest.raises(ValueError, match=r"x must have shape .*spatial.*, got \(2, 3\)"):
            drop(key, jnp.ones((2, 3)), 0.1)
