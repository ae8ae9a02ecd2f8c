"""The laws catch what breaks them, and let pass what keeps them."""

import jax
import jax.numpy as jnp
import pytest

import dropcluster_jax as dc
from dropcluster_jax import testing

X = jnp.exp(jax.random.normal(jax.random.key(0), (4, 6, 6, 3)))
LAWS = {
    "mean": lambda drop: testing.assert_mean_preserved(drop, X, samples=512),
    "sum": lambda drop: testing.assert_sum_preserved(drop, X),
    "rate": lambda drop: testing.assert_rate(drop, X, 0.3, samples=512),
    "pure": lambda drop: testing.assert_pure(drop, X),
}


def turned_to_nan(key, x):
    return jnp.where(dc.dropout_mask(key, x, 0.3), jnp.nan, 0.0)


@pytest.mark.parametrize("law", ["mean", "sum", "rate"])
def test_nan_passes_for_no_law(law):
    with pytest.raises(AssertionError, match="nan"):
        LAWS[law](turned_to_nan)


@pytest.mark.parametrize("rate", [0.002, 0.01, 0.99])
def test_a_correct_drop_passes_at_rates_near_the_ends(rate):
    for seed in range(3):
        testing.assert_mean_preserved(lambda key, x: dc.dropout(key, x, rate), X, samples=20_000, seed=seed)
        testing.assert_rate(lambda key, x: dc.drop_path(key, x, rate), X, rate, seed=seed)


def test_a_mean_that_is_off_by_a_little_is_found():
    with pytest.raises(AssertionError, match="has the mean"):
        testing.assert_mean_preserved(lambda key, x: 1.05 * dc.dropout(key, x, 0.3), X, samples=20_000)
    with pytest.raises(AssertionError, match="ones of the sum 108 have the sum"):
        testing.assert_sum_preserved(lambda key, x: 1.001 * dc.drop_block(key, x, 0.3, block_size=2), X)
    with pytest.raises(AssertionError, match=r"is dropped over 2048 keys, the rate is 0\.3"):
        testing.assert_rate(lambda key, x: dc.dropout(key, x, 0.305), X, 0.3)


def test_a_drop_that_ignores_its_key_is_not_pure_chance():
    with pytest.raises(AssertionError, match="the answers to 64 different keys are all the same"):
        testing.assert_pure(lambda key, x: 2 * x, X)
    with pytest.raises(AssertionError, match="the answers to 64 different keys are all the same"):
        testing.assert_pure(lambda key, x: x * jnp.nan, X)
    testing.assert_pure(lambda key, x: dc.drop_path(key, x, 0.1), X[:2])  # which seldom drops anything


def test_types_of_low_precision_may_round_otherwise_when_compiled():
    testing.assert_pure(lambda key, x: dc.dropout(key, x * x + x, 0.3), X.astype(jnp.bfloat16))


def test_a_cluster_dropped_in_part_is_found_in_its_channel():
    state = dc.Grid(num_clusters=4, per_channel=True).init(X.shape[1:])
    drop = lambda key, x: dc.drop_cluster(key, x, 0.3, state)  # noqa: E731
    testing.assert_constant_within_clusters(drop, X, state.labels)
    with pytest.raises(AssertionError, match="of channel 2 is dropped in part: 1 of its 9 units"):
        testing.assert_constant_within_clusters(lambda key, x: drop(key, x).at[0, 0, 0, 2].set(0), X, state.labels)
    with pytest.raises(AssertionError, match="nothing is dropped with each of 64 keys"):
        testing.assert_constant_within_clusters(lambda key, x: x, X, state.labels)


@pytest.mark.bad_input
def test_no_sample_is_refused():
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        testing.assert_rate(lambda key, x: x, X, 0.3, samples=0)
