"""The assertions pass for correct drop functions and fail for broken ones."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import dropcluster_jax as dc
from dropcluster_jax import testing

X = jnp.exp(jax.random.normal(jax.random.key(0), (4, 6, 6, 3)))
ASSERTIONS = {
    "mean": lambda drop: testing.assert_mean_preserved(drop, X, samples=512),
    "sum": lambda drop: testing.assert_sum_preserved(drop, X),
    "rate": lambda drop: testing.assert_rate(drop, X, 0.3, samples=512),
}


@pytest.mark.parametrize("name", ASSERTIONS)
def test_nan_fails(name):
    with pytest.raises(AssertionError, match="nan"):
        ASSERTIONS[name](lambda key, x: jnp.where(dc.dropout_mask(key, x, 0.3), jnp.nan, 0.0))


@pytest.mark.parametrize("rate", [0.002, *(pytest.param(rate, marks=pytest.mark.slow) for rate in (0.01, 0.99))])
def test_extreme_rates_pass(rate):
    for seed in range(3):
        testing.assert_mean_preserved(lambda key, x: dc.dropout(key, x, rate), X, samples=20_000, seed=seed)
        testing.assert_rate(lambda key, x: dc.drop_path(key, x, rate), X, rate, seed=seed)


def test_small_deviations_fail():
    with pytest.raises(AssertionError, match="mean of unit"):
        testing.assert_mean_preserved(lambda key, x: 1.05 * dc.dropout(key, x, 0.3), X, samples=20_000)
    with pytest.raises(AssertionError, match="sum of 108 ones is"):
        testing.assert_sum_preserved(lambda key, x: 1.001 * dc.drop_block(key, x, 0.3, block_size=2), X)
    with pytest.raises(AssertionError, match=r"dropped fraction over 2048 keys is .* expected 0\.3"):
        testing.assert_rate(lambda key, x: dc.dropout(key, x, 0.305), X, 0.3)


def test_functions_that_ignore_the_key_are_not_pure():
    with pytest.raises(AssertionError, match="results for 64 keys are all the same"):
        testing.assert_pure(lambda key, x: 2 * x, X)
    with pytest.raises(AssertionError, match="results for 64 keys are all the same"):
        testing.assert_pure(lambda key, x: x * jnp.nan, X)
    testing.assert_pure(lambda key, x: dc.drop_path(key, x, 0.1), X[:2])  # seldom drops anything


@pytest.mark.slow
def test_bfloat16_may_round_differently_when_compiled():
    testing.assert_pure(lambda key, x: dc.dropout(key, x * x + x, 0.3), X.astype(jnp.bfloat16))


def test_partly_dropped_clusters_fail():
    state = dc.Grid(num_clusters=4, per_channel=True).init(X.shape[1:])

    def drop(key, x):
        return dc.drop_cluster(key, x, 0.3, state)

    testing.assert_constant_within_clusters(drop, X, state.labels)
    with pytest.raises(AssertionError, match="of channel 2 is partly dropped: 1 of 9 units"):
        testing.assert_constant_within_clusters(lambda key, x: drop(key, x).at[0, 0, 0, 2].set(0), X, state.labels)
    with pytest.raises(AssertionError, match="nothing is dropped with each of 64 keys"):
        testing.assert_constant_within_clusters(lambda key, x: x, X, state.labels)


@pytest.mark.bad_input
def test_samples_must_be_positive():
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        testing.assert_rate(lambda key, x: x, X, 0.3, samples=0)


@pytest.mark.bad_input
def test_traced_arrays_are_errors():
    for check in (testing.assert_mean_preserved, testing.assert_sum_preserved, testing.assert_pure):
        with pytest.raises(TypeError, match="map or compile `drop` instead of the assertion"):
            jax.jit(lambda x, check=check: check(lambda key, x: dc.dropout(key, x, 0.3), x))(X)


def test_drop_may_be_mapped_and_x_sharded():
    def drop(key, x):
        mapped = jax.shard_map(
            lambda x: dc.drop_block(key, x, 0.3, block_size=2),
            mesh=auto,
            in_specs=PartitionSpec("batch"),
            out_specs=PartitionSpec("batch"),
        )
        return mapped(x)

    auto, explicit = (
        jax.make_mesh((4,), ("batch",), axis_types=(axis_type,), devices=jax.devices()[:4])
        for axis_type in (AxisType.Auto, AxisType.Explicit)
    )
    x = jnp.ones((8, 6, 6, 2))
    testing.assert_sum_preserved(drop, x)
    with jax.set_mesh(explicit):
        x = jax.device_put(x, NamedSharding(explicit, PartitionSpec("batch")))
        testing.assert_sum_preserved(lambda key, x: dc.drop_block(key, x, 0.3, block_size=2), x)
