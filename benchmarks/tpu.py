"""Compares the compiled programs of all drop layers for TPUs, without such a device.

    pip install -e '.[tpu]'
    python benchmarks/tpu.py
    python benchmarks/tpu.py --topologies v5e:1x1 --shapes 14 --layers Dropout DropCluster
    git clone https://github.com/google/flax
    python benchmarks/tpu.py --topologies v5e:1x1 --resnet50 flax

The program of a layer is the forward and backward pass of a ReLU, the layer, and a 1x1 convolution, in bfloat16. The
numbers are estimates of the compiler relative to the program without the layer: cycles, bytes accessed by
all operations, and memory (arguments, results and temporaries). Nothing is executed.

With `--resnet50`, the programs are training steps of ResNet-50 with 256 images of 224x224 per chip in bfloat16: ours
without drop layers and with DropCluster (each fill) or DropBlock at `stage3` and `stage4`, and that of Flax's ImageNet
example.
"""

import argparse
import functools
import pathlib
import sys
import types
from collections.abc import Callable
from importlib.metadata import distributions, version
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax_example import import_example
from jax.sharding import PartitionSpec

from dropcluster_jax import KMeans, linen
from dropcluster_jax.models import resnet50
from dropcluster_jax.runs.aot import Analysis, compile_for, topology_mesh
from dropcluster_jax.training import make_steps

# Shapes (batch, height, width, channels) and numbers of clusters, by the side of the map.
SHAPES = {
    "14": ((256, 14, 14, 1024), 4),
    "56": ((256, 56, 56, 256), 64),
    "7": ((256, 7, 7, 2048), 4),
    "32": ((256, 32, 32, 64), 64),
}
RATE, BLOCK = 0.1, 7
NONE, PLACES = "none", ("stage3", "stage4")


def make_layers(num_clusters: int) -> dict[str, nn.Module | None]:
    """Returns all layers by name."""
    options: dict[str, Any] = {"rate": RATE, "deterministic": False}
    shared, separate = (KMeans(num_clusters=num_clusters, per_channel=per_channel) for per_channel in (False, True))
    return {
        NONE: None,
        "flax.linen.Dropout": nn.Dropout(**options),
        "Dropout": linen.Dropout(**options),
        "SpatialDropout": linen.SpatialDropout(**options),
        "DropPath": linen.DropPath(**options),
        "Cutout": linen.Cutout(**options),
        "Cutout, per channel": linen.Cutout(per_channel=True, **options),
        "DropBlock": linen.DropBlock(block_size=BLOCK, **options),
        "DropBlock, per channel": linen.DropBlock(block_size=BLOCK, per_channel=True, **options),
        "DropCluster": linen.DropCluster(shared, **options),
        "DropCluster, noise": linen.DropCluster(shared, fill="noise", **options),
        "DropCluster, swap": linen.DropCluster(shared, fill="swap", **options),
        "DropCluster, masks per channel": linen.DropCluster(shared, per_channel=True, **options),
        "DropCluster, clusters per channel": linen.DropCluster(separate, **options),
        "CorrDrop": linen.CorrDrop(block_size=BLOCK, **options),
        "CorrDrop of channels": linen.CorrDrop(variant="channel", **options),
        "FocusedDropout": linen.FocusedDropout(**options),
    }


def compile_layer(topology: str, layer: nn.Module | None, shape: tuple[int, ...]) -> Analysis:
    """Compiles the forward and backward pass of a ReLU, a layer, and a 1x1 convolution."""
    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    kernel = jax.ShapeDtypeStruct((1, 1, shape[-1], shape[-1]), jnp.bfloat16)
    key = jax.eval_shape(lambda: jax.random.key(0))
    variables = {} if layer is None else jax.eval_shape(lambda key, x: layer.init({"dropout": key}, x), key, x)

    def network(kernel: jax.Array, x: jax.Array, variables: Any, key: jax.Array) -> jax.Array:
        y: Any = nn.relu(x)
        if layer is not None:
            y = layer.apply(variables, y, rngs={"dropout": key})
        return jax.lax.conv_general_dilated(y, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def step(kernel: jax.Array, x: jax.Array, variables: Any, key: jax.Array, gradient: jax.Array) -> Any:
        output, vjp = jax.vjp(lambda kernel, x: network(kernel, x, variables, key), kernel, x)
        return output, vjp(gradient)

    return compile_for(topology, step, kernel, x, variables, key, x)


def compile_step(topology: str, drop: dict[str, nn.Module]) -> Analysis:
    """Compiles our training step of ResNet-50."""
    tx = optax.chain(
        optax.add_decayed_weights(1e-4, mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)),
        optax.sgd(optax.warmup_cosine_decay_schedule(0.0, 0.1, 5, 100), momentum=0.9, nesterov=True),
    )
    model = resnet50(drop=drop, dtype=jnp.bfloat16)
    steps = make_steps(model, tx, rate=optax.linear_schedule(0.0, 0.1, 1, 100))
    batch = imagenet_batch(topology)
    state = jax.eval_shape(steps.init, jax.random.key(0), batch)
    return compile_for(topology, steps.train, state, batch, batch_argnums=1, donate_argnums=0)


def compile_example(topology: str, checkout: pathlib.Path) -> Analysis:
    """Compiles the training step of Flax's ImageNet example, with a state that is donated like ours."""
    train_step, state = flax_example(checkout)
    batch = PartitionSpec("batch")
    step = jax.shard_map(
        train_step,
        mesh=topology_mesh(topology),
        in_specs=(PartitionSpec(), batch),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
    return compile_for(topology, step, state, imagenet_batch(topology), batch_argnums=1, donate_argnums=0)


def flax_example(checkout: pathlib.Path) -> tuple[Callable[..., Any], Any]:
    """Returns the training step of Flax's example in bfloat16 and the shapes of its state."""
    models, train = import_example(checkout)
    config = types.SimpleNamespace(warmup_epochs=5, num_epochs=100, momentum=0.9, half_precision=False)
    learning_rate = train.create_learning_rate_fn(config, 0.1, 1)
    model = models.ResNet50(num_classes=1000, dtype=jnp.bfloat16)
    create = functools.partial(train.create_train_state, config=config, model=model, image_size=224)
    state = jax.eval_shape(lambda key: create(key, learning_rate_fn=learning_rate), jax.random.key(0))
    return functools.partial(train.train_step, learning_rate_fn=learning_rate), state


def imagenet_batch(topology: str) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of 256 images and labels per chip."""
    batch = 256 * topology_mesh(topology).size
    images = jax.ShapeDtypeStruct((batch, 224, 224, 3), jnp.bfloat16)
    return {"image": images, "label": jax.ShapeDtypeStruct((batch,), jnp.int32)}


def memory(analysis: Analysis) -> int:
    """Returns the bytes of arguments, results and temporaries."""
    return analysis.argument_bytes + analysis.output_bytes + analysis.temporary_bytes


def describe(analysis: Analysis) -> str:
    """Returns the costs of a program."""
    cycles = f"{analysis.cycles / 1e6:.2f} M cycles, " if analysis.cycles is not None else ""
    gigabytes = (analysis.bytes_accessed or 0) / 1e9
    return (
        f"{cycles}{gigabytes:.2f} GB accessed, {memory(analysis) / 2**20:.0f} MiB of memory, "
        f"{analysis.temporary_bytes / 2**20:.1f} MiB of them temporaries"
    )


def ratios(analysis: Analysis, reference: Analysis) -> str:
    """Returns cycles, bytes accessed, and memory relative to another program."""
    pairs = [
        (analysis.cycles, reference.cycles),
        (analysis.bytes_accessed, reference.bytes_accessed),
        (memory(analysis), memory(reference)),
    ]
    return ", ".join(f"{a / b:.3f}" for a, b in pairs if a is not None and b is not None)


def measure_layers(topology: str, sides: list[str], names: list[str]) -> None:
    """Prints the table of the layers for one topology."""
    print(f"\n{topology}: cycles, bytes, memory")
    cells: dict[str, list[str]] = {name: [] for name in (NONE, *names)}
    for side in sides:
        shape, num_clusters = SHAPES[side]
        layers = make_layers(num_clusters)
        reference = compile_layer(topology, None, shape)
        cells[NONE].append(describe(reference))
        for name in names:
            cells[name].append(ratios(compile_layer(topology, layers[name], shape), reference))
            print(f"  {name}, {shape}: {cells[name][-1]}", file=sys.stderr, flush=True)
    print(f"| | {' | '.join(str(SHAPES[side][0]) for side in sides)} |\n|---|{'---|' * len(sides)}")
    for name, row in cells.items():
        print(f"| {name} | {' | '.join(row)} |", flush=True)


def measure_resnet50(topology: str, checkout: pathlib.Path) -> None:
    """Prints the costs of the training steps."""
    example = compile_example(topology, checkout)
    print(f"\n{topology}, ResNet-50; ratios: cycles, bytes, memory\nFlax's example: {describe(example)}", flush=True)
    drops = {
        "no drop layers": {},
        "DropCluster": {place: linen.DropCluster(KMeans(cluster_size=16)) for place in PLACES},
        "DropCluster, noise": {place: linen.DropCluster(KMeans(cluster_size=16), fill="noise") for place in PLACES},
        "DropCluster, swap": {place: linen.DropCluster(KMeans(cluster_size=16), fill="swap") for place in PLACES},
        "DropBlock": {place: linen.DropBlock(block_size=BLOCK) for place in PLACES},
    }
    reference = None
    for name, drop in drops.items():
        analysis = compile_step(topology, drop)
        reference = reference or analysis
        print(
            f"{name}: {describe(analysis)}; {ratios(analysis, reference)} of the step without drop layers, "
            f"{ratios(analysis, example)} of the example",
            flush=True,
        )


def main() -> None:
    """Prints the tables."""
    names = list(make_layers(4))[1:]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topologies", nargs="+", default=["v5e:1x1", "v6e:1x1"])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), help="sides of the maps")
    parser.add_argument("--layers", nargs="+", choices=names, default=names, metavar="LAYER", help="names in the table")
    parser.add_argument(
        "--resnet50",
        type=pathlib.Path,
        metavar="FLAX",
        help="checkout of github.com/google/flax; compiles training steps instead, for minutes each",
    )
    options = parser.parse_args()
    installed = {distribution.name for distribution in distributions()}
    packages = [name for name in ("jax", "flax", "libtpu", "jax-cuda12-plugin") if name in installed]
    print(", ".join(f"{name} {version(name)}" for name in packages))
    for topology in options.topologies:
        if options.resnet50:
            measure_resnet50(topology, options.resnet50)
        else:
            measure_layers(topology, options.shapes, options.layers)


if __name__ == "__main__":
    main()
