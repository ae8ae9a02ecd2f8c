"""Helpers of the clustering tests: a jitted update, planted clusters, and comparison up to a renaming."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest


@functools.partial(jax.jit, static_argnums=0)
def update(clusterer, state, x):
    return clusterer.update(state, x)


def slow_unless(fast, arguments):
    """Returns arguments for `parametrize`, of which only some are not marked `slow`."""
    return [pytest.param(argument, marks=() if argument in fast else pytest.mark.slow) for argument in arguments]


def planted(key, spatial=(6, 7), channels=3, num_clusters=5, batch=64, noise=0.2):
    """Returns activations in which each position follows one of a few signals per channel, and the true clusters."""
    x, truth = _planted(key, spatial, channels, num_clusters, batch, noise)
    return x, np.asarray(truth)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _planted(key, spatial, channels, num_clusters, batch, noise):
    labels_key, signal_key, noise_key = jax.random.split(key, 3)
    # Every cluster has at least one position.
    positions = math.prod(spatial)
    truth = jnp.concatenate(
        [jnp.arange(num_clusters), jax.random.randint(labels_key, (positions - num_clusters,), 0, num_clusters)]
    )
    truth = jax.random.permutation(labels_key, truth)
    signal = jax.random.normal(signal_key, (batch, num_clusters, channels))
    x = signal[:, truth] + noise * jax.random.normal(noise_key, (batch, positions, channels))
    return x.reshape(batch, *spatial, channels), truth


def same_partition(labels, other) -> bool:
    """Checks whether two labelings are equal up to a renaming of the clusters."""
    labels, other = np.ravel(labels), np.ravel(other)
    pairs = set(zip(labels.tolist(), other.tolist(), strict=True))
    return len(pairs) == len(set(labels.tolist())) == len(set(other.tolist()))
