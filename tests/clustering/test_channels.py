"""Loops over chunks of channels return what `jax.vmap` returns, for all sizes of the chunks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dropcluster_jax.clustering import channels

X, Y = jax.random.normal(jax.random.key(0), (6, 5)), jax.random.normal(jax.random.key(1), (6, 3))


@pytest.fixture(params=[1, 2, 6])
def chunk(request, monkeypatch):
    """Makes chunks of this number of channels, for functions that need 20 values per channel."""
    monkeypatch.setattr(channels, "_CPU_CHUNK_BYTES", 20 * 4 * request.param)
    return request.param


def outer(x, y):
    return {"product": x[:, None] * y, "sum": x.sum()}


def test_map_channels(chunk):
    actual, expected = channels.map_channels(outer, X, Y, elements=20), jax.vmap(outer)(X, Y)
    assert jax.tree.all(jax.tree.map(lambda a, b: a.shape == b.shape and (a == b).all(), actual, expected))


def test_map_channels_in_place(chunk):
    x = jnp.concatenate([X, X[:, ::-1], X, X], axis=1)  # 20 values per channel
    doubled, sums = channels.map_channels_in_place(lambda x: (2 * x, x[:3]), x)
    assert (doubled == 2 * x).all() and (sums == x[:, :3]).all()


@pytest.mark.parametrize("num_channels", [1, 6])
def test_sum_over_channels(chunk, num_channels):
    x, y = X[:num_channels], Y[:num_channels]
    actual = channels.sum_over_channels(lambda x, y: x[:, None] * y, x, y)  # 5 + 15 values
    np.testing.assert_allclose(actual, np.einsum("ci,cj->ij", x, y), rtol=1e-5, atol=1e-6)


def test_chunks_divide_the_channels_and_fit_the_budget(monkeypatch):
    chunks = []
    for num_channels, num_bytes in [(6, 0), (6, 119), (6, 120), (6, 10**6), (7, 240), (7, 280)]:
        for budget in ("_CPU_CHUNK_BYTES", "_DEFAULT_CHUNK_BYTES"):
            monkeypatch.setattr(channels, budget, num_bytes)
        # 10 float32 values, or 40 bytes, per channel.
        channels._with_chunk_size(lambda chunk, x: chunks.append(chunk) or x, 10, jnp.ones(num_channels))
    assert chunks == [1, 2, 3, 6, 1, 7]
