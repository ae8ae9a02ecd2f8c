"""Weights of ResNets in safetensors files, with the names of torchvision, timm and Hugging Face's transformers."""

import functools
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict
from flax.traverse_util import flatten_dict, unflatten_dict

from dropcluster_jax._optional import optional_import
from dropcluster_jax.models.resnet import ResNet

_BLOCK = "resnet.encoder.stages.{stage0}.layers.{block0}"
# Names of modules in `ResNet`, in torchvision and timm, and in transformers. `stage0`, `block0` and `i0` start at 0.
_MODULES = {
    "stem_conv": ("conv1", "resnet.embedder.embedder.convolution"),
    "stem_norm": ("bn1", "resnet.embedder.embedder.normalization"),
    "conv": ("layer{stage}.{block0}.conv{i}", _BLOCK + ".layer.{i0}.convolution"),
    "norm": ("layer{stage}.{block0}.bn{i}", _BLOCK + ".layer.{i0}.normalization"),
    "shortcut_conv": ("layer{stage}.{block0}.downsample.0", _BLOCK + ".shortcut.convolution"),
    "shortcut_norm": ("layer{stage}.{block0}.downsample.1", _BLOCK + ".shortcut.normalization"),
    "head": ("fc", "classifier.1"),
}
_TENSORS = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_HEADS = ("fc.", "classifier.")
_DTYPES = {"F16": np.float16, "BF16": jnp.bfloat16, "F32": np.float32, "F64": np.float64}

_Leaf = tuple[str, ...]  # path of an array in the variables


def load_pretrained(
    path: str | os.PathLike[str], model: ResNet, *, channels: int = 3, head_key: jax.Array | None = None
) -> dict[str, Any]:
    """Loads the weights of a ResNet from a safetensors file, without PyTorch.

    Reads ResNet-18, 34, 50, 101 and 152 of torchvision, timm and transformers (`ResNetForImageClassification`), and
    files written by `save_pretrained`. The tensors of the file and of the network must be the same;
    `num_batches_tracked` is ignored.

    Some variants have the same tensors and cannot be detected: "v1" networks, whose bottleneck blocks stride in the
    first convolution, unless a `config.json` of transformers is next to the file, and networks with anti-aliasing, such
    as timm's `resnetblur50`.

    Args:
        path: Path of the file. Weights of other floating-point dtypes are converted to those of the parameters.
        model: Network with the architecture of the file. Drop layers have no weights.
        channels: Number of channels of the images.
        head_key: Key to initialize a new head, e.g. for other classes; a head in the file is ignored. By default, the
            head is loaded.

    Returns:
        The collections "params" and "batch_stats" of the variables. Clusters depend on the size of the images;
        `dropcluster_jax.linen.init_clusters` adds them.

    Raises:
        ValueError: If the file is not a safetensors file, is of an unsupported variant, or does not match the network.
        OSError: If the file cannot be read.
        ImportError: If safetensors is not installed.

    Example:
        >>> import tempfile
        >>> from dropcluster_jax.models import resnet8
        >>> path = pathlib.Path(tempfile.mkdtemp(), "resnet8.safetensors")
        >>> save_pretrained(path, jax.jit(resnet8().init)(jax.random.key(0), jnp.ones((1, 8, 8, 3))))
        >>> variables = load_pretrained(path, resnet8(num_classes=21), head_key=jax.random.key(1))
        >>> variables["params"]["head"]["kernel"].shape
        (64, 21)
    """
    with optional_import("safetensors"):
        from safetensors import SafetensorError, deserialize
    try:
        tensors = dict(deserialize(pathlib.Path(path).read_bytes()))
    except SafetensorError as error:
        raise ValueError(f"path must be a safetensors file, not one of torch.save, got {path}: {error}") from error

    init = functools.partial(model.clone(drop=FrozenDict()).init, x=jnp.ones((1, 32, 32, channels)))
    expected = jax.eval_shape(lambda key: _to_file_layout(init(key)), jax.random.key(0))
    torchvision, transformers = ({leaf: _name(leaf, library) for leaf in expected} for library in range(2))
    names = max(torchvision, transformers, key=lambda names: len(tensors.keys() & names.values()))
    _check_variant(path, tensors, has_config=names is transformers)
    if head_key is not None:
        names = {leaf: name for leaf, name in names.items() if leaf[1] != "head"}
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(_HEADS)}
    _check_tensors(path, tensors, {name: expected[leaf].shape for leaf, name in names.items()})

    def read(leaf: _Leaf) -> jax.Array:
        tensor = tensors[names[leaf]]
        array = np.frombuffer(tensor["data"], _DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
        if leaf[-1] == "kernel":
            array = array.transpose(*range(2, array.ndim), 1, 0)
        return jnp.asarray(array, expected[leaf].dtype)

    variables = unflatten_dict({leaf: read(leaf) for leaf in names})
    if head_key is not None:
        variables["params"]["head"] = jax.jit(lambda key: init(key)["params"]["head"])(head_key)
    return variables


def save_pretrained(path: str | os.PathLike[str], variables: Mapping[str, Any]) -> None:
    """Writes the weights of a `ResNet` to a safetensors file with the names of torchvision and timm.

    Networks with the ImageNet stem and projection shortcuts load into torchvision and timm with `strict=True`.

    Args:
        path: Path of the file, which is overwritten.
        variables: Variables of the network. Collections other than "params" and "batch_stats" are not saved.

    Raises:
        ValueError: If `variables` are not those of a `ResNet`.
        OSError: If the file cannot be written.
        ImportError: If safetensors is not installed.

    Example:
        See `load_pretrained`.
    """
    with optional_import("safetensors"):
        from safetensors.numpy import save
    if not {"params", "batch_stats"} <= set(variables):
        raise ValueError(f"variables must have params and batch_stats, got {', '.join(variables) or 'none'}")
    tensors = {}
    for leaf, value in _to_file_layout(jax.device_get(dict(variables))).items():
        name = _name(leaf, 0)
        tensors[name] = np.ascontiguousarray(value)  # required by safetensors
        if leaf[-1] == "mean":
            tensors[name.replace("running_mean", "num_batches_tracked")] = np.zeros((), np.int64)
    pathlib.Path(path).write_bytes(save(tensors, {"format": "pt"}))


def _to_file_layout(variables: Mapping[str, Any]) -> dict[_Leaf, Any]:
    """Returns the parameters and statistics by path, with kernels as in PyTorch: `(out, in, height, width)`."""
    leaves: dict[_Leaf, Any] = flatten_dict({name: variables[name] for name in ("params", "batch_stats")})
    return {
        leaf: value.transpose(-1, -2, *range(value.ndim - 2)) if leaf[-1] == "kernel" else value
        for leaf, value in leaves.items()
    }


def _name(leaf: _Leaf, library: int) -> str:
    """Returns the name of the tensor for a path in the variables; see `_MODULES` for the libraries."""
    match = re.fullmatch(r"(?:stage(\d+)_block(\d+)/)?(\w+?)(\d*)/(\w+)", "/".join(leaf[1:]))
    if not match or match[3] not in _MODULES:
        raise ValueError(f"variables must be those of a ResNet, got {'/'.join(leaf)}")
    stage, block, i = (int(number or 1) for number in match.group(1, 2, 4))
    module = _MODULES[match[3]][library].format(stage=stage, stage0=stage - 1, block0=block - 1, i=i, i0=i - 1)
    return f"{module}.{_TENSORS[match[5]]}"


def _check_variant(path: str | os.PathLike[str], tensors: Mapping[str, Any], has_config: bool) -> None:
    """Raises an error that names the variant of the network in a file if it is not supported."""
    config = pathlib.Path(path).with_name("config.json")
    settings = json.loads(config.read_text()) if has_config and config.exists() else {}
    if "conv1.0.weight" in tensors:
        variant = "a ResNet-D stem of three convolutions (conv1.0.weight)"
    elif tensors and not any(name.endswith(".running_mean") for name in tensors):
        variant = "no BatchNorm statistics (running_mean)"
    elif settings.get("downsample_in_bottleneck") or settings.get("downsample_in_first_stage"):
        variant = "other strides (downsample_in_bottleneck or downsample_in_first_stage in config.json)"
    else:
        return
    raise ValueError(f"{path} is a network with {variant}, which is not supported")


def _check_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Raises an error that lists the tensors that are missing, unexpected, or of another shape or dtype."""
    names = {name for name in tensors if not name.endswith(".num_batches_tracked")}
    different = [
        f"{name} ({tensors[name]['dtype']}, {tuple(tensors[name]['shape'])} instead of {expected[name]})"
        for name in sorted(names & expected.keys())
        if tuple(tensors[name]["shape"]) != expected[name] or tensors[name]["dtype"] not in _DTYPES
    ]
    problems = {
        "missing": sorted(expected.keys() - names),
        "unexpected": sorted(names - expected.keys()),
        "another shape or dtype in": different,
    }
    lists = [
        f"{problem} {', '.join(found[:3])}{f' and {len(found) - 3} more' if len(found) > 3 else ''}"
        for problem, found in problems.items()
        if found
    ]
    if lists:
        only_head = all(name.startswith(_HEADS) for found in problems.values() for name in found)
        hint = "; pass head_key to initialize a new head" if only_head else ""
        raise ValueError(f"{path} does not match the network: {'; '.join(lists)}{hint}")
