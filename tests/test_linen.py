"""Laws of the layers: they add state and keys to the pure functions, and nothing else."""

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
    Cutout,
    DropBlock,
    DropCluster,
    Dropout,
    DropPath,
    SpatialDropout,
    init_clusters,
    resize_clusters,
)


@dataclasses.dataclass(frozen=True)
class Levels:
    """A clusterer that compiles at once: unequal parts of the positions, by the rank of their mean response.

    Unlike k-means it forgets its labels, so that every update on other data shows.
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

# Every layer with the arguments it must have here, and the function that it is made of.
LAYERS = {
    "Dropout": (Dropout, {}, dc.dropout),
    "SpatialDropout": (SpatialDropout, {}, dc.spatial_dropout),
    "DropPath": (DropPath, {}, dc.drop_path),
    "Cutout": (Cutout, {}, dc.cutout),
    "DropBlock": (DropBlock, {"block_size": 2}, dc.drop_block),
    "DropCluster": (DropCluster, {"clusterer": SHARED}, dc.drop_cluster),
}
every_layer = pytest.mark.parametrize("kind", LAYERS)


def make(kind, **arguments):
    layer, own, _ = LAYERS[kind]
    return layer(**own | arguments)


def activations(seed=0, shape=SHAPE, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def learn(clusterer, state, x):
    return jax.jit(clusterer.update)(state, x)


@functools.cache
def learned(clusterer=SHARED):
    """Clusters that are no grid any more."""
    return learn(clusterer, clusterer.init(SHAPE[1:]), activations())


def clusters_of(state):
    return {"clusters": state._asdict()}


def variables_of(kind):
    return clusters_of(learned()) if kind == "DropCluster" else {}


@functools.cache
def compiled(layer, mutable=False, **static):
    """`layer.apply`, jitted; `static` are arguments of the call that stay Python values."""

    def apply(variables, x, rngs=None, **traced):
        return layer.apply(variables, x, rngs=rngs, mutable=mutable, **static, **traced)

    return jax.jit(apply)


def same_bits(one, other):
    """Whether two trees of arrays are the same, down to types and signs of zeros."""
    (ones, tree), (others, other_tree) = jax.tree.flatten(one), jax.tree.flatten(other)
    assert tree == other_tree and tree.num_leaves
    return all(
        a.dtype == b.dtype and a.shape == b.shape and np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for a, b in zip(ones, others, strict=True)
    )


def assert_close(one, other):
    """The same whole numbers, and floats that are the same up to rounding."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        exact = not jnp.issubdtype(a.dtype, jnp.floating)
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0 if exact else 1e-5, atol=0 if exact else 1e-5)


# The identity


@every_layer
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_deterministic_layer_is_the_identity_bit_for_bit_and_needs_no_key(kind, dtype):
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
def test_a_deterministic_drop_cluster_needs_no_clusters_and_takes_any_resolution(shape):
    x = activations(shape=shape)
    for variables in ({}, clusters_of(learned()), clusters_of(learned(PER_CHANNEL))):
        assert same_bits(DropCluster(SHARED).apply(variables, x, deterministic=True), x)


@every_layer
@pytest.mark.parametrize("rate", [0, 0.0])
def test_at_a_rate_that_python_knows_to_be_zero_a_layer_is_the_identity_and_needs_no_key(kind, rate):
    x = activations().at[0, 0, 0, 0].set(-0.0)
    assert same_bits(make(kind, rate=rate).apply(variables_of(kind), x, deterministic=False), x)
    assert same_bits(make(kind, deterministic=False).apply(variables_of(kind), x, rate=rate), x)


@every_layer
def test_a_layer_that_is_not_deterministic_does_drop(kind):
    """Else every equality below would hold of the identity, too."""
    y = compiled(make(kind), deterministic=False)(variables_of(kind), activations(), rate=0.5, rng=KEY)
    assert 0.2 < (y == 0).mean() < 0.8


# Arguments


@every_layer
def test_every_argument_is_given_at_construction_or_at_call(kind):
    arguments = {"rate": 0.4, "deterministic": False}
    answers = []
    for at_call in ((), ("rate",), ("rate", "deterministic")):
        layer = make(kind, **{name: value for name, value in arguments.items() if name not in at_call})
        called = {name: arguments[name] for name in at_call}
        answers.append(layer.apply(variables_of(kind), activations(), **called, rng=KEY))
    assert all(same_bits(answer, answers[0]) for answer in answers[1:]) and (answers[0] == 0).any()


def test_an_update_is_asked_for_at_construction_or_at_call():
    before, x = clusters_of(learned()), activations(1)
    called = compiled(DropCluster(SHARED), "clusters", update_clusters=True, deterministic=True)(before, x)
    built = compiled(DropCluster(SHARED, update_clusters=True, deterministic=True), "clusters")(before, x)
    assert same_bits(called, built) and called[1]["clusters"]["num_updates"] == 2


TWICE = [(kind, name, value) for kind in LAYERS for name, value in [("rate", 0.5), ("deterministic", False)]]


@pytest.mark.bad_input
@pytest.mark.parametrize(("kind", "name", "value"), [*TWICE, ("DropCluster", "update_clusters", False)])
def test_an_argument_given_twice_is_refused(kind, name, value):
    """Even the same value twice; even False, which is not None."""
    layer = make(kind, **{"rate": 0.5, "deterministic": False, name: value})
    with pytest.raises(ValueError, match=f'"{name}" was passed to the constructor and at call time'):
        layer.apply(variables_of(kind), activations(), **{name: value}, rng=KEY)


@every_layer
@pytest.mark.bad_input
@pytest.mark.parametrize("name", ["rate", "deterministic"])
def test_an_argument_never_given_is_refused(kind, name):
    arguments = {"rate": 0.5, "deterministic": False}
    del arguments[name]
    with pytest.raises(ValueError, match=f'"{name}" must be passed to the constructor or at call time'):
        make(kind, **arguments).apply(variables_of(kind), activations(), rng=KEY)


# Keys


@functools.cache
def pure_answer(kind, *settings):
    """What the function gives, under the same compiler."""
    _, own, pure = LAYERS[kind]
    own = {"state": learned()} if kind == "DropCluster" else own
    return jax.jit(lambda x, rate: pure(KEY, x, rate, **own | dict(settings)))(activations(), 0.4)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        *((kind, {}) for kind in LAYERS),
        ("Dropout", {"rescale": "kept"}),
        ("SpatialDropout", {"rescale": "kept"}),
        ("DropBlock", {"rescale": "rate"}),
        ("DropBlock", {"block_size": 3}),
        ("DropBlock", {"per_channel": True}),
        ("DropCluster", {"rescale": "rate"}),
        ("DropCluster", {"min_explained": 1.0}),
    ],
)
def test_with_an_explicit_key_a_layer_is_its_pure_function_with_the_layers_settings(kind, settings):
    """No `rngs` are needed; and each setting matters, so that none can be lost on the way."""
    y = compiled(make(kind, **settings), deterministic=False)(variables_of(kind), activations(), rate=0.4, rng=KEY)
    assert same_bits(y, pure_answer(kind, *settings.items()))
    assert not settings or not same_bits(y, pure_answer(kind))


def test_drop_cluster_drops_the_clusters_of_its_collection():
    """Per channel where they are, whatever the clusterer would make of them."""
    layer = compiled(DropCluster(SHARED), deterministic=False)
    pure = jax.jit(dc.drop_cluster)
    for state in (learned(), learned(PER_CHANNEL), SHARED.init(SHAPE[1:])):
        y = layer(clusters_of(state), activations(), rate=0.4, rng=KEY)
        assert same_bits(y, pure(KEY, activations(), 0.4, state))


@every_layer
def test_the_keys_come_from_the_collection_named(kind):
    x, variables, other = activations(), variables_of(kind), jax.random.key(12)
    usual = compiled(make(kind, rate=0.4), deterministic=False)
    named = compiled(make(kind, rate=0.4, rng_collection="noise"), deterministic=False)
    y = usual(variables, x, {"dropout": KEY, "noise": other})
    assert same_bits(named(variables, x, {"noise": KEY, "dropout": other}), y)
    assert not same_bits(named(variables, x, {"noise": other, "dropout": KEY}), y)


@every_layer
@pytest.mark.bad_input
def test_without_a_key_flax_says_which_is_wanted(kind):
    for collection, rngs in [("dropout", None), ("dropout", {"noise": KEY}), ("noise", {"dropout": KEY})]:
        layer = make(kind, rate=0.5, rng_collection=collection)
        with pytest.raises(flax.errors.InvalidRngError, match=f'needs PRNG for "{collection}"'):
            layer.apply(variables_of(kind), activations(), deterministic=False, rngs=rngs)


@every_layer
def test_two_layers_draw_differently_and_so_do_two_calls_of_one(kind):
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            one, other = (make(kind, rate=0.5, deterministic=False, name=name) for name in ("one", "other"))
            return one(x), one(x), other(x)

    clusters = {"clusters": dict.fromkeys(("one", "other"), learned()._asdict())}
    answers = compiled(Twice())(clusters, activations(), {"dropout": KEY})
    assert not any(same_bits(*pair) for pair in itertools.combinations(answers, 2))


# State


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("clusterer", [dc.KMeans(num_clusters=4), PER_CHANNEL, dc.Grid(cluster_size=8)])
def test_init_lays_the_clusterers_grid_and_never_updates(clusterer, deterministic):
    x, grid = activations(), clusters_of(clusterer.init(SHAPE[1:]))
    arguments = {"rate": 0.5, "deterministic": deterministic}
    assert same_bits(DropCluster(clusterer).init(KEY, x, **arguments), grid)
    assert same_bits(DropCluster(clusterer).init(KEY, x, **arguments, update_clusters=True), grid)
    assert same_bits(DropCluster(clusterer, **arguments, update_clusters=True).init(KEY, x), grid)


@pytest.mark.parametrize(("clusterer", "groups"), [(SHARED, 1), (PER_CHANNEL, 5)])
@pytest.mark.parametrize(("spatial", "dtype"), [((12,), jnp.float32), ((2, 3, 2), jnp.bfloat16)])
def test_the_state_lies_as_plain_arrays_of_the_documented_shapes(clusterer, groups, spatial, dtype):
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
def test_clusters_change_by_an_update_alone_and_not_by_being_mutable(deterministic, update_clusters):
    before, x = clusters_of(learned()), activations(1)
    layer = DropCluster(SHARED, rate=0.5, update_clusters=update_clusters)
    _, after = compiled(layer, True, deterministic=deterministic)(before, x, {"dropout": KEY})
    assert same_bits(after, before)
    assert (learn(SHARED, learned(), x).labels != learned().labels).any()  # an update would show


def test_an_update_is_exactly_the_clusterers():
    """Cold, warm, and where it refuses the activations."""
    clusterer = dc.KMeans(num_clusters=4, iterations=1, per_channel=True)
    layer = DropCluster(clusterer, deterministic=True)
    apply = jax.jit(lambda variables, x: layer.apply(variables, x, update_clusters=True, mutable=["clusters"]))
    update = jax.jit(clusterer.update)
    state = clusterer.init(SHAPE[1:])
    for x in (activations(1), activations(2), activations(3).at[3, 2, 1, 0].set(jnp.nan)):
        y, after = apply(clusters_of(state), x)
        state = update(state, x)
        assert_close(after, clusters_of(state))
        assert same_bits(y, x)
    assert state.num_updates == 2 and state.num_skipped == 1


@pytest.mark.bad_input
@pytest.mark.parametrize("mutable", [False, ["batch_stats"]])
def test_an_update_of_a_collection_that_is_not_mutable_is_flaxs_error(mutable):
    layer = DropCluster(SHARED, update_clusters=True, deterministic=True)
    apply = jax.jit(lambda variables: layer.apply(variables, activations(), mutable=mutable))
    with pytest.raises(flax.errors.ModifyScopeVariableError, match="clusters"):
        apply(clusters_of(learned()))


def test_an_update_and_a_drop_in_one_call_drop_the_new_clusters():
    x, layer = activations(1), DropCluster(SHARED, rate=0.5, deterministic=False)
    y, after = compiled(layer, "clusters", update_clusters=True)(clusters_of(learned()), x, rng=KEY)
    masked = compiled(layer)
    assert_close(after, clusters_of(learn(SHARED, learned(), x)))
    assert same_bits(y, masked(after, x, rng=KEY))
    assert not same_bits(y, masked(clusters_of(learned()), x, rng=KEY))


# In networks


def test_layers_live_in_sequential():
    """Which hands arguments of the call to its first layer alone."""
    model = nn.Sequential((nn.Dense(3), *(make(kind, rate=0.3, deterministic=False) for kind in LAYERS)))
    x = activations()
    variables = jax.jit(lambda x: model.init(KEY, x))(x)
    y, state = compiled(model, "intermediates", capture_intermediates=True)(variables, x, {"dropout": KEY})
    steps = [state["intermediates"][f"layers_{i}"]["__call__"][0] for i in range(len(model.layers))]
    for before, after in itertools.pairwise(steps):
        assert (after[before == 0] == 0).all() and (after == 0).sum() > (before == 0).sum()
    assert same_bits(y, steps[-1]) and set(variables["clusters"]) == {f"layers_{1 + list(LAYERS).index('DropCluster')}"}


class Tower(nn.Module):
    """All layers between two matrices, each in `nn.remat` or not."""

    remat: bool

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(3)(x))
        for kind, (layer, own, _) in LAYERS.items():
            layer = nn.remat(layer) if self.remat else layer
            x = layer(**own, rate=0.3, deterministic=False, name=kind)(x)
        return nn.Dense(2)(x)


def test_remat_changes_no_mask_and_no_gradient():
    """Recomputed in the backward pass, each mask is that of the forward pass."""

    def loss(params, x, clusters, model):
        y = model.apply({"params": params, **clusters}, x, rngs={"dropout": KEY})
        return jnp.sum(y**2), y

    x, clusters = activations(), {"clusters": {"DropCluster": learned()._asdict()}}
    params = jax.jit(Tower(False).init)(jax.random.key(1), x)["params"]
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True), static_argnums=3)
    plain, remat = (gradient(params, x, clusters, Tower(remat)) for remat in (False, True))
    assert_close(plain, remat)
    assert all(leaf.any() for leaf in jax.tree.leaves(remat))


def test_inside_remat_init_update_and_drop_are_the_same():
    x, arguments = activations(1), {"rate": 0.5, "deterministic": False, "update_clusters": True}
    plain, remat = (layer(SHARED, **arguments) for layer in (DropCluster, nn.remat(DropCluster)))
    assert same_bits(jax.jit(remat.init)(KEY, x), clusters_of(SHARED.init(SHAPE[1:])))
    plain, remat = (compiled(layer, "clusters")(clusters_of(learned()), x, rng=KEY) for layer in (plain, remat))
    assert_close(plain, remat)
    assert (remat[0] == 0).any() and remat[1]["clusters"]["num_updates"] == 2


DEPTH = 3


class Step(nn.Module):
    """One layer of a deep network, as `nn.scan` wants it: carry and input in, carry and output out."""

    deterministic: bool = True
    update_clusters: bool = False

    @nn.compact
    def __call__(self, x, _):
        x = nn.Dense(3, bias_init=nn.initializers.ones)(x)  # what was dropped is not 0 after it
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
    """The variables at first, those after an update, and the outputs of the layers that were learned from."""

    def run(x):
        variables = Deep(update_clusters=True).init(KEY, x, None)
        (_, outputs), state = Deep(update_clusters=True).apply(variables, x, None, mutable="clusters")
        return variables, {**variables, **state}, outputs

    return jax.jit(run)(activations(1))


def of_layer(tree, i):
    return jax.tree.map(lambda leaf: leaf[i], tree)


def test_under_scan_every_layer_starts_from_the_grid():
    first, _, _ = deep()
    for i in range(DEPTH):
        assert same_bits(of_layer(first["clusters"]["drop"], i), SHARED.init(SHAPE[1:])._asdict())


def test_under_scan_an_update_gives_each_layer_clusters_of_its_own_activations():
    _, variables, outputs = deep()
    clusters = variables["clusters"]["drop"]
    for i in range(DEPTH):
        assert_close(of_layer(clusters, i), learn(SHARED, SHARED.init(SHAPE[1:]), outputs[i])._asdict())
    assert all((one != other).any() for one, other in itertools.combinations(clusters["labels"], 2))


def test_under_scan_each_layer_drops_its_own_clusters_by_draws_of_its_own():
    _, variables, _ = deep()
    apply = jax.jit(functools.partial(Deep(deterministic=False).apply, rngs={"dropout": KEY}))
    _, outputs = apply(variables, activations(1), None)
    draws = []
    for labels, mask in zip(variables["clusters"]["drop"]["labels"], np.asarray((outputs != 0).any(-1)), strict=True):
        members = [mask[:, np.asarray(labels)[..., 0] == cluster] for cluster in range(4)]
        draws.append(np.stack([member[:, 0] for member in members]))
        assert all((member == member[:, :1]).all() for member in members)
        assert draws[-1].any() and not draws[-1].all()
    assert all((one != other).any() for one, other in itertools.combinations(draws, 2))


class Block(nn.Module):
    """A matrix, BatchNorm, and clusters of what they give."""

    clusterer: dc.Clusterer
    drop: bool

    @nn.compact
    def __call__(self, x, **arguments):
        x = nn.BatchNorm(use_running_average=True)(nn.Dense(3)(x))
        return DropCluster(self.clusterer, name="drop")(x, **arguments) if self.drop else x


class Net(nn.Module):
    """Clusters at two nested places, of two kinds, on maps of two resolutions; or at none."""

    drop: bool = True

    @nn.compact
    def __call__(self, x, **arguments):
        x = Block(SHARED, self.drop, name="first")(x, **arguments)
        return Block(PER_CHANNEL, self.drop, name="second")(x[:, ::2, ::2], **arguments)


def test_vmap_over_seeds_equals_a_loop():
    x, net = activations(), Block(SHARED, True)

    def life(key):
        variables = net.init(key, x, deterministic=True)
        _, state = net.apply(variables, x, deterministic=True, update_clusters=True, mutable=["clusters"])
        y = net.apply({**variables, **state}, x, rate=0.4, deterministic=False, rngs={"dropout": key})
        return variables, state, y

    keys = jax.random.split(KEY, 3)
    together, alone = jax.jit(jax.vmap(life))(keys), jax.jit(life)
    for i, key in enumerate(keys):
        assert_close(of_layer(together, i), alone(key))
    labels = together[1]["clusters"]["drop"]["labels"]
    assert (labels[0] != labels[1]).any() and ((together[2][0] == 0) != (together[2][1] == 0)).any()


# Modules as static arguments


@every_layer
def test_equal_configurations_are_equal_modules_with_equal_hashes(kind):
    arguments = {"rate": 0.2, "deterministic": False, "rescale": "rate"}
    different = {"rate": 0.3, "deterministic": True, "rescale": "kept", "rng_collection": "noise"}
    if kind == "DropBlock":
        different |= {"block_size": 3, "per_channel": True}
    if kind == "DropCluster":
        arguments |= {"axis_name": "batch"}
        different |= {"clusterer": dc.KMeans(num_clusters=3), "axis_name": None, "update_clusters": True}

    def again(**others):
        clusterer = {"clusterer": dc.KMeans(num_clusters=4)} if kind == "DropCluster" else {}
        return make(kind, **arguments | clusterer | others)

    assert again() is not again() and again() == again() and hash(again()) == hash(again())
    for name, value in different.items():
        assert again(**{name: value}) != again()


@every_layer
def test_neither_an_equal_layer_nor_another_rate_traces_again(kind):
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def run(layer, variables, x, rate):
        traces.append(layer)
        return layer.apply(variables, x, rate=rate, deterministic=False, rng=KEY)

    own = {"clusterer": Levels()} if kind == "DropCluster" else {}
    answers = [run(make(kind, **own), variables_of(kind), activations(), rate) for rate in (0.0, 0.5, 1.0)]
    assert len(traces) == 1
    assert same_bits(answers[0], activations()) and answers[1].any() and not answers[2].any()


# Across devices


@pytest.mark.parametrize("clusterer", [dc.KMeans(num_clusters=4, iterations=1), PER_CHANNEL])
def test_with_an_axis_name_replicas_learn_what_one_device_learns_from_the_whole_batch(clusterer):
    devices, spec = 4, jax.sharding.PartitionSpec
    mesh = jax.make_mesh(
        (devices,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices]
    )
    x = activations(shape=(64, 6, 6, 3))

    def update(layer, variables, x):
        return layer.apply(variables, x, deterministic=True, update_clusters=True, mutable="clusters")

    split = jax.shard_map(
        functools.partial(update, DropCluster(clusterer, axis_name="batch")),
        mesh=mesh,
        in_specs=(spec(), spec("batch")),
        out_specs=(spec("batch"), spec()),
    )
    before = clusters_of(clusterer.init(x.shape[1:]))
    whole = jax.jit(functools.partial(update, DropCluster(clusterer)))
    (y, many), (_, one), (_, half) = (
        jax.jit(split)(before, x),
        whole(before, x),
        whole(before, x.at[32:].set(x[:32])),
    )
    many, one, half = many["clusters"], one["clusters"], half["clusters"]
    assert (many["labels"] == one["labels"]).mean() >= 0.999
    assert jnp.allclose(many["explained_variance"], one["explained_variance"], atol=1e-4)
    assert many["num_updates"] == one["num_updates"] == 1 and same_bits(y, x)
    assert (half["labels"] != one["labels"]).mean() > 0.2  # it takes the whole batch


# Gradients


@every_layer
def test_the_gradient_is_the_mask_times_the_scale(kind):
    layer, variables, weights = make(kind, rate=0.4, deterministic=False), variables_of(kind), activations(2)
    factor = compiled(layer)(variables, jnp.ones(SHAPE), rng=KEY)  # kept: the scale, dropped: 0
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(weights * layer.apply(variables, x, rng=KEY))))(activations(1))
    np.testing.assert_allclose(gradient, factor * weights, rtol=1e-6)
    assert (factor == 0).any() and (factor >= 1).any()


def test_gradients_through_a_convolution_take_the_new_clusters_for_constants():
    """Finite, and the same whether the clusters were learned in this call or before it."""
    clusterer = dc.KMeans(num_clusters=4, iterations=1)
    model = nn.Sequential((nn.Conv(2, (2, 2)), DropCluster(clusterer, rate=0.4, deterministic=False)))
    learning = model.clone(layers=(model.layers[0], model.layers[1].clone(update_clusters=True)))
    x = activations(1)
    variables = jax.jit(lambda x: model.init(KEY, x))(x)

    def loss(params, clusters, x, model):
        given = {"params": params, "clusters": clusters}
        y, state = model.apply(given, x, rngs={"dropout": KEY}, mutable="clusters")
        return jnp.mean(y**2), state["clusters"]

    gradient = jax.jit(jax.grad(loss, argnums=(0, 2), has_aux=True), static_argnums=3)
    moving, clusters = gradient(variables["params"], variables["clusters"], x, learning)
    fixed, same = gradient(variables["params"], clusters, x, model)
    assert same_bits(same, clusters) and clusters["layers_1"]["num_updates"] == 1
    assert all(jnp.isfinite(leaf).all() and leaf.any() for leaf in jax.tree.leaves(moving))
    assert_close(moving, fixed)


# Types


@every_layer
def test_bfloat16_in_is_bfloat16_out(kind):
    x, variables = activations(dtype=jnp.bfloat16), variables_of(kind)
    layer = make(kind, rate=0.4, deterministic=False)

    def loss(x):
        y = layer.apply(variables, x, rng=KEY)
        return y.astype(jnp.float32).sum(), y

    gradient, y = jax.jit(jax.grad(loss, has_aux=True))(x)
    assert y.dtype == gradient.dtype == jnp.bfloat16
    assert y.any() and (y == 0).any()


# Clusters for a network that was trained without


def images(*spatial):
    return activations(3, (16, *spatial, 2))


@functools.cache
def trained():
    """The variables of `Net` on maps of 6 x 6, with clusters that were learned."""

    def run(x):
        variables = Net().init(KEY, x, deterministic=True)
        _, state = Net().apply(variables, x, deterministic=True, update_clusters=True, mutable=["clusters"])
        return {
            **variables,
            **state,
            "batch_stats": jax.tree.map(lambda leaf: leaf + 0.5, variables["batch_stats"]),
        }

    return jax.jit(run)(images(6, 6))


def without_clusters():
    return {name: trained()[name] for name in ("params", "batch_stats")}


@pytest.mark.parametrize("container", [dict, flax.core.freeze])
def test_init_clusters_adds_a_grid_at_every_place_and_touches_nothing_else(container):
    given = container(without_clusters())
    variables = init_clusters(Net(), given, images(6, 6), deterministic=True)
    assert set(variables) == {"params", "batch_stats", "clusters"} and set(given) == {"params", "batch_stats"}
    grids = {
        "first": {"drop": SHARED.init((6, 6, 3))._asdict()},
        "second": {"drop": PER_CHANNEL.init((3, 3, 3))._asdict()},
    }
    assert same_bits(variables["clusters"], grids)
    assert same_bits({name: variables[name] for name in given}, dict(given))


def test_init_clusters_makes_the_variables_of_a_plain_network_run():
    x = images(6, 6)
    plain = jax.jit(functools.partial(Net(drop=False).init, KEY))(x)
    assert "clusters" not in plain
    variables = init_clusters(Net(), plain, x, deterministic=True)
    y = compiled(Net(), deterministic=False)(variables, x, {"dropout": KEY}, rate=0.5)
    assert 0.2 < (y == 0).mean() < 0.9
    assert_close(compiled(Net(), deterministic=True)(variables, x), compiled(Net(drop=False))(plain, x))


@pytest.mark.parametrize(("kept", "added"), [("first", "second"), ("second", "first")])
def test_init_clusters_leaves_a_layer_that_has_learned_its_labels(kept, added):
    clusters = {kept: trained()["clusters"][kept]}
    variables = init_clusters(Net(), {**trained(), "clusters": clusters}, images(6, 6), deterministic=True)
    assert set(variables["clusters"]) == {kept, added} and set(clusters) == {kept}
    assert same_bits(variables["clusters"][kept], trained()["clusters"][kept])
    assert (
        variables["clusters"][kept]["drop"]["num_updates"] == 1
        and variables["clusters"][added]["drop"]["num_updates"] == 0
    )


def test_init_clusters_changes_nothing_where_none_is_missing():
    assert same_bits(init_clusters(Net(), trained(), images(6, 6), deterministic=True), trained())


def test_init_clusters_takes_the_arguments_of_the_models_call():
    grid = clusters_of(SHARED.init(SHAPE[1:]))
    assert same_bits(init_clusters(DropCluster(SHARED), {}, activations(), 0.5, False), grid)
    assert same_bits(init_clusters(DropCluster(SHARED), {}, activations(), rate=0.5, deterministic=True), grid)


@pytest.mark.bad_input
@pytest.mark.parametrize("arguments", [{"deterministic": False}, {"deterministic": True, "update_clusters": True}])
def test_without_clusters_a_layer_names_itself_and_the_remedy(arguments):
    arguments |= {"rate": 0.5, "mutable": "clusters", "rngs": {"dropout": KEY}}
    with pytest.raises(ValueError, match=r"first/drop has no clusters.*init_clusters\(model, variables, x\)"):
        Net().apply(without_clusters(), images(6, 6), **arguments)
    with pytest.raises(ValueError, match=r"this layer has no clusters.*init_clusters\(model, variables, x\)"):
        DropCluster(SHARED).apply({}, activations(), **arguments)


# Another resolution


def test_after_resize_clusters_a_network_runs_at_another_resolution():
    spatial, half = (4, 9), (2, 5)  # one side shrinks, the other grows
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


def test_resize_clusters_to_the_resolution_that_is_changes_nothing():
    assert same_bits(resize_clusters(Net(), trained(), images(6, 6), deterministic=True), trained())


def test_resize_clusters_resizes_each_layer_of_a_scan():
    _, before, _ = deep()
    x = activations(shape=(2, 6, 5, 3))
    variables = resize_clusters(Deep(), before, x, None)
    for i in range(DEPTH):
        old = dc.ClusterState(**of_layer(before["clusters"]["drop"], i))
        assert same_bits(of_layer(variables["clusters"]["drop"], i), dc.resize_clusters(old, (6, 5))._asdict())
    apply = jax.jit(functools.partial(Deep(deterministic=False).apply, rngs={"dropout": KEY}))
    assert (apply(variables, x, None)[0] == 0).any()


@pytest.mark.parametrize("container", [dict, flax.core.freeze])
def test_a_layer_may_be_called_labels(container):
    """Which is also the name of an array that each layer has."""

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
def test_at_another_resolution_the_error_names_both_shapes_and_the_remedy(clusterer, arguments):
    variables, x = clusters_of(clusterer.init(SHAPE[1:])), activations(shape=(2, 6, 5, 3))
    layer = DropCluster(clusterer, rate=0.5)
    with pytest.raises(ValueError, match=r"\(2, 6, 5, 3\).*\(4, 4\).*resize_clusters\(model, variables, x\)"):
        layer.apply(variables, x, **arguments, mutable="clusters", rng=KEY)


# Wrong input


@every_layer
@pytest.mark.bad_input
@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan")])
def test_a_rate_outside_0_and_1_is_refused(kind, rate):
    for layer, arguments in [(make(kind, rate=rate), {}), (make(kind), {"rate": rate})]:
        with pytest.raises(ValueError, match=rf"rate.* must be in \[0, 1\], got {rate}"):
            layer.apply(variables_of(kind), activations(), deterministic=False, **arguments, rng=KEY)


@every_layer
@pytest.mark.bad_input
def test_what_are_no_activations_is_refused(kind):
    layer = make(kind, rate=0.5, deterministic=False)
    with pytest.raises(TypeError, match="x must be of a floating-point type, got int32"):
        layer.apply(variables_of(kind), jnp.ones(SHAPE, jnp.int32), rng=KEY)
    if kind not in ("Dropout", "DropPath"):
        with pytest.raises(ValueError, match=r"x must have the shape .*spatial.*, got \(2, 3\)"):
            layer.apply(variables_of(kind), jnp.ones((2, 3)), rng=KEY)


@every_layer
@pytest.mark.bad_input
def test_an_unknown_rescaling_is_refused(kind):
    with pytest.raises(ValueError, match="rescale must be one of 'kept', 'rate', 'batch', 'none', got 'mean'"):
        make(kind, rescale="mean").apply(variables_of(kind), activations(), rate=0.5, deterministic=False, rng=KEY)


@pytest.mark.bad_input
def test_a_block_larger_than_the_map_is_refused():
    with pytest.raises(ValueError, match=r"block_size must be from 1 to 4 for the map \(4, 4\), got 7"):
        DropBlock(rate=0.5, deterministic=False).apply({}, activations(), rng=KEY)


@pytest.mark.bad_input
@pytest.mark.parametrize("clusterer", [dc.KMeans(num_clusters=17), dc.Grid(num_clusters=17, per_channel=True)])
def test_more_clusters_than_positions_are_refused_at_init(clusterer):
    with pytest.raises(ValueError, match="num_clusters must be at most the number of positions, 16 here, got 17"):
        DropCluster(clusterer, deterministic=True).init(KEY, activations())


@pytest.mark.bad_input
def test_clusters_per_channel_refuse_another_number_of_channels():
    layer = DropCluster(PER_CHANNEL, rate=0.5, deterministic=False)
    with pytest.raises(ValueError, match="x has 5 channels, but the clusters are per channel, for 3"):
        layer.apply(clusters_of(learned(PER_CHANNEL)), activations(shape=(2, 4, 4, 5)), rng=KEY)


@pytest.mark.bad_input
def test_what_is_no_clusterer_is_refused():
    with pytest.raises(TypeError, match=r"clusterer must be one, such as KMeans\(num_clusters=16\), got 16"):
        DropCluster(16, deterministic=True).init(KEY, activations())


@pytest.mark.bad_input
def test_resizing_clusters_that_are_not_there_says_how_to_add_them():
    model = DropCluster(SHARED, deterministic=True, name="drop")
    with pytest.raises(ValueError, match=r"clusters for exactly the layers of the model.*init_clusters"):
        resize_clusters(model, {"params": {}}, activations())


@pytest.mark.bad_input
@pytest.mark.parametrize("layer", [Dropout(0.1), SpatialDropout(0.1), DropBlock(0.1, block_size=3)])
def test_integers_are_refused_even_where_nothing_is_dropped(layer):
    with pytest.raises(TypeError, match="x must be of a floating-point type, got int32"):
        layer.apply({}, jnp.ones((2, 4, 4, 3), jnp.int32), deterministic=True)
