import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import dropcluster_jax as dc
from dropcluster_jax import models
from dropcluster_jax.linen import DropBlock, DropCluster, Dropout, SpatialDropout

KMEANS = dc.KMeans(cluster_size=4)

# With 1000 classes: the torchvision documentation. The small ones with 10: He et al. 2016, table 6 (0.27, 0.46, 0.66,
# 0.85 million), to the parameter as counted in https://github.com/akamaster/pytorch_resnet_cifar10.
PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnet8": 75_290,  # ResNet-20 less two blocks in each stage, of 4,672, 18,560 and 73,984
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
}


def shapes_of(model, shape=(2, 32, 32, 3), **arguments):
    return jax.eval_shape(lambda key: model.init(key, jnp.ones(shape), **arguments), jax.random.key(0))


@pytest.fixture(scope="module")
def small():
    """ResNet-20 with a drop layer at every place, on 8x8 images."""
    drop = {place: DropCluster(KMEANS) for place in ("stem", "stage1", "stage2", "stage3")}
    model = models.resnet20(drop=drop)
    x = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
    return model, jax.jit(model.init)(jax.random.key(0), x), x


def test_blocks_that_are_computed_again_give_the_same_gradients():
    model = models.resnet8(drop={"stage1": DropCluster(KMEANS)})
    x = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
    variables = jax.jit(model.init)(jax.random.key(0), x)
    again = model.clone(remat=True)
    assert jax.tree.structure(again.init(jax.random.key(0), x)) == jax.tree.structure(variables)

    def gradients(model):
        def loss(params):
            logits, _ = model.apply(
                {**variables, "params": params},
                x,
                train=True,
                rate=0.2,
                rngs={"dropout": jax.random.key(2)},
                mutable=["batch_stats"],
            )
            return jnp.sum(logits**2)

        return jax.jit(jax.grad(loss))(variables["params"])

    for one, other in zip(*(jax.tree.leaves(gradients(each)) for each in (model, again)), strict=True):
        assert jnp.allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_as_many_as_published(name):
    variables = shapes_of(models.MODELS[name]())
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"])) == PARAMETERS[name]


def test_the_table_of_models_is_complete():
    assert set(models.MODELS) == set(PARAMETERS)


@pytest.mark.parametrize(
    ("stem", "sides"),
    [("imagenet", {"stem": 112, "stage1": 56, "stage4": 7}), ("cifar", {"stem": 224, "stage4": 28})],
)
def test_maps_have_the_sizes_of_the_paper(stem, sides):
    model = models.resnet50(stem=stem, drop={place: DropCluster(KMEANS) for place in sides})
    clusters = shapes_of(model, (1, 224, 224, 3))["clusters"]
    for place, side in sides.items():
        assert clusters[f"drop_{place}"]["labels"].shape == (side, side, 1)


def test_the_last_norm_of_each_block_starts_at_zero_so_that_blocks_start_as_shortcuts(small):
    _, variables, _ = small
    scales = {
        f"{block}/{name}": leaf["scale"]
        for block, layers in variables["params"].items()
        for name, leaf in layers.items()
        if name.startswith("norm")
    }
    assert len(scales) == 18
    for name, scale in scales.items():
        assert (scale == (0 if name.endswith("norm2") else 1)).all()
    bottleneck = models.ResNet((1,), models.resnet.BottleneckBlock, 10, width=4).init(
        jax.random.key(0), jnp.ones((1, 8, 8, 3))
    )
    assert not bottleneck["params"]["stage1_block1"]["norm3"]["scale"].any()


def test_bfloat16_computes_in_bfloat16_and_keeps_float32():
    model = models.resnet20(dtype=jnp.bfloat16, drop={"stage1": DropCluster(KMEANS)})
    x = jnp.ones((2, 8, 8, 3), jnp.bfloat16)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves((variables["params"], variables["batch_stats"]))} == {
        jnp.dtype("float32")
    }

    def apply(variables, x):
        return model.apply(
            variables,
            x,
            train=True,
            rate=0.1,
            rngs={"dropout": jax.random.key(0)},
            mutable=["batch_stats", "intermediates"],
            capture_intermediates=lambda module, name: isinstance(module, DropCluster) and name == "__call__",
        )

    logits, changed = jax.eval_shape(apply, variables, x)
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(changed["intermediates"])} == {jnp.dtype(jnp.bfloat16)}


def apply(model, variables, x, **arguments):
    key = jax.random.key(3)
    return jax.jit(lambda v, x: model.apply(v, x, rngs={"dropout": key}, mutable=["batch_stats"], **arguments)[0])(
        variables, x
    )


def test_nothing_is_dropped_in_evaluation_unless_asked_for(small):
    model, variables, x = small
    plain = apply(models.resnet20(), {name: variables[name] for name in ("params", "batch_stats")}, x)
    assert (apply(model, variables, x, rate=0.5) == plain).all()
    assert (apply(model, variables, x, rate=0.5, deterministic=False) != plain).any()


def test_in_training_it_drops_unless_asked_not_to(small):
    model, variables, x = small
    plain = apply(model, variables, x, train=True, rate=0.0)
    assert (apply(model, variables, x, train=True, rate=0.5, deterministic=True) == plain).all()
    assert (apply(model, variables, x, train=True, rate=0.5) != plain).any()


def test_each_place_may_have_a_rate_of_its_own(small):
    _, variables, x = small
    stem_alone = models.resnet20(drop={"stem": DropCluster(KMEANS, rate=1.0), "stage1": DropCluster(KMEANS)})
    clusters = {place: variables["clusters"][place] for place in ("drop_stem", "drop_stage1")}
    zeros = apply(stem_alone, {**variables, "clusters": clusters}, jnp.zeros_like(x), train=True, rate=0.0)
    dropped = apply(stem_alone, {**variables, "clusters": clusters}, x, train=True, rate=0.0)
    assert jnp.allclose(dropped, zeros, atol=1e-6)  # all of the stem's output is dropped, and nothing after it
    by_place = models.resnet20(drop={"stem": DropCluster(KMEANS), "stage1": DropCluster(KMEANS)})
    rates = {"stem": 1.0, "stage1": 0.0}
    assert (apply(by_place, {**variables, "clusters": clusters}, x, train=True, rate=rates) == dropped).all()


@pytest.mark.parametrize("layer", [Dropout(), SpatialDropout(), DropBlock(block_size=3), nn.Dropout(0.5)])
def test_any_drop_layer_may_stand_at_a_place(layer, small):
    _, variables, x = small
    variables = {name: variables[name] for name in ("params", "batch_stats")}
    model = models.resnet20(drop={"stage1": layer})
    assert (
        apply(model, variables, x, train=True, rate=0.5) != apply(model, variables, x, train=True, deterministic=True)
    ).any()


def test_an_update_gives_every_layer_its_own_clusters(small):
    model, variables, x = small
    # The last norms start at 0: give every block something of its own to say.
    params = jax.tree.map(lambda leaf: jnp.where(leaf == 0, 0.3, leaf), variables["params"])
    _, changed = jax.jit(
        lambda v, x: model.apply(v, x, update_clusters=True, mutable=["clusters"]),
    )({**variables, "params": params}, x)
    for place, before in variables["clusters"].items():
        after = changed["clusters"][place]
        assert after["num_updates"] == 1 and after["num_skipped"] == 0
        if place != "drop_stage3":  # one cluster of 2x2 positions
            assert (after["labels"] != before["labels"]).any()


def test_equal_networks_are_equal_and_do_not_recompile():
    traces = []

    def init(model, key):
        traces.append(model)
        return model.init(key, jnp.ones((1, 8, 8, 3)))["params"]["head"]

    compiled = jax.jit(init, static_argnums=0)
    for _ in range(2):
        compiled(models.resnet20(drop={"stage1": DropCluster(dc.KMeans(cluster_size=4))}), jax.random.key(0))
    assert len(traces) == 1


@pytest.mark.bad_input
def test_an_unknown_place_is_refused():
    with pytest.raises(ValueError, match="unknown place 'stage4'; places are stem, stage1, stage2, stage3"):
        models.resnet20(drop={"stage4": Dropout()})


@pytest.mark.bad_input
def test_an_unknown_stem_is_refused():
    with pytest.raises(ValueError, match="stem must be 'imagenet' or 'cifar', got 'svhn'"):
        models.resnet50(stem="svhn")
