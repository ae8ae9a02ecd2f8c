"""Every public function of arrays works in the modes of JAX: dtypes, keys, transformations, checks, and meshes."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax import export
from jax.sharding import NamedSharding, PartitionSpec

import dropcluster_jax as dc
from dropcluster_jax import clustering, data, masking
from dropcluster_jax.data import augment, mixing

BATCH, SHAPE = 8, (6, 6, 3)
SHARED, PER_CHANNEL = (dc.Grid(num_clusters=5, per_channel=per_channel).init(SHAPE) for per_channel in (False, True))
LABELS = 3 * jax.nn.one_hot(jnp.arange(BATCH) % 3, 3) / 3


def mc_predict(key, x):
    def apply(variables, x, rngs):
        return dc.dropout(rngs["dropout"], x, 0.5).mean((1, 2), dtype=jnp.float32)

    return dc.mc_predict(apply, {}, x.astype(jnp.float32), key, 3)


def mix(function, key, x):
    labels = jnp.zeros((x.shape[0], 3), x.dtype).at[:, 0].set(1)
    return function(key, x, labels, 0.7)


def update(make, key, x, **options):
    """Runs a first update and a warm one."""
    clusterer = make(**options) if make is clustering.Shuffled else make(num_clusters=5, **options)
    return clusterer.update(clusterer.update(clusterer.init(x.shape[1:]), x), x)


def to_uint8(x):
    return (x.astype(jnp.float32) * 40 + 100).astype(jnp.uint8)


DROPS = {
    "dropout": dc.dropout,
    "dropout kept": functools.partial(dc.dropout, rescale="kept"),
    "spatial_dropout": dc.spatial_dropout,
    "spatial_dropout batch": functools.partial(dc.spatial_dropout, rescale="batch"),
    "drop_path": dc.drop_path,
    "drop_block": functools.partial(dc.drop_block, block_size=3),
    "drop_block paper": functools.partial(dc.drop_block, block_size=2, seeding="paper", per_channel=True),
    "cutout": dc.cutout,
    "cutout kept": functools.partial(dc.cutout, rescale="kept", per_channel=True),
    "corr_drop": functools.partial(dc.corr_drop, block_size=2),
    "corr_drop channel": functools.partial(dc.corr_drop, variant="channel"),
    "focused_dropout": dc.focused_dropout,
    "focused_dropout kept": functools.partial(dc.focused_dropout, rescale="kept"),
    "drop_cluster": functools.partial(dc.drop_cluster, state=SHARED),
    "drop_cluster per channel": functools.partial(dc.drop_cluster, state=PER_CHANNEL, min_explained=0.0),
    "drop_cluster batch": functools.partial(dc.drop_cluster, state=SHARED, rescale="batch", per_channel=True),
    "drop_cluster explained": functools.partial(
        dc.drop_cluster, state=PER_CHANNEL._replace(explained_variance=jnp.array([0.1, 0.5, 0.9])), min_explained=0.4
    ),
}
MASKS = {
    "dropout_mask": dc.dropout_mask,
    "spatial_dropout_mask": dc.spatial_dropout_mask,
    "drop_path_mask": dc.drop_path_mask,
    "drop_block_mask": functools.partial(dc.drop_block_mask, block_size=3),
    "cutout_mask": dc.cutout_mask,
    "corr_drop_mask": functools.partial(dc.corr_drop_mask, block_size=2),
    "focused_dropout_mask": dc.focused_dropout_mask,
    "drop_cluster_mask": functools.partial(dc.drop_cluster_mask, state=SHARED),
}
CLUSTERERS = {
    "Grid": functools.partial(update, dc.Grid),
    "KMeans": functools.partial(update, dc.KMeans),
    "KMeans per channel": functools.partial(update, dc.KMeans, per_channel=True, spatial_weight=0.3),
    "ReNA": functools.partial(update, dc.ReNA),
    "ReNA per channel": functools.partial(update, dc.ReNA, per_channel=True),
    "Voronoi": functools.partial(update, clustering.Voronoi),
    "Voronoi per channel": functools.partial(update, clustering.Voronoi, per_channel=True),
    "Shuffled": functools.partial(update, clustering.Shuffled, clusterer=dc.KMeans(num_clusters=5)),
}
METRICS = {
    "explained_variance": lambda key, x: clustering.explained_variance(PER_CHANNEL.labels, x, 5),
    "mean_within_correlation": lambda key, x: clustering.mean_within_correlation(SHARED.labels, x, 5),
    "adjusted_rand_index": lambda key, x: clustering.adjusted_rand_index(SHARED.labels, SHARED.labels[::-1]),
    "is_connected": lambda key, x: clustering.is_connected(PER_CHANNEL.labels, 5),
    "cluster_sizes": lambda key, x: clustering.cluster_sizes(PER_CHANNEL.labels, 5),
    "resize_clusters": lambda key, x: dc.resize_clusters(SHARED, (4, 9)),
}
IMAGES = {
    "random_flip": data.random_flip,
    "random_shift": functools.partial(data.random_shift, pixels=2),
    "random_cutout": functools.partial(data.random_cutout, side=3),
    "random_cutout filled": lambda key, x: data.random_cutout(key, to_uint8(x), 3, np.array([1, 2, 3], np.uint8)),
    "random_resized_crop": functools.partial(data.random_resized_crop, area=(0.1, 0.9)),
    "mixup": functools.partial(mix, data.mixup),
    "cutmix": functools.partial(mix, data.cutmix),
    "normalize": lambda key, x: data.normalize(to_uint8(x), (0.5, 0.4, 0.3), np.array([0.2, 0.3, 0.4])),
}
PRESERVE_DTYPE = [*DROPS, "random_flip", "random_shift", "random_cutout", "random_resized_crop", "mixup", "cutmix"]
CASES = {
    **{name: functools.partial(function, rate=0.4) for name, function in (DROPS | MASKS).items()},
    **CLUSTERERS,
    **METRICS,
    **IMAGES,
    "mc_predict": mc_predict,
}
every_function = pytest.mark.parametrize("name", CASES)


def inputs():
    return jax.random.key(0), jax.random.normal(jax.random.key(1), (BATCH, *SHAPE), jnp.float32)


@functools.cache
def expected(name):
    return jax.tree.map(np.asarray, jax.jit(CASES[name])(*inputs()))


def assert_same(actual, expected):
    """Checks dtypes, shapes and values; floating-point numbers up to rounding, which depends on the program."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for leaf, reference in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert leaf.dtype == reference.dtype and leaf.shape == reference.shape
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            np.testing.assert_allclose(leaf, reference, rtol=1e-4, atol=1e-5)
        else:
            np.testing.assert_array_equal(leaf, reference)


def test_all_public_functions_are_covered():
    modules = (dc, clustering, masking)
    public = {name for module in modules for name in module.__all__}
    public |= {name for module in (augment, mixing) for name in vars(module) if name in data.__all__}
    covered = {name.split()[0] for name in CASES}
    assert public - covered == {"ClusterState", "Clusterer", "MonteCarloPrediction"}


@every_function
def test_x64_strict_promotion(name):
    reference, arguments = expected(name), inputs()
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        assert_same(jax.jit(CASES[name])(*arguments), reference)


@every_function
def test_eager_with_debug_nans_and_leak_checks(name):
    reference, arguments = expected(name), inputs()
    with jax.debug_nans(True), jax.checking_leaks():
        assert_same(CASES[name](*arguments), reference)


@every_function
def test_vmap(name):
    key, x = inputs()
    keys, xs = jax.random.split(key, 2), jnp.stack([x, x[::-1] + 1])
    results = [jax.jit(CASES[name])(keys[i], xs[i]) for i in range(2)]
    assert_same(jax.vmap(CASES[name])(keys, xs), jax.tree.map(lambda *leaves: np.stack(leaves), *results))


@every_function
def test_export_with_symbolic_batch_size(name):
    jaxtyping.config.update("jaxtyping_disable", True)  # a symbolic size is not an int
    key, x = inputs()
    (batch,) = export.symbolic_shape("batch")
    shape = jax.ShapeDtypeStruct((batch, *SHAPE), x.dtype)
    exported = export.export(jax.jit(CASES[name]))(jax.ShapeDtypeStruct((), key.dtype), shape)
    assert_same(exported.call(key, x), expected(name))


@pytest.mark.parametrize("name", [*DROPS, *MASKS, *IMAGES, "mc_predict"])
@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg"])
def test_old_and_new_keys(name, implementation):
    _, x = inputs()
    with jax.default_prng_impl(implementation):
        old, new = jax.random.PRNGKey(3), jax.random.key(3)
        assert_same(jax.jit(CASES[name])(old, x), jax.tree.map(np.asarray, jax.jit(CASES[name])(new, x)))


@pytest.mark.parametrize("name", [*DROPS, *CLUSTERERS, *METRICS, *IMAGES])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn", "float64"])
def test_dtypes(name, dtype):
    key, x = inputs()
    with jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext():
        result = jax.jit(CASES[name])(key, x.astype(dtype))
        reference = jax.jit(CASES[name])(key, x.astype(dtype).astype(jnp.float32))
        for leaf, expected_leaf in zip(jax.tree.leaves(result), jax.tree.leaves(reference), strict=True):
            assert leaf.shape == expected_leaf.shape
            if name in PRESERVE_DTYPE:
                assert leaf.dtype == jnp.dtype(dtype)
                np.testing.assert_allclose(
                    leaf.astype(jnp.float32), expected_leaf.astype(dtype).astype(jnp.float32), rtol=1e-5, atol=1e-6
                )
            else:
                assert_same(leaf, np.asarray(expected_leaf))


@every_function
def test_explicit_mesh(name):
    key, x = inputs()
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Explicit,))
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("batch")))
    assert_same(jax.jit(CASES[name])(key, sharded), expected(name))
