import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from references import explained
from scipy.ndimage import label
from sklearn.metrics import adjusted_rand_score

from dropcluster_jax.clustering import adjusted_rand_index, explained_variance, is_connected


def random_labels(seed, num_clusters):
    return jax.random.randint(jax.random.key(seed), (6, 5, 3), 0, num_clusters)


@given(st.integers(0, 10_000))
def test_explained_variance_matches_the_reference(seed):
    """About a third of the units does not vary."""
    x = jax.random.normal(jax.random.key(seed), (9, 5, 4, 2))
    x = jnp.where(jax.random.bernoulli(jax.random.key(seed + 1), 0.3, x.shape[1:]), 1.0, x)
    labels = jax.random.randint(jax.random.key(seed + 2), (5, 4, 2), 0, 4)
    shared, labels_by_channel = np.asarray(labels[..., 0]).ravel(), np.asarray(labels).reshape(20, 2)
    assert explained_variance(labels[..., :1], x, 4)[0] == pytest.approx(explained(np.asarray(x), shared), abs=1e-5)
    expected = [explained(np.asarray(x[..., [c]]), labels_by_channel[:, c]) for c in range(2)]
    np.testing.assert_allclose(explained_variance(labels, x, 4), expected, atol=1e-5)
    assert jnp.isnan(explained_variance(labels, x.at[0, 0, 0, 0].set(jnp.nan), 4)).all()


def test_deviations_below_a_millionth_of_the_maximum_are_rounding():
    """Such units are constant. The maximum matters, not the sign or the scale."""
    pattern = jnp.where(jax.random.bernoulli(jax.random.key(0), shape=(8, 2, 2)), 1.0, -1.0).at[0].set(1.0)
    labels = jnp.array([[0], [1]])
    for maximum in (1.0, -1000.0, 1e-3):
        for deviation, varies in ((5e-7, False), (1e-5, True)):
            explained = explained_variance(labels, maximum * (1 - deviation * pattern), 2)
            assert (explained[0] > 0.9) == varies, (maximum, deviation)


@given(st.integers(0, 10_000), st.integers(1, 8))
def test_adjusted_rand_index_matches_scikit_learn(seed, num_clusters):
    labels = random_labels(seed, num_clusters)
    other = jnp.where(random_labels(seed + 1, 2) == 0, labels, random_labels(seed + 2, num_clusters))
    expected = [adjusted_rand_score(np.ravel(labels[..., g]), np.ravel(other[..., g])) for g in range(3)]
    np.testing.assert_allclose(adjusted_rand_index(labels, other), expected, atol=1e-5)


@pytest.mark.parametrize("labels", [np.zeros((4, 1), int), np.arange(4)[:, None], np.array([[1], [0], [1], [2]])])
def test_adjusted_rand_index_of_equal_partitions_is_one(labels):
    renamed = np.array([2, 0, 3, 1])[labels]
    assert adjusted_rand_index(labels, renamed) == 1 and adjusted_rand_index(labels[:1], labels[1:2]) == 1


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
