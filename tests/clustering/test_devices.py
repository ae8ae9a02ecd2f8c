"""Clusterers on several devices, and their memory."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clusterings import slow_unless, update
from jax.sharding import NamedSharding, PartitionSpec

import dropcluster_jax as dc
from dropcluster_jax.clustering import Shuffled, Voronoi

CLUSTERERS = [
    dc.KMeans(num_clusters=20, per_channel=True),
    dc.KMeans(num_clusters=20, spatial_weight=0.1),
    dc.ReNA(num_clusters=20, per_channel=True),
    dc.ReNA(num_clusters=20),
    Voronoi(num_clusters=20),
    Shuffled(dc.KMeans(num_clusters=20)),
]


@functools.cache
def mesh():
    return jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))


def sharded(x):
    return jax.device_put(x, NamedSharding(mesh(), PartitionSpec("batch")))


def under_jit(clusterer, state, x):
    return jax.jit(clusterer.update)(state, sharded(x))


def under_shard_map(clusterer, state, x):
    split = jax.shard_map(
        functools.partial(clusterer.update, axis_name="batch"),
        mesh=mesh(),
        in_specs=(PartitionSpec(), PartitionSpec("batch")),
        out_specs=PartitionSpec(),
    )
    return jax.jit(split)(state, x)


def under_pmap(clusterer, state, x):
    split = jax.pmap(functools.partial(clusterer.update, axis_name="batch"), axis_name="batch", in_axes=(None, 0))
    states = split(state, x.reshape(8, -1, *x.shape[1:]))
    assert all((leaf == leaf[:1]).all() for leaf in jax.tree.leaves(states))  # replicas agree bit for bit
    return jax.tree.map(lambda leaf: leaf[0], states)


@pytest.mark.parametrize(
    ("clusterer", "transform"),
    [
        (CLUSTERERS[3], under_jit),
        pytest.param(CLUSTERERS[1], under_shard_map, marks=pytest.mark.optimized),
        *(
            pytest.param(CLUSTERERS[i], transform, marks=pytest.mark.slow)
            for i, transform in itertools.product(range(len(CLUSTERERS)), (under_jit, under_shard_map, under_pmap))
            if (i, transform) not in ((3, under_jit), (1, under_shard_map))
        ),
    ],
)
def test_eight_devices_agree_with_one(cifar10_features, clusterer, transform):
    """Compares the first update, with its seeding, and a warm update on other features."""
    state = clusterer.init(cifar10_features.shape[1:])
    for x in (cifar10_features, cifar10_features[:, ::-1]):
        expected, actual = update(clusterer, state, x), transform(clusterer, state, x)
        assert (np.asarray(expected.labels) == np.asarray(actual.labels)).mean() >= 0.9999
        assert np.allclose(expected.explained_variance, actual.explained_variance, atol=1e-4)
        state = expected


@pytest.mark.parametrize("clusterer", slow_unless(CLUSTERERS[1:2], CLUSTERERS), ids=repr)
def test_batch_is_never_gathered_on_one_device(cifar10_features, clusterer):
    state = clusterer.init(cifar10_features.shape[1:])
    compiled = jax.jit(clusterer.update).lower(state, sharded(cifar10_features)).compile()
    program = compiled.as_text()
    assert "all-reduce" in program
    assert not re.search(r"all-gather|all-to-all|collective-permute", program)


STEM_CLUSTERERS = [
    clusterer
    for make in (dc.KMeans, dc.ReNA)
    for clusterer in (make(num_clusters=64), make(cluster_size=49, per_channel=True))
]


@pytest.mark.parametrize("clusterer", slow_unless(STEM_CLUSTERERS[:1], STEM_CLUSTERERS), ids=repr)
def test_imagenet_stem_needs_less_than_three_times_its_activations(clusterer):
    x = jax.ShapeDtypeStruct((128, 112, 112, 64), jnp.float32)
    state = jax.eval_shape(lambda: clusterer.init(x.shape[1:]))
    memory = jax.jit(clusterer.update).lower(state, x).compile().memory_analysis()
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    assert total < 3 * x.size * 4


@pytest.mark.parametrize("make", [dc.KMeans, dc.ReNA])
def test_products_are_computed_in_float32(make):
    """By default, accelerators round the factors to bfloat16 or TF32. On a CPU, only the program shows it."""
    x, clusterer = jax.ShapeDtypeStruct((8, 6, 7, 2), jnp.float32), make(num_clusters=5)
    program = jax.jit(clusterer.update).lower(jax.eval_shape(lambda: clusterer.init(x.shape[1:])), x).as_text()
    products = [line for line in program.splitlines() if "dot_general" in line]
    assert products and all(line.count("HIGHEST") == 2 for line in products)


@pytest.mark.parametrize("clusterer", [dc.KMeans(num_clusters=64), dc.KMeans(num_clusters=64, per_channel=True)])
def test_chunks_depend_on_the_target_platform(clusterer):
    """Programs for accelerators have larger chunks, also if JAX runs on CPU."""
    x = jax.ShapeDtypeStruct((64, 28, 28, 64), jnp.float32)
    state = jax.eval_shape(lambda: clusterer.init(x.shape[1:]))
    traced = jax.jit(clusterer.update).trace(state, x)
    slices = {
        platform: max(
            int(channels)
            for channels in re.findall(
                r"dynamic_slice .* -> tensor<(\d+)x784x64xf32>", traced.lower(lowering_platforms=(platform,)).as_text()
            )
        )
        for platform in ("cpu", "tpu", "cuda")
    }
    assert slices["cpu"] < 64 and slices["tpu"] == slices["cuda"] == 64
