"""What the tests of clustering share: a compiled update, activations with planted clusters, equality up to names."""

import functools

import jax
import jax.numpy as jnp
import numpy as np


@functools.partial(jax.jit, static_argnums=0)
def update(clusterer, state, x):
    return clusterer.update(state, x)


def planted(key, spatial=(6, 7), channels=3, num_clusters=5, batch=64, noise=0.2):
    """Activations whose positions follow one of a few signals, in each channel others; and which one."""
    blobs, signals, jitter = jax.random.split(key, 3)
    # Each blob at least once, then at random.
    positions = int(np.prod(spatial))
    truth = jnp.concatenate(
        [jnp.arange(num_clusters), jax.random.randint(blobs, (positions - num_clusters,), 0, num_clusters)]
    )
    truth = jax.random.permutation(blobs, truth)
    signal = jax.random.normal(signals, (batch, num_clusters, channels))
    x = signal[:, truth] + noise * jax.random.normal(jitter, (batch, positions, channels))
    return x.reshape(batch, *spatial, channels), np.asarray(truth)


def same_partition(one, other) -> bool:
    """Whether two labellings are equal up to the names of clusters."""
    one, other = np.ravel(one), np.ravel(other)
    pairs = {(int(a), int(b)) for a, b in zip(one, other, strict=True)}
    return len(pairs) == len(set(one.tolist())) == len(set(other.tolist()))
