"""Degenerate inputs of the clusterers: few positions, few examples, constant units, non-finite activations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clusterings import planted, slow_unless, update
from jax.experimental import checkify

import dropcluster_jax as dc
from dropcluster_jax.clustering import Shuffled, Voronoi

pytestmark = pytest.mark.parametrize("per_channel", slow_unless([False], [False, True]))
learning_clusterers = pytest.mark.parametrize("make", [dc.KMeans, dc.ReNA])
all_clusterers = pytest.mark.parametrize("make", [dc.KMeans, dc.ReNA, dc.Grid])
each_clusterer = pytest.mark.parametrize(
    "make", [dc.KMeans, dc.ReNA, dc.Grid, Voronoi, lambda **options: Shuffled(dc.KMeans(**options))]
)


def learn(clusterer, x):
    return update(clusterer, clusterer.init(x.shape[1:]), x)


def is_valid(state, positions):
    """Checks that labels are in range, no cluster is empty, and sizes and explained variance are consistent."""
    labels = np.asarray(state.labels).reshape(positions, -1)
    counts = np.stack([np.bincount(group, minlength=len(state.sizes)) for group in labels.T], axis=1)
    explained = np.asarray(state.explained_variance)
    return (counts == state.sizes).all() and (counts > 0).all() and ((explained >= 0) & (explained <= 1)).all()


def random(*shape):
    return jax.random.normal(jax.random.key(0), shape)


# Activations, number of clusters, and the variance that they explain (None if it is between 0 and 1).
CASES = {
    "one cluster": (random(8, 4, 4, 3), 1, 0.0),
    "one cluster per position": (random(8, 4, 4, 3), 16, 1.0),
    "one example": (random(1, 4, 4, 3), 5, 0.0),
    "two examples": (random(2, 4, 4, 3), 5, None),
    "one position": (random(8, 1, 1, 3), 1, 0.0),
    "one dimension": (random(8, 20, 3), 5, None),
    "three dimensions": (random(8, 2, 3, 4, 3), 5, None),
    "equal positions": (jnp.broadcast_to(random(8, 1, 1, 3), (8, 4, 4, 3)), 5, 0.0),
    "fewer distinct positions than clusters": (random(8, 4, 1, 3).repeat(4, axis=2), 5, 1.0),
}
FAST = ["one cluster", "one example", "one position", "three dimensions", "equal positions"]


@learning_clusterers
@pytest.mark.parametrize("case", slow_unless(FAST, CASES))
def test_clusters_are_valid(make, case, per_channel):
    x, num_clusters, explained = CASES[case]
    state = learn(make(num_clusters=num_clusters, per_channel=per_channel), x)
    assert state.labels.shape == (*x.shape[1:-1], 3 if per_channel else 1) and state.num_updates == 1
    assert is_valid(state, int(np.prod(x.shape[1:-1])))
    if explained is None:
        assert (state.explained_variance > 0).all()
    else:
        np.testing.assert_allclose(state.explained_variance, explained, atol=1e-5)


@all_clusterers
def test_correlation_has_no_scale_and_no_offset(make, per_channel):
    """Powers of two change no bit. The smallest and the largest squares underflow or overflow in float32."""
    x, _ = planted(jax.random.key(0), spatial=(4, 4), batch=8, noise=0.5)
    clusterer = make(num_clusters=5, per_channel=per_channel)
    expected = learn(clusterer, x)
    for exponents in ((-100, -100, -100), (100, 100, 100), (-80, 0, 90)):
        scaled = learn(clusterer, x * 2.0 ** jnp.array(exponents))
        assert jax.tree.all(jax.tree.map(jnp.array_equal, scaled, expected))
    for scale, offset in ((1e-25, 0.0), (1e30, 0.0), (1.0, 100.0), (50.0, -3.0)):
        explained = learn(clusterer, scale * x + offset).explained_variance
        np.testing.assert_allclose(explained, expected.explained_variance, rtol=1e-3)


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
    expected = learn(clusterer, x if per_channel else x[..., ::2])
    assert (after.labels[..., 0] == expected.labels[..., 0]).all() and is_valid(after, 16)
    assert after.explained_variance[0] == pytest.approx(float(expected.explained_variance[0]), abs=1e-6)
    if per_channel:
        assert (after.labels[..., 1] == clusterer.init(x.shape[1:]).labels[..., 1]).all()
        assert after.explained_variance[1] == 0


@each_clusterer
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_non_finite_activations_skip_the_update(make, value, per_channel):
    x, _ = planted(jax.random.key(0), spatial=(4, 4), batch=8)
    clusterer = make(num_clusters=5, per_channel=per_channel)
    before = learn(clusterer, x)
    after = update(clusterer, before, x.at[3, 2, 1, 0].set(value))
    for name in ("labels", "sizes", "explained_variance", "num_updates"):
        assert (getattr(after, name) == getattr(before, name)).all()
    assert after.num_skipped == before.num_skipped + 1
    assert update(clusterer, after, x).num_updates == before.num_updates + 1


@learning_clusterers
def test_no_number_is_nan_and_no_division_is_by_zero(make, per_channel):
    if per_channel:
        pytest.skip("checkify does not support loops under vmap")
    x, _ = planted(jax.random.key(0), spatial=(4, 4), batch=8)
    clusterer = make(num_clusters=5)
    checked = checkify.checkify(jax.jit(clusterer.update), errors=checkify.float_checks)
    error, _ = checked(clusterer.init(x.shape[1:]), x.at[:, 0].set(0.0).at[..., 1].set(7.0))
    assert error.get() is None
