"""Masks are computed in the fusions that need them when they are compiled for a TPU."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from topologies import needs_libtpu

import dropcluster_jax as dc
from dropcluster_jax.runs.aot import compile_for

SHAPE = (128, 28, 28, 128)
CLUSTERS = dc.Grid(num_clusters=16, per_channel=True).init(SHAPE[1:])


def identity(key, x, rate):
    return x


def flax_dropout(key, x, rate):
    return nn.Dropout(rate, deterministic=False).apply({}, x, rngs={"dropout": key})


@functools.cache
def analyze(drop):
    """Compiles the forward and backward pass of a ReLU, a drop layer and a 1x1 convolution."""
    x = jax.ShapeDtypeStruct(SHAPE, jnp.bfloat16)
    kernel = jax.ShapeDtypeStruct((SHAPE[-1], SHAPE[-1]), jnp.bfloat16)

    def step(kernel, x, key, gradient):
        output, vjp = jax.vjp(lambda kernel, x: drop(key, nn.relu(x), 0.1) @ kernel, kernel, x)
        return output, vjp(gradient)

    return compile_for("v5e:1x1", step, kernel, x, jax.eval_shape(lambda: jax.random.key(0)), x)


DROPS = {
    "dropout": dc.dropout,
    "drop_block, per channel": functools.partial(dc.drop_block, per_channel=True),
    "drop_cluster, per channel": functools.partial(dc.drop_cluster, state=CLUSTERS),
}


@needs_libtpu
@pytest.mark.parametrize("name", DROPS)
def test_masks_take_fewer_cycles_than_dropout_of_flax_and_no_memory(name):
    none, drop = analyze(identity), analyze(DROPS[name])
    assert drop.temporary_bytes - none.temporary_bytes < 0.05 * none.output_bytes
    assert drop.cycles < analyze(flax_dropout).cycles
