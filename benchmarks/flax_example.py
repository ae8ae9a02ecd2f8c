"""The compiled training step of ResNet-50 beside that of the Flax project's ImageNet example, in one run.

    git clone https://github.com/google/flax
    python benchmarks/flax_example.py --flax flax --batch 8 --side 224

Theirs as in `examples/imagenet`: its own model, state and `train_step`, under `pmap` on one device. Ours: `imagenet`'s
places for DropCluster with a rate that is 0 and not known when compiling, so that masks are drawn and applied; the
same under `pmap`, with BatchNorm over its axis, as theirs is; and without DropCluster. All in float32, on images that
are ready, without augmentation and label smoothing, which theirs has not. Operations and temporaries are XLA's own
figures of the compiled programs. Ours gives its state away, theirs does not: that takes more temporaries and less
memory, so each is compiled the other way too. They take turns, so that what slows the machine slows all; medians, and
the middle half of the ratios of neighboring turns.
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
from typing import Any, Literal

import jax
import optax

from dropcluster_jax import KMeans
from dropcluster_jax.linen import DropCluster
from dropcluster_jax.models import resnet50
from dropcluster_jax.training import DataParallel, make_steps

PLACES = ("stage3", "stage4")
THEIRS = "Flax's example"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flax", type=pathlib.Path, required=True, help="a checkout of github.com/google/flax")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()

    images = jax.random.normal(jax.random.key(0), (options.batch, options.side, options.side, 3))
    batch = {"image": images, "label": jax.random.randint(jax.random.key(1), (options.batch,), 0, 1000)}
    programs = {
        THEIRS: theirs(options.flax, batch, options.side),
        "ours, DropCluster at rate 0": ours("jit", PLACES, batch),
        "the same under pmap": ours("pmap", PLACES, batch),
        "ours, without": ours("jit", (), batch),
    }
    times: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(options.turns + 2):
        for name, (step, _) in programs.items():
            begin = time.perf_counter()
            step()
            if turn > 1:  # two warm up
                times[name].append(time.perf_counter() - begin)

    print(
        f"ResNet-50, batch {options.batch}, {options.side} pixels, float32, {options.turns} turns; "
        f"jax {jax.__version__}, flax {version('flax')}, {jax.devices()[0].device_kind}, {os.cpu_count()} cores, "
        f"{platform.machine()}"
    )
    print(f"{'':28} {'ms':>7}  against Flax's example, the middle half")
    for name in programs:
        ratios = sorted(one / other for one, other in zip(times[name], times[THEIRS], strict=True))
        quarter = len(ratios) // 4
        print(
            f"{name:28} {1000 * statistics.median(times[name]):7.0f}  {statistics.median(ratios):.3f} "
            f"({ratios[quarter]:.3f} to {ratios[-1 - quarter]:.3f})"
        )
    for donated, title in ((False, "state kept"), (True, "state given away")):
        print(f"{title + ':':28} {'GFLOP':>9} {'temporaries MB':>15} {'all MB':>8}  FLOP, temporaries, all")
        costs = {name: compiled(donated) for name, (_, compiled) in programs.items()}
        for name, values in costs.items():
            ratios = ", ".join(f"{one / other:.4f}" for one, other in zip(values, costs[THEIRS], strict=True))
            flops, temporaries, together = values
            print(f"{name:28} {flops / 1e9:9.2f} {temporaries / 1e6:15.1f} {together / 1e6:8.0f}  {ratios}")


Costs = tuple[float, float, float]  # operations, bytes of temporaries, and of all that lives at once


def ours(
    way: Literal["jit", "pmap"], places: tuple[str, ...], batch: dict[str, jax.Array]
) -> tuple[Callable[[], None], Callable[[bool], Costs]]:
    """A function that takes a step and waits, and one that compiles it, its state given away or not, and counts."""
    device = jax.devices()[:1]
    parallel = DataParallel(way, jax.make_mesh((1,), ("batch",), (jax.sharding.AxisType.Auto,), devices=device))
    axis_name = parallel.axis_name
    drop = {place: DropCluster(KMeans(cluster_size=16), axis_name=axis_name) for place in places}
    tx = optax.chain(
        optax.add_decayed_weights(1e-4, mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)),
        optax.sgd(optax.warmup_cosine_decay_schedule(0.0, 0.1, 5, 100), momentum=0.9, nesterov=True),
    )
    model = resnet50(1000, drop=drop, axis_name=axis_name)
    steps = make_steps(model, tx, rate=optax.linear_schedule(0.0, 0.1, 1, 10**9), axis_name=axis_name)
    placed = parallel.shard_batch(batch)
    compiled = parallel.compile(steps)
    state = compiled.init(jax.random.key(0), placed)
    shapes = jax.eval_shape(lambda: (state, placed))

    def costs(donated: bool) -> Costs:
        given_away = (0,) if donated else ()
        if way == "jit":
            return _costs(jax.jit(steps.train, donate_argnums=given_away).lower(*shapes))
        mapped = jax.pmap(steps.train, axis_name=axis_name, devices=device, donate_argnums=given_away)
        stacked = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), shapes)
        return _costs(mapped.lower(*stacked))

    def step() -> None:
        nonlocal state
        state, metrics = compiled.train(state, placed)
        jax.block_until_ready((state, metrics))

    return step, costs


def theirs(
    checkout: pathlib.Path, batch: dict[str, jax.Array], side: int
) -> tuple[Callable[[], None], Callable[[bool], Costs]]:
    """The example's, from its own files."""
    import flax.training.checkpoints  # noqa: F401 - before it could meet a TensorFlow that is none
    from flax import jax_utils

    # What it imports for its data and its logs, and the step does not need.
    stand_ins = ("clu", "clu.metric_writers", "clu.periodic_actions", "input_pipeline", "ml_collections", "tensorflow")
    for name in stand_ins:
        module = types.ModuleType(name)
        module.__dict__.update(ConfigDict=dict, metric_writers=None, periodic_actions=None)
        sys.modules.setdefault(name, module)
    sys.path.insert(0, str(checkout / "examples" / "imagenet"))
    import models  # pyright: ignore[reportMissingImports]
    import train  # pyright: ignore[reportMissingImports]

    for name in stand_ins:
        del sys.modules[name]

    config = types.SimpleNamespace(warmup_epochs=5, num_epochs=100, momentum=0.9, half_precision=False)
    learning_rate = train.create_learning_rate_fn(config, 0.1, 1)
    model = train.create_model(model_cls=models.ResNet50, half_precision=False)
    device = jax.devices()[:1]
    state = train.create_train_state(jax.random.key(0), config, model, side, learning_rate)
    state = jax_utils.replicate(state, devices=device)
    placed = jax_utils.replicate(batch, devices=device)
    step_of = functools.partial(train.train_step, learning_rate_fn=learning_rate)
    program = jax.pmap(step_of, axis_name="batch", devices=device)
    shapes = jax.eval_shape(lambda: (state, placed))

    def costs(donated: bool) -> Costs:
        given_away = (0,) if donated else ()
        return _costs(jax.pmap(step_of, axis_name="batch", devices=device, donate_argnums=given_away).lower(*shapes))

    def step() -> None:
        nonlocal state
        state, metrics = program(state, placed)
        jax.block_until_ready((state, metrics))

    return step, costs


def _costs(lowered: Any) -> Costs:
    program = lowered.compile()
    memory = program.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return program.cost_analysis()["flops"], memory.temp_size_in_bytes, held + memory.temp_size_in_bytes


if __name__ == "__main__":
    main()
