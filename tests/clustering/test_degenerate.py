"""Data that is no data: what every clusterer that learns makes of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clusterings import planted, update

import dropcluster_jax as dc

pytestmark = pytest.mark.parametrize("per_channel", [False, True])
learners = pytest.mark.parametrize("make", [dc.KMeans, dc.ReNA])
everyone = pytest.mark.parametrize("make", [dc.KMeans, dc.ReNA, dc.Grid])


def learned(clusterer, x):
    return update(clusterer, clusterer.init(x.shape[1:]), x)


def is_sound(state, positions):
    """All labels in range, no cluster empty, sizes right, explained a share."""
    labels = np.asarray(state.labels).reshape(positions, -1)
    counts = np.stack([np.bincount(group, minlength=len(state.sizes)) for group in labels.T], axis=1)
    explained = np.asarray(state.explained_variance)
    return (counts == state.sizes).all() and (counts > 0).all() and ((explained >= 0) & (explained <= 1)).all()


@learners
@pytest.mark.parametrize("num_clusters", [1, 16])
def test_one_cluster_and_one_for_each_position(make, num_clusters, per_channel):
    x = jax.random.normal(jax.random.key(0), (8, 4, 4, 3))
    state = learned(make(num_clusters=num_clusters, per_channel=per_channel), x)
    assert (state.sizes == 16 // num_clusters).all()
    assert jnp.allclose(state.explained_variance, 0.0 if num_clusters == 1 else 1.0, atol=1e-5)


@learners
@pytest.mark.parametrize("batch", [1, 2])
def test_a_probe_batch_of_one_or_two_examples(make, batch, per_channel):
    x = jax.random.normal(jax.random.key(0), (batch, 4, 4, 2))
    state = learned(make(num_clusters=2, per_channel=per_channel), x)
    assert is_sound(state, 16) and state.num_updates == 1


@learners
def test_a_map_of_one_position(make, per_channel):
    x = jax.random.normal(jax.random.key(0), (8, 1, 1, 3))
    state = learned(make(cluster_size=16, per_channel=per_channel), x)
    assert (state.labels == 0).all() and (state.explained_variance == 0).all() and state.num_updates == 1


@learners
@pytest.mark.parametrize("spatial", [(20,), (2, 3, 4)])
def test_maps_of_one_and_three_dimensions(make, spatial, per_channel):
    x = jax.random.normal(jax.random.key(0), (8, *spatial, 3))
    state = learned(make(num_clusters=5, per_channel=per_channel), x)
    assert state.labels.shape == (*spatial, 3 if per_channel else 1)
    assert is_sound(state, int(np.prod(spatial))) and (state.explained_variance > 0).all()


@learners
def test_all_positions_alike(make, per_channel):
    x = jnp.broadcast_to(jax.random.normal(jax.random.key(0), (8, 1, 1, 3)), (8, 4, 4, 3))
    state = learned(make(num_clusters=5, per_channel=per_channel), x)
    assert is_sound(state, 16) and (state.explained_variance == 0).all()


@learners
def test_fewer_different_positions_than_clusters(make, per_channel):
    x = jax.random.normal(jax.random.key(0), (8, 4, 1, 3)).repeat(4, axis=2)
    state = learned(make(num_clusters=5, per_channel=per_channel), x)
    assert is_sound(state, 16) and jnp.allclose(state.explained_variance, 1.0, atol=1e-5)


@everyone
def test_a_layer_without_any_varying_unit_keeps_its_labels(make, per_channel):
    clusterer = make(num_clusters=5, per_channel=per_channel)
    before = clusterer.init((4, 4, 3))
    after = update(clusterer, before, jnp.full((8, 4, 4, 3), 2.5))
    assert (after.labels == before.labels).all() and (after.explained_variance == 0).all()
    assert after.num_updates == 1 and after.num_skipped == 0


@learners
def test_a_constant_channel_does_not_disturb_the_others(make, per_channel):
    x, _ = planted(jax.random.key(0), spatial=(4, 4), batch=8)
    clusterer = make(num_clusters=5, per_channel=per_channel)
    after = learned(clusterer, x.at[..., 1].set(7.0))
    if per_channel:
        assert (after.labels[..., 1] == clusterer.init(x.shape[1:]).labels[..., 1]).all() and after.explained_variance[
            1
        ] == 0
        assert (after.labels[..., 0] == learned(clusterer, x).labels[..., 0]).all()
    else:
        assert (after.labels == learned(clusterer, x[..., ::2]).labels).all()
    assert (after.explained_variance[0] > 0.2) and is_sound(after, 16)


@everyone
@pytest.mark.bad_input
def test_an_empty_probe_batch_is_refused(make, per_channel):
    clusterer = make(num_clusters=2, per_channel=per_channel)
    with pytest.raises(ValueError, match="at least one example"):
        update(clusterer, clusterer.init((4, 4, 3)), jnp.ones((0, 4, 4, 3)))


@everyone
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_activations_that_are_not_finite_leave_the_state_as_it_was(make, bad, per_channel):
    x, _ = planted(jax.random.key(0), spatial=(4, 4), batch=8)
    clusterer = make(num_clusters=5, per_channel=per_channel)
    before = learned(clusterer, x)
    after = update(clusterer, before, x.at[3, 2, 1, 0].set(bad))
    for name in ("labels", "sizes", "explained_variance", "num_updates"):
        assert (getattr(after, name) == getattr(before, name)).all()
    assert after.num_skipped == before.num_skipped + 1
    assert update(clusterer, after, x).num_updates == before.num_updates + 1
