"""The random clusterers: what they share with learned clusters, and what they do not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clusterings import planted, same_partition, slow_unless, update

import dropcluster_jax as dc
from dropcluster_jax.clustering import Clusterer, Shuffled, Voronoi, adjusted_rand_index, explained_variance

KMEANS = dc.KMeans(num_clusters=6)
KMEANS_PER_CHANNEL = dc.KMeans(num_clusters=6, per_channel=True)
CONTROLS = [
    Voronoi(num_clusters=6),
    Voronoi(num_clusters=6, per_channel=True),
    Shuffled(KMEANS),
    Shuffled(KMEANS_PER_CHANNEL),
    Shuffled(dc.ReNA(num_clusters=6)),
]
each_control = pytest.mark.parametrize("clusterer", slow_unless([CONTROLS[1], CONTROLS[2]], CONTROLS), ids=repr)


def activations(seed):
    return planted(jax.random.key(seed), noise=1.0)[0]


def updates(clusterer, xs):
    """Returns the state after each update."""
    states = [clusterer.init(xs[0].shape[1:])]
    for x in xs:
        states.append(update(clusterer, states[-1], x))
    return states[1:]


@each_control
def test_partitions_are_valid_and_no_cluster_is_empty(clusterer):
    x = activations(0)
    assert isinstance(clusterer, Clusterer)
    for count, state in enumerate(updates(clusterer, [x] * 4), start=1):
        labels = np.asarray(state.labels).reshape(42, -1)
        counts = np.stack([np.bincount(group, minlength=6) for group in labels.T], axis=1)
        assert (counts == state.sizes).all() and (counts > 0).all()
        assert state.num_updates == count and state.num_skipped == 0
        np.testing.assert_allclose(state.explained_variance, explained_variance(state.labels, x, 6), atol=1e-6)


@each_control
def test_clusters_are_drawn_again_at_each_update(clusterer):
    first, second, third = updates(clusterer, [activations(0)] * 3)
    for state, other in ((first, second), (second, third), (first, third)):
        assert (jnp.abs(adjusted_rand_index(state.labels, other.labels)) < 0.6).all()


@each_control
def test_the_seed_determines_the_draws(clusterer):
    xs = [activations(0), activations(1)]
    for state, repeated in zip(updates(clusterer, xs), updates(clusterer, xs), strict=True):
        assert (state.labels == repeated.labels).all()
    other = updates(dataclasses.replace(clusterer, seed=1), xs)[0]
    assert not (updates(clusterer, xs)[0].labels == other.labels).all()


@pytest.mark.parametrize(
    "clusterer", slow_unless([KMEANS], [KMEANS, KMEANS_PER_CHANNEL, dc.ReNA(num_clusters=6)]), ids=repr
)
def test_shuffled_sizes_equal_the_learned_ones_at_each_update(clusterer):
    """Later updates start from the learned clusters, not from the shuffled ones."""
    xs = [activations(seed) for seed in range(4)]
    for learned, shuffled in zip(updates(clusterer, xs), updates(Shuffled(clusterer), xs), strict=True):
        assert (jnp.sort(learned.sizes, axis=0) == jnp.sort(shuffled.sizes, axis=0)).all()
        assert (shuffled.explained_variance < learned.explained_variance).all()
        assert not same_partition(learned.labels, shuffled.labels)


def test_shuffled_channels_share_the_permutation():
    learned, shuffled = (
        updates(make, [activations(0)])[0].labels for make in (KMEANS_PER_CHANNEL, Shuffled(KMEANS_PER_CHANNEL))
    )
    for a, b in ((0, 1), (1, 2)):
        expected = adjusted_rand_index(learned[..., [a]], learned[..., [b]])
        actual = adjusted_rand_index(shuffled[..., [a]], shuffled[..., [b]])
        np.testing.assert_allclose(actual, expected, atol=1e-6)


@pytest.mark.parametrize("per_channel", [False, True])
def test_voronoi_cells_do_not_depend_on_the_activations(per_channel):
    clusterer = Voronoi(num_clusters=6, per_channel=per_channel)
    state, other = (updates(clusterer, [activations(seed)] * 2)[-1] for seed in (0, 1))
    assert (state.labels == other.labels).all()
    assert not (state.explained_variance == other.explained_variance).all()


def test_voronoi_cells_are_compact():
    """The mean squared distance to the mean position of the cell is close to that of the tiles of a grid."""

    def spread(labels):
        positions = np.stack(np.meshgrid(np.arange(20), np.arange(20), indexing="ij"), -1).reshape(400, 2)
        labels = np.asarray(labels).ravel()
        return sum(positions[labels == k].var(axis=0).sum() * (labels == k).mean() for k in np.unique(labels))

    x = jax.random.normal(jax.random.key(0), (8, 20, 20, 1))
    cells = [state.labels for state in updates(Voronoi(num_clusters=16), [x] * 5)]
    grid = spread(dc.Grid(num_clusters=16).init((20, 20, 1)).labels)
    assert all(grid <= spread(labels) < 2.5 * grid for labels in cells)
