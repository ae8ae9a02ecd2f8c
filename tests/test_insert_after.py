"""Drop layers in models that are not edited."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import dropcluster_jax as dc
from dropcluster_jax import linen
from dropcluster_jax import nnx as dropcluster_nnx
from dropcluster_jax.training import make_steps

X = jax.random.normal(jax.random.key(0), (16, 8, 8, 3))
LABELS = jnp.arange(16) % 10
BATCH = {"image": X, "label": LABELS}
CLUSTERER = dc.KMeans(cluster_size=4)


class Block(nn.Module):
    """A residual block as in Flax's ImageNet example, with partial constructors of its layers."""

    features: int
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x):
        y = nn.relu(self.norm()(self.conv(self.features, (3, 3))(x)))
        y = self.norm()(self.conv(self.features, (3, 3))(y))
        if x.shape != y.shape:
            x = self.norm(name="norm_proj")(self.conv(self.features, (1, 1), name="conv_proj")(x))
        return nn.relu(x + y)


class Net(nn.Module):
    """In training mode by default, as Flax's ImageNet example."""

    remat: bool = False

    @nn.compact
    def __call__(self, x, train: bool = True):
        conv = functools.partial(nn.Conv, use_bias=False)
        norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        x = nn.relu(norm(name="bn_init")(conv(8, (3, 3), name="conv_init")(x)))
        for i in range(2):
            x = (nn.remat(Block) if self.remat else Block)(8 * 2**i, conv, norm, name=f"Block_{i}")(x)
        return nn.Dense(10)(x.mean((1, 2)))


LAYERS = {"Block_0": linen.DropCluster(CLUSTERER), "Block_*": linen.DropBlock(block_size=3)}


def assert_equal(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize("remat", [False, True])
def test_variables_and_outputs_are_those_of_the_original(remat):
    original = Net(remat)
    model = linen.insert_after(original, LAYERS)
    expected = original.init(jax.random.key(1), X)
    variables = model.init(jax.random.key(1), X)
    assert list(linen.cluster_states(variables["clusters"])) == ["Block_0/drop"]
    assert_equal({name: variables[name] for name in expected}, expected)
    assert_equal(linen.init_clusters(model, expected, X), variables)
    assert_equal(model.apply(variables, X, train=False), original.apply(expected, X, train=False))
    trained = model.apply(variables, X, mutable=["batch_stats"], rngs={"dropout": jax.random.key(2)})
    assert_equal(trained, original.apply(expected, X, mutable=["batch_stats"]))  # the rate is 0
    dropped, _ = model.apply(variables, X, rate=0.5, mutable=["batch_stats"], rngs={"dropout": jax.random.key(2)})
    assert not np.allclose(dropped, trained[0])


def test_layers_drop_the_outputs_of_the_modules_that_match():
    model = linen.insert_after(
        nn.Sequential([nn.Conv(4, (3, 3)), nn.relu]), {"layers_0": linen.DropBlock(block_size=3)}
    )
    variables = model.init(jax.random.key(0), X, deterministic=True)
    y = model.apply(variables, X, rate=0.5, deterministic=False, rngs={"dropout": jax.random.key(1)})
    kept = model.apply(variables, X, deterministic=True)
    assert 0.3 < np.mean((y == 0) & (kept != 0)) / np.mean(kept != 0) < 0.7


@pytest.mark.parametrize("remat", [False, True])
def test_a_model_is_trained_without_editing_it(remat):
    model = linen.insert_after(Net(remat), LAYERS)
    steps = make_steps(model, optax.sgd(0.05), rate=lambda step: 0.01 * step)
    state = jax.jit(steps.init)(jax.random.key(1), BATCH)
    updated = jax.jit(steps.update_clusters)(state, BATCH)
    labels, before = (linen.cluster_states(each.clusters)["Block_0/drop"].labels for each in (updated, state))
    assert not np.array_equal(labels, before)
    inputs = linen.cluster_inputs(model, updated.variables(), X)
    assert {path: maps.shape for path, maps in inputs.items()} == {"Block_0/drop": (16, 8, 8, 8)}
    train, losses = jax.jit(steps.train), []
    for _ in range(8):
        updated, metrics = train(updated, BATCH)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] and train._cache_size() == 1


def test_layers_inside_scan():
    class Body(nn.Module):
        @nn.compact
        def __call__(self, carry, _):
            return nn.relu(nn.Conv(3, (3, 3))(carry)), None

    class Scanned(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            axes, rngs = {"params": 0, "clusters": 0}, {"params": True, "dropout": True}
            return nn.scan(Body, variable_axes=axes, split_rngs=rngs, length=2)(name="layers")(x, None)[0]

    model = linen.insert_after(Scanned(), {"layers/Conv_0": linen.DropCluster(CLUSTERER)})
    variables = model.init(jax.random.key(0), X)
    assert variables["clusters"]["layers"]["Conv_0"]["drop"]["labels"].shape == (2, 8, 8, 1)
    _, updated = model.apply(variables, X, update_clusters=True, mutable=["clusters"])
    assert updated["clusters"]["layers"]["Conv_0"]["drop"]["num_updates"].tolist() == [1, 1]


@pytest.mark.bad_input
def test_invalid_patterns_and_calls_of_linen_models():
    with pytest.raises(ValueError, match=r"pattern 'stage9', which matches none of conv_init, bn_init, Block_0/Conv_0"):
        linen.insert_after(Net(), {"stage9": linen.DropBlock()}).init(jax.random.key(0), X)
    model = linen.insert_after(nn.Sequential([nn.Conv(4, (3, 3))]), {"layers_0": linen.DropBlock()})
    with pytest.raises(ValueError, match="deterministic must be passed: the model has no argument train"):
        model.init(jax.random.key(0), X)


class NnxBlock(nnx.Module):
    def __init__(self, features, out, *, rngs):
        self.conv = nnx.Conv(features, out, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(out, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.norm(self.conv(x)))


class NnxNet(nnx.Module):
    """Stages of blocks, as bonsai's ResNet."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.layer1 = nnx.Sequential(NnxBlock(3, 8, rngs=rngs), NnxBlock(8, 8, rngs=rngs))
        self.layer2 = nnx.Sequential(NnxBlock(8, 16, rngs=rngs))
        self.unused = NnxBlock(8, 8, rngs=rngs)
        self.head = nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, x):
        return self.head(self.layer2(self.layer1(x)).mean((1, 2)))


def inserted():
    net, rngs = NnxNet(), nnx.Rngs(1)
    layers = {
        "layer1": dropcluster_nnx.DropCluster(CLUSTERER, rngs=rngs),
        "layer?/layers/?": dropcluster_nnx.DropBlock(block_size=3, rngs=rngs),
    }
    dropcluster_nnx.insert_after(net, layers, X)
    return net


def test_nnx_parameters_and_outputs_are_those_of_the_original():
    net, original = inserted(), NnxNet()
    assert_equal(*(nnx.to_pure_dict(nnx.state(each, nnx.Param)) for each in (net, original)))
    for each in (net, original):
        each.eval()
    assert_equal(net(X), original(X))
    net.train()
    assert not np.allclose(nnx.view(net, rate=0.5)(X), nnx.view(net, rate=0.0)(X))
    assert net.layer1.drop.labels.shape == (8, 8, 1)


def test_copies_of_an_nnx_layer_draw_different_masks():
    net = inserted()
    first, second = (net.layer1.layers[index].drop for index in (0, 1))
    x = jnp.ones((16, 8, 8, 8))
    assert not np.array_equal(first(x, rate=0.5), second(x, rate=0.5))


def test_an_nnx_network_is_trained_with_a_traced_rate_and_updates_clusters_in_its_call():
    net, traces, losses = inserted(), [], []
    optimizer = nnx.Optimizer(net, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def update_clusters(net, x):
        nnx.view(net, deterministic=True, use_running_average=True, update_clusters=True)(x)

    @nnx.jit
    def train(net, optimizer, rate):
        def loss(net):
            logits = nnx.view(net, rate=rate)(X)
            return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()

        traces.append(rate)
        value, grads = nnx.value_and_grad(loss, argnums=nnx.DiffState(0, nnx.Param))(net)
        optimizer.update(net, grads)
        return value

    statistics = nnx.to_pure_dict(nnx.state(net, nnx.BatchStat))
    before = net.layer1.drop.labels[...]
    update_clusters(net, X)
    assert int(net.layer1.drop.num_updates[...]) == 1 and not np.array_equal(net.layer1.drop.labels[...], before)
    assert_equal(nnx.to_pure_dict(nnx.state(net, nnx.BatchStat)), statistics)
    for step in range(8):
        losses.append(float(train(net, optimizer, jnp.float32(0.02 * step))))
    assert len(traces) == 1 and losses[-1] < losses[0]
    assert int(net.layer1.drop.num_updates[...]) == 1 and net.layer1.drop.rate is None


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("layer9", r"pattern 'layer9', which matches none of head, layer1"),
        ("unused", "unused was not called"),
        ("layer1", "Sequential must not have the attribute drop"),
    ],
)
def test_invalid_patterns_leave_an_nnx_network_unchanged(pattern, message):
    net = inserted()
    net.eval()
    before = nnx.graphdef(net)
    with pytest.raises(ValueError, match=message):
        dropcluster_nnx.insert_after(net, {pattern: dropcluster_nnx.DropBlock()}, X)
    assert nnx.graphdef(net) == before


def test_nnx_clusters_take_their_shape_from_activations():
    x = jnp.ones((2, 6, 4, 3))
    layers = [dropcluster_nnx.DropCluster(CLUSTERER, shape) for shape in (x, (6, 4, 3))]
    assert_equal(*(layer.clusters for layer in layers))
