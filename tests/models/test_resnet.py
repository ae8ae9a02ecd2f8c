import math
import re
from typing import get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import dropcluster_jax as dc
from dropcluster_jax import models
from dropcluster_jax.linen import DropBlock, DropCluster, Dropout, SpatialDropout
from dropcluster_jax.models.resnet import BottleneckBlock, _conv, _relu

KMEANS = dc.KMeans(cluster_size=4)

# ImageNet: the torchvision documentation. CIFAR: He et al. 2016, table 6 (0.27, 0.46, 0.66, 0.85 million), exact counts
# in https://github.com/akamaster/pytorch_resnet_cifar10.
NUM_PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnet8": 75_290,  # ResNet-20 without two blocks per stage, of 4,672, 18,560 and 73,984 parameters
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
}


def abstract_variables(model, shape=(2, 32, 32, 3)):
    return jax.eval_shape(lambda key: model.init(key, jnp.ones(shape)), jax.random.key(0))


def apply(model, variables, x, **arguments):
    key = jax.random.key(3)
    return jax.jit(lambda v, x: model.apply(v, x, rngs={"dropout": key}, mutable=["batch_stats"], **arguments)[0])(
        variables, x
    )


@pytest.fixture(scope="module")
def small():
    """ResNet-8 with a drop layer at every place, its variables, and 8x8 images."""
    drop = {place: DropCluster(KMEANS) for place in ("stem", "stage1", "stage2", "stage3")}
    model = models.resnet8(drop=drop)
    x = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
    return model, jax.jit(model.init)(jax.random.key(0), x), x


# Architecture


@pytest.mark.parametrize(
    "names",
    [("resnet18", "resnet20", "resnet50"), pytest.param(tuple(NUM_PARAMETERS), marks=pytest.mark.slow)],
    ids=["some", "all"],
)
def test_parameter_counts_match_published_ones(names):
    for name in names:
        params = abstract_variables(models.MODELS[name]())["params"]
        assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == NUM_PARAMETERS[name], name


def test_models_are_listed_by_name():
    assert set(models.MODELS) == set(get_args(models.ModelName)) == set(NUM_PARAMETERS)
    assert all(models.MODELS[name] is getattr(models, name) for name in models.MODELS)


def test_models_take_the_number_of_classes_first_and_keyword_options():
    model = models.resnet50(100, stem="cifar", dtype=jnp.bfloat16)
    assert model == models.resnet50(num_classes=100, stem="cifar", dtype=jnp.bfloat16)
    assert (model.num_classes, model.stem, model.width) == (100, "cifar", 64)
    model = models.resnet20(100)
    assert (model.num_classes, model.stem, model.shortcut, model.width) == (100, "cifar", "identity", 16)


@pytest.mark.parametrize(
    ("stem", "sides"),
    [("imagenet", {"stem": 112, "stage1": 56, "stage4": 7}), ("cifar", {"stem": 224, "stage4": 28})],
)
def test_resolutions_match_the_paper(stem, sides):
    model = models.resnet50(stem=stem, drop={place: DropCluster(KMEANS) for place in sides})
    clusters = abstract_variables(model, (1, 224, 224, 3))["clusters"]
    for place, side in sides.items():
        assert clusters[f"drop_{place}"]["labels"].shape == (side, side, 1)


def test_last_norm_of_each_block_starts_at_zero(small):
    _, variables, _ = small
    scales = {
        f"{block}/{name}": layer["scale"]
        for block, layers in variables["params"].items()
        for name, layer in layers.items()
        if name.startswith("norm")
    }
    assert len(scales) == 6
    for name, scale in scales.items():
        assert (scale == (0 if name.endswith("norm2") else 1)).all()
    bottleneck = models.ResNet((1,), BottleneckBlock, 10, width=4)
    variables = jax.jit(bottleneck.init)(jax.random.key(0), jnp.ones((1, 8, 8, 3)))
    assert not variables["params"]["stage1_block1"]["norm3"]["scale"].any()


def test_running_statistics_decay_by_0_9(small):
    """After two steps on the same images from a mean of 0, the mean is 1.9 times that after one step."""
    _, variables, x = small
    model = models.resnet8()
    train = jax.jit(lambda variables: model.apply(variables, x, train=True, mutable=["batch_stats"])[1])
    first = train({"params": variables["params"], "batch_stats": variables["batch_stats"]})
    second = train({"params": variables["params"], **first})
    for (path, leaf), later in zip(jax.tree.leaves_with_path(first), jax.tree.leaves(second), strict=True):
        if path[-1].key == "mean":
            assert leaf.any() and jnp.allclose(later, 1.9 * leaf, rtol=1e-3, atol=1e-6), path


def test_bfloat16_activations_keep_float32_parameters_and_logits():
    model = models.resnet8(dtype=jnp.bfloat16, drop={"stage1": DropCluster(KMEANS)})
    x = jnp.ones((2, 8, 8, 3), jnp.bfloat16)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    leaves = jax.tree.leaves((variables["params"], variables["batch_stats"]))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}

    def capture(variables, x):
        return model.apply(
            variables,
            x,
            train=True,
            rate=0.1,
            rngs={"dropout": jax.random.key(0)},
            mutable=["batch_stats", "intermediates"],
            capture_intermediates=lambda module, name: isinstance(module, DropCluster) and name == "__call__",
        )

    logits, updates = jax.eval_shape(capture, variables, x)
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(updates["intermediates"])} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.optimized
def test_remat_keeps_variables_and_gradients():
    model = models.resnet.CifarResNet((1,), models.resnet.BasicBlock, 10, drop={"stage1": DropCluster(KMEANS)})
    x = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
    variables = jax.jit(model.init)(jax.random.key(0), x)
    remat_model = model.clone(remat=True)
    assert jax.tree.structure(jax.eval_shape(remat_model.init, jax.random.key(0), x)) == jax.tree.structure(variables)

    def gradients(model):
        def loss(params):
            return jnp.sum(apply(model, {**variables, "params": params}, x, train=True, rate=0.2) ** 2)

        return jax.jit(jax.grad(loss))(variables["params"])

    leaves, remat_leaves = (jax.tree.leaves(gradients(model)) for model in (model, remat_model))
    for leaf, remat_leaf in zip(leaves, remat_leaves, strict=True):
        assert jnp.allclose(leaf, remat_leaf, rtol=1e-4, atol=1e-5)


def test_equal_models_do_not_recompile():
    traces = []

    def init(model, key):
        traces.append(model)
        return model.init(key, jnp.ones((1, 8, 8, 3)))["params"]["head"]

    compiled = jax.jit(init, static_argnums=0)
    for _ in range(2):
        compiled(models.resnet20(drop={"stage1": DropCluster(dc.KMeans(cluster_size=4))}), jax.random.key(0))
    assert len(traces) == 1


# 1x1 convolutions


@pytest.mark.parametrize("strides", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 1e-2)])
def test_1x1_convolutions_equal_those_of_flax(strides, dtype, tolerance):
    x = jax.random.normal(jax.random.key(1), (4, 7, 8, 16))
    arguments = {"features": 24, "kernel_size": (1, 1), "strides": (strides, strides), "dtype": dtype}
    conv = _conv(**arguments)
    plain = nn.Conv(**arguments, use_bias=False, kernel_init=conv.kernel_init)
    variables = conv.init(jax.random.key(0), x)
    for leaf, expected in zip(*map(jax.tree.leaves, (variables, plain.init(jax.random.key(0), x))), strict=True):
        assert leaf.shape == (1, 1, 16, 24) and (leaf == expected).all()

    def gradients_and_output(conv):
        def loss(variables, x):
            y = conv.apply(variables, x)
            return jnp.sum(jnp.sin(y.astype(jnp.float32))), y

        return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(variables, x)

    for leaf, expected in zip(*(jax.tree.leaves(gradients_and_output(conv)) for conv in (conv, plain)), strict=True):
        assert leaf.dtype == expected.dtype and leaf.shape == expected.shape
        leaf, expected = leaf.astype(jnp.float32), expected.astype(jnp.float32)
        assert jnp.linalg.norm(leaf - expected) <= tolerance * jnp.linalg.norm(expected)


def test_1x1_convolutions_are_matrix_products_on_cpu_only():
    conv = _conv(24, (1, 1), (2, 2))
    x = jnp.ones((4, 8, 8, 16))
    gradients = jax.jit(jax.grad(lambda v, x: jnp.sum(conv.apply(v, x) ** 2), argnums=(0, 1)))
    traced = gradients.trace(conv.init(jax.random.key(0), x), x)
    program = traced.lower(lowering_platforms=("cpu",)).compile().as_text()
    assert " convolution(" not in program and " conditional(" not in program
    for platform in ("tpu", "cuda"):
        assert "dot_general" not in traced.lower(lowering_platforms=(platform,)).as_text()


def test_relu_equals_that_of_flax():
    x = jnp.array([-jnp.inf, -1.0, -0.0, 0.0, 1e-40, 2.0, jnp.inf, jnp.nan])
    for dtype in (jnp.float32, jnp.bfloat16):
        y, vjp = jax.vjp(_relu, x.astype(dtype))
        expected, expected_vjp = jax.vjp(nn.relu, x.astype(dtype))
        assert y.dtype == dtype and jnp.array_equal(y, expected, equal_nan=True)
        assert (vjp(jnp.ones_like(y))[0] == expected_vjp(jnp.ones_like(y))[0])[:-1].all()


@pytest.mark.parametrize("dropped", [False, True])
def test_activations_are_stored_on_cpu(small, dropped):
    model, variables, x = small
    model = model if dropped else models.resnet8()

    def loss(params):
        return jnp.sum(apply(model, {**variables, "params": params}, x, train=True, rate=0.5))

    program = jax.jit(jax.grad(loss)).lower(variables["params"]).compile().as_text()
    transposed = [line for line in program.splitlines() if re.search(r" = f32\[16,8,8,4\].* fusion\(", line)]
    assert transposed
    assert max(line.count("%") for line in transposed) < 4  # otherwise the activations are recomputed


# Drop layers


def test_evaluation_drops_nothing_by_default(small):
    model, variables, x = small
    plain = apply(models.resnet8(), {name: variables[name] for name in ("params", "batch_stats")}, x)
    assert (apply(model, variables, x, rate=0.5) == plain).all()
    assert (apply(model, variables, x, rate=0.5, deterministic=False) != plain).any()


def test_training_drops_by_default(small):
    model, variables, x = small
    plain = apply(model, variables, x, train=True, rate=0.0)
    assert (apply(model, variables, x, train=True, rate=0.5, deterministic=True) == plain).all()
    assert (apply(model, variables, x, train=True, rate=0.5) != plain).any()


def test_rates_can_differ_between_places(small):
    _, variables, x = small
    variables = {**variables, "clusters": {name: variables["clusters"][name] for name in ("drop_stem", "drop_stage1")}}
    own_rate = models.resnet8(drop={"stem": DropCluster(KMEANS, rate=1.0), "stage1": DropCluster(KMEANS)})
    zeros = apply(own_rate, variables, jnp.zeros_like(x), train=True, rate=0.0)
    dropped = apply(own_rate, variables, x, train=True, rate=0.0)
    assert jnp.allclose(dropped, zeros, atol=1e-6)  # the stem's output is dropped completely
    rates_by_place = models.resnet8(drop={"stem": DropCluster(KMEANS), "stage1": DropCluster(KMEANS)})
    rates = {"stem": 1.0, "stage1": 0.0}
    assert (apply(rates_by_place, variables, x, train=True, rate=rates) == dropped).all()


@pytest.mark.parametrize(
    "layer",
    [pytest.param(Dropout(), marks=pytest.mark.slow), SpatialDropout(), DropBlock(block_size=3), nn.Dropout(0.5)],
)
def test_other_drop_layers(layer, small):
    _, variables, x = small
    variables = {name: variables[name] for name in ("params", "batch_stats")}
    model = models.resnet8(drop={"stage1": layer})
    plain = apply(model, variables, x, train=True, deterministic=True)
    assert (apply(model, variables, x, train=True, rate=0.5) != plain).any()


@pytest.mark.slow
def test_updates_change_the_clusters_of_every_layer(small):
    model, variables, x = small
    # Blocks return their input at initialization; nonzero scales make the layers' inputs differ.
    params = jax.tree.map(lambda leaf: jnp.where(leaf == 0, 0.3, leaf), variables["params"])
    _, updates = jax.jit(lambda v, x: model.apply(v, x, update_clusters=True, mutable=["clusters"]))(
        {**variables, "params": params}, x
    )
    for name, before in variables["clusters"].items():
        after = updates["clusters"][name]
        assert after["num_updates"] == 1 and after["num_skipped"] == 0
        if name != "drop_stage3":  # a single cluster of 2x2 positions
            assert (after["labels"] != before["labels"]).any()


def test_drop_layers_are_named_by_place_in_order():
    drop = {"stage2": DropCluster(KMEANS, name="other"), "stem": Dropout(), "stage1": DropCluster(KMEANS)}
    model = models.resnet20(drop=drop)
    assert list(model.drop_layer_names.items()) == [
        ("stem", "drop_stem"),
        ("stage1", "drop_stage1"),
        ("stage2", "drop_stage2"),
    ]
    assert {place: layer.name for place, layer in model.drop.items()} == model.drop_layer_names
    assert set(abstract_variables(model)["clusters"]) == {"drop_stage1", "drop_stage2"}


def test_drop_layers_keep_their_names_in_flax_transformations(small):
    model, variables, x = small
    rematerialized = nn.remat(models.resnet.CifarResNet)(model.stage_sizes, model.block, drop=model.drop)
    assert (apply(rematerialized, variables, x) == apply(model, variables, x)).all()
    bound = model.bind(variables)
    assert (jax.jit(lambda x: bound(x))(x) == apply(model, variables, x)).all()
    assert model.clone() == model and model.bind(variables).unbind()[0] == model


# Invalid arguments


@pytest.mark.bad_input
def test_rates_of_unknown_or_missing_places_raise():
    model = models.resnet8(drop={"stage1": DropCluster(KMEANS), "stage2": DropCluster(KMEANS, rate=0.1)})
    x = jnp.ones((2, 8, 8, 3))
    variables, rngs = jax.jit(model.init)(jax.random.key(0), x), {"dropout": jax.random.key(0)}
    for rate, message in (
        ({"stage1": 0.1, "stage9": 0.1}, "places in rate must be among stage1, stage2, got 'stage9'"),
        ({"stage2": 0.1}, "rate must have an entry for stage1, got stage2"),
        ({"stage1": 0.1, "stage2": 0.2}, r"rate has an entry for stage2, whose layer was created with rate 0\.1"),
    ):
        with pytest.raises(ValueError, match=message):
            model.apply(variables, x, train=True, rate=rate, mutable=["batch_stats"], rngs=rngs)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("resnet20", {"drop": {"stage4": Dropout()}}, ValueError, "drop must be among stem, .*, stage3, got 'stage4'"),
        ("resnet50", {"stem": "svhn"}, ValueError, "stem must be 'imagenet' or 'cifar', got 'svhn'"),
        ("resnet20", {"shortcut": "ident"}, ValueError, "shortcut must be 'projection' or 'identity', got 'ident'"),
        *((name, {"depth": 3}, TypeError, "argument 'depth'") for name in ("resnet20", "resnet50")),
    ],
)
def test_invalid_options_raise(name, options, error, message):
    with pytest.raises(error, match=message):
        models.MODELS[name](**options)
