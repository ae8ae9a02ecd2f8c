"""Clusters are numbered by their first positions, so that equal partitions are equal arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clusterings import planted, same_partition, slow_unless, update

import dropcluster_jax as dc
from dropcluster_jax.clustering import Shuffled, Voronoi, cluster_sizes
from dropcluster_jax.clustering.state import number_by_first_position


def canonical(labels):
    """Renumbers labels `(positions,)` by first appearance."""
    numbers = {}
    return np.array([numbers.setdefault(int(label), len(numbers)) for label in labels])


def shuffled(**arguments):
    return Shuffled(dc.KMeans(**arguments))


FAST = [(dc.Grid, False), (dc.KMeans, False), (dc.ReNA, False), (Voronoi, True), (shuffled, False)]


@pytest.mark.parametrize("case", slow_unless(FAST, [(make, value) for make, _ in FAST for value in (False, True)]))
def test_clusters_are_numbered_by_first_position(case):
    make, per_channel = case
    clusterer = make(num_clusters=6, per_channel=per_channel)
    states = [clusterer.init((6, 7, 3))]
    for seed in range(3):
        states.append(update(clusterer, states[-1], planted(jax.random.key(seed), noise=1.0)[0]))
    for state in states:
        for labels in np.asarray(state.labels).reshape(42, -1).T:
            assert (labels == canonical(labels)).all()
        assert (state.sizes == cluster_sizes(state.labels, 6)).all() and state.labels.dtype == jnp.int32


@pytest.mark.parametrize("per_channel", slow_unless([False], [False, True]))
@pytest.mark.parametrize("make", [dc.KMeans, dc.ReNA])
def test_numbers_before_an_update_do_not_matter(make, per_channel):
    x, _ = planted(jax.random.key(0), noise=1.0)
    clusterer = make(num_clusters=6, per_channel=per_channel)
    state = update(clusterer, clusterer.init(x.shape[1:]), x)
    labels = jax.random.permutation(jax.random.key(1), 6)[state.labels].astype(jnp.int32)
    renamed = state._replace(labels=labels, sizes=cluster_sizes(labels, 6))
    expected, actual = (update(clusterer, before, x + x[::-1]) for before in (state, renamed))
    assert (actual.labels == expected.labels).all() and (actual.sizes == expected.sizes).all()


def test_numbering_matches_the_reference_and_puts_empty_clusters_last():
    labels = jax.random.randint(jax.random.key(0), (4, 5, 30), 0, 9, jnp.int32) * 2
    numbered = jax.jit(number_by_first_position, static_argnums=1)(labels, 20)
    for group in range(30):
        before, after = (np.asarray(array[..., group]).ravel() for array in (labels, numbered))
        assert same_partition(before, after) and (after == canonical(before)).all()
