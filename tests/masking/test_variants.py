"""Gradients and sharded batches, with and without `jit`. For `vmap`, see `testing.assert_pure`."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

import dropcluster_jax as dc

STATE = dc.Grid(num_clusters=5).init((6, 6, 3))
STATE_PER_CHANNEL = dc.Grid(num_clusters=33, per_channel=True).init((6, 6, 3))
DROPS = (
    ("dropout", dc.dropout),
    ("spatial_dropout", dc.spatial_dropout),
    ("drop_block", lambda key, x, rate: dc.drop_block(key, x, rate, block_size=3)),
    ("drop_block_per_channel", lambda key, x, rate: dc.drop_block(key, x, rate, block_size=4, per_channel=True)),
    ("drop_path", dc.drop_path),
    ("cutout", dc.cutout),
    ("corr_drop", lambda key, x, rate: dc.corr_drop(key, x, rate, block_size=4)),
    ("corr_drop_of_channels", lambda key, x, rate: dc.corr_drop(key, x, rate, variant="channel")),
    ("focused_dropout", lambda key, x, rate: dc.focused_dropout(key, x, 1 - rate / 10, rescale="kept")),
    ("drop_cluster", lambda key, x, rate: dc.drop_cluster(key, x, rate, STATE)),
    ("drop_cluster_per_channel", lambda key, x, rate: dc.drop_cluster(key, x, rate, STATE_PER_CHANNEL)),
)


class Variants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.named_parameters(*DROPS)
    def test_gradient_is_the_mask_times_the_factor(self, drop):
        key, x = jax.random.key(0), jax.random.normal(jax.random.key(1), (4, 6, 6, 3))
        gradient = self.variant(jax.grad(lambda x: jnp.sum(drop(key, x, 0.3))))(x)
        np.testing.assert_allclose(gradient, drop(key, x, 0.3) / x, rtol=1e-6)

    @parameterized.named_parameters(*DROPS)
    def test_masks_do_not_depend_on_sharding(self, drop):
        key, x = jax.random.key(0), jax.random.normal(jax.random.key(1), (16, 6, 6, 3))
        mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
        sharded = jax.jit(drop)(key, jax.device_put(x, sharding), 0.3)
        expected = jax.jit(drop)(key, x, 0.3)
        self.assertTrue(((sharded == 0) == (expected == 0)).all())
        np.testing.assert_allclose(sharded, expected, rtol=1e-6)
