import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from references import correlation_vectors, explained
from scipy.ndimage import label
from sklearn.metrics import adjusted_rand_score

from dropcluster_jax.clustering import adjusted_rand_index, explained_variance, is_connected, mean_within_correlation


def random_labels(seed, num_clusters):
    return jax.random.randint(jax.random.key(seed), (6, 5, 3), 0, num_clusters)


def partly_constant(seed):
    """Returns activations of which about a third do not vary, and labels per channel."""
    x = jax.random.normal(jax.random.key(seed), (9, 5, 4, 2))
    x = jnp.where(jax.random.bernoulli(jax.random.key(seed + 1), 0.3, x.shape[1:]), 1.0, x)
    return x, jax.random.randint(jax.random.key(seed + 2), (5, 4, 2), 0, 4)


@given(st.integers(0, 10_000))
def test_explained_variance_matches_the_reference(seed):
    x = jax.random.normal(jax.random.key(seed), (9, 5, 4, 2))
    labels = jax.random.randint(jax.random.key(seed + 1), (5, 4, 1), 0, 4)
    expected = explained(np.asarray(x), np.asarray(labels).ravel())
    assert explained_variance(labels, x, 4)[0] == pytest.approx(expected, abs=1e-5)


@given(st.integers(0, 10_000))
def test_within_correlation_is_the_mean_over_all_pairs(seed):
    x, labels = partly_constant(seed)
    vectors, varying = correlation_vectors(np.asarray(x))

    def correlations(channel, labels):
        labels = np.ravel(labels)
        return [
            vectors[p, channel] @ vectors[q, channel]
            for p in range(20)
            for q in range(p)
            if labels[p] == labels[q] and varying[p, channel] and varying[q, channel]
        ]

    expected = [np.mean(correlations(c, labels[..., c])) for c in range(2)]
    np.testing.assert_allclose(mean_within_correlation(labels, x, 4), expected, atol=1e-5)
    expected_shared = np.mean(correlations(0, labels[..., 0]) + correlations(1, labels[..., 0]))
    np.testing.assert_allclose(mean_within_correlation(labels[..., :1], x, 4), [expected_shared], atol=1e-5)


def test_deviations_below_a_millionth_of_the_maximum_are_rounding():
    """Such units are constant. The maximum matters, not the sign or the scale."""
    pattern = jnp.where(jax.random.bernoulli(jax.random.key(0), shape=(8, 2, 2)), 1.0, -1.0).at[0].set(1.0)
    labels = jnp.array([[0], [1]])
    for maximum in (1.0, -1000.0, 1e-3):
        for deviation, varies in ((5e-7, False), (1e-5, True)):
            explained = explained_variance(labels, maximum * (1 - deviation * pattern), 2)
            assert (explained[0] > 0.9) == varies, (maximum, deviation)


def test_within_correlation_of_single_positions_is_zero():
    x = jax.random.normal(jax.random.key(0), (9, 5, 4, 2))
    assert mean_within_correlation(jnp.arange(20).reshape(5, 4, 1), x, 20) == 0


@pytest.mark.parametrize("metric", [explained_variance, mean_within_correlation])
def test_non_finite_activations_yield_nan(metric):
    x, labels = partly_constant(0)
    assert jnp.isnan(metric(labels, x.at[0, 0, 0, 0].set(jnp.nan), 4)).all()


@pytest.mark.bad_input
def test_invalid_activations_raise():
    with pytest.raises(ValueError, match=r"\(4, 4\), got shape \(2, 8, 8, 3\)"):
        explained_variance(jnp.zeros((4, 4, 1), jnp.int32), jnp.ones((2, 8, 8, 3)), 1)


@given(st.integers(0, 10_000), st.integers(1, 8))
def test_adjusted_rand_index_matches_scikit_learn(seed, num_clusters):
    labels = random_labels(seed, num_clusters)
    other = jnp.where(random_labels(seed + 1, 2) == 0, labels, random_labels(seed + 2, num_clusters))
    expected = [adjusted_rand_score(np.ravel(labels[..., g]), np.ravel(other[..., g])) for g in range(3)]
    np.testing.assert_allclose(adjusted_rand_index(labels, other), expected, atol=1e-5)


def test_adjusted_rand_index_is_invariant_to_renaming():
    labels = random_labels(0, 7)
    renamed = jax.random.permutation(jax.random.key(1), 7)[labels]
    assert jnp.allclose(adjusted_rand_index(labels, renamed), 1)


@pytest.mark.parametrize("labels", [np.zeros((4, 1), int), np.arange(4)[:, None], np.zeros((1, 1), int)])
def test_adjusted_rand_index_of_trivial_clusterings(labels):
    assert adjusted_rand_index(labels, labels) == 1


@pytest.mark.bad_input
def test_adjusted_rand_index_of_different_shapes_raises():
    with pytest.raises(ValueError, match=r"shape of labels, \(6, 5, 3\), got \(4, 5, 3\)"):
        adjusted_rand_index(random_labels(0, 4), random_labels(0, 4)[:4])


@pytest.mark.parametrize("spatial", [(30,), (6, 5), (3, 2, 5)])
@given(seed=st.integers(0, 10_000))
def test_connectedness_matches_scipy(spatial, seed):
    labels = jax.random.randint(jax.random.key(seed), (*spatial, 2), 0, 9)
    expected = [[label(np.asarray(labels[..., g]) == k)[1] <= 1 for g in range(2)] for k in range(10)]
    assert np.array_equal(is_connected(labels, 10), expected)


def test_long_winding_cluster_is_connected():
    snake = np.ones((9, 9, 1), np.int32)
    snake[::2] = 0
    snake[1::4, -1] = snake[3::4, 0] = 0
    assert is_connected(snake, 2)[0] and not is_connected(snake, 2)[1]
