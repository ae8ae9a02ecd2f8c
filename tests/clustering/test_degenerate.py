"""Degenerate inputs of the clusterers: few positions, few examples, constant units, non-finite activations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clusterings import planted, slow_unless, update

import dropcluster_jax as dc

pytestmark = pytest.mark.parametrize("per_channel", slow_unless([False], [False, True]))
learning_clusterers = pytest.mark.parametrize("make", [dc.KMeans, dc.ReNA])
all_clusterers = pytest.mark.parametrize("make", [dc.KMeans, dc.ReNA, dc.Grid])


def learn(clusterer, x):
    return update(clusterer, clusterer.init(x.shape[1:]), x)


def is_valid(state, positions):
    """Checks that labels are in range, no cluster is empty, and sizes and explained variance are consistent."""
    labels = np.asarray(state.labels).reshape(positions, -1)
    counts = np.stack([np.bincount(group, minlength=len(state.sizes)) for group in labels.T], axis=1)
    explained = np.asarray(state.explained_variance)
    return (counts == state.sizes).all() and (counts > 0).all() and ((explained >= 0) & (explained <= 1)).all()


@learning_clusterers
@pytest.mark.parametrize("num_clusters", slow_unless([1], [1, 16]))
def test_one_cluster_and_one_cluster_per_position(make, num_clusters, per_channel):
    x = jax.random.normal(jax.random.key(0), (8, 4, 4, 3))
    state = learn(make(num_clusters=num_clusters, per_channel=per_channel), x)
    assert (state.sizes == 16 // num_clusters).all()
    assert jnp.allclose(state.explained_variance, 0.0 if num_clusters == 1 else 1.0, atol=1e-5)


@learning_clusterers
@pytest.mark.parametrize("batch", slow_unless([1], [1, 2]))
def test_probe_batch_of_one_or_two_examples(make, batch, per_channel):
    x = jax.random.normal(jax.random.key(0), (batch, 4, 4, 3))
    state = learn(make(num_clusters=5, per_channel=per_channel), x)
    assert is_valid(state, 16) and state.num_updates == 1


@learning_clusterers
def test_single_position(make, per_channel):
    x = jax.random.normal(jax.random.key(0), (8, 1, 1, 3))
    state = learn(make(cluster_size=16, per_channel=per_channel), x)
    assert (state.labels == 0).all() and (state.explained_variance == 0).all() and state.num_updates == 1


@learning_clusterers
@pytest.mark.parametrize("spatial", slow_unless([(2, 3, 4)], [(20,), (2, 3, 4)]))
def test_one_and_three_spatial_dimensions(make, spatial, per_channel):
    x = jax.random.normal(jax.random.key(0), (8, *spatial, 3))
    state = learn(make(num_clusters=5, per_channel=per_channel), x)
    assert state.labels.shape == (*spatial, 3 if per_channel else 1)
    assert is_valid(state, int(np.prod(spatial))) and (state.explained_variance > 0).all()


@learning_clusterers
def test_identical_positions(make, per_channel):
    x = jnp.broadcast_to(jax.random.normal(jax.random.key(0), (8, 1, 1, 3)), (8, 4, 4, 3))
    state = learn(make(num_clusters=5, per_channel=per_channel), x)
    assert is_valid(state, 16) and (state.explained_variance == 0).all()


@learning_clusterers
@pytest.mark.slow
def test_fewer_distinct_positions_than_clusters(make, per_channel):
    x = jax.random.normal(jax.random.key(0), (8, 4, 1, 3)).repeat(4, axis=2)
    state = learn(make(num_clusters=5, per_channel=per_channel), x)
    assert is_valid(state, 16) and jnp.allclose(state.explained_variance, 1.0, atol=1e-5)


@all_clusterers
def test_constant_layer_keeps_its_labels(make, per_channel):
    clusterer = make(num_clusters=5, per_channel=per_channel)
    before = clusterer.init((4, 4, 3))
    after = update(clusterer, before, jnp.full((8, 4, 4, 3), 2.5))
    assert (after.labels == before.labels).all() and (after.explained_variance == 0).all()
    assert after.num_updates == 1 and after.num_skipped == 0


@learning_clusterers
def test_constant_channel_does_not_affect_other_channels(make, per_channel):
    x, _ = planted(jax.random.key(0), spatial=(4, 4), batch=8)
    clusterer = make(num_clusters=5, per_channel=per_channel)
    after = learn(clusterer, x.at[..., 1].set(7.0))
    if per_channel:
        assert (after.labels[..., 1] == clusterer.init(x.shape[1:]).labels[..., 1]).all()
        assert after.explained_variance[1] == 0
        assert (after.labels[..., 0] == learn(clusterer, x).labels[..., 0]).all()
    else:
        assert (after.labels == learn(clusterer, x[..., ::2]).labels).all()
    assert (after.explained_variance[0] > 0.2) and is_valid(after, 16)


@all_clusterers
@pytest.mark.bad_input
def test_empty_probe_batch_raises(make, per_channel):
    clusterer = make(num_clusters=2, per_channel=per_channel)
    with pytest.raises(ValueError, match="at least one example"):
        update(clusterer, clusterer.init((4, 4, 3)), jnp.ones((0, 4, 4, 3)))


@all_clusterers
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_non_finite_activations_skip_the_update(make, value, per_channel):
    x, _ = planted(jax.random.key(0), spatial=(4, 4), batch=8)
    clusterer = make(num_clusters=5, per_channel=per_channel)
    before = learn(clusterer, x)
    after = update(clusterer, before, x.at[3, 2, 1, 0].set(value))
    for name in ("labels", "sizes", "explained_variance", "num_updates"):
        assert (getattr(after, name) == getattr(before, name)).all()
    assert after.num_skipped == before.num_skipped + 1
    assert update(clusterer, after, x).num_updates == before.num_updates + 1
