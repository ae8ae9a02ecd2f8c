import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dropcluster_jax as dc
from dropcluster_jax.masking.bernoulli import bernoulli_keep

KEY, RATE = jax.random.key(6), 0.3


@functools.partial(jax.jit, static_argnums=0)
def draw(shape):
    return bernoulli_keep(KEY, RATE, shape)


@pytest.mark.parametrize(
    ("spatial", "per_channel", "per_example"),
    [((), True, True), ((5,), True, False), ((4, 6), False, True), ((2, 3, 4), False, False)],
)
def test_dropout_matches_numpy(spatial, per_channel, per_example):
    x = jax.random.normal(KEY, (7, *spatial, 3))
    mask = draw((7 if per_example else 1, *spatial, 3 if per_channel else 1))
    expected = np.where(mask, np.asarray(x) / np.float32(1 - RATE), 0)
    drop = functools.partial(dc.dropout, per_channel=per_channel, per_example=per_example)
    y = jax.jit(drop)(KEY, x, RATE)
    np.testing.assert_allclose(y, expected, rtol=1e-6)


@pytest.mark.parametrize("spatial", [(5,), (4, 6), (2, 3, 4)])
def test_spatial_dropout_matches_numpy(spatial):
    x = jax.random.normal(KEY, (7, *spatial, 3))
    mask = np.asarray(draw((7, 3))).reshape(7, *(1,) * len(spatial), 3)
    expected = np.where(mask, x / np.float32(1 - RATE), 0)
    np.testing.assert_allclose(jax.jit(dc.spatial_dropout)(KEY, x, RATE), expected, rtol=1e-6)


@pytest.mark.parametrize("shape", [(9,), (9, 4), (9, 4, 5, 3)])
def test_drop_path_matches_numpy(shape):
    x = jax.random.normal(KEY, shape)
    mask = np.asarray(draw((9, *(1,) * (len(shape) - 1))))
    y, kept = jax.jit(lambda x: [dc.drop_path(KEY, x, RATE, rescale=rescale) for rescale in ("rate", "kept")])(x)
    np.testing.assert_allclose(y, np.where(mask, x / np.float32(1 - RATE), 0), rtol=1e-6)
    assert (np.asarray(kept) == np.where(mask, x, 0)).all()


@pytest.mark.parametrize("compiled", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("drop", [dc.dropout, functools.partial(dc.drop_block, per_channel=True)])
def test_backward_pass_stores_nothing_of_the_size_of_x(drop, compiled):
    x = jax.random.normal(KEY, (8, 32, 32, 32))
    drop = functools.partial(drop, KEY, rate=RATE)
    _, vjp = jax.vjp(jax.jit(drop) if compiled else drop, x)
    assert sum(leaf.size for leaf in jax.tree.leaves(vjp)) < x.size / 20


@pytest.mark.bad_input
def test_shared_channels_without_a_channel_dimension_raise():
    with pytest.raises(ValueError, match=r"x must have shape \(batch, \.\.\.\, channels\), got \(5,\)"):
        dc.dropout(KEY, jnp.ones(5), 0.1, per_channel=False)
