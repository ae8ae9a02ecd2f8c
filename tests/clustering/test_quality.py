import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from references import explained
from sklearn.metrics import adjusted_rand_score

from dropcluster_jax.clustering import agreement, explained_variance


@given(st.integers(0, 10_000))
def test_explained_variance_equals_the_reference(seed):
    x = jax.random.normal(jax.random.key(seed), (9, 5, 4, 2))
    labels = jax.random.randint(jax.random.key(seed + 1), (5, 4, 1), 0, 4)
    expected = explained(np.asarray(x), np.asarray(labels).ravel())
    assert explained_variance(labels, x, 4)[0] == pytest.approx(expected, abs=1e-5)


def random_labels(seed, num_clusters):
    return jax.random.randint(jax.random.key(seed), (6, 5, 3), 0, num_clusters)


@given(st.integers(0, 10_000), st.integers(1, 8))
def test_agreement_is_scikit_learns_adjusted_rand_score(seed, num_clusters):
    one = random_labels(seed, num_clusters)
    other = jnp.where(random_labels(seed + 1, 2) == 0, one, random_labels(seed + 2, num_clusters))
    expected = [adjusted_rand_score(np.ravel(one[..., g]), np.ravel(other[..., g])) for g in range(3)]
    np.testing.assert_allclose(agreement(one, other), expected, atol=1e-5)


def test_names_of_clusters_do_not_matter():
    one = random_labels(0, 7)
    renamed = jax.random.permutation(jax.random.key(1), 7)[one]
    assert jnp.allclose(agreement(one, renamed), 1)


@pytest.mark.parametrize("labels", [np.zeros((4, 1), int), np.arange(4)[:, None], np.zeros((1, 1), int)])
def test_trivial_clusterings_agree_with_themselves(labels):
    assert agreement(labels, labels) == 1
