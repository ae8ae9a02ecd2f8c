"""Distances between units, some of which do not vary, compared with NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import references

from dropcluster_jax.clustering import correlation

LABELS = np.array([0, 0, 1, 1, 1, 2, 2, 3])


def partly_constant():
    """Returns activations `(batch, 8, 3)`. The first position and the last channel are constant."""
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (10, 8, 3))
    varying = jax.random.bernoulli(keys[1], 0.7, (8, 3)).at[0].set(False).at[:, 2].set(False)
    return jnp.where(varying, x, 3.0)


def test_distances_are_means_over_the_channels_that_vary():
    x, membership = partly_constant(), (np.arange(5)[:, None] == LABELS) * 1.0  # the last cluster is empty

    @jax.jit
    def distances(x):
        units, _ = correlation.layer_units(x, None)
        to_centroids = correlation.distances_to_centroids(units, jnp.asarray(membership, jnp.float32), None)
        return to_centroids, correlation.distances_to_positions(units, jnp.arange(8), None)

    vectors, varying = references.correlation_vectors(np.asarray(x))
    counts = np.maximum(membership @ varying, 1)
    centroids = np.einsum("kp,pcb->kcb", membership, vectors) / counts[..., None]
    for actual, points in zip(distances(x), (centroids, vectors), strict=True):
        # The distance of a constant unit is 0 in its channel.
        squares = np.square(vectors[:, None] - points).sum(-1) * varying[:, None]
        np.testing.assert_allclose(actual, squares.sum(-1) / 2, atol=1e-6)
        assert (actual >= 0).all()
