"""The Linen layers add state and PRNG keys to the pure functions, and nothing else."""

import dataclasses
import functools
import itertools

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dropcluster_jax as dc
from dropcluster_jax.clustering.state import cluster_sizes
from dropcluster_jax.linen import (
    CorrDrop,
    Cutout,
    DropBlock,
    DropCluster,
    Dropout,
    DropPath,
    FocusedDropout,
    SpatialDropout,
    cluster_inputs,
    cluster_states,
    init_clusters,
    resize_clusters,
)


@dataclasses.dataclass(frozen=True)
class Levels:
    """A clusterer that compiles fast: clusters of unequal size, by the rank of the mean response.

    Unlike k-means, it ignores previous labels, so that every update on different data changes them.
    """

    num_clusters: int = 4
    per_channel: bool = False

    def init(self, shape):
        return dc.Grid(num_clusters=self.num_clusters, per_channel=self.per_channel).init(shape)

    def update(self, state, x, axis_name=None):
        mean = jnp.mean(x.astype(jnp.float32), axis=0)
        mean = mean if axis_name is None else jax.lax.pmean(mean, axis_name)
        mean = mean if self.per_channel else jnp.mean(mean, axis=-1, keepdims=True)
        flat = mean.reshape(-1, mean.shape[-1])
        rank = jnp.argsort(jnp.argsort(flat, axis=0), axis=0) / len(flat)
        labels = (rank**2 * self.num_clusters).astype(jnp.int32).reshape(state.labels.shape)
        explained = 1 / (1 + jnp.mean(flat**2, axis=0))
        return dc.ClusterState(
            labels, cluster_sizes(labels, self.num_clusters), explained, state.num_updates + 1, state.num_skipped
        )


SHAPE = (16, 4, 4, 3)
SHARED = Levels()
PER_CHANNEL = Levels(per_channel=True)
KEY = jax.random.key(11)

# Layer class, required arguments, and pure function.
LAYERS = {
    "Dropout": (Dropout, {}, dc.dropout),
    "SpatialDropout": (SpatialDropout, {}, dc.spatial_dropout),
    "DropPath": (DropPath, {}, dc.drop_path),
    "Cutout": (Cutout, {}, dc.cutout),
    "DropBlock": (DropBlock, {"block_size": 2}, dc.drop_block),
    "CorrDrop": (CorrDrop, {"block_size": 2}, dc.corr_drop),
    "FocusedDropout": (FocusedDropout, {}, dc.focused_dropout),
    "DropCluster": (DropCluster, {"clusterer": SHARED}, dc.drop_cluster),
}
every_layer = pytest.mark.parametrize("kind", LAYERS)


def make(kind, **arguments):
    layer, defaults, _ = LAYERS[kind]
    return layer(**defaults | arguments)


def rate_of(kind, rate):
    """Returns a rate at which the layer drops units with any key: FocusedDropout drops in a fraction of the calls."""
    return 1.0 if kind == "FocusedDropout" else rate


def activations(seed=0, shape=SHAPE, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def update(clusterer, state, x):
    return jax.jit(clusterer.update)(state, x)


@functools.cache
def learned(clusterer=SHARED):
    """Returns clusters after one update."""
    with jax.ensure_compile_time_eval():  # the result is cached, and the first caller may be traced
        return update(clusterer, clusterer.init(SHAPE[1:]), activations())


def clusters_of(state):
    return {"clusters": state._asdict()}


def variables_of(kind):
    return clusters_of(learned()) if kind == "DropCluster" else {}


@functools.cache
def compiled(layer, mutable=False, **static):
    """Returns the jitted `layer.apply`, with `static` arguments as Python values."""

    def apply(variables, x, rngs=None, **traced):
        return layer.apply(variables, x, rngs=rngs, mutable=mutable, **static, **traced)

    return jax.jit(apply)


def same_bits(actual, expected):
    """Whether two trees of arrays are the same bit for bit, including dtypes."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    pairs = list(zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True))
    assert pairs
    return all(
        a.dtype == b.dtype and a.shape == b.shape and np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for a, b in pairs
    )


def assert_close(actual, expected):
    """Checks that integers are equal and floats are equal up to rounding."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        exact = not jnp.issubdtype(a.dtype, jnp.floating)
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0 if exact else 1e-5, atol=0 if exact else 1e-5)


@every_layer
def test_traced_rates_of_nan_give_nan(kind):
    y = compiled(make(kind), deterministic=False)(variables_of(kind), activations(), rate=jnp.nan, rng=KEY)
    assert jnp.isnan(y).all()


# Deterministic mode


@every_layer
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_deterministic_layers_are_the_identity_without_a_key(kind, dtype):
    values = np.array(activations(dtype=dtype))
    values.flat[:4] = [-0.0, np.inf, np.nan, 1e-40]
    x = jnp.asarray(values)
    for layer, arguments in [
        (make(kind), {"deterministic": True}),
        (make(kind, deterministic=True), {}),
        (make(kind, deterministic=True, rate=1.0), {}),
    ]:
        assert same_bits(layer.apply(variables_of(kind), x, **arguments), x)


@pytest.mark.parametrize("shape", [(2, 5, 3), (2, 8, 6, 3), (2, 4, 4, 7), (1, 2, 2, 2, 1)])
def test_deterministic_drop_cluster_accepts_any_resolution_without_clusters(shape):
    x = activations(shape=shape)
    for variables in ({}, clusters_of(learned()), clusters_of(learned(PER_CHANNEL))):
        assert same_bits(DropCluster(SHARED).apply(variables, x, deterministic=True), x)


@every_layer
@pytest.mark.parametrize("rate", [0, 0.0])
def test_a_python_rate_of_0_is_the_identity_without_a_key(kind, rate):
    x = activations().at[0, 0, 0, 0].set(-0.0)
    assert same_bits(make(kind, rate=rate).apply(variables_of(kind), x, deterministic=False), x)
    assert same_bits(make(kind, deterministic=False).apply(variables_of(kind), x, rate=rate), x)


@every_layer
def test_layers_drop_if_not_deterministic(kind):
    """Otherwise the comparisons below would pass for the identity."""
    rate = rate_of(kind, 0.5)
    y = compiled(make(kind), deterministic=False)(variables_of(kind), activations(), rate=rate, rng=KEY)
    assert 0.2 < (y == 0).mean() < 0.8


# Arguments


@every_layer
def test_arguments_of_the_constructor_and_the_call_are_equivalent(kind):
    arguments = {"rate": rate_of(kind, 0.4), "deterministic": False}

    def apply(x, call_names):
        layer = make(kind, **{name: value for name, value in arguments.items() if name not in call_names})
        return layer.apply(variables_of(kind), x, **{name: arguments[name] for name in call_names}, rng=KEY)

    splits = ((), ("rate",), ("rate", "deterministic"))
    outputs = jax.jit(lambda x: [apply(x, call_names) for call_names in splits])(activations())
    assert all(same_bits(y, outputs[0]) for y in outputs[1:]) and (outputs[0] == 0).any()


def test_update_clusters_of_the_constructor_and_the_call_are_equivalent():
    before, x = clusters_of(learned()), activations(1)
    by_call = compiled(DropCluster(SHARED), "clusters", update_clusters=True, deterministic=True)(before, x)
    by_constructor = compiled(DropCluster(SHARED, update_clusters=True, deterministic=True), "clusters")(before, x)
    assert same_bits(by_call, by_constructor) and by_call[1]["clusters"]["num_updates"] == 2


TWICE = [(kind, name, value) for kind in LAYERS for name, value in [("rate", 0.5), ("deterministic", False)]]


@pytest.mark.bad_input
@pytest.mark.parametrize(("kind", "name", "value"), [*TWICE, ("DropCluster", "update_clusters", False)])
def test_arguments_passed_twice_raise(kind, name, value):
    """Even if both values are the same, or False."""
    layer = make(kind, **{"rate": 0.5, "deterministic": False, name: value})
    with pytest.raises(ValueError, match=f'"{name}" was passed to the constructor and at call time'):
        layer.apply(variables_of(kind), activations(), **{name: value}, rng=KEY)


@every_layer
@pytest.mark.bad_input
@pytest.mark.parametrize("name", ["rate", "deterministic"])
def test_missing_arguments_raise(kind, name):
    arguments = {"rate": 0.5, "deterministic": False}
    del arguments[name]
    with pytest.raises(ValueError, match=f'"{name}" must be passed to the constructor or at call time'):
        make(kind, **arguments).apply(variables_of(kind), activations(), rng=KEY)


# PRNG keys


@functools.cache
def outputs(kind, *options):
    """Returns the outputs of the layer and of the pure function."""
    options, variables = dict(options), variables_of(kind)
    _, defaults, pure = LAYERS[kind]
    defaults = {"state": learned()} if kind == "DropCluster" else defaults

    @jax.jit
    def both(x, rate):
        layer_output = make(kind, **options).apply(variables, x, rate=rate, deterministic=False, rng=KEY)
        return layer_output, pure(KEY, x, rate, **defaults | options)

    return both(activations(), rate_of(kind, 0.4))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *((kind, {}) for kind in LAYERS),
        ("Dropout", {"rescale": "kept"}),
        ("SpatialDropout", {"rescale": "kept"}),
        ("DropBlock", {"rescale": "rate"}),
        ("DropBlock", {"block_size": 3}),
        ("DropBlock", {"per_channel": True}),
        ("CorrDrop", {"variant": "channel"}),
        ("CorrDrop", {"block_size": 1}),
        ("CorrDrop", {"rescale": "rate"}),
        ("FocusedDropout", {"threshold_range": (0.1, 0.2)}),
        ("FocusedDropout", {"rescale": "kept"}),
        ("DropCluster", {"rescale": "rate"}),
        ("DropCluster", {"min_explained_variance": 1.0}),
    ],
)
def test_layers_pass_all_options_to_the_pure_function(kind, options):
    """With `rng`, layers need no `rngs`. Each option changes the output."""
    y, expected = outputs(kind, *options.items())
    assert same_bits(y, expected)
    assert not options or not same_bits(y, outputs(kind)[0])


def test_drop_cluster_uses_the_clusters_of_its_collection():
    """Including per-channel clusters that the clusterer itself would not create."""
    layer = compiled(DropCluster(SHARED), deterministic=False)
    pure = jax.jit(dc.drop_cluster)
    for state in (learned(), learned(PER_CHANNEL), SHARED.init(SHAPE[1:])):
        y = layer(clusters_of(state), activations(), rate=0.4, rng=KEY)
        assert same_bits(y, pure(KEY, activations(), 0.4, state))


@every_layer
def test_keys_come_from_rng_collection(kind):
    x, variables, other, rate = activations(), variables_of(kind), jax.random.key(12), rate_of(kind, 0.4)
    default = compiled(make(kind, rate=rate), deterministic=False)
    named = compiled(make(kind, rate=rate, rng_collection="noise"), deterministic=False)
    y = default(variables, x, {"dropout": KEY, "noise": other})
    assert same_bits(named(variables, x, {"noise": KEY, "dropout": other}), y)
    assert not same_bits(named(variables, x, {"noise": other, "dropout": KEY}), y)


@every_layer
@pytest.mark.bad_input
def test_missing_keys_raise(kind):
    for collection, rngs in [("dropout", None), ("dropout", {"noise": KEY}), ("noise", {"dropout": KEY})]:
        layer = make(kind, rate=0.5, rng_collection=collection)
        with pytest.raises(flax.errors.InvalidRngError, match=f'needs PRNG for "{collection}"'):
            layer.apply(variables_of(kind), activations(), deterministic=False, rngs=rngs)


@every_layer
def test_layers_and_calls_draw_different_masks(kind):
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            arguments = {"rate": rate_of(kind, 0.5), "deterministic": False}
            first, second = (make(kind, **arguments, name=name) for name in ("first", "second"))
            return first(x), first(x), second(x)

    clusters = {"clusters": dict.fromkeys(("first", "second"), learned()._asdict())}
    outputs = compiled(Twice())(clusters, activations(), {"dropout": KEY})
    assert not any(same_bits(*pair) for pair in itertools.combinations(outputs, 2))


# Clusters


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("clusterer", [dc.KMeans(num_clusters=4), PER_CHANNEL, dc.Grid(cluster_size=8)])
def test_init_creates_the_grid_and_does_not_update(clusterer, deterministic):
    x, grid = activations(), clusters_of(clusterer.init(SHAPE[1:]))
    arguments = {"rate": 0.5, "deterministic": deterministic}
    assert same_bits(DropCluster(clusterer).init(KEY, x, **arguments), grid)
    assert same_bits(DropCluster(clusterer).init(KEY, x, **arguments, update_clusters=True), grid)
    assert same_bits(DropCluster(clusterer, **arguments, update_clusters=True).init(KEY, x), grid)


@pytest.mark.parametrize(("clusterer", "groups"), [(SHARED, 1), (PER_CHANNEL, 5)])
@pytest.mark.parametrize(("spatial", "dtype"), [((12,), jnp.float32), ((2, 3, 2), jnp.bfloat16)])
def test_clusters_are_plain_arrays_of_the_documented_shapes(clusterer, groups, spatial, dtype):
    layer = DropCluster(clusterer, deterministic=True)
    x = activations(shape=(8, *spatial, 5), dtype=dtype)
    variables = layer.init(KEY, x)
    _, updated = compiled(layer, "clusters", update_clusters=True)(variables, x)
    for tree in (variables, updated):
        assert set(tree) == {"clusters"} and type(tree["clusters"]) is dict
        assert all(isinstance(leaf, jax.Array) for leaf in tree["clusters"].values())
        assert {name: (leaf.shape, leaf.dtype.name) for name, leaf in tree["clusters"].items()} == {
            "labels": ((*spatial, groups), "int32"),
            "sizes": ((4, groups), "int32"),
            "explained_variance": ((groups,), "float32"),
            "num_updates": ((), "int32"),
            "num_skipped": ((), "int32"),
        }


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("update_clusters", [None, False])
def test_clusters_do_not_change_without_an_update(deterministic, update_clusters):
    before, x = clusters_of(learned()), activations(1)
    layer = DropCluster(SHARED, rate=0.5, update_clusters=update_clusters)
    _, after = compiled(layer, True, deterministic=deterministic)(before, x, {"dropout": KEY})
    assert same_bits(after, before)
    assert (update(SHARED, learned(), x).labels != learned().labels).any()  # an update would change them


def test_updates_match_the_clusterer():
    """The first update, a warm-started one, and a skipped one."""
    clusterer = dc.KMeans(num_clusters=4, iterations=1, per_channel=True)
    layer = DropCluster(clusterer, deterministic=True)
    apply = jax.jit(lambda variables, x: layer.apply(variables, x, update_clusters=True, mutable=["clusters"]))
    update_state = jax.jit(clusterer.update)
    state = clusterer.init(SHAPE[1:])
    for x in (activations(1), activations(2), activations(3).at[3, 2, 1, 0].set(jnp.nan)):
        y, after = apply(clusters_of(state), x)
        state = update_state(state, x)
        assert_close(after, clusters_of(state))
        assert same_bits(y, x)
    assert state.num_updates == 2 and state.num_skipped == 1


@pytest.mark.bad_input
@pytest.mark.parametrize("mutable", [False, ["batch_stats"]])
def test_updating_an_immutable_collection_raises(mutable):
    layer = DropCluster(SHARED, update_clusters=True, deterministic=True)
    apply = jax.jit(lambda variables: layer.apply(variables, activations(), mutable=mutable))
    with pytest.raises(flax.errors.ModifyScopeVariableError, match="clusters"):
        apply(clusters_of(learned()))


def test_a_call_that_updates_and_drops_uses_the_new_clusters():
    x, layer = activations(1), DropCluster(SHARED, rate=0.5, deterministic=False)
    y, after = compiled(layer, "clusters", update_clusters=True)(clusters_of(learned()), x, rng=KEY)
    masked = compiled(layer)
    assert_close(after, clusters_of(update(SHARED, learned(), x)))
    assert same_bits(y, masked(after, x, rng=KEY))
    assert not same_bits(y, masked(clusters_of(learned()), x, rng=KEY))


# In networks


def test_layers_in_sequential():
    """`nn.Sequential` passes arguments of the call only to its first layer."""
    kinds = ["Dropout", "CorrDrop", "DropCluster"]
    drops = [make(kind, rate=0.3, deterministic=False) for kind in kinds]
    model = nn.Sequential((nn.Dense(3), *drops))
    x = activations()
    variables = jax.jit(lambda x: model.init(KEY, x))(x)
    y, state = compiled(model, "intermediates", capture_intermediates=True)(variables, x, {"dropout": KEY})
    steps = [state["intermediates"][f"layers_{i}"]["__call__"][0] for i in range(len(model.layers))]
    for before, after in itertools.pairwise(steps):
        assert (after[before == 0] == 0).all() and (after == 0).sum() > (before == 0).sum()
    assert same_bits(y, steps[-1]) and set(variables["clusters"]) == {"layers_3"}


class Tower(nn.Module):
    """Layers between two dense layers, optionally in `nn.remat`."""

    kinds: tuple[str, ...]
    remat: bool

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(3)(x))
        for kind in self.kinds:
            layer, arguments, _ = LAYERS[kind]
            layer = nn.remat(layer) if self.remat else layer
            x = layer(**arguments, rate=rate_of(kind, 0.3), deterministic=False, name=kind)(x)
        return nn.Dense(2)(x)


@pytest.mark.parametrize(
    "kinds",
    [
        pytest.param(("Dropout", "DropCluster"), marks=pytest.mark.optimized),
        pytest.param(tuple(LAYERS), marks=pytest.mark.slow),
    ],
    ids=len,
)
def test_remat_recomputes_the_same_masks(kinds):
    def loss(params, x, clusters, model):
        y = model.apply({"params": params, **clusters}, x, rngs={"dropout": KEY})
        return jnp.sum(y**2), y

    x, clusters = activations(), {"clusters": {"DropCluster": learned()._asdict()}}
    params = jax.jit(Tower(kinds, False).init)(jax.random.key(1), x)["params"]
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True), static_argnums=3)
    plain, remat = (gradient(params, x, clusters, Tower(kinds, remat)) for remat in (False, True))
    assert_close(plain, remat)
    assert all(leaf.any() for leaf in jax.tree.leaves(remat))


def test_init_update_and_drop_work_in_remat():
    x, arguments = activations(1), {"rate": 0.5, "deterministic": False, "update_clusters": True}
    plain, remat = (layer(SHARED, **arguments) for layer in (DropCluster, nn.remat(DropCluster)))
    assert same_bits(jax.jit(remat.init)(KEY, x), clusters_of(SHARED.init(SHAPE[1:])))
    plain, remat = (compiled(layer, "clusters")(clusters_of(learned()), x, rng=KEY) for layer in (plain, remat))
    assert_close(plain, remat)
    assert (remat[0] == 0).any() and remat[1]["clusters"]["num_updates"] == 2


DEPTH = 3


class Step(nn.Module):
    """One layer of a deep network, in the form required by `nn.scan`."""

    deterministic: bool = True
    update_clusters: bool = False

    @nn.compact
    def __call__(self, x, _):
        x = nn.Dense(3, bias_init=nn.initializers.ones)(x)  # dropped units are not 0 afterwards
        x = DropCluster(SHARED, 0.5, self.deterministic, self.update_clusters, name="drop")(x)
        return x, x


Deep = nn.scan(
    Step,
    variable_axes={"params": 0, "clusters": 0},
    split_rngs={"params": True, "dropout": True},
    length=DEPTH,
)


@functools.cache
def deep():
    """Returns the initial variables, the variables after an update, and the inputs of the update."""

    def init_and_update(x):
        variables = Deep(update_clusters=True).init(KEY, x, None)
        (_, outputs), state = Deep(update_clusters=True).apply(variables, x, None, mutable="clusters")
        return variables, {**variables, **state}, outputs

    return jax.jit(init_and_update)(activations(1))


def index_leaves(tree, i):
    return jax.tree.map(lambda leaf: leaf[i], tree)


def test_scan_initializes_each_layer_with_the_grid():
    first, _, _ = deep()
    for i in range(DEPTH):
        assert same_bits(index_leaves(first["clusters"]["drop"], i), SHARED.init(SHAPE[1:])._asdict())


def test_scan_updates_each_layer_on_its_own_input():
    _, variables, outputs = deep()
    clusters = variables["clusters"]["drop"]
    for i in range(DEPTH):
        assert_close(index_leaves(clusters, i), update(SHARED, SHARED.init(SHAPE[1:]), outputs[i])._asdict())
    assert all((a != b).any() for a, b in itertools.combinations(clusters["labels"], 2))


def test_scan_draws_different_masks_for_each_layer():
    _, variables, _ = deep()
    apply = jax.jit(functools.partial(Deep(deterministic=False).apply, rngs={"dropout": KEY}))
    _, outputs = apply(variables, activations(1), None)
    draws = []
    for labels, mask in zip(variables["clusters"]["drop"]["labels"], np.asarray((outputs != 0).any(-1)), strict=True):
        members = [mask[:, np.asarray(labels)[..., 0] == cluster] for cluster in range(4)]
        draws.append(np.stack([member[:, 0] for member in members]))
        assert all((member == member[:, :1]).all() for member in members)
        assert draws[-1].any() and not draws[-1].all()
    assert all((a != b).any() for a, b in itertools.combinations(draws, 2))


class Block(nn.Module):
    """A dense layer, BatchNorm, and optionally DropCluster."""

    clusterer: dc.Clusterer
    drop: bool

    @nn.compact
    def __call__(self, x, **arguments):
        x = nn.BatchNorm(use_running_average=True)(nn.Dense(3)(x))
        return DropCluster(self.clusterer, name="drop")(x, **arguments) if self.drop else x


class Net(nn.Module):
    """Two nested blocks with shared and per-channel clusters at two resolutions."""

    drop: bool = True

    @nn.compact
    def __call__(self, x, **arguments):
        x = Block(SHARED, self.drop, name="first")(x, **arguments)
        return Block(PER_CHANNEL, self.drop, name="second")(x[:, ::2, ::2], **arguments)


def test_vmap_over_seeds_matches_a_loop():
    x, net = activations(), Block(SHARED, True)

    def init_update_and_drop(key):
        variables = net.init(key, x, deterministic=True)
        _, state = net.apply(variables, x, deterministic=True, update_clusters=True, mutable=["clusters"])
        y = net.apply({**variables, **state}, x, rate=0.4, deterministic=False, rngs={"dropout": key})
        return variables, state, y

    keys = jax.random.split(KEY, 3)
    batched, single = jax.jit(jax.vmap(init_update_and_drop))(keys), jax.jit(init_update_and_drop)
    for i, key in enumerate(keys):
        assert_close(index_leaves(batched, i), single(key))
    labels, outputs = batched[1]["clusters"]["drop"]["labels"], batched[2]
    assert (labels[0] != labels[1]).any() and ((outputs[0] == 0) != (outputs[1] == 0)).any()


# Modules as static arguments


@every_layer
def test_equal_options_give_equal_modules_and_hashes(kind):
    arguments = {"rate": 0.2, "deterministic": False, "rescale": "rate"}
    different = {"rate": 0.3, "deterministic": True, "rescale": "kept", "rng_collection": "noise"}
    if kind == "DropBlock":
        different |= {"block_size": 3, "per_channel": True}
    if kind == "DropCluster":
        arguments |= {"axis_name": "batch"}
        different |= {"clusterer": dc.KMeans(num_clusters=3), "axis_name": None, "update_clusters": True}

    def build(**options):
        clusterer = {"clusterer": dc.KMeans(num_clusters=4)} if kind == "DropCluster" else {}
        return make(kind, **arguments | clusterer | options)

    assert build() is not build() and build() == build() and hash(build()) == hash(build())
    for name, value in different.items():
        assert build(**{name: value}) != build()


@every_layer
def test_equal_layers_and_new_rates_do_not_retrace(kind):
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def run(layer, variables, x, rate):
        traces.append(layer)
        return layer.apply(variables, x, rate=rate, deterministic=False, rng=KEY)

    arguments = {"clusterer": Levels()} if kind == "DropCluster" else {}
    outputs = [run(make(kind, **arguments), variables_of(kind), activations(), rate) for rate in (0.0, 0.5, 1.0)]
    assert len(traces) == 1
    assert same_bits(outputs[0], activations()) and outputs[1].any()
    assert outputs[2].any() == (kind == "FocusedDropout")


# Multiple devices


@pytest.mark.parametrize(
    "clusterer", [PER_CHANNEL, pytest.param(dc.KMeans(num_clusters=4, iterations=1), marks=pytest.mark.slow)]
)
def test_updates_with_an_axis_name_match_one_device(clusterer):
    devices, spec = 4, jax.sharding.PartitionSpec
    mesh = jax.make_mesh(
        (devices,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices]
    )
    x = activations(shape=(64, 6, 6, 3))

    def apply_update(layer, variables, x):
        return layer.apply(variables, x, deterministic=True, update_clusters=True, mutable="clusters")

    sharded = jax.shard_map(
        functools.partial(apply_update, DropCluster(clusterer, axis_name="batch")),
        mesh=mesh,
        in_specs=(spec(), spec("batch")),
        out_specs=(spec("batch"), spec()),
    )
    before = clusters_of(clusterer.init(x.shape[1:]))
    single = jax.jit(functools.partial(apply_update, DropCluster(clusterer)))
    y, after = jax.jit(sharded)(before, x)
    actual, expected = after["clusters"], single(before, x)[1]["clusters"]
    assert (actual["labels"] == expected["labels"]).mean() >= 0.999
    assert jnp.allclose(actual["explained_variance"], expected["explained_variance"], atol=1e-4)
    assert actual["num_updates"] == expected["num_updates"] == 1 and same_bits(y, x)
    half_batch = single(before, x.at[32:].set(x[:32]))[1]["clusters"]
    assert (half_batch["labels"] != expected["labels"]).mean() > 0.2  # the whole batch matters


# Gradients


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind == "DropCluster" else pytest.mark.slow) for kind in LAYERS]
)
def test_gradient_is_the_mask_times_the_factor(kind):
    layer, variables = make(kind, rate=rate_of(kind, 0.4), deterministic=False), variables_of(kind)
    x, weights = activations(1), activations(2)
    factor = compiled(layer)(variables, x, rng=KEY) / x  # 0 where dropped
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(weights * layer.apply(variables, x, rng=KEY))))(x)
    np.testing.assert_allclose(gradient, factor * weights, rtol=1e-6)
    assert (factor == 0).any() and (factor >= 1).any()


def test_no_gradient_flows_through_the_update():
    """Gradients are the same whether the clusters are updated in this call or before it."""
    clusterer = dc.KMeans(num_clusters=4, iterations=1)
    model = nn.Sequential((nn.Conv(2, (2, 2)), DropCluster(clusterer, rate=0.4, deterministic=False)))
    updating = model.clone(layers=(model.layers[0], model.layers[1].clone(update_clusters=True)))
    x = activations(1)
    variables = jax.jit(lambda x: model.init(KEY, x))(x)

    def loss(params, clusters, x, model):
        variables = {"params": params, "clusters": clusters}
        y, state = model.apply(variables, x, rngs={"dropout": KEY}, mutable="clusters")
        return jnp.mean(y**2), state["clusters"]

    gradient = jax.jit(jax.grad(loss, argnums=(0, 2), has_aux=True), static_argnums=3)
    with_update, clusters = gradient(variables["params"], variables["clusters"], x, updating)
    without_update, unchanged = gradient(variables["params"], clusters, x, model)
    assert same_bits(unchanged, clusters) and clusters["layers_1"]["num_updates"] == 1
    assert all(jnp.isfinite(leaf).all() and leaf.any() for leaf in jax.tree.leaves(with_update))
    assert_close(with_update, without_update)


# Dtypes


@every_layer
def test_bfloat16_is_preserved(kind):
    x, variables = activations(dtype=jnp.bfloat16), variables_of(kind)
    layer = make(kind, rate=rate_of(kind, 0.4), deterministic=False)

    def loss(x):
        y = layer.apply(variables, x, rng=KEY)
        return y.astype(jnp.float32).sum(), y

    gradient, y = jax.eval_shape(jax.grad(loss, has_aux=True), x)
    assert y.dtype == gradient.dtype == jnp.bfloat16


# init_clusters


def images(*spatial):
    return activations(3, (16, *spatial, 2))


@functools.cache
def trained():
    """Returns variables of `Net` for maps of 6 x 6, after one update."""

    def init_and_update(x):
        variables = Net().init(KEY, x, deterministic=True)
        _, state = Net().apply(variables, x, deterministic=True, update_clusters=True, mutable=["clusters"])
        return {
            **variables,
            **state,
            "batch_stats": jax.tree.map(lambda leaf: leaf + 0.5, variables["batch_stats"]),
        }

    return jax.jit(init_and_update)(images(6, 6))


def without_clusters():
    return {name: trained()[name] for name in ("params", "batch_stats")}


@pytest.mark.parametrize("container", [dict, flax.core.freeze])
def test_init_clusters_adds_a_grid_to_each_layer(container):
    pretrained = container(without_clusters())
    variables = init_clusters(Net(), pretrained, images(6, 6), deterministic=True)
    assert set(variables) == {"params", "batch_stats", "clusters"} and set(pretrained) == {"params", "batch_stats"}
    grids = {
        "first": {"drop": SHARED.init((6, 6, 3))._asdict()},
        "second": {"drop": PER_CHANNEL.init((3, 3, 3))._asdict()},
    }
    assert same_bits(variables["clusters"], grids)
    assert same_bits({name: variables[name] for name in pretrained}, dict(pretrained))


def test_init_clusters_makes_a_pretrained_network_run():
    x = images(6, 6)
    pretrained = jax.jit(functools.partial(Net(drop=False).init, KEY))(x)
    assert "clusters" not in pretrained
    variables = init_clusters(Net(), pretrained, x, deterministic=True)
    y = compiled(Net(), deterministic=False)(variables, x, {"dropout": KEY}, rate=0.5)
    assert 0.2 < (y == 0).mean() < 0.9
    assert_close(compiled(Net(), deterministic=True)(variables, x), compiled(Net(drop=False))(pretrained, x))


@pytest.mark.parametrize(("kept", "added"), [("first", "second"), ("second", "first")])
def test_init_clusters_keeps_existing_clusters(kept, added):
    clusters = {kept: trained()["clusters"][kept]}
    variables = init_clusters(Net(), {**trained(), "clusters": clusters}, images(6, 6), deterministic=True)
    assert set(variables["clusters"]) == {kept, added} and set(clusters) == {kept}
    assert same_bits(variables["clusters"][kept], trained()["clusters"][kept])
    assert (
        variables["clusters"][kept]["drop"]["num_updates"] == 1
        and variables["clusters"][added]["drop"]["num_updates"] == 0
    )


def test_init_clusters_without_missing_clusters_changes_nothing():
    assert same_bits(init_clusters(Net(), trained(), images(6, 6), deterministic=True), trained())


def test_init_clusters_passes_arguments_to_the_model():
    grid = clusters_of(SHARED.init(SHAPE[1:]))
    assert same_bits(init_clusters(DropCluster(SHARED), {}, activations(), 0.5, False), grid)
    assert same_bits(init_clusters(DropCluster(SHARED), {}, activations(), rate=0.5, deterministic=True), grid)


@pytest.mark.bad_input
@pytest.mark.parametrize("arguments", [{"deterministic": False}, {"deterministic": True, "update_clusters": True}])
def test_missing_clusters_raise(arguments):
    arguments |= {"rate": 0.5, "mutable": "clusters", "rngs": {"dropout": KEY}}
    with pytest.raises(ValueError, match=r"first/drop has no clusters.*init_clusters\(model, variables, x\)"):
        Net().apply(without_clusters(), images(6, 6), **arguments)
    with pytest.raises(ValueError, match=r"this layer has no clusters.*init_clusters\(model, variables, x\)"):
        DropCluster(SHARED).apply({}, activations(), **arguments)


# cluster_inputs and cluster_states


def test_inputs_and_states_of_all_layers():
    inputs = cluster_inputs(Net(), trained(), images(6, 6), deterministic=True)
    states = cluster_states(trained()["clusters"])
    assert {path: x.shape for path, x in inputs.items()} == {"first/drop": (16, 6, 6, 3), "second/drop": (16, 3, 3, 3)}
    assert {path: len(state.labels) for path, state in states.items()} == {"first/drop": 6, "second/drop": 3}
    assert states["second/drop"].num_updates == 1


def test_inputs_of_layers_in_remat():
    class Remat(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.remat(DropCluster)(Levels(), deterministic=True, name="drop")(2 * x)

    x = images(6, 6)
    variables = jax.jit(Remat().init)(KEY, x)
    assert same_bits(cluster_inputs(Remat(), variables, x)["drop"], 2 * x)


# resize_clusters


def test_resize_clusters_makes_a_network_run_at_another_resolution():
    spatial, half = (4, 9), (2, 5)  # one side shrinks, one grows
    x = images(*spatial)
    variables = resize_clusters(Net(), trained(), x, deterministic=True)
    for name, shape in {"first": (*spatial, 1), "second": (*half, 3)}.items():
        old, new = (dc.ClusterState(**tree["clusters"][name]["drop"]) for tree in (trained(), variables))
        assert same_bits(new, jax.jit(dc.resize_clusters, static_argnums=1)(old, shape[:-1]))
        assert new.labels.shape == shape and new.sizes.shape == old.sizes.shape == (4, shape[-1])
        assert (new.sizes.sum(0) == np.prod(shape[:-1])).all() and new.num_updates == 1
    assert same_bits({name: variables[name] for name in without_clusters()}, without_clusters())
    y, state = compiled(Net(), "clusters", deterministic=False, update_clusters=True)(
        variables, x, {"dropout": KEY}, rate=0.5
    )
    assert y.shape == (16, *half, 3) and 0.2 < (y == 0).mean() < 0.95
    assert all(state["clusters"][name]["drop"]["num_updates"] == 2 for name in ("first", "second"))


def test_resize_clusters_to_the_same_resolution_changes_nothing():
    assert same_bits(resize_clusters(Net(), trained(), images(6, 6), deterministic=True), trained())


def test_resize_clusters_resizes_each_layer_of_a_scan():
    _, before, _ = deep()
    x = activations(shape=(2, 6, 5, 3))
    variables = resize_clusters(Deep(), before, x, None)
    for i in range(DEPTH):
        old = dc.ClusterState(**index_leaves(before["clusters"]["drop"], i))
        assert same_bits(index_leaves(variables["clusters"]["drop"], i), dc.resize_clusters(old, (6, 5))._asdict())
    apply = jax.jit(functools.partial(Deep(deterministic=False).apply, rngs={"dropout": KEY}))
    assert (apply(variables, x, None)[0] == 0).any()


@pytest.mark.parametrize("container", [dict, flax.core.freeze])
def test_a_layer_may_be_named_labels(container):
    """Although that is also the name of a variable of the layer."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return DropCluster(SHARED, deterministic=True, name="labels")(x)

    variables = container({"clusters": {"labels": learned()._asdict()}})
    clusters = resize_clusters(Model(), variables, activations(shape=(2, 6, 5, 3)))["clusters"]
    assert same_bits(clusters["labels"], dc.resize_clusters(learned(), (6, 5))._asdict())
    assert same_bits(init_clusters(Model(), variables, activations())["clusters"]["labels"], learned()._asdict())


@pytest.mark.bad_input
@pytest.mark.parametrize("arguments", [{"deterministic": False}, {"deterministic": True, "update_clusters": True}])
@pytest.mark.parametrize("clusterer", [dc.KMeans(num_clusters=4), dc.KMeans(num_clusters=4, per_channel=True)])
def test_clusters_of_another_resolution_raise(clusterer, arguments):
    variables, x = clusters_of(clusterer.init(SHAPE[1:])), activations(shape=(2, 6, 5, 3))
    layer = DropCluster(clusterer, rate=0.5)
    with pytest.raises(ValueError, match=r"\(4, 4\), got shape \(2, 6, 5, 3\).*resize_clusters\(model, variables, x\)"):
        layer.apply(variables, x, **arguments, mutable="clusters", rng=KEY)


# Invalid arguments


@every_layer
@pytest.mark.bad_input
@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan")])
def test_rates_outside_0_and_1_raise(kind, rate):
    for layer, arguments in [(make(kind, rate=rate), {}), (make(kind), {"rate": rate})]:
        with pytest.raises(ValueError, match=rf"rate must be in \[0, 1\], got {rate}"):
            layer.apply(variables_of(kind), activations(), deterministic=False, **arguments, rng=KEY)


@every_layer
@pytest.mark.bad_input
def test_invalid_inputs_raise(kind):
    layer = make(kind, rate=0.5, deterministic=False)
    with pytest.raises(TypeError, match="x must have a floating-point dtype, got int32"):
        layer.apply(variables_of(kind), jnp.ones(SHAPE, jnp.int32), rng=KEY)
    if kind not in ("Dropout", "DropPath"):
        with pytest.raises(ValueError, match=r"x must have shape .*spatial.*, got \(2, 3\)"):
            layer.apply(variables_of(kind), jnp.ones((2, 3)), rng=KEY)


@every_layer
@pytest.mark.bad_input
def test_unknown_rescale_raises(kind):
    with pytest.raises(ValueError, match=r"rescale must be one of 'kept', ('rate', )?'batch', 'none', got 'mean'"):
        layer = make(kind, rescale="mean", rate=0.5, deterministic=False)
        jax.eval_shape(lambda x: layer.apply(variables_of(kind), x, rng=KEY), activations())


@pytest.mark.bad_input
def test_block_larger_than_the_map_raises():
    with pytest.raises(ValueError, match=r"block_size must be in \[1, 4\] for a map of shape \(4, 4\), got 7"):
        DropBlock(rate=0.5, deterministic=False).apply({}, activations(), rng=KEY)


@pytest.mark.bad_input
@pytest.mark.parametrize("clusterer", [dc.KMeans(num_clusters=17), dc.Grid(num_clusters=17, per_channel=True)])
def test_more_clusters_than_positions_raise(clusterer):
    with pytest.raises(ValueError, match=r"num_clusters must be .*16.*17"):
        DropCluster(clusterer, deterministic=True).init(KEY, activations())


@pytest.mark.bad_input
def test_another_number_of_channels_raises():
    layer = DropCluster(PER_CHANNEL, rate=0.5, deterministic=False)
    with pytest.raises(ValueError, match=r"5 channels.*3"):
        layer.apply(clusters_of(learned(PER_CHANNEL)), activations(shape=(2, 4, 4, 5)), rng=KEY)


@pytest.mark.bad_input
def test_deterministic_in_place_of_the_rate_raises():
    """The order of arguments differs from that of `flax.linen.Dropout`."""
    with pytest.raises(TypeError, match=r"rate must be a number in .*, got False"):
        SpatialDropout(deterministic=False).apply({}, activations(), False, rngs={"dropout": KEY})


@pytest.mark.bad_input
def test_invalid_clusterer_raises():
    with pytest.raises(TypeError, match=r"clusterer must be a clusterer such as KMeans\(num_clusters=16\), got 16"):
        DropCluster(16, deterministic=True).init(KEY, activations())


@pytest.mark.bad_input
def test_resize_clusters_without_clusters_raises():
    model = DropCluster(SHARED, deterministic=True, name="drop")
    with pytest.raises(ValueError, match=r"clusters for exactly the DropCluster layers of the model.*init_clusters"):
        resize_clusters(model, {"params": {}}, activations())


@pytest.mark.bad_input
@pytest.mark.parametrize("layer", [Dropout(0.1), SpatialDropout(0.1), DropBlock(0.1, block_size=3)])
def test_integer_inputs_raise_even_if_deterministic(layer):
    with pytest.raises(TypeError, match="x must have a floating-point dtype, got int32"):
        layer.apply({}, jnp.ones((2, 4, 4, 3), jnp.int32), deterministic=True)


class ScanBlock(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return DropCluster(SHARED, deterministic=True, name="drop")(2 * x), None


class Scanned(nn.Module):
    """A layer before a scan over three, whose inputs are returned if `visible`."""

    visible: bool

    @nn.compact
    def __call__(self, x, train: bool = True):
        x = DropCluster(SHARED, deterministic=not train, name="stem")(x, rate=0.5)
        axes = {"clusters": 0, **({"intermediates": 0} if self.visible else {})}
        return nn.scan(ScanBlock, variable_axes=axes, split_rngs={}, length=3)(name="blocks")(x, None)[0]


def test_inputs_inside_of_a_scan_are_found_or_named():
    """The model's call trains by default."""
    x = activations()
    variables = Scanned(True).init(jax.random.key(0), x, train=False)
    inputs = cluster_inputs(Scanned(True), variables, x)
    assert set(inputs) == set(cluster_states(variables["clusters"])) == {"stem", "blocks/drop"}
    assert (inputs["stem"] == x).all() and (inputs["blocks/drop"] == jnp.stack([2 * x, 4 * x, 8 * x])).all()
    with pytest.raises(ValueError, match=r'inputs of blocks/drop are unknown.*"intermediates": 0'):
        cluster_inputs(Scanned(False), variables, x)
