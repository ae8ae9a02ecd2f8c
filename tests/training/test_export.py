"""Steps can be exported for all platforms on a machine with a CPU only, because no algorithm asks for the backend."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export
from training.helpers import equal

import dropcluster_jax as dc
from dropcluster_jax.data import random_shift
from dropcluster_jax.linen import DropBlock, DropCluster, Dropout
from dropcluster_jax.training import make_steps

PLATFORMS = ("cpu", "tpu", "cuda")


class Small(nn.Module):
    """One convolution and all kinds of drop layers and clusterers."""

    @nn.compact
    def __call__(self, x, train=False, rate=0.0, update_clusters=False):
        x = nn.relu(nn.Conv(6, (3, 3))(x))
        for layer in (Dropout(), DropBlock(block_size=3, per_channel=True)):
            x = layer(x, rate, deterministic=not train)
        for clusterer in (dc.KMeans(cluster_size=4, per_channel=True), dc.ReNA(cluster_size=4)):
            x = DropCluster(clusterer)(x, rate, deterministic=not train, update_clusters=update_clusters)
        return nn.Dense(10)(x.mean((1, 2)))


def over_leaves(step, state):
    """Returns the step as a function of lists of arrays, because `export` does not serialize Optax's NamedTuples."""
    structure = jax.tree.structure(state)

    def apply(leaves, batch):
        return jax.tree.leaves(step(jax.tree.unflatten(structure, leaves), batch))

    return jax.jit(apply)


@pytest.fixture(scope="module")
def batch():
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1), np.uint8)
    return {"image": jnp.asarray(images), "label": jnp.arange(16, dtype=jnp.int32) % 10}


@pytest.mark.slow
def test_exported_steps_equal_compiled_ones(batch, monkeypatch):
    def fail():
        raise AssertionError("the default backend is not the platform that is compiled for")

    pytest.importorskip("flatbuffers", reason="jax.export requires flatbuffers to serialize")
    monkeypatch.setattr(jax, "default_backend", fail)
    steps = make_steps(
        Small(),
        optax.sgd(0.1, momentum=0.9),
        rate=0.3,
        augment=lambda key, images: random_shift(key, images, 1),
        preprocess=lambda images: images.astype(jnp.float32) / 255,
    )
    state = jax.jit(steps.init)(jax.random.key(0), batch)
    for step in (steps.train, steps.update_clusters, steps.evaluate):
        function, leaves = over_leaves(step, state), jax.tree.leaves(state)
        exported = export.export(function, platforms=PLATFORMS)(leaves, batch)
        assert exported.platforms == PLATFORMS
        results = export.deserialize(exported.serialize()).call(leaves, batch)
        assert equal(results, function(leaves, batch))
