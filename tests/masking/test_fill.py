"""Replacement of dropped units, for all methods that have a fill."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.test_util import check_grads

import dropcluster_jax as dc

SHAPE = (6, 8, 8, 4)
X = jax.random.normal(jax.random.key(0), SHAPE) * jnp.arange(1.0, 5) + jnp.arange(4.0)
SHARED = dc.Grid(num_clusters=16).init(SHAPE[1:])
SEPARATE = dc.Grid(num_clusters=16, per_channel=True).init(SHAPE[1:])
DROPS = {
    "dropout": (dc.dropout, dc.dropout_mask, {}),
    "dropout of positions": (dc.dropout, dc.dropout_mask, {"per_channel": False}),
    "spatial_dropout": (dc.spatial_dropout, dc.spatial_dropout_mask, {}),
    "cutout": (dc.cutout, dc.cutout_mask, {}),
    "drop_block": (dc.drop_block, dc.drop_block_mask, {"block_size": 3}),
    "drop_block per channel": (dc.drop_block, dc.drop_block_mask, {"block_size": 3, "per_channel": True}),
    "corr_drop": (dc.corr_drop, dc.corr_drop_mask, {"block_size": 2}),
    "drop_cluster": (dc.drop_cluster, dc.drop_cluster_mask, {"state": SHARED}),
    "drop_cluster per channel": (dc.drop_cluster, dc.drop_cluster_mask, {"state": SEPARATE}),
}
every_drop = pytest.mark.parametrize("name", DROPS)
both_fills = pytest.mark.parametrize("fill", ["noise", "swap"])
# One method for each way in which masks are applied. The others are slow.
few_drops = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in ("dropout", "drop_block") else pytest.mark.slow) for name in DROPS],
)


def drop_of(name, **options):
    drop, _, arguments = DROPS[name]
    return functools.partial(drop, **arguments, **options)


@functools.cache
def compiled(name):
    """Returns the mask and the outputs by fill, as one program."""

    def results(seed, x, rate):
        key = jax.random.key(seed)
        _, mask, arguments = DROPS[name]
        outputs = {fill: drop_of(name, fill=fill)(key, x, rate) for fill in ("noise", "swap")}
        return jnp.broadcast_to(mask(key, x, rate, **arguments), x.shape), outputs

    return jax.jit(results)


@every_drop
@given(seed=st.integers(0, 2**31 - 1), rate=st.floats(0, 1, width=32))
def test_kept_units_are_unchanged_and_swapped_ones_are_those_of_the_next_example(name, seed, rate):
    mask, outputs = compiled(name)(seed, X, rate)
    np.testing.assert_array_equal(outputs["swap"], np.where(mask, X, np.roll(X, -1, axis=0)))
    assert (np.where(mask, outputs["noise"], 0) == np.where(mask, X, 0)).all()
    assert not (np.asarray(outputs["noise"]) == np.asarray(X))[~np.asarray(mask)].any()


@every_drop
def test_rate_0_is_the_identity_bit_for_bit(name):
    x = X.at[0, 0, 0, 0].set(-0.0).at[0, 0, 0, 2].set(1e-40)
    for y in compiled(name)(0, x, 0.0)[1].values():
        assert np.asarray(y).tobytes() == np.asarray(x).tobytes()


@every_drop
def test_a_rate_of_nan_gives_nan(name):
    assert all(jnp.isnan(y).all() for y in compiled(name)(0, X, jnp.nan)[1].values())


def test_examples_that_share_a_mask_permute_the_values_of_each_unit():
    y = dc.drop_cluster(jax.random.key(1), X, 0.5, SHARED, per_example=False, fill="swap")
    assert (y != X).any()
    np.testing.assert_array_equal(np.sort(y, axis=0), np.sort(X, axis=0))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_noise_is_normal_with_the_mean_and_the_deviation_of_the_channel(dtype):
    deviations, means = np.array([0.5, 3.0, 1e-3, 20.0]), np.array([0.0, 100.0, 1.0, -5.0])
    x = (np.random.default_rng(0).standard_t(5, (256, 16, 16, 4)) * deviations + means).astype(dtype)
    y = np.asarray(jax.jit(functools.partial(dc.dropout, fill="noise"))(jax.random.key(0), x, 1.0)).astype(np.float64)
    x = np.asarray(x).astype(np.float64)
    for channel in range(4):
        draws = (y[..., channel] - x[..., channel].mean()) / x[..., channel].std()
        rounding = float(jnp.finfo(dtype).eps) * abs(means[channel]) / x[..., channel].std()
        number, tolerance = draws.size, 5 + rounding
        assert abs(draws.mean()) < tolerance / number**0.5 + rounding**2
        assert abs(draws.var() - 1) < tolerance * (2 / number) ** 0.5 + rounding**2
        if rounding < 0.01:  # otherwise, few distinct values are left
            assert scipy.stats.kstest(draws.ravel(), "norm").statistic < 0.01
            assert abs(scipy.stats.kurtosis(draws.ravel()) + 1 / 16) < 0.06
    channels = np.corrcoef(y.reshape(-1, 4).T) - np.eye(4)
    positions = np.corrcoef(y[..., 0].reshape(256, -1)[:, ::17].T) - np.eye(16)
    assert np.abs(channels).max() < 5 / (y.size / 4) ** 0.5 and np.abs(positions).max() < 5 / 256**0.5


@both_fills
@pytest.mark.parametrize("rate", [0.2, 0.6])
def test_statistics_of_real_features_are_preserved(cifar10_features, fill, rate):
    """BatchNorm sees the same mean and variance, unlike with zeros."""

    def statistics(fill):
        drop = jax.jit(functools.partial(dc.drop_cluster, state=dc.Grid(num_clusters=16).init((32, 32, 8)), fill=fill))
        outputs = [np.asarray(drop(jax.random.key(seed), cifar10_features, rate)) for seed in range(8)]
        x = np.asarray(cifar10_features)
        shift = np.mean([y.mean((0, 1, 2)) for y in outputs], axis=0) - x.mean((0, 1, 2))
        scale = np.mean([y.var((0, 1, 2)) for y in outputs], axis=0) / x.var((0, 1, 2))
        return np.abs(shift / x.std((0, 1, 2))).max(), np.abs(scale - 1).max()

    shift, scale = statistics(fill)
    assert shift < 0.03 and scale < 0.04
    assert statistics("zero")[1] > 5 * scale


def test_constant_channels_stay_constant():
    x = jnp.broadcast_to(jnp.array([0.1, 1e6, -3.0, 0.0]), SHAPE)
    for dtype in (jnp.float32, jnp.bfloat16):
        for y in compiled("dropout")(0, x.astype(dtype), 0.7)[1].values():
            assert (y == x.astype(dtype)).all()


@every_drop
def test_gradients_flow_to_the_donors_but_not_through_the_noise(name):
    weights = jax.random.normal(jax.random.key(2), SHAPE)

    @jax.jit
    def gradients(x):
        def loss(x, fill):
            return jnp.sum(weights * drop_of(name, fill=fill)(jax.random.key(1), x, 0.4))

        return {fill: jax.grad(loss)(x, fill) for fill in ("noise", "swap")}

    mask = compiled(name)(1, X, 0.4)[0]
    kept, dropped = np.where(mask, weights, 0), np.where(mask, 0, weights)
    gradient = gradients(X)
    np.testing.assert_array_equal(gradient["noise"], kept)
    np.testing.assert_allclose(gradient["swap"], kept + np.roll(dropped, 1, axis=0), rtol=1e-6)


@few_drops
def test_gradients_match_finite_differences(name):
    drop = jax.jit(drop_of(name, fill="swap"))
    check_grads(lambda x: drop(jax.random.key(1), jnp.tanh(x), 0.4), (X,), 1, ("fwd", "rev"), atol=1e-2, rtol=1e-2)


@few_drops
@both_fills
def test_the_backward_pass_keeps_no_array_of_the_size_of_the_input(name, fill):
    def residuals(x):
        return jax.vjp(lambda x: drop_of(name, fill=fill)(jax.random.key(1), x, 0.4), x)[1]

    sizes = [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(residuals, X))]
    assert max(sizes) < X.nbytes


@few_drops
@both_fills
def test_devices_do_not_matter(name, fill):
    """A batch that is split over devices by `jit` gives the result of one device; `shard_map` swaps within devices."""
    x, key, drop = jnp.concatenate([X, -X, 2 * X, X + 1]), jax.random.key(1), drop_of(name, fill=fill)
    expected = jax.jit(drop)(key, x, 0.4)
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("batch")))
    np.testing.assert_allclose(jax.jit(drop)(key, sharded, 0.4), expected, rtol=1e-5, atol=1e-6)

    spec = PartitionSpec("batch")
    mapped = jax.shard_map(lambda x: drop(key, x, 0.4), mesh=mesh, in_specs=spec, out_specs=spec)(sharded)
    separate = [drop(key, part, 0.4) for part in jnp.split(x, 4)]
    np.testing.assert_allclose(mapped, jnp.concatenate(separate), rtol=1e-5, atol=1e-6)


@few_drops
@both_fills
def test_vmap_scan_and_remat(name, fill):
    keys, xs = jax.random.split(jax.random.key(3), 2), jnp.stack([X, X[::-1] + 1])

    def drop(key, x):
        return drop_of(name, fill=fill)(key, x, 0.4)

    expected = jnp.stack([drop(key, x) for key, x in zip(keys, xs, strict=True)])
    for mapped in (
        jax.vmap(drop)(keys, xs),
        jax.lax.scan(lambda _, inputs: (None, drop(*inputs)), None, (keys, xs))[1],
        jnp.stack([jax.checkpoint(drop)(key, x) for key, x in zip(keys, xs, strict=True)]),
    ):
        np.testing.assert_allclose(mapped, expected, rtol=1e-6, atol=1e-6)


@every_drop
def test_dtypes_are_preserved_under_strict_promotion(name):
    for dtype in (jnp.float16, jnp.bfloat16, jnp.float32):
        with jax.numpy_dtype_promotion("strict"):
            outputs = jax.eval_shape(compiled(name), 0, X.astype(dtype), 0.3)[1]
        assert {y.dtype for y in outputs.values()} == {jnp.dtype(dtype)}


@every_drop
def test_empty_batches(name):
    assert {y.shape for y in compiled(name)(0, X[:0], 0.3)[1].values()} == {(0, *SHAPE[1:])}


@every_drop
@pytest.mark.bad_input
def test_invalid_arguments_raise(name):
    for x, options, message in (
        (X[:1], {"fill": "swap"}, "fill 'swap' requires at least two examples"),
        (X, {"fill": "mean"}, "fill must be one of 'zero', 'noise', 'swap', got 'mean'"),
        (X, {"fill": "noise", "rescale": "rate"}, "rescale must be 'none' or None if fill is 'noise', got 'rate'"),
    ):
        with pytest.raises(ValueError, match=message):
            drop_of(name, **options)(jax.random.key(0), x, 0.3)
