import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dropcluster_jax as dc
from dropcluster_jax.masking.bernoulli import bernoulli_keep

# Compiled once for all states of the same shape.
drop_cluster = jax.jit(dc.drop_cluster, static_argnames=("rescale", "per_channel", "min_explained_variance"))
drop_cluster_mask = jax.jit(dc.drop_cluster_mask, static_argnames="min_explained_variance")


def random_state(num_clusters, groups, spatial=(12, 11)):
    labels = np.random.default_rng(num_clusters).integers(0, num_clusters, (*spatial, groups), np.int32)
    state = dc.Grid(num_clusters=num_clusters, per_channel=groups > 1).init((*spatial, groups))
    sizes = (labels.reshape(-1, 1, groups) == np.arange(num_clusters)[:, None]).sum(0)
    return state._replace(labels=jnp.asarray(labels), sizes=jnp.asarray(sizes, jnp.int32))


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("num_clusters", [1, 32, 33])
def test_packed_words_give_the_mask_of_a_gather(num_clusters, groups):
    state, key = random_state(num_clusters, groups), jax.random.key(1)
    x = jnp.ones((5, 12, 11, 3))
    draws = np.asarray(bernoulli_keep(key, 0.4, (5, num_clusters, groups)))
    labels = np.asarray(state.labels)
    expected = np.stack([draws[:, labels[..., g], g] for g in range(groups)], axis=-1)
    assert np.array_equal(drop_cluster_mask(key, x, 0.4, state), expected)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("num_clusters", [1, 100])
def test_rescaling_by_cluster_sizes_matches_counting_in_the_mask(num_clusters, groups):
    state, key = random_state(num_clusters, groups), jax.random.key(1)
    x = jax.random.normal(key, (50, 12, 11, 3))
    mask = np.broadcast_to(drop_cluster_mask(key, x, 0.4, state), x.shape)
    kept = mask.sum((1, 2, 3), keepdims=True)
    expected = np.where(mask, x * np.where(kept, mask[0].size / np.maximum(kept, 1), 0), 0)
    np.testing.assert_allclose(drop_cluster(key, x, 0.4, state), expected, rtol=1e-5)


@pytest.mark.parametrize("spatial", [(9,), (3, 4, 5)])
def test_any_number_of_spatial_dimensions(spatial):
    x = jnp.ones((2, *spatial, 3))
    state = dc.Grid(num_clusters=4).init(x.shape[1:])
    y = np.asarray(drop_cluster(jax.random.key(2), x, 0.5, state))
    assert y.shape == x.shape and 0 < (y == 0).mean() < 1


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("min_explained_variance", [0.0, 0.2])
@pytest.mark.parametrize("compiled", [pytest.param(False, marks=pytest.mark.slow), True])
def test_backward_pass_stores_nothing_of_the_size_of_x(groups, min_explained_variance, compiled):
    state, x = random_state(33, groups), jax.random.normal(jax.random.key(0), (50, 12, 11, 3))
    drop = functools.partial(
        dc.drop_cluster, jax.random.key(1), rate=0.4, state=state, min_explained_variance=min_explained_variance
    )
    _, vjp = jax.vjp(jax.jit(drop) if compiled else drop, x)
    assert sum(leaf.size for leaf in jax.tree.leaves(vjp)) < x.size / 10


@pytest.mark.parametrize("num_clusters", [40, pytest.param(5, marks=pytest.mark.slow)])
def test_per_channel_masks_of_shared_clusters(num_clusters):
    state, key, x = random_state(num_clusters, 1), jax.random.key(1), jnp.ones((9, 12, 11, 3))
    repeated = state._replace(labels=state.labels.repeat(3, axis=-1), sizes=state.sizes.repeat(3, axis=-1))
    expected = drop_cluster(key, x, 0.4, repeated)
    assert (drop_cluster(key, x, 0.4, state, per_channel=True) == expected).all()


@pytest.mark.bad_input
def test_shape_that_does_not_match_the_clusters_raises():
    state = dc.Grid(num_clusters=4).init((4, 4, 3))
    with pytest.raises(ValueError, match=r"\(4, 4\), got shape \(2, 8, 8, 3\).*resize_clusters"):
        dc.drop_cluster(jax.random.key(0), jnp.ones((2, 8, 8, 3)), 0.1, state)
    per_channel = dc.Grid(num_clusters=4, per_channel=True).init((4, 4, 3))
    with pytest.raises(ValueError, match=r"5 channels.*3"):
        dc.drop_cluster(jax.random.key(0), jnp.ones((2, 4, 4, 5)), 0.1, per_channel)


EXPLAINED = jnp.array([0.5, 0.1, 0.3])


def learned_state():
    return random_state(7, 3)._replace(explained_variance=EXPLAINED)


@pytest.mark.parametrize(
    ("rescale", "min_explained_variance"),
    [
        ("kept", 0.3),
        pytest.param("kept", 0.05, marks=pytest.mark.slow),
        pytest.param("kept", 1.0, marks=pytest.mark.slow),
        pytest.param("rate", 0.3, marks=pytest.mark.slow),
    ],
)
def test_channels_below_min_explained_are_unchanged(min_explained_variance, rescale):
    """They are neither dropped nor rescaled, and the draws of the other channels do not change."""
    x, key, rate = jax.random.normal(jax.random.key(3), (50, 12, 11, 3)), jax.random.key(1), 0.4
    state = learned_state()
    droppable = np.asarray(state.explained_variance) >= min_explained_variance
    y = np.asarray(drop_cluster(key, x, rate, state, min_explained_variance=min_explained_variance, rescale=rescale))
    mask_without_threshold = np.asarray(drop_cluster_mask(key, x, rate, state))
    mask = np.asarray(drop_cluster_mask(key, x, rate, state, min_explained_variance=min_explained_variance))
    assert np.array_equal(mask, mask_without_threshold | ~droppable)
    assert np.array_equal(y[..., ~droppable], x[..., ~droppable])
    assert ((y != 0) == mask).all()


def test_with_min_explained_the_sum_over_droppable_channels_is_preserved():
    state, x = learned_state(), jnp.ones((50, 12, 11, 3))
    y = np.asarray(drop_cluster(jax.random.key(1), x, 0.4, state, min_explained_variance=0.3))
    droppable = np.asarray(state.explained_variance) >= 0.3
    sums, units = y[..., droppable].sum((1, 2, 3)), 12 * 11 * droppable.sum()
    np.testing.assert_allclose(sums, np.where(sums > 0, units, 0), rtol=1e-5)
    assert sums.any()


def test_with_min_explained_the_rate_holds_for_droppable_channels():
    x, state = np.ones((4000, 12, 11, 3), np.float32), learned_state()
    mask = np.asarray(drop_cluster_mask(jax.random.key(0), x, 0.3, state, min_explained_variance=0.2))
    assert 1 - mask.mean() == pytest.approx(0.3 * 2 / 3, rel=0.02)


def test_with_min_explained_nothing_is_dropped_before_the_first_update():
    state, x = dc.Grid(num_clusters=4).init((4, 4, 3)), jnp.ones((8, 4, 4, 3))
    assert (drop_cluster(jax.random.key(0), x, 0.5, state, min_explained_variance=0.01) == x).all()
    assert (drop_cluster(jax.random.key(0), x, 0.5, state) != x).any()


@pytest.mark.bad_input
@pytest.mark.parametrize("min_explained_variance", [-0.1, 1.5, float("nan")])
def test_min_explained_outside_0_and_1_raises(min_explained_variance):
    state, x = dc.Grid(num_clusters=4).init((4, 4, 3)), jnp.ones((8, 4, 4, 3))
    with pytest.raises(ValueError, match=rf"min_explained_variance must be in \[0, 1\], got {min_explained_variance}"):
        dc.drop_cluster(jax.random.key(0), x, 0.5, state, min_explained_variance=min_explained_variance)
