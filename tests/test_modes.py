"""Every public function of arrays works in the modes of JAX: dtypes, keys, transformations, checks, and meshes.

Tests of types only trace the functions, so they run for all of them. Tests of values compile the functions of a group
as one program, because compilation dominates their run time.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import export
from jax.sharding import NamedSharding, PartitionSpec

import dropcluster_jax as dc
from dropcluster_jax import clustering, data, linen, masking, testing, training
from dropcluster_jax import nnx as nnx_layers
from dropcluster_jax.data import augment, mixing

BATCH, SHAPE, RATE = 8, (6, 6, 3), 0.4
SHARED, PER_CHANNEL = (dc.Grid(num_clusters=5, per_channel=per_channel).init(SHAPE) for per_channel in (False, True))
EXPLAINED = PER_CHANNEL._replace(explained_variance=jnp.array([0.1, 0.5, 0.9]))


# Functions of a key and activations


def drop(function, **options):
    return lambda key, x: function(key, x, RATE, **options)


def linen_layer(layer):
    variables = {"clusters": SHARED._asdict()} if isinstance(layer, linen.DropCluster) else {}
    return lambda key, x: layer.apply(variables, x, rate=RATE, deterministic=False, rng=key)


def nnx_layer(make, *arguments, **options):
    return lambda key, x: make(*arguments, **options)(x, rate=RATE, rngs=key)


def update_nnx_layer(key, x):
    layer = nnx_layers.DropCluster(dc.Grid(num_clusters=5), SHAPE)
    layer.update_clusters(x)
    return nnx.to_pure_dict(nnx.state(layer))


CLUSTER_LAYER = linen.DropCluster(dc.Grid(num_clusters=5), deterministic=True)
CLUSTER_VARIABLES = {"clusters": SHARED._asdict()}


def nnx_mc_predict(key, x):
    layer = nnx_layers.Dropout(0.3, deterministic=False, rngs=nnx.Rngs(0))
    return nnx_layers.mc_predict(layer, x.astype(jnp.float32), key, 3)


def mc_predict(key, x):
    def apply(variables, x, rngs):
        return dc.dropout(rngs["dropout"], x, 0.5).mean((1, 2), dtype=jnp.float32)

    return dc.mc_predict(apply, {}, x.astype(jnp.float32), key, 3)


def update(clusterer):
    """Returns a function that runs a first update and a warm one."""

    def update_twice(key, x):
        state = clusterer.init(x.shape[1:])
        return jax.lax.fori_loop(0, 2, lambda _, state: clusterer.update(state, x), state)

    return update_twice


def mix(function):
    def apply(key, x):
        labels = jnp.zeros((x.shape[0], 3), x.dtype).at[:, 0].set(1)
        return function(key, x, labels, 0.7)

    return apply


def to_uint8(x):
    return (x.astype(jnp.float32) * 40 + 100).astype(jnp.uint8)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train, rate=0.0, update_clusters=False):
        x = nn.tanh(nn.Dense(4)(x))
        x = linen.DropCluster(dc.Grid(num_clusters=5))(x, rate, not train, update_clusters)
        return nn.Dense(3)(x.mean((1, 2)))


def train(key, x):
    """Runs each of the steps once."""
    batch = {"image": x.astype(jnp.float32), "label": jnp.ones(x.shape[0], jnp.int32)}
    steps = training.make_steps(Net(), optax.sgd(0.1, momentum=0.9), rate=training.ramp(RATE, 0, 1), ema_decay=0.9)
    state = steps.init(key, batch)
    state, metrics = steps.train(state, batch)
    state = steps.update_clusters(state, batch)
    return state._replace(key=()), metrics, steps.evaluate(state, batch)


DROPS = {
    "dropout": drop(dc.dropout),
    "dropout kept": drop(dc.dropout, rescale="kept"),
    "spatial_dropout": drop(dc.spatial_dropout),
    "spatial_dropout batch": drop(dc.spatial_dropout, rescale="batch"),
    "drop_path": drop(dc.drop_path),
    "drop_block": drop(dc.drop_block, block_size=3),
    "drop_block paper": drop(dc.drop_block, block_size=2, seeding="paper", per_channel=True),
    "cutout": drop(dc.cutout),
    "cutout kept": drop(dc.cutout, rescale="kept", per_channel=True),
    "corr_drop": drop(dc.corr_drop, block_size=2),
    "corr_drop channel": drop(dc.corr_drop, variant="channel"),
    "focused_dropout": drop(dc.focused_dropout),
    "focused_dropout kept": drop(dc.focused_dropout, rescale="kept"),
    "drop_cluster": drop(dc.drop_cluster, state=SHARED),
    "drop_cluster per channel": drop(dc.drop_cluster, state=PER_CHANNEL, min_explained_variance=0.0),
    "drop_cluster batch": drop(dc.drop_cluster, state=SHARED, rescale="batch", per_channel=True),
    "drop_cluster explained": drop(dc.drop_cluster, state=EXPLAINED, min_explained_variance=0.4),
}
LAYER_OPTIONS = {
    **{name: {} for name in ("Dropout", "SpatialDropout", "DropPath", "Cutout", "FocusedDropout")},
    "DropBlock": {"block_size": 3},
    "CorrDrop": {"block_size": 2},
}
LAYERS = {
    **{f"linen.{name}": linen_layer(getattr(linen, name)(**options)) for name, options in LAYER_OPTIONS.items()},
    "linen.DropCluster": linen_layer(linen.DropCluster(dc.Grid(num_clusters=5))),
    **{f"nnx.{name}": nnx_layer(getattr(nnx_layers, name), **options) for name, options in LAYER_OPTIONS.items()},
    "nnx.DropCluster": nnx_layer(nnx_layers.DropCluster, dc.Grid(num_clusters=5), SHAPE),
}
MASKS = {
    "dropout_mask": drop(dc.dropout_mask),
    "spatial_dropout_mask": drop(dc.spatial_dropout_mask),
    "drop_path_mask": drop(dc.drop_path_mask),
    "drop_block_mask": drop(dc.drop_block_mask, block_size=3),
    "cutout_mask": drop(dc.cutout_mask),
    "corr_drop_mask": drop(dc.corr_drop_mask, block_size=2),
    "focused_dropout_mask": drop(dc.focused_dropout_mask),
    "drop_cluster_mask": drop(dc.drop_cluster_mask, state=SHARED),
}
CLUSTERERS = {
    "Grid": update(dc.Grid(num_clusters=5)),
    "KMeans": update(dc.KMeans(num_clusters=5)),
    "KMeans per channel": update(dc.KMeans(num_clusters=5, per_channel=True, spatial_weight=0.3)),
    "ReNA": update(dc.ReNA(num_clusters=5)),
    "ReNA per channel": update(dc.ReNA(num_clusters=5, per_channel=True)),
    "Voronoi": update(clustering.Voronoi(num_clusters=5)),
    "Voronoi per channel": update(clustering.Voronoi(num_clusters=5, per_channel=True)),
    "Shuffled": update(clustering.Shuffled(dc.KMeans(num_clusters=5))),
    "linen.DropCluster update": lambda key, x: CLUSTER_LAYER.apply(
        CLUSTER_VARIABLES, x, update_clusters=True, mutable="clusters"
    )[1],
    "nnx.DropCluster update": update_nnx_layer,
}
METRICS = {
    "explained_variance": lambda key, x: clustering.explained_variance(PER_CHANNEL.labels, x, 5),
    "adjusted_rand_index": lambda key, x: clustering.adjusted_rand_index(SHARED.labels, SHARED.labels[::-1]),
    "is_connected": lambda key, x: clustering.is_connected(PER_CHANNEL.labels, 5),
    "cluster_sizes": lambda key, x: clustering.cluster_sizes(PER_CHANNEL.labels, 5),
    "resize_clusters": lambda key, x: dc.resize_clusters(SHARED, (4, 9)),
    "linen.resize_clusters": lambda key, x: linen.resize_clusters(CLUSTER_LAYER, CLUSTER_VARIABLES, x[:, :4]),
    "linen.init_clusters": lambda key, x: linen.init_clusters(CLUSTER_LAYER, {}, x),
    "linen.cluster_inputs": lambda key, x: linen.cluster_inputs(CLUSTER_LAYER, CLUSTER_VARIABLES, x),
    "linen.cluster_states": lambda key, x: linen.cluster_states({"drop": SHARED._asdict()}),
}
IMAGES = {
    "random_flip": data.random_flip,
    "random_shift": functools.partial(data.random_shift, pixels=2),
    "random_cutout": functools.partial(data.random_cutout, side=3),
    "random_cutout filled": lambda key, x: data.random_cutout(key, to_uint8(x), 3, np.array([1, 2, 3], np.uint8)),
    "random_resized_crop": functools.partial(data.random_resized_crop, area=(0.1, 0.9)),
    "mixup": mix(data.mixup),
    "cutmix": mix(data.cutmix),
    "normalize": lambda key, x: data.normalize(to_uint8(x), (0.5, 0.4, 0.3), np.array([0.2, 0.3, 0.4])),
}
OTHERS = {
    "softmax_cross_entropy": lambda key, x: training.softmax_cross_entropy(
        x.astype(jnp.float32).mean((1, 2)), jnp.ones(x.shape[0], jnp.int32)
    ),
    "mc_predict": mc_predict,
    "nnx.mc_predict": nnx_mc_predict,
}
PRESERVE_DTYPE = {*DROPS, *LAYERS, "random_flip", "random_shift", "random_cutout", "random_resized_crop"}
PRESERVE_DTYPE |= {"mixup", "cutmix", "linen.cluster_inputs"}
CASES = DROPS | LAYERS | MASKS | CLUSTERERS | METRICS | IMAGES | OTHERS | {"make_steps": train}
GROUPS = {
    "few": ["dropout", "drop_cluster per channel", "corr_drop", "explained_variance", "random_shift"],
    "masks": [*DROPS, *LAYERS, *MASKS],
    "clusters": [*CLUSTERERS, *METRICS],
    "others": [*IMAGES, *OTHERS],
    "training": ["make_steps"],
}


def with_cases(arguments, fast, slow):
    return pytest.mark.parametrize(arguments, [*fast, *(pytest.param(*case, marks=pytest.mark.slow) for case in slow)])


def with_groups(*names, marks_of_few=()):
    """Parametrizes a test over groups of functions, of which only the few run in `make test`."""
    few = pytest.param("few", marks=marks_of_few)
    return with_cases("group", fast=[few], slow=[(name,) for name in names])


def test_all_public_functions_are_covered():
    public = {name for module in (dc, clustering, masking) for name in module.__all__}
    public |= {f"linen.{name}" for name in linen.__all__} | {f"nnx.{name}" for name in nnx_layers.__all__}
    public |= {name for module in (augment, mixing) for name in vars(module) if name in data.__all__}
    public |= {"make_steps", "softmax_cross_entropy"}
    covered = {name.split()[0] for name in CASES}
    others = {"ClusterState", "Clusterer", "MonteCarloPrediction", "nnx.ClusterVariable"}
    assert public - covered == others | {"linen.insert_after", "nnx.insert_after"}


# Types


def inputs(dtype=jnp.float32):
    return jax.random.key(0), jax.random.normal(jax.random.key(1), (BATCH, *SHAPE), jnp.float32).astype(dtype)


@contextlib.contextmanager
def strict_x64():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


def check_all(check: Callable[[str], None], names: Iterable[str] = CASES) -> None:
    """Calls `check(name)` for all functions, and raises all errors at the end."""
    errors = []
    for name in names:
        try:
            check(name)
        except Exception as error:
            error.add_note(f"In {name}.")
            errors.append(error)
    if errors:
        raise ExceptionGroup("some functions fail", errors)


def types_of(tree):
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]


@pytest.fixture(scope="module")
def expected_types():
    return {name: types_of(jax.eval_shape(function, *inputs())) for name, function in CASES.items()}


@pytest.mark.slow
def test_no_tracer_leaks():
    arguments = inputs()
    jax.clear_caches()  # because jitted functions that were traced before are not checked
    with jax.checking_leaks():
        check_all(lambda name: jax.eval_shape(CASES[name], *arguments))


def test_types_in_x64_with_strict_promotion(expected_types):
    def check(name):
        assert types_of(jax.eval_shape(CASES[name], *arguments)) == expected_types[name]

    arguments = inputs()
    with strict_x64():
        check_all(check)


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_types_with_old_and_new_keys(implementation, expected_types):
    def check(name):
        for make in (jax.random.key, jax.random.PRNGKey):
            assert types_of(jax.eval_shape(CASES[name], make(0), x)) == expected_types[name]

    _, x = inputs()
    with jax.default_prng_impl(implementation):
        check_all(check)


@with_cases("dtype", fast=["bfloat16", "float8_e4m3fn", "float64"], slow=[("float16",), ("float8_e5m2",)])
def test_types_of_other_dtypes(dtype, expected_types):
    def check(name):
        structure, types = expected_types[name]
        if name in PRESERVE_DTYPE:
            types = [(shape, jnp.dtype(dtype)) for shape, _ in types]
        assert types_of(jax.eval_shape(CASES[name], *arguments)) == (structure, types)

    with jax.enable_x64(dtype == "float64"):
        arguments = inputs(dtype)
        check_all(check)


def test_types_under_vmap(expected_types):
    def check(name):
        structure, types = expected_types[name]
        batched = types_of(jax.eval_shape(jax.vmap(CASES[name]), jax.random.split(key, 2), jnp.stack([x, x])))
        assert batched == (structure, [((2, *shape), dtype) for shape, dtype in types])

    key, x = inputs()
    check_all(check)


def symbolic_inputs(key):
    (batch,) = export.symbolic_shape("batch")
    return jax.ShapeDtypeStruct((), key.dtype), jax.ShapeDtypeStruct((batch, *SHAPE), jnp.float32)


@pytest.mark.bad_input  # a symbolic size is not an int
def test_types_with_a_symbolic_batch_size():
    arguments = symbolic_inputs(jax.random.key(0))
    check_all(lambda name: jax.eval_shape(CASES[name], *arguments))


# Values


def joint(group):
    """Returns a function of the results of all functions of the group."""
    return lambda key, x: {name: CASES[name](key, x) for name in GROUPS[group]}


@functools.cache
def compiled(group):
    return jax.jit(joint(group))


@functools.cache
def expected(group):
    return jax.tree.map(np.asarray, compiled(group)(*inputs()))


def assert_same(results, expected):
    """Checks dtypes, shapes and values; floating-point numbers up to rounding, which depends on the program."""

    def check(name):
        assert types_of(results[name]) == types_of(expected[name])
        for leaf, reference in zip(jax.tree.leaves(results[name]), jax.tree.leaves(expected[name]), strict=True):
            if jnp.issubdtype(leaf.dtype, jnp.floating):
                np.testing.assert_allclose(leaf, reference, rtol=1e-4, atol=1e-5)
            else:
                np.testing.assert_array_equal(leaf, reference)

    check_all(check, expected)


@with_groups("masks", "clusters", "others")
def test_x64_strict_promotion(group):
    arguments, reference = inputs(), expected(group)
    with strict_x64():
        assert_same(compiled(group)(*arguments), reference)


@pytest.mark.slow
@pytest.mark.parametrize("group", ["masks", "clusters", "others", "training"])
def test_eager_with_debug_nans(group):
    key, x = inputs()
    reference = expected(group)
    with jax.debug_nans(True):
        check_all(lambda name: assert_same({name: CASES[name](key, x)}, {name: reference[name]}), GROUPS[group])


@with_groups("masks", "clusters", "others", "training", marks_of_few=pytest.mark.optimized)
def test_vmap(group):
    key, x = inputs()
    keys, xs = jax.random.split(key, 2), jnp.stack([x, x[::-1] + 1])
    results = [compiled(group)(keys[i], xs[i]) for i in range(2)]
    assert_same(jax.jit(jax.vmap(joint(group)))(keys, xs), jax.tree.map(lambda *leaves: np.stack(leaves), *results))


@with_groups("masks", "clusters", "others", "training")
@pytest.mark.bad_input  # a symbolic size is not an int
def test_exported_functions(group, monkeypatch):
    """On a machine with a CPU only, because no algorithm asks for the backend."""
    key, x = inputs()
    reference = expected(group)
    monkeypatch.setattr(jax, "default_backend", lambda: pytest.fail("it is not the platform that is compiled for"))
    exported = export.export(jax.jit(joint(group)), platforms=("cpu", "tpu", "cuda"))(*symbolic_inputs(key))
    assert_same(exported.call(key, x), reference)


@with_cases(
    "group, implementation",
    fast=[("few", "threefry2x32")],
    slow=[("masks", "threefry2x32"), ("others", "threefry2x32"), ("masks", "rbg")],
)
def test_old_and_new_keys(group, implementation):
    _, x = inputs()
    with jax.default_prng_impl(implementation):
        old, new = (compiled(group)(make(0), x) for make in (jax.random.PRNGKey, jax.random.key))
        assert_same(old, jax.tree.map(np.asarray, new))


@with_cases(
    "group, dtype",
    fast=[("few", "bfloat16"), ("few", "float64")],
    slow=[
        *((group, dtype) for group in ("masks", "clusters", "others") for dtype in ("bfloat16", "float64")),
        *((group, "float8_e4m3fn") for group in ("masks", "others")),
        ("masks", "float16"),
    ],
)
def test_dtypes(group, dtype):
    with jax.enable_x64(dtype == "float64"):
        key, x = inputs(dtype)
        results = compiled(group)(key, x)
    reference = compiled(group)(key, jnp.asarray(x, jnp.float32))

    def check(name):
        for leaf, expected_leaf in zip(jax.tree.leaves(results[name]), jax.tree.leaves(reference[name]), strict=True):
            actual, rounded = np.asarray(leaf), np.asarray(expected_leaf).astype(leaf.dtype)
            if name in PRESERVE_DTYPE:
                assert actual.dtype == jnp.dtype(dtype)
            np.testing.assert_allclose(actual.astype(np.float64), rounded.astype(np.float64), rtol=1e-5, atol=1e-6)

    check_all(check, results)


@with_groups("masks", "clusters", "others", marks_of_few=pytest.mark.optimized)
def test_explicit_mesh(group):
    key, x = inputs()
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Explicit,))
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("batch")))
    assert_same(compiled(group)(key, sharded), expected(group))


# Functions that cannot be compiled


ASSERTIONS = {
    "assert_constant_within_clusters": lambda x: testing.assert_constant_within_clusters(
        DROPS["drop_cluster"], x, SHARED.labels
    ),
    "assert_mean_preserved": lambda x: testing.assert_mean_preserved(DROPS["dropout"], x),
    "assert_pure": lambda x: testing.assert_pure(DROPS["dropout"], x),
    "assert_rate": lambda x: testing.assert_rate(DROPS["dropout"], x, RATE),
    "assert_sum_preserved": lambda x: testing.assert_sum_preserved(DROPS["dropout kept"], x),
}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["x64", "debug_nans and leaks", "rbg"])
def test_assertions(mode):
    _, x = inputs()
    modes = {"x64": strict_x64, "debug_nans and leaks": debug_nans_and_leaks, "rbg": rbg}
    with modes[mode]():
        check_all(lambda name: ASSERTIONS[name](x), ASSERTIONS)


@contextlib.contextmanager
def debug_nans_and_leaks():
    with jax.debug_nans(True), jax.checking_leaks():
        yield


@contextlib.contextmanager
def rbg():
    with jax.default_prng_impl("rbg"):
        yield


@pytest.mark.slow
def test_corruptions():
    """For x64 and strict promotion, see `test_corruptions.py`."""
    images = np.asarray(to_uint8(jax.random.normal(jax.random.key(1), (2, 8, 8, 3))))

    def check(name):
        expected = data.corrupt(name, 3, jax.random.key(0), images)
        assert (data.corrupt(name, 3, jax.random.PRNGKey(0), images) == expected).all()
        with debug_nans_and_leaks():
            assert (data.corrupt(name, 3, jax.random.key(0), images) == expected).all()
        rbg_key = jax.random.key(0, impl="rbg")
        assert data.corrupt(name, 3, rbg_key, images).shape == images.shape

    check_all(check, data.CORRUPTIONS)
