"""The NNX layers add state and PRNG keys to the pure functions, and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import dropcluster_jax as dc
from dropcluster_jax import linen
from dropcluster_jax import nnx as layers
from dropcluster_jax.nnx import ClusterVariable

SHAPE = (16, 4, 4, 3)
KEY = jax.random.key(11)
CLUSTERER = dc.KMeans(num_clusters=5)

# Options of each layer, for NNX and Linen, and pure function.
LAYERS = {
    "Dropout": ({}, dc.dropout),
    "SpatialDropout": ({}, dc.spatial_dropout),
    "DropPath": ({}, dc.drop_path),
    "Cutout": ({"per_channel": True}, dc.cutout),
    "DropBlock": ({"block_size": 2, "seeding": "paper"}, dc.drop_block),
    "CorrDrop": ({"block_size": 2, "variant": "channel"}, dc.corr_drop),
    "FocusedDropout": ({"threshold_range": (0.2, 0.4)}, dc.focused_dropout),
    "DropCluster": ({"min_explained_variance": 0.01}, dc.drop_cluster),
}
every_layer = pytest.mark.parametrize("kind", LAYERS)


def activations(seed=0):
    return jax.random.normal(jax.random.key(seed), SHAPE)


def rate_of(kind, rate):
    """Returns a rate at which the layer drops units with any key: FocusedDropout drops in a fraction of the calls."""
    return 1.0 if kind == "FocusedDropout" else rate


def make(kind, **arguments):
    options, _ = LAYERS[kind]
    if kind == "DropCluster":
        layer = layers.DropCluster(CLUSTERER, SHAPE[1:], **options, **arguments)
        layer.update_clusters(activations(9))
        return layer
    return getattr(layers, kind)(**options, **arguments)


class Net(nnx.Module):
    def __init__(self, rngs, kind="DropCluster"):
        self.conv = nnx.Conv(3, 3, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.drop = make(kind, rngs=rngs)
        self.head = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x, rate=None, update_clusters=False):
        x = nnx.relu(self.norm(self.conv(x)))
        if update_clusters:
            self.drop.update_clusters(x)
        return self.head(self.drop(x, rate=rate).mean((1, 2)))


@every_layer
def test_nnx_linen_and_the_pure_function_agree(kind):
    options, pure = LAYERS[kind]
    rate = rate_of(kind, 0.4)
    layer = make(kind, rate=rate)
    clusterer, state, variables = (), {}, {}
    if kind == "DropCluster":
        clusterer, state, variables = (CLUSTERER,), {"state": layer.clusters}, {"clusters": layer.clusters._asdict()}
    linen_layer = getattr(linen, kind)(*clusterer, rate=rate, deterministic=False, **options)

    @jax.jit
    def outputs(x):
        linen_output = linen_layer.apply(variables, x, rng=KEY)
        return layer(x, rngs=KEY), linen_output, pure(KEY, x, rate, **options, **state)

    y, linen_output, pure_output = map(np.asarray, outputs(activations(1)))
    assert (y == linen_output).all() and (y == pure_output).all() and (y == 0).any()


def test_updates_match_the_clusterer():
    layer = layers.DropCluster(CLUSTERER, SHAPE[1:])
    grid, x = CLUSTERER.init(SHAPE[1:]), activations(3)
    assert all((a == b).all() for a, b in zip(layer.clusters, grid, strict=True))
    layer(x, rate=0.3, rngs=KEY)
    assert layer.num_updates[...] == 0  # a call does not update
    layer.update_clusters(x)
    assert all((a == b).all() for a, b in zip(layer.clusters, CLUSTERER.update(grid, x), strict=True))


@every_layer
def test_deterministic_layers_are_the_identity_without_a_key(kind):
    x, layer = activations(), make(kind, rate=rate_of(kind, 0.5))
    assert (layer(x, deterministic=True) == x).all()
    layer.eval()
    assert (layer(x) == x).all()
    assert (layer(jnp.ones((2, 9, 9, 3))) == 1).all()  # any resolution
    layer.train()
    assert (layer(x, rngs=KEY) != x).any()
    assert (nnx.view(layer, deterministic=True)(x) == x).all() and not layer.deterministic
    assert (nnx.view(layer, rate=0.0)(x) == x).all()
    assert (make(kind)(x, rate=0.0) == x).all()


@every_layer
def test_calls_draw_different_masks_from_the_stream(kind):
    first, second = (make(kind, rate=0.5, rngs=nnx.Rngs(0)) for _ in range(2))
    x = activations()
    outputs = [first(x) for _ in range(4)]
    assert all((y == second(x)).all() for y in outputs)
    assert len(np.unique(np.stack(outputs), axis=0)) > 1
    assert (first(x, rngs=nnx.Rngs(dropout=5)) == first(x, rngs=nnx.Rngs(dropout=5))).all()
    assert (first(x, rngs=nnx.Rngs(dropout=5)) == first(x, rngs=nnx.Rngs(dropout=5).dropout)).all()


@every_layer
def test_nnx_jit_with_a_traced_rate(kind):
    """A rate of NaN gives NaN."""
    net, eager_net = Net(nnx.Rngs(0), kind), Net(nnx.Rngs(0), kind)
    x, traces = activations(), []

    @nnx.jit
    def run(net, x, rate):
        traces.append(rate)
        return net(x, rate)

    for rate in (0.0, 0.2, 0.7):
        expected = eager_net(x, jnp.float32(rate))
        np.testing.assert_allclose(run(net, x, jnp.float32(rate)), expected, rtol=1e-4, atol=1e-5)
    assert jnp.isnan(run(net, x, jnp.float32(jnp.nan))).all()
    assert len(traces) == 1


def test_training_changes_parameters_and_updates_change_clusters():
    net, x = Net(nnx.Rngs(0)), activations()

    @nnx.jit
    def train(net, x, rate):
        gradients = nnx.grad(lambda net: jnp.mean(net(x, rate) ** 2))(net)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, nnx.state(net, nnx.Param), gradients)
        nnx.update(net, params)

    @nnx.jit
    def update(net, x):
        net(x, 0.0, update_clusters=True)

    def snapshot(kind):
        return jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(net, kind)))

    def equal(a, b):
        return all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), a, b)))

    params, clusters = snapshot(nnx.Param), snapshot(ClusterVariable)
    train(net, x, 0.2)
    assert not equal(params, snapshot(nnx.Param)) and equal(clusters, snapshot(ClusterVariable))
    params = snapshot(nnx.Param)
    net.eval()
    update(net, x)
    assert equal(params, snapshot(nnx.Param)) and not equal(clusters, snapshot(ClusterVariable))
    assert net.drop.num_updates[...] == 2


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind == "DropCluster" else pytest.mark.slow) for kind in LAYERS]
)
def test_split_and_merge(kind):
    net, x = Net(nnx.Rngs(0), kind), activations()
    graph, clusters, state = nnx.split(net, ClusterVariable, ...)
    assert len(jax.tree.leaves(clusters)) == (5 if kind == "DropCluster" else 0)
    merged = nnx.merge(graph, clusters, state)

    @jax.jit
    def pure(clusters, state, rate):
        net = nnx.merge(graph, clusters, state)
        return net(x, rate), nnx.state(net)

    y, _ = pure(clusters, state, 0.3)
    np.testing.assert_allclose(y, merged(x, 0.3), rtol=1e-4, atol=1e-5)


def test_nnx_scan_keeps_separate_clusters_and_masks():
    @nnx.split_rngs(splits=4)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def stack(rngs):
        return layers.DropCluster(dc.Grid(num_clusters=4), SHAPE[1:], rate=0.4, rngs=rngs)

    drops = stack(nnx.Rngs(0))
    assert drops.labels.shape == (4, 4, 4, 1)

    @nnx.scan(in_axes=(0, nnx.Carry), out_axes=(nnx.Carry, 0))
    def run(drop, x):
        drop.update_clusters(x)
        y = drop(x)
        return x, y

    _, ys = run(drops, jnp.ones(SHAPE))
    assert ys.shape == (4, *SHAPE) and (drops.num_updates[...] == 1).all()
    assert len(np.unique(np.asarray(ys), axis=0)) == 4


def test_remat_recomputes_the_same_masks():
    net, x = Net(nnx.Rngs(0)), activations()

    def loss(net, x):
        return jnp.sum(net(x, 0.4) ** 2)

    plain = nnx.grad(loss)(nnx.clone(net), x)
    remat = nnx.grad(nnx.remat(loss))(nnx.clone(net), x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), plain, remat)


@every_layer
def test_the_rate_is_not_part_of_the_state(kind):
    layer = make(kind, rate=jnp.float32(0.5))
    assert isinstance(layer.rate, float) and "rate" not in nnx.to_pure_dict(nnx.state(layer))


def test_set_clusters_to_another_resolution():
    layer = make("DropCluster", rate=0.5)
    layer.set_clusters(dc.resize_clusters(layer.clusters, (8, 6)))
    assert layer(jnp.ones((2, 8, 6, 3)), rngs=KEY).shape == (2, 8, 6, 3) and layer.labels.shape == (8, 6, 1)


@every_layer
@pytest.mark.bad_input
def test_invalid_arguments_raise(kind):
    x = activations()
    with pytest.raises(ValueError, match=rf"{kind} needs a PRNG key. Pass rngs=nnx.Rngs\(...\) to the constructor"):
        make(kind, rate=0.5)(x)
    with pytest.raises(TypeError, match=r"rngs must be nnx\.Rngs, nnx\.RngStream, or a PRNG key, got 0"):
        make(kind, rate=0.5)(x, rngs=0)
    with pytest.raises(TypeError, match=r"rngs must be nnx\.Rngs, nnx\.RngStream, or None, got 0"):
        make(kind, rngs=0)
    with pytest.raises(ValueError, match="rate must be passed to the constructor or at call time"):
        make(kind)(x, rngs=KEY)
    with pytest.raises(TypeError, match=r"rate must be a number in .*, got False"):
        make(kind)(x, rate=False, rngs=KEY)
    with pytest.raises(TypeError, match="rate must be a Python number in the constructor"):
        jax.eval_shape(lambda rate: make(kind, rate=rate), 0.5)
    with pytest.raises(ValueError, match="deterministic must be passed to the constructor or at call time"):
        make(kind, rate=0.5, deterministic=None)(x, rngs=KEY)
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\], got 1.5"):
        make(kind, rate=1.5)
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\], got -1"):
        make(kind)(x, rate=-1, rngs=KEY)
    with pytest.raises(TypeError, match="x must have a floating-point dtype, got int32"):
        make(kind, rate=0.5)(jnp.ones(SHAPE, jnp.int32), rngs=KEY)


@pytest.mark.bad_input
def test_invalid_clusterers_and_clusters_raise():
    with pytest.raises(ValueError, match=r"\(4, 4\), got shape \(2, 8, 8, 3\).*dropcluster_jax.resize_clusters"):
        make("DropCluster", rate=0.5)(jnp.ones((2, 8, 8, 3)), rngs=KEY)
    with pytest.raises(TypeError, match=r"clusterer must be a clusterer such as KMeans\(num_clusters=16\), got 16"):
        layers.DropCluster(16, (4, 4, 3))
    with pytest.raises(TypeError, match="clusterer must be a clusterer"):
        layers.DropCluster(dc.KMeans, (4, 4, 3))


class Predictor(nnx.Module):
    """Two drop layers with streams of their own, that ignore later keys of the same seed."""

    def __init__(self):
        self.first = layers.Dropout(0.5, deterministic=False, rngs=nnx.Rngs(1))
        self.linear = nnx.Linear(16, 3, rngs=nnx.Rngs(0))
        self.second = layers.SpatialDropout(deterministic=False, rngs=nnx.Rngs(dropout=1))

    def __call__(self, x, rate=0.5):
        x = self.second(x, rate=rate)
        return self.linear(self.first(x.mean((1, 2))))


def test_every_mask_of_mc_predict_has_keys_of_its_own():
    net, x = Predictor(), jax.random.normal(jax.random.key(0), (4, 6, 6, 16))
    before = jax.tree.map(np.asarray, jax.tree.map(jax.random.key_data, nnx.state(net, nnx.RngKey)))
    first = layers.mc_predict(net, x, jax.random.key(0), 20, chunk=4)
    assert (first.mutual_information > 1e-4).all()
    after = jax.tree.map(np.asarray, jax.tree.map(jax.random.key_data, nnx.state(net, nnx.RngKey)))
    assert jax.tree.all(jax.tree.map(np.array_equal, before, after))
    again, other = (layers.mc_predict(net, x, jax.random.key(seed), 20, chunk=4) for seed in (0, 1))
    assert (again.mean == first.mean).all() and (other.mean != first.mean).any()
    # A layer's masks do not follow from those of the other, though both were made from the same seed.
    only_first = layers.mc_predict(net, x, jax.random.key(0), 20, chunk=4, rate=0.0)
    assert (only_first.variance > 0).any() and (only_first.mean != first.mean).any()
    net.eval()
    with pytest.raises(ValueError, match="same outputs under all 5 masks"):
        layers.mc_predict(net, x, jax.random.key(0), 5)


def test_the_bridge_to_linen_names_the_collection():
    model = nnx.bridge.to_linen(layers.DropCluster, dc.KMeans(num_clusters=4), (6, 6, 3), deterministic=True)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    assert "clusters" in model.init(keys, jnp.ones((2, 6, 6, 3)))
