import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dropcluster_jax as dc
from dropcluster_jax.clustering import Voronoi
from dropcluster_jax.clustering.grid import tile_labels

SPATIAL = st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple)


@given(SPATIAL, st.data())
def test_number_of_tiles_is_exact(spatial, data):
    num_clusters = data.draw(st.integers(1, math.prod(spatial)))
    labels = tile_labels(spatial, num_clusters)
    assert labels.shape == spatial
    assert np.array_equal(np.unique(labels), np.arange(num_clusters))


@given(SPATIAL, st.data())
def test_tiles_are_boxes(spatial, data):
    labels = tile_labels(spatial, data.draw(st.integers(1, math.prod(spatial))))
    for label in np.unique(labels):
        indices = np.argwhere(labels == label)
        assert np.prod(indices.max(0) - indices.min(0) + 1) == len(indices)


@pytest.mark.parametrize(
    ("spatial", "num_clusters", "side"),
    [((8, 8), 16, 2), ((9, 9), 9, 3), ((4, 4, 4), 8, 2), ((12,), 3, 4), ((6, 4), 6, 2)],
)
def test_tiles_are_equal_cubes_if_possible(spatial, num_clusters, side):
    labels = tile_labels(spatial, num_clusters)
    for label in range(num_clusters):
        indices = np.argwhere(labels == label)
        assert (indices.max(0) - indices.min(0) + 1 == side).all()


def test_tiles_are_about_as_high_as_wide():
    """The side of 49 / 8 positions is 2.5, so there are 3 bands of 2, 3 and 3 tiles."""
    assert [len(np.unique(row)) for row in tile_labels((7, 7), 8)] == [2, 2, 3, 3, 3, 3, 3]


@pytest.mark.parametrize("per_channel", [False, True])
def test_state_shapes_and_dtypes(per_channel):
    state = dc.Grid(num_clusters=5, per_channel=per_channel).init((6, 7, 3))
    groups = 3 if per_channel else 1
    assert [(leaf.shape, leaf.dtype) for leaf in state] == [
        ((6, 7, groups), jnp.int32),
        ((5, groups), jnp.int32),
        ((groups,), jnp.float32),
        ((), jnp.int32),
        ((), jnp.int32),
    ]
    assert (state.sizes.sum(0) == 42).all()


@pytest.mark.parametrize(
    ("positions", "size", "num_clusters"),
    [(1024, 49, 21), (16, 16, 1), (1, 16, 1), (4, 16, 1), (16, 1, 16), (64, 2.5, 26)],
)
def test_cluster_size_sets_the_number_of_clusters(positions, size, num_clusters):
    assert dc.Grid(cluster_size=size).init((positions, 2)).sizes.shape == (num_clusters, 1)


def test_update_keeps_the_tiles_and_measures_explained_variance(cifar10_features):
    clusterer = dc.Grid(num_clusters=20, per_channel=True)
    before = clusterer.init(cifar10_features.shape[1:])
    after = clusterer.update(before, cifar10_features)
    assert (after.labels == before.labels).all() and after.num_updates == 1
    assert ((after.explained_variance > 0.1) & (after.explained_variance < 1)).all()


@pytest.mark.bad_input
def test_clusterers_are_comparable_and_hashable():
    """Numbers may be NumPy integers."""
    for make in (dc.Grid, dc.KMeans, dc.ReNA):
        clusterer = make(num_clusters=np.int64(4))
        assert clusterer == make(num_clusters=4) != make(num_clusters=5)
        assert hash(clusterer) == hash(make(num_clusters=4)) and isinstance(clusterer, dc.Clusterer)
        assert clusterer.init((4, 2)).sizes.tolist() == [[1]] * 4
    assert dc.KMeans(num_clusters=4, iterations=np.int64(3)) == dc.KMeans(num_clusters=4, iterations=3)


def test_defaults():
    """Defaults are part of the API."""
    common = {"num_clusters": None, "cluster_size": None, "per_channel": False}
    for clusterer, defaults in {
        dc.Grid: common,
        dc.KMeans: {**common, "iterations": 4, "spatial_weight": 0.0},
        dc.ReNA: common,
        Voronoi: {**common, "seed": 0},
    }.items():
        assert {field.name: field.default for field in dataclasses.fields(clusterer)} == defaults, clusterer
        with pytest.raises(TypeError, match="positional argument"):
            clusterer(4)


@pytest.mark.parametrize(("old", "new"), [((7,), (3,)), ((5, 3), (2, 4))])
def test_resizing_takes_the_nearest_position(old, new):
    """Compares the centers of positions, in a map of side 1. In a tie, the higher position is taken."""
    labels = np.arange(math.prod(old), dtype=np.int32)
    state = dc.Grid(num_clusters=len(labels)).init((*old, 2))._replace(num_updates=jnp.int32(3))
    resized = dc.resize_clusters(state, new)
    nearest = [np.floor((np.arange(n) + 0.5) / n * length).astype(int) for length, n in zip(old, new, strict=True)]
    expected = labels.reshape(old)[np.ix_(*nearest)]
    assert np.array_equal(resized.labels[..., 0], expected) and resized.num_updates == 3
    assert np.array_equal(resized.sizes[:, 0], np.bincount(expected.ravel(), minlength=len(labels)))
