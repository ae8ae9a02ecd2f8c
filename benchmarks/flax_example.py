"""Compares the training step of ResNet-50 to that of Flax's ImageNet example.

    git clone https://github.com/google/flax
    python benchmarks/flax_example.py --flax flax --batch 8 --side 224

Flax's example is used as is: its model, state and `train_step` under `pmap` on one device. Ours has DropCluster at
`stage3` and `stage4` with a traced rate of 0, so that masks are drawn and applied. It runs under `jit`, under `pmap`
with BatchNorm synchronized as in the example, and under `jit` without DropCluster. All programs use float32 and images
on the device, without augmentation and label smoothing, which the example does not have.

Operations and memory are those reported by XLA for the compiled programs, with and without donation of the state: our
steps donate it and the example does not. Times are medians over repeats in which all programs run in turn, so that
background load affects all of them.
"""

import argparse
import functools
import os
import pathlib
import platform
import statistics
import sys
import time
import types
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, Literal, NamedTuple

import jax
import optax

from dropcluster_jax import KMeans
from dropcluster_jax.linen import DropCluster
from dropcluster_jax.models import resnet50
from dropcluster_jax.training import DataParallel, make_steps

PLACES = ("stage3", "stage4")
EXAMPLE = "Flax's example"


class Costs(NamedTuple):
    """Operations, bytes of temporaries, and bytes of arguments, results and temporaries together."""

    flops: float
    temporaries: float
    memory: float


class Program(NamedTuple):
    """A function that runs a step, and one that returns its costs, given whether the state is donated."""

    step: Callable[[], None]
    costs: Callable[[bool], Costs]


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flax", type=pathlib.Path, required=True, help="checkout of github.com/google/flax")
    parser.add_argument("--batch", type=int, default=8, help="batch size")
    parser.add_argument("--side", type=int, default=224, help="height and width of the images")
    parser.add_argument("--repeats", type=int, default=7, help="number of timed steps of each program")
    options = parser.parse_args()

    images = jax.random.normal(jax.random.key(0), (options.batch, options.side, options.side, 3))
    batch = {"image": images, "label": jax.random.randint(jax.random.key(1), (options.batch,), 0, 1000)}
    programs = {
        EXAMPLE: example_program(options.flax, batch, options.side),
        "DropCluster at rate 0, jit": our_program("jit", PLACES, batch),
        "DropCluster at rate 0, pmap": our_program("pmap", PLACES, batch),
        "no drop layers, jit": our_program("jit", (), batch),
    }
    times: dict[str, list[float]] = {name: [] for name in programs}
    for repeat in range(options.repeats + 2):
        for name, program in programs.items():
            start = time.perf_counter()
            program.step()
            if repeat > 1:  # the first two warm up
                times[name].append(time.perf_counter() - start)

    print(
        f"ResNet-50, batch {options.batch}, {options.side} pixels, float32, {options.repeats} repeats; "
        f"jax {jax.__version__}, flax {version('flax')}, {jax.devices()[0].device_kind}, {os.cpu_count()} cores, "
        f"{platform.machine()}"
    )
    print(f"{'':28} {'ms':>7}  ratio to Flax's example (middle half)")
    for name in programs:
        ratios = sorted(a / b for a, b in zip(times[name], times[EXAMPLE], strict=True))
        quarter = len(ratios) // 4
        print(
            f"{name:28} {1000 * statistics.median(times[name]):7.0f}  {statistics.median(ratios):.3f} "
            f"({ratios[quarter]:.3f} to {ratios[-1 - quarter]:.3f})"
        )
    for donate, title in ((False, "without donation"), (True, "with donation")):
        print(f"{title + ':':28} {'GFLOP':>9} {'temporaries MB':>15} {'total MB':>9}  ratios to Flax's example")
        costs = {name: program.costs(donate) for name, program in programs.items()}
        for name, (flops, temporaries, memory) in costs.items():
            ratios = ", ".join(f"{a / b:.4f}" for a, b in zip(costs[name], costs[EXAMPLE], strict=True))
            print(f"{name:28} {flops / 1e9:9.2f} {temporaries / 1e6:15.1f} {memory / 1e6:9.0f}  {ratios}")


def our_program(strategy: Literal["jit", "pmap"], places: tuple[str, ...], batch: dict[str, jax.Array]) -> Program:
    """Returns our training step with DropCluster at `places`."""
    devices = jax.devices()[:1]
    mesh = jax.make_mesh((1,), ("batch",), (jax.sharding.AxisType.Auto,), devices=devices)
    parallel = DataParallel(strategy, mesh)
    axis_name = parallel.axis_name
    drop = {place: DropCluster(KMeans(cluster_size=16), axis_name=axis_name) for place in places}
    tx = optax.chain(
        optax.add_decayed_weights(1e-4, mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)),
        optax.sgd(optax.warmup_cosine_decay_schedule(0.0, 0.1, 5, 100), momentum=0.9, nesterov=True),
    )
    model = resnet50(drop=drop, axis_name=axis_name)
    steps = make_steps(model, tx, rate=optax.linear_schedule(0.0, 0.1, 1, 10**9), axis_name=axis_name)
    sharded_batch = parallel.shard_batch(batch)
    compiled = parallel.compile(steps)
    state = compiled.init(jax.random.key(0), sharded_batch)
    shapes = jax.eval_shape(lambda: (state, sharded_batch))

    def step() -> None:
        nonlocal state
        state, metrics = compiled.train(state, sharded_batch)
        jax.block_until_ready((state, metrics))

    def costs(donate: bool) -> Costs:
        donate_argnums = (0,) if donate else ()
        if strategy == "jit":
            return compiled_costs(jax.jit(steps.train, donate_argnums=donate_argnums).lower(*shapes))
        mapped = jax.pmap(steps.train, axis_name=axis_name, devices=devices, donate_argnums=donate_argnums)
        stacked = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), shapes)
        return compiled_costs(mapped.lower(*stacked))

    return Program(step, costs)


def import_example(checkout: pathlib.Path) -> tuple[Any, Any]:
    """Returns the modules `models` and `train` of Flax's example."""
    import flax.training.checkpoints  # noqa: F401 - must not see the placeholder for TensorFlow below

    # The example imports these modules for data and logging, which its training step does not need.
    placeholders = (
        "clu",
        "clu.metric_writers",
        "clu.periodic_actions",
        "input_pipeline",
        "ml_collections",
        "tensorflow",
        "tensorflow_datasets",
    )
    for name in placeholders:
        module = types.ModuleType(name)
        module.__dict__.update(ConfigDict=dict, metric_writers=None, periodic_actions=None)
        sys.modules.setdefault(name, module)
    sys.path.insert(0, str(checkout / "examples" / "imagenet"))
    import models  # pyright: ignore[reportMissingImports]
    import train  # pyright: ignore[reportMissingImports]

    for name in placeholders:
        del sys.modules[name]
    return models, train


def example_program(checkout: pathlib.Path, batch: dict[str, jax.Array], side: int) -> Program:
    """Returns the training step of Flax's example."""
    from flax import jax_utils

    models, train = import_example(checkout)
    config = types.SimpleNamespace(warmup_epochs=5, num_epochs=100, momentum=0.9, half_precision=False)
    learning_rate = train.create_learning_rate_fn(config, 0.1, 1)
    model = train.create_model(model_cls=models.ResNet50, half_precision=False)
    devices = jax.devices()[:1]
    state = train.create_train_state(jax.random.key(0), config, model, side, learning_rate)
    state = jax_utils.replicate(state, devices=devices)
    replicated_batch = jax_utils.replicate(batch, devices=devices)
    train_step = functools.partial(train.train_step, learning_rate_fn=learning_rate)
    compiled = jax.pmap(train_step, axis_name="batch", devices=devices)
    shapes = jax.eval_shape(lambda: (state, replicated_batch))

    def step() -> None:
        nonlocal state
        state, metrics = compiled(state, replicated_batch)
        jax.block_until_ready((state, metrics))

    def costs(donate: bool) -> Costs:
        donate_argnums = (0,) if donate else ()
        mapped = jax.pmap(train_step, axis_name="batch", devices=devices, donate_argnums=donate_argnums)
        return compiled_costs(mapped.lower(*shapes))

    return Program(step, costs)


def compiled_costs(lowered: Any) -> Costs:
    """Compiles a program and returns its costs according to XLA."""
    compiled = lowered.compile()
    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Costs(
        flops=compiled.cost_analysis()["flops"],
        temporaries=memory.temp_size_in_bytes,
        memory=held + memory.temp_size_in_bytes,
    )


if __name__ == "__main__":
    main()
