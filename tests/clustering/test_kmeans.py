import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clusterings import planted, same_partition, slow_unless, update
from hypothesis import given
from hypothesis import strategies as st
from references import correlation_vectors, explained, kmeans_plus_plus, lloyd
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

import dropcluster_jax as dc
from dropcluster_jax.clustering import cluster_sizes, explained_variance
from dropcluster_jax.clustering.kmeans import _seeding_stride


def warm_state(clusterer, x, labels=None):
    """Returns a state after one update, with the given labels or the grid's, so that the next update is warm."""
    state = clusterer.init(x.shape[1:])
    labels = state.labels if labels is None else jnp.asarray(labels, jnp.int32).reshape(state.labels.shape)
    return state._replace(
        labels=labels,
        sizes=cluster_sizes(labels, len(state.sizes)),
        explained_variance=jnp.full_like(state.explained_variance, 0.5),
        num_updates=jnp.int32(1),
    )


@pytest.mark.parametrize("spatial", [(42,), (6, 7), (2, 3, 7)])
def test_planted_clusters_are_recovered(spatial):
    clusterer = dc.KMeans(num_clusters=5)
    for seed in range(5):
        x, truth = planted(jax.random.key(seed), spatial)
        state = update(clusterer, clusterer.init(x.shape[1:]), x)
        assert state.labels.shape == (*spatial, 1)
        assert same_partition(state.labels, truth)
        assert state.explained_variance[0] > 0.9


@pytest.mark.parametrize(
    ("iterations", "weight"),
    [(1, 0.0), (3, 0.3), *(pytest.param(*case, marks=pytest.mark.slow) for case in [(1, 0.3), (3, 0.0)])],
)
def test_warm_update_matches_the_reference(iterations, weight):
    clusterer = dc.KMeans(num_clusters=6, iterations=iterations, spatial_weight=weight)
    coordinates = np.stack(np.meshgrid(np.linspace(0, 1, 6), np.linspace(0, 1, 7), indexing="ij"), -1).reshape(-1, 2)
    for seed in range(3):
        x, _ = planted(jax.random.key(seed), noise=1.0)
        state = warm_state(clusterer, x)
        expected = np.asarray(state.labels).ravel()
        for _ in range(iterations):
            expected = lloyd(np.asarray(x), expected, 6, coordinates, weight)
        updated = update(clusterer, state, x)
        assert same_partition(updated.labels, expected)
        assert sorted(updated.sizes[:, 0].tolist()) == sorted(np.bincount(expected, minlength=6).tolist())
        assert updated.explained_variance[0] == pytest.approx(explained(np.asarray(x), expected), abs=1e-5)


def test_first_update_matches_the_reference():
    """Seeds with every third position, because 5 and 4 have a common divisor with the number of columns, 10."""
    spatial, stride, num_clusters, weight = (16, 10), 3, 4, 0.3
    clusterer = dc.KMeans(num_clusters=num_clusters, iterations=1, spatial_weight=weight)
    coordinates = np.indices(spatial).reshape(2, -1).T / [15, 9]
    noise = np.asarray(jax.random.gumbel(jax.random.key(0, impl="threefry2x32"), (num_clusters, 16, 54)))
    for seed in range(3):
        x = jax.random.normal(jax.random.key(seed), (12, *spatial, 1))
        every_third = np.asarray(x).reshape(12, -1, 1)[:, ::stride]
        seeds = kmeans_plus_plus(every_third, coordinates[::stride], weight, noise)
        vectors, _ = correlation_vectors(np.asarray(x))
        seeds = stride * np.array(seeds)
        distances = np.square(vectors[:, None] - vectors[seeds]).sum(-1).mean(-1)
        distances += weight * np.square(coordinates[:, None] - coordinates[seeds]).sum(-1)
        expected = lloyd(np.asarray(x), distances.argmin(1), num_clusters, coordinates, weight)
        assert same_partition(update(clusterer, clusterer.init(x.shape[1:]), x).labels, expected)


def test_seeds_come_from_a_fraction_of_the_positions_in_all_columns():
    """At least 8 positions per cluster, a stride of at most 5, and no common divisor with the number of columns."""
    cases = [((7, 7), 6, 1), ((16, 7), 7, 2), ((16, 6), 4, 1), ((16, 6), 1, 5), ((32, 35), 4, 4), ((3,), 2, 1)]
    for spatial, num_clusters, stride in cases:
        assert _seeding_stride(spatial, num_clusters) == stride


def test_per_channel_matches_single_channel_layers():
    x, _ = planted(jax.random.key(3), noise=1.0)
    per_channel = dc.KMeans(num_clusters=6, per_channel=True)
    shared = dc.KMeans(num_clusters=6)
    updated = update(per_channel, warm_state(per_channel, x), x)
    for c in range(x.shape[-1]):
        channel = x[..., c : c + 1]
        expected = update(shared, warm_state(shared, channel), channel)
        assert (updated.labels[..., c] == expected.labels[..., 0]).all()
        assert updated.explained_variance[c] == pytest.approx(float(expected.explained_variance[0]), abs=1e-6)


@given(st.integers(0, 10_000), st.booleans())
def test_update_at_a_fixed_point_changes_nothing(seed, per_channel):
    x, _ = planted(jax.random.key(seed), noise=0.8)
    clusterer = dc.KMeans(num_clusters=6, iterations=40, per_channel=per_channel)
    converged = update(clusterer, clusterer.init(x.shape[1:]), x)
    updated = update(clusterer, converged, x)
    assert (updated.labels == converged.labels).all() and (updated.sizes == converged.sizes).all()
    assert (updated.explained_variance == converged.explained_variance).all()
    assert updated.num_updates == converged.num_updates + 1


@pytest.mark.parametrize("per_channel", [False, True])
def test_only_the_first_update_seeds(per_channel):
    """Also if the clusters explain nothing, as those of equal positions and of channels that were constant so far."""
    clusterer = dc.KMeans(num_clusters=6, per_channel=per_channel)
    x = jnp.broadcast_to(jax.random.normal(jax.random.key(0), (8, 1, 1, 3)), (8, 6, 7, 3))
    initial = clusterer.init(x.shape[1:])
    rolled = jnp.roll(initial.labels, 3, axis=0)
    state = warm_state(clusterer, x, rolled)._replace(explained_variance=jnp.zeros_like(initial.explained_variance))
    assert same_partition(update(clusterer, state, x).labels[..., 0], rolled[..., 0])
    x, _ = planted(jax.random.key(0), noise=0.8)
    constant = update(clusterer, initial, jnp.zeros_like(x))
    late, expected = update(clusterer, constant, x), update(clusterer, warm_state(clusterer, x), x)
    assert (late.labels == expected.labels).all() and (late.labels != update(clusterer, initial, x).labels).any()


@pytest.mark.slow
def test_first_update_explains_as_much_as_scikit_learn(cifar10_images):
    """Compares averages over three layers, scikit-learn's also over seeds, with the same number of iterations."""
    explained, sklearn_explained = [], []
    for layer in range(3):
        kernel = jax.random.normal(jax.random.key(layer), (3, 3, 3, 8)) * (2 / 27) ** 0.5
        centered = cifar10_images - cifar10_images.mean((0, 1, 2))
        x = jax.nn.relu(jax.lax.conv(centered.transpose(0, 3, 1, 2), kernel.transpose(3, 2, 0, 1), (1, 1), "SAME"))
        x = x.transpose(0, 2, 3, 1)
        side, channels = x.shape[2:]
        clusterer = dc.KMeans(num_clusters=20, iterations=10, per_channel=True)
        explained.append(update(clusterer, clusterer.init(x.shape[1:]), x).explained_variance.mean())
        vectors = correlation_vectors(np.asarray(x))[0].astype(np.float32)
        for seed in range(6):
            sklearn_kmeans = KMeans(20, n_init=1, max_iter=10, random_state=seed)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # 10 iterations do not converge
                labels = np.stack([sklearn_kmeans.fit_predict(vectors[:, c]) for c in range(channels)], axis=-1)
            sklearn_explained.append(explained_variance(labels.reshape(side, side, channels), x, 20).mean())
    assert np.mean(explained) >= np.mean(sklearn_explained)


def test_constant_positions_join_the_nearest_mean_position():
    signal = jax.random.normal(jax.random.key(0), (32, 2))
    x = jnp.stack([signal[:, 0]] * 3 + [jnp.full(32, 7.3)] * 4 + [signal[:, 1]] * 3, axis=1)[..., None]
    clusterer = dc.KMeans(num_clusters=2)
    state = update(clusterer, clusterer.init(x.shape[1:]), x)
    left, right = state.labels[0, 0], state.labels[9, 0]
    assert left != right
    assert (state.labels[:5, 0] == left).all() and (state.labels[5:, 0] == right).all()


@given(st.integers(0, 10_000), st.sampled_from([(3, True), (12, False)]), st.integers(1, 4))
def test_no_cluster_stays_empty(seed, clusters, num_signals):
    """Includes constant units, and fewer distinct units than clusters."""
    num_clusters, per_channel = clusters
    key = jax.random.key(seed)
    signal = np.array(jax.random.normal(key, (16, 5, 2)))
    signal[:, num_signals] = 0.0
    indices = np.random.default_rng(seed).integers(0, num_signals + 1, 12)
    x = signal[:, indices].reshape(16, 3, 4, 2)
    clusterer = dc.KMeans(num_clusters=num_clusters, per_channel=per_channel)
    state = update(clusterer, clusterer.init(x.shape[1:]), x)
    assert (state.sizes > 0).all() and (state.sizes.sum(0) == 12).all()
    assert (update(clusterer, state, x).labels == state.labels).all() or num_signals > 1


def test_empty_cluster_gets_the_unit_farthest_from_its_centroid():
    signal = np.asarray(jax.random.normal(jax.random.key(0), (64, 3)))
    x = np.stack([signal[:, 0]] * 4 + [signal[:, 1]] * 3 + [signal[:, 2] + signal[:, 1]], axis=1)[..., None]
    clusterer = dc.KMeans(num_clusters=3, iterations=1)
    state = update(clusterer, warm_state(clusterer, x, [0, 0, 0, 0, 1, 1, 1, 1]), jnp.asarray(x))
    assert state.labels[:, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 2]
    # The last two units of the first cluster are nearer to 0, but 0 is not the centroid of the empty cluster.
    x = np.stack([signal[:, 0]] * 4 + [-signal[:, 0]] * 2 + [signal[:, 1]] * 2, axis=1)[..., None]
    state = update(clusterer, warm_state(clusterer, x, [0, 0, 0, 0, 0, 0, 1, 1]), jnp.asarray(x))
    assert sorted(state.sizes[:, 0].tolist()) == [1, 2, 5]


def test_per_channel_recovers_the_clusters_of_each_channel():
    xs, truths = zip(*(planted(jax.random.key(seed)) for seed in range(3)), strict=True)
    x = np.stack([x[..., channel] for channel, x in enumerate(xs)], axis=-1)
    clusterer = dc.KMeans(num_clusters=5, per_channel=True)
    state = update(clusterer, clusterer.init(x.shape[1:]), x)
    for channel, truth in enumerate(truths):
        assert same_partition(state.labels[..., channel], truth)
        assert not same_partition(truth, truths[channel - 1])


@pytest.mark.parametrize("per_channel", slow_unless([False], [False, True]))
def test_explained_variance_never_decreases_between_iterations(cifar10_features, per_channel):
    x = cifar10_features[:64, ::2, ::2]
    clusterer = dc.KMeans(num_clusters=12, iterations=1, per_channel=per_channel)
    state, explained_before = warm_state(clusterer, x), np.zeros(8 if per_channel else 1)
    gains = []
    for _ in range(15):
        state = update(clusterer, state, x)
        gains.append(np.asarray(state.explained_variance) - explained_before)
        explained_before = np.asarray(state.explained_variance)
    assert np.min(gains) >= -1e-6
    assert np.max(gains[1:]) > 1e-3


def test_learned_clusters_explain_more_than_the_grid(cifar10_features):
    grid, kmeans = (make(num_clusters=20, per_channel=True) for make in (dc.Grid, dc.KMeans))
    tiles = update(grid, grid.init(cifar10_features.shape[1:]), cifar10_features)
    learned = update(kmeans, kmeans.init(cifar10_features.shape[1:]), cifar10_features)
    assert (learned.explained_variance > tiles.explained_variance).all()


def test_warm_update_keeps_most_clusters(cifar10_features):
    """Replaces a third of the examples between two updates. Clusters may be numbered differently."""
    x = cifar10_features
    clusterer = dc.KMeans(num_clusters=20)
    first = update(clusterer, clusterer.init(x.shape[1:]), x[:96])
    second = update(clusterer, first, x[32:])
    assert adjusted_rand_score(np.ravel(first.labels), np.ravel(second.labels)) > 0.7


def test_constant_channel_keeps_its_labels_while_others_learn():
    x, _ = planted(jax.random.key(0))
    x = x.at[..., 1].set(0.0)
    clusterer = dc.KMeans(num_clusters=5, per_channel=True)
    before = clusterer.init(x.shape[1:])
    after = update(clusterer, before, x)
    assert (after.labels[..., 1] == before.labels[..., 1]).all() and after.explained_variance[1] == 0
    assert (after.labels[..., 0] != before.labels[..., 0]).any() and after.explained_variance[0] > 0.9


@pytest.mark.parametrize("dtype", slow_unless([jnp.bfloat16], [jnp.bfloat16, jnp.float16]))
def test_arithmetic_is_float32(dtype):
    x, truth = planted(jax.random.key(0))
    clusterer = dc.KMeans(num_clusters=5)
    state = update(clusterer, clusterer.init(x.shape[1:]), x.astype(dtype))
    expected = update(clusterer, clusterer.init(x.shape[1:]), x.astype(dtype).astype(jnp.float32))
    assert state.explained_variance.dtype == jnp.float32
    assert (state.explained_variance == expected.explained_variance).all()
    assert same_partition(state.labels, truth)
