"""Invalid arguments raise errors that name the argument and its value."""

import math

import jax.numpy as jnp
import pytest

import dropcluster_jax as dc
from dropcluster_jax.clustering import Shuffled, Voronoi, adjusted_rand_index, explained_variance

pytestmark = pytest.mark.bad_input

GRID, KMEANS = dc.Grid(num_clusters=4), dc.KMeans(num_clusters=4, per_channel=True)
LABELS = jnp.zeros((4, 4, 1), jnp.int32)


@pytest.mark.parametrize("make", [dc.Grid, dc.KMeans, dc.ReNA, Voronoi])
@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ({}, ValueError, "num_clusters"),
        ({"num_clusters": 3, "cluster_size": 3}, ValueError, "num_clusters"),
        ({"num_clusters": 0}, ValueError, "num_clusters"),
        ({"num_clusters": 2.5}, TypeError, "num_clusters"),
        ({"num_clusters": True}, TypeError, "num_clusters"),
        *(({"cluster_size": value}, ValueError, "cluster_size") for value in (0, 0.99, math.inf, math.nan)),
    ],
)
def test_numbers_of_clusters(make, arguments, error, name):
    with pytest.raises(error, match=f"{name}.*{list(arguments.values())[-1] if arguments else None}"):
        make(**arguments)


@pytest.mark.parametrize(
    "clusterer", [GRID, KMEANS, dc.ReNA(num_clusters=4), Voronoi(num_clusters=4), Shuffled(KMEANS)]
)
@pytest.mark.parametrize(
    ("shape", "dtype", "error", "message"),
    [
        ((2, 4, 4, 3), "int32", TypeError, "floating-point dtype, got int32"),
        ((2, 8, 8, 3), "float32", ValueError, r"\(4, 4\), got shape \(2, 8, 8, 3\).*resize_clusters"),
        ((0, 4, 4, 3), "float32", ValueError, "at least one example"),
    ],
)
def test_activations(clusterer, shape, dtype, error, message):
    with pytest.raises(error, match=message):
        clusterer.update(clusterer.init((4, 4, 3)), jnp.ones(shape, dtype))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda: dc.KMeans(num_clusters=17).init((4, 4, 3)), "num_clusters must be at most .* 16 here, got 17"),
        *((lambda shape=shape: GRID.init(shape), "shape must be") for shape in ((3,), (0, 4, 3), (4, 4, 0))),
        (lambda: KMEANS.update(KMEANS.init((4, 4, 3)), jnp.ones((2, 4, 4, 5))), "x has 5 channels, .* for 3 channels"),
        *(
            (lambda spatial=spatial: dc.resize_clusters(GRID.init((6, 4, 3)), spatial), "spatial must be 2 lengths")
            for spatial in ((4,), (0, 4), (4, 4, 4))
        ),
        *(
            (lambda name=name, value=value: dc.KMeans(num_clusters=4, **{name: value}), f"{name} must be .* {value}")
            for name, values in {"iterations": (0, True, 2.0), "spatial_weight": (-1.0, math.inf, math.nan)}.items()
            for value in values
        ),
        (lambda: explained_variance(LABELS, jnp.ones((2, 8, 8, 3)), 1), r"got shape \(2, 8, 8, 3\)"),
        (lambda: adjusted_rand_index(LABELS, LABELS[:2]), r"shape of labels, \(4, 4, 1\), got \(2, 4, 1\)"),
    ],
)
def test_values_and_shapes(function, message):
    with pytest.raises(ValueError, match=message):
        function()
