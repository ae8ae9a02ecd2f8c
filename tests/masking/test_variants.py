"""Gradients without `jit`, and sharded batches. For `vmap`, see `test_modes.py` and `testing.assert_pure`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dropcluster_jax as dc

STATE = dc.Grid(num_clusters=5).init((6, 6, 3))
STATE_PER_CHANNEL = dc.Grid(num_clusters=33, per_channel=True).init((6, 6, 3))
DROPS = {
    "dropout": dc.dropout,
    "spatial_dropout": dc.spatial_dropout,
    "drop_block": functools.partial(dc.drop_block, block_size=3),
    "drop_block per channel": functools.partial(dc.drop_block, block_size=4, per_channel=True),
    "drop_path": dc.drop_path,
    "cutout": dc.cutout,
    "corr_drop": functools.partial(dc.corr_drop, block_size=4),
    "corr_drop of channels": functools.partial(dc.corr_drop, variant="channel"),
    "focused_dropout": lambda key, x, rate: dc.focused_dropout(key, x, 1 - rate / 10, rescale="kept"),
    "drop_cluster": functools.partial(dc.drop_cluster, state=STATE),
    "drop_cluster per channel": functools.partial(dc.drop_cluster, state=STATE_PER_CHANNEL),
}


FEW = ("dropout", "focused_dropout", "drop_cluster per channel")


def all_drops(*marks_of_few):
    """Parametrizes a test over all methods, of which only the few run in `make test`."""
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=marks_of_few if name in FEW else pytest.mark.slow) for name in DROPS]
    )


@all_drops()
@pytest.mark.parametrize("compiled", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_gradient_is_the_mask_times_the_factor(name, compiled):
    key, x = jax.random.key(0), jax.random.normal(jax.random.key(1), (16, 6, 6, 3))
    drop = jax.jit(DROPS[name])
    gradient = jax.grad(lambda x: jnp.sum(DROPS[name](key, x, 0.3)))
    np.testing.assert_allclose((jax.jit(gradient) if compiled else gradient)(x), drop(key, x, 0.3) / x, rtol=1e-6)


@all_drops(pytest.mark.optimized)
def test_masks_do_not_depend_on_sharding(name):
    key, x = jax.random.key(0), jax.random.normal(jax.random.key(1), (16, 6, 6, 3))
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    drop = jax.jit(DROPS[name])
    sharded, expected = (np.asarray(drop(key, array, 0.3)) for array in (jax.device_put(x, sharding), x))
    assert ((sharded == 0) == (expected == 0)).all()
    np.testing.assert_allclose(sharded, expected, rtol=1e-6)
