"""Compares networks that `load_pretrained` and `save_pretrained` convert to the originals, and writes expected logits.

    python benchmarks/torchvision_logits.py tests/models/torchvision_logits.json

Requires `pip install torch torchvision timm transformers`. The weights, the BatchNorm statistics and the images are
random, but reproducible without these packages: the tests make the same ones and compare their logits to the file's.
"""

import argparse
import functools
import json
import math
import pathlib
import tempfile
import zlib
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import jax
import numpy as np

from dropcluster_jax import models

NETWORKS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
SIDES = (224, 225, 97)
NUM_CLASSES = 10


def random_tensors(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Returns weights and statistics that depend on their names and shapes only. Scalars are 0."""
    tensors = {}
    for name, shape in shapes.items():
        # Unlike those of `np.random.Generator`, these draws are the same in all versions of NumPy.
        uniform = np.random.RandomState(zlib.crc32(name.encode())).uniform(-1, 1, shape)
        if not shape:
            tensors[name] = np.zeros((), np.int64)
        elif len(shape) > 1:
            tensors[name] = np.float32(math.sqrt(6 / math.prod(shape[1:])) * uniform)
        elif name.endswith((".weight", ".running_var")):
            tensors[name] = np.float32((0.5 if name.endswith(".weight") else 1.0) * (1 + 0.5 * uniform))
        else:
            tensors[name] = np.float32(0.1 * uniform)
    return tensors


def random_images(side: int) -> np.ndarray:
    """Returns two normalized images of tiles of random colors, `(2, side, side, 3)`."""
    colors = np.random.RandomState(side).uniform(-2, 2, (2, side // 8 + 1, side // 8 + 1, 3))
    return np.float32(colors.repeat(8, axis=1).repeat(8, axis=2)[:, :side, :side])


def transformers_network(name: str) -> Any:
    """Returns a network of transformers."""
    from transformers import ResNetConfig, ResNetForImageClassification

    model = models.MODELS[name]()
    expansion = model.block.expansion
    config = ResNetConfig(
        hidden_sizes=[model.width * 2**i * expansion for i in range(4)],
        depths=list(model.stage_sizes),
        layer_type="basic" if expansion == 1 else "bottleneck",
        num_labels=NUM_CLASSES,
    )
    return ResNetForImageClassification(config)


def torch_logits(network: Any, side: int) -> np.ndarray:
    """Returns the logits of a network of any of the libraries."""
    import torch

    with torch.no_grad():
        logits = network.eval()(torch.from_numpy(random_images(side).transpose(0, 3, 1, 2).copy()))
    return getattr(logits, "logits", logits).numpy()


def main() -> None:
    """Prints the largest differences between logits and writes the expected ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path, help="path of the JSON file")
    out = parser.parse_args().out

    import timm
    import torch
    import torchvision
    from safetensors.numpy import save_file
    from safetensors.torch import load_file

    libraries: dict[str, Callable[[str], Any]] = {
        "torchvision": functools.partial(torchvision.models.get_model, num_classes=NUM_CLASSES),
        "timm": functools.partial(timm.create_model, num_classes=NUM_CLASSES),
        "transformers": transformers_network,
    }
    packages = ("jax", "torch", *libraries, "safetensors")
    print(", ".join(f"{name} {version(name)}" for name in packages))
    file = pathlib.Path(tempfile.mkdtemp(), "weights.safetensors")
    expected = {}
    for name in NETWORKS:
        model = models.MODELS[name](NUM_CLASSES)
        apply = jax.jit(model.apply)
        for library, create in libraries.items():
            original = create(name)
            tensors = random_tensors({name: tuple(value.shape) for name, value in original.state_dict().items()})
            original.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.items()})
            save_file(tensors, file)
            variables = models.load_pretrained(file, model)
            logits = {side: torch_logits(original, side) for side in SIDES}
            ours = {side: apply(variables, random_images(side)) for side in SIDES}
            differences = ", ".join(f"{abs(ours[side] - logits[side]).max():.1e} ({side})" for side in SIDES)
            print(f"{name} of {library}: largest logit {abs(logits[224]).max():.2f}, differences {differences}")
            if library != "timm":  # which has the names, and so the weights, of torchvision
                expected |= {f"{library} {name} {side}": np.float64(logits[side]).round(7).tolist() for side in SIDES}
            if library == "transformers":
                continue
            models.save_pretrained(file, variables)
            reloaded = create(name)
            reloaded.load_state_dict(load_file(file), strict=True)
            assert (torch_logits(reloaded, 97) == logits[97]).all()
            if library == "timm":  # by its own function, which is also strict
                reloaded = timm.create_model(name, num_classes=NUM_CLASSES, checkpoint_path=str(file))
                assert (torch_logits(reloaded, 97) == logits[97]).all()
            print(f"{name} of {library} loads the file of save_pretrained with strict=True: equal logits", flush=True)
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in expected.items()]
    out.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
