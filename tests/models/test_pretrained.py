"""Weights from and for other libraries. `benchmarks/torchvision_logits.py` wrote the expected logits."""

import json
import pathlib
import pickle
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict
from safetensors.numpy import load_file, save, save_file

import dropcluster_jax as dc
from benchmarks.torchvision_logits import NETWORKS, NUM_CLASSES, SIDES, random_images, random_tensors
from dropcluster_jax import models
from dropcluster_jax.linen import DropCluster, init_clusters
from dropcluster_jax.models.pretrained import _name, _to_file_layout
from dropcluster_jax.models.resnet import BasicBlock, BottleneckBlock, ResNet

LOGITS = json.loads(pathlib.Path(__file__).with_name("torchvision_logits.json").read_text())
LIBRARIES = ("torchvision", "transformers")
SMALL = ResNet((1, 1), BasicBlock, 10, width=4)  # an ImageNet stem and one projection
LARGER = ResNet((1, 2), BasicBlock, 10, width=4)
NEW_HEAD = SMALL.clone(num_classes=21)


def abstract_variables(model, channels=3):
    return jax.eval_shape(lambda key: model.init(key, jnp.ones((1, 32, 32, channels))), jax.random.key(0))


def tensors_of(model, library="torchvision", channels=3):
    """Random weights and statistics of a network, with the names and the layout of a library."""
    leaves = jax.eval_shape(_to_file_layout, abstract_variables(model, channels))
    shapes = {_name(leaf, LIBRARIES.index(library)): value.shape for leaf, value in leaves.items()}
    counts = {name.replace("running_mean", "num_batches_tracked"): () for name in shapes if "running_mean" in name}
    return random_tensors({**shapes, **counts})


def assert_same_bits(tensors, expected):
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == expected[name].dtype and np.array_equal(tensor, expected[name]), name


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.safetensors"


# Parity


CASES = [
    ("resnet18", "torchvision", SIDES),
    ("resnet18", "transformers", SIDES[-1:]),
    *(pytest.param(name, library, SIDES, marks=pytest.mark.slow) for name in NETWORKS[1:] for library in LIBRARIES),
]


@pytest.mark.parametrize(("name", "library", "sides"), CASES)
def test_logits_equal_those_of_the_original(name, library, sides, path):
    model = models.MODELS[name](NUM_CLASSES)
    save_file(tensors_of(model, library), path)
    variables = models.load_pretrained(path, model)
    apply = jax.jit(model.apply)
    for side in sides:
        expected = np.array(LOGITS[f"{library} {name} {side}"])
        np.testing.assert_allclose(apply(variables, random_images(side)), expected, rtol=0, atol=1e-5)


# Round trips


@pytest.mark.parametrize(
    ("model", "channels"),
    [(SMALL, 3), (models.resnet8(), 1), (ResNet((2, 1), BottleneckBlock, width=4, stem="cifar"), 3)],
    ids=["basic", "cifar", "bottleneck"],
)
def test_round_trips_are_exact(model, channels, path):
    tensors = tensors_of(model, channels=channels)
    save_file(tensors, path)
    variables = models.load_pretrained(path, model, channels=channels)
    expected = abstract_variables(model, channels)
    assert jax.tree.map(lambda leaf: leaf.dtype, variables) == jax.tree.map(lambda leaf: leaf.dtype, expected)
    models.save_pretrained(path, {**variables, "clusters": {"drop_stage1": {"labels": jnp.zeros(4)}}})
    assert_same_bits(load_file(path), tensors)
    loaded = models.load_pretrained(path, model, channels=channels)
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded, variables))


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64])
def test_other_dtypes_are_converted(dtype, path):
    tensors = tensors_of(SMALL)
    converted = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
    save_file(converted, path)
    models.save_pretrained(path, models.load_pretrained(path, SMALL))
    assert_same_bits(load_file(path), {name: converted[name].astype(tensors[name].dtype) for name in tensors})


def test_drop_layers_are_added_to_loaded_weights(path):
    save_file(tensors_of(SMALL), path)
    model = SMALL.clone(drop=FrozenDict(stage1=DropCluster(dc.KMeans(num_clusters=4))))
    x = jnp.ones((2, 32, 32, 3))
    loaded = models.load_pretrained(path, model)
    assert set(loaded) == {"params", "batch_stats"}
    variables = init_clusters(model, loaded, x)
    assert jax.tree.structure(variables) == jax.tree.structure(jax.eval_shape(model.init, jax.random.key(0), x))
    assert np.array_equal(jax.jit(model.apply)(variables, x), jax.jit(SMALL.apply)(loaded, x))


# Heads


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("with_head", [True, False])
def test_heads_are_replaced_if_asked_for(library, with_head, path):
    tensors = tensors_of(SMALL, library)
    save_file({name: t for name, t in tensors.items() if with_head or not name.startswith(("fc", "classifier"))}, path)
    key = jax.random.key(5)
    variables = models.load_pretrained(path, NEW_HEAD, head_key=key)
    initial = jax.jit(NEW_HEAD.init)(key, jnp.ones((1, 64, 64, 3)))
    assert jax.tree.structure(variables) == jax.tree.structure(initial)
    assert jax.tree.all(jax.tree.map(np.array_equal, variables["params"]["head"], initial["params"]["head"]))
    models.save_pretrained(path, variables)
    loaded = load_file(path)
    if library == "torchvision":
        assert_same_bits(*({k: v for k, v in d.items() if k[:2] != "fc"} for d in (loaded, tensors)))
    assert loaded["fc.weight"].shape == (21, 8)


# Files that do not match


def torch_file(tensors):
    """The beginning of a file of `torch.save`, a ZIP archive."""
    del tensors
    return b"PK\x03\x04" + bytes(1000)


# A change of the file of `SMALL`, to other tensors or bytes, the network that loads it, and the error.
BROKEN = {
    "empty": (lambda tensors: b"", SMALL, "path must be a safetensors file, .*header"),
    "truncated": (lambda tensors: save(tensors)[:-1], SMALL, "path must be a safetensors file, .*"),
    "truncated in the header": (lambda tensors: save(tensors)[:99], SMALL, "path must be a safetensors file, .*header"),
    "pickle": (pickle.dumps, SMALL, "path must be a safetensors file, not one of torch.save, got .*header"),
    "torch.save": (torch_file, SMALL, "path must be a safetensors file, not one of torch.save, got .*header"),
    "no tensors": (lambda tensors: {}, SMALL, "missing bn1.bias, bn1.running_mean, bn1.running_var and 29 more$"),
    "missing": (
        lambda tensors: {name: t for name, t in tensors.items() if name != "layer2.0.downsample.0.weight"},
        SMALL,
        "network: missing layer2.0.downsample.0.weight$",
    ),
    "unexpected": (
        lambda tensors: {**tensors, "layer1.0.se.fc1.weight": np.ones((4, 4, 1, 1), np.float32)},
        SMALL,
        "network: unexpected layer1.0.se.fc1.weight$",
    ),
    "transposed": (
        lambda tensors: {**tensors, "conv1.weight": np.ascontiguousarray(tensors["conv1.weight"].T)},
        SMALL,
        r"shape or dtype in conv1.weight \(F32, \(7, 7, 3, 4\) instead of \(4, 3, 7, 7\)\)$",
    ),
    "integers": (
        lambda tensors: {**tensors, "fc.weight": np.zeros((10, 8), np.int8)},
        SMALL,
        r"shape or dtype in fc.weight \(I8, \(10, 8\) instead of \(10, 8\)\)",
    ),
    "other classes": (
        dict,
        NEW_HEAD,
        r"in fc.bias \(.*\), fc.weight \(F32, \(10, 8\) instead of \(21, 8\)\); pass head_key to initialize .* head$",
    ),
    "shallower": (dict, LARGER, "network: missing layer2.1.bn1.bias, layer2.1.bn1.running_mean, .* and 7 more$"),
    "deeper": (
        lambda tensors: tensors_of(LARGER),
        SMALL,
        "network: unexpected layer2.1.bn1.bias, layer2.1.bn1.running_mean, layer2.1.bn1.running_var and 7 more$",
    ),
    "ResNet-D": (
        lambda tensors: {**tensors, "conv1.0.weight": np.ones((2, 3, 3, 3), np.float32)},
        SMALL,
        r"is a network with a ResNet-D stem of three convolutions \(conv1.0.weight\), which is not supported",
    ),
    "no BatchNorm": (
        lambda tensors: {name: t for name, t in tensors.items() if "running" not in name},
        SMALL,
        r"is a network with no BatchNorm statistics \(running_mean\), which is not supported",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_files_that_do_not_match_raise_one_line(name, path):
    change, model, message = BROKEN[name]
    changed = change(tensors_of(SMALL))
    path.write_bytes(changed if isinstance(changed, bytes) else save(changed))
    with pytest.raises(ValueError, match=message) as error:
        models.load_pretrained(path, model)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("setting", ["downsample_in_bottleneck", "downsample_in_first_stage"])
def test_strides_in_the_config_of_transformers_are_checked(setting, path):
    config = path.with_name("config.json")
    for library, value, supported in (
        ("transformers", True, False),
        ("transformers", False, True),
        ("torchvision", True, True),  # then the file is not that of transformers
    ):
        config.write_text(json.dumps({setting: value}))
        save_file(tensors_of(SMALL, library), path)
        if supported:
            models.load_pretrained(path, SMALL)
        else:
            with pytest.raises(ValueError, match=r"a network with other strides \(downsample_in_bottleneck or"):
                models.load_pretrained(path, SMALL)


def test_files_that_cannot_be_read_raise(path):
    with pytest.raises(FileNotFoundError, match=path.name):
        models.load_pretrained(path, SMALL)
    with pytest.raises(IsADirectoryError):
        models.load_pretrained(path.parent, SMALL)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "variables must have params and batch_stats, got none"),
        ({"params": {}}, "variables must have params and batch_stats, got params"),
        (
            {"params": {"Dense_0": {"kernel": np.ones((2, 2))}}, "batch_stats": {}},
            "variables must be those of a ResNet, got params/Dense_0/kernel",
        ),
        (
            {"params": {"encoder": {"head": {"kernel": np.ones((2, 2))}}}, "batch_stats": {}},
            "variables must be those of a ResNet, got params/encoder/head/kernel",
        ),
    ],
)
def test_variables_of_other_networks_raise(variables, message, path):
    with pytest.raises(ValueError, match=message):
        models.save_pretrained(path, variables)
    assert not path.exists()


def test_missing_safetensors_raises_with_the_install_command(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    for call in (lambda: models.load_pretrained(path, SMALL), lambda: models.save_pretrained(path, {})):
        with pytest.raises(ImportError, match="safetensors is not installed: pip install"):
            call()
