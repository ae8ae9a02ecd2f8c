import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clusterings import planted, same_partition, slow_unless, update
from hypothesis import given
from hypothesis import strategies as st
from references import correlation_vectors, explained, rena

import dropcluster_jax as dc
from dropcluster_jax.clustering import is_connected
from dropcluster_jax.clustering.correlation import layer_units
from dropcluster_jax.clustering.grid import edges
from dropcluster_jax.clustering.rena import (
    _BOTH_CONSTANT,
    _NO_COMMON_CHANNEL,
    _ONE_CONSTANT,
    _merge_costs,
    _varying_clusters,
)


def learn(clusterer, x):
    return update(clusterer, clusterer.init(x.shape[1:]), x)


FAST = [((42,), 8), ((6, 7), 3), ((3, 4, 5), 25)]


@pytest.mark.parametrize(
    "shape", slow_unless(FAST, list(itertools.product([(42,), (6, 7), (3, 4, 5)], [3, 8, 25]))), ids=repr
)
def test_labels_match_the_reference(shape):
    spatial, num_clusters = shape
    for seed in range(2):
        x = jax.random.normal(jax.random.key(seed), (20, *spatial, 3))
        state = learn(dc.ReNA(num_clusters=num_clusters), x)
        expected = rena(np.asarray(x), num_clusters)
        assert same_partition(state.labels, expected)
        per_channel = learn(dc.ReNA(num_clusters=num_clusters, per_channel=True), x)
        assert same_partition(per_channel.labels[..., 1], rena(np.asarray(x[..., 1:2]), num_clusters))
        assert state.explained_variance[0] == pytest.approx(explained(np.asarray(x), expected), abs=1e-5)


@given(st.integers(0, 10_000), st.sampled_from([2, 40]), st.integers(1, 40))
def test_number_of_clusters_is_exact_and_all_are_connected(seed, num_clusters, num_signals):
    """Includes constant positions, and duplicates, which are ties."""
    rng = np.random.default_rng(seed)
    signal = rng.normal(size=(8, num_signals + 1)).astype(np.float32)
    signal[:, -1] = 0.0
    x = signal[:, rng.integers(0, num_signals + 1, 42)].reshape(8, 6, 7, 1)
    state = learn(dc.ReNA(num_clusters=num_clusters), x)
    assert (state.sizes > 0).all() and state.sizes.sum() == 42
    assert is_connected(state.labels, num_clusters).all()


def test_mean_of_a_cluster_is_the_mean_of_its_parts():
    """As in the paper, members of parts that merged earlier weigh less. This matters for some of the seeds."""
    for seed in range(50):
        x = np.asarray(jax.random.normal(jax.random.key(seed), (6, 12, 1)))
        state = learn(dc.ReNA(num_clusters=2), jnp.asarray(x))
        assert same_partition(state.labels, rena(x, 2))


def test_constant_positions_connect_nothing():
    """Three signals are separated by constant positions, which must not connect two of them."""
    a, b, c = jax.random.normal(jax.random.key(0), (3, 32))
    constant = jnp.zeros(32)
    x = jnp.stack([a, constant, b, constant, c, c, c], axis=1)[..., None]
    state = learn(dc.ReNA(num_clusters=3), x)
    assert state.labels[:, 0].tolist() == [0, 0, 1, 1, 2, 2, 2] and state.explained_variance[0] == pytest.approx(1)


def test_constant_positions_join_varying_before_constant_neighbors():
    signal = jax.random.normal(jax.random.key(0), (32, 3))
    x = jnp.stack([jnp.zeros(32)] * 2 + list(signal.T), axis=1)[..., None]
    assert learn(dc.ReNA(num_clusters=4), x).labels[:, 0].tolist() == [0, 1, 1, 2, 3]


def test_costs_of_merges_match_numpy():
    """The squared distance is averaged over the channels in which both clusters vary."""
    labels = jnp.array([0, 0, 2, 3, 4, 5, 6])
    varying = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0]], bool)
    parts = np.array([[2, 1, 2]] * 2 + [[1, 1, 1]] * 5)  # number of units in the mean

    @jax.jit
    def merge_costs(x):
        units, _ = layer_units(x, None)
        clusters = _varying_clusters(units.varying, labels)
        weights, ends = units.varying / jnp.asarray(parts.T), labels[jnp.asarray(edges((7,)))]
        return _merge_costs(units.vectors, clusters, labels, weights, ends, None)

    x = jnp.where(varying, jax.random.normal(jax.random.key(0), (8, 7, 3)), 1.0)
    vectors, _ = correlation_vectors(np.asarray(x))
    mean = (vectors[0] + vectors[1]) / parts[0][:, None]
    squares = np.square([mean - vectors[2], vectors[2] - vectors[3]]).sum(-1)
    # The edges are within a cluster, between two, twice without a common channel, and to one and two constant ones.
    expected = [np.inf, squares[0, 1:].mean(), *[_NO_COMMON_CHANNEL] * 2, _ONE_CONSTANT, _BOTH_CONSTANT]
    assert 4 < _NO_COMMON_CHANNEL < _ONE_CONSTANT < _BOTH_CONSTANT  # squared distances are at most 4
    np.testing.assert_allclose(merge_costs(x), expected, rtol=1e-5)
    # Costs of means that are not finite are finite; otherwise, the number of clusters might never be reached.
    np.testing.assert_allclose(merge_costs(x.at[2, 1, 0].set(jnp.nan).at[2, 1, 2].set(jnp.nan))[1], _NO_COMMON_CHANNEL)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("channel", range(2))
def test_complete_rounds_match_nilearn(cifar10_features, channel):
    """Only numbers of clusters at the end of a complete round are comparable: nilearn's last round is different."""
    from nibabel import Nifti1Image
    from nilearn.regions import ReNA

    x = cifar10_features[..., channel : channel + 1]
    vectors = np.asarray(x).reshape(128, -1)
    vectors = (vectors - vectors.mean(0)) / np.linalg.norm(vectors - vectors.mean(0), axis=0)
    mask = Nifti1Image(np.ones((32, 32, 1), np.int8), np.eye(4))
    cluster_counts = []
    rena(np.asarray(x), 1, cluster_counts)
    assert len(cluster_counts) >= 3
    for num_clusters in cluster_counts[1:]:
        state = learn(dc.ReNA(num_clusters=num_clusters), x)
        assert same_partition(state.labels, ReNA(mask, n_clusters=num_clusters).fit(vectors).labels_)


def test_planted_connected_clusters_are_recovered():
    truth = np.array([[0, 0, 1, 1], [0, 2, 2, 1], [3, 2, 2, 1], [3, 3, 3, 3]])
    signal = jax.random.normal(jax.random.key(0), (64, 4, 2))
    x = signal[:, truth] + 0.05 * jax.random.normal(jax.random.key(1), (64, 4, 4, 2))
    state = learn(dc.ReNA(num_clusters=4), x)
    assert same_partition(state.labels, truth) and state.explained_variance[0] > 0.95


def test_last_round_merges_the_closest_pairs():
    """Only two of four pairs of similar positions can merge."""
    signal = jax.random.normal(jax.random.key(0), (64, 4))
    noise = jax.random.normal(jax.random.key(1), (64, 4))
    similar = signal + jnp.array([0.4, 0.1, 0.3, 0.2]) * noise
    x = jnp.stack([signal, similar], axis=-1).reshape(64, 8, 1)
    state = learn(dc.ReNA(num_clusters=6), x)
    assert state.labels[:, 0].tolist() == [0, 1, 2, 2, 3, 4, 5, 5]


def test_previous_labels_have_no_influence():
    x, _ = planted(jax.random.key(0), noise=1.0)
    clusterer = dc.ReNA(num_clusters=5)
    first = learn(clusterer, x)
    second = update(clusterer, first, x)
    assert (second.labels == first.labels).all() and second.num_updates == 2


def test_constant_positions_join_varying_neighbors():
    signal = jax.random.normal(jax.random.key(0), (32, 2))
    x = jnp.stack([signal[:, 0]] * 2 + [jnp.full(32, 7.3)] * 4 + [signal[:, 1]] * 4, axis=1)[..., None]
    labels = learn(dc.ReNA(num_clusters=2), x).labels[:, 0].tolist()
    assert labels[:2] == [labels[0]] * 2 and labels[6:] == [labels[6]] * 4 and labels[0] != labels[6]
    assert set(labels[2:6]) <= {labels[0], labels[6]}


def test_positions_without_a_common_channel_still_merge():
    """Each half of the positions varies in a different channel."""
    x = jax.random.normal(jax.random.key(0), (16, 6, 1)) * jnp.ones(2)
    x = x.at[:, ::2, 0].set(0.0).at[:, 1::2, 1].set(0.0)
    state = learn(dc.ReNA(num_clusters=2), x)
    assert (state.sizes > 0).all() and is_connected(state.labels, 2).all()
