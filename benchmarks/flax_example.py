"""The compiled training step of ResNet-50 beside that of the Flax project's ImageNet example, in one run.

    git clone https://github.com/google/flax
    python benchmarks/flax_example.py --flax flax --batch 8 --side 224

Theirs as in `examples/imagenet`: its own model, state and `train_step`, under `pmap` on one device. Ours: `imagenet`'s
places for DropCluster with a rate that is 0 and not known when compiling, so that masks are drawn and applied; and
without any. Both in float32, on images that are ready, without augmentation and label smoothing, which theirs has not.
Operations and temporaries are XLA's own figures of the compiled programs. The three take turns, so that what slows the
machine slows all; medians, and the middle half of the ratios of neighbouring turns.
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
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dropcluster_jax import KMeans
from dropcluster_jax.linen import DropCluster
from dropcluster_jax.models import resnet50
from dropcluster_jax.training import Parallel, make_steps

PLACES = ("stage3", "stage4")


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
    drop = {place: DropCluster(KMeans(cluster_size=16)) for place in PLACES}
    programs = {
        "Flax's example": theirs(options.flax, batch, options.side),
        "ours, DropCluster at rate 0": ours(drop, batch),
        "ours, without": ours({}, batch),
    }
    times: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(options.turns + 1):
        for name, (step, *_) in programs.items():
            begin = time.perf_counter()
            step()
            if turn:  # the first warms up
                times[name].append(time.perf_counter() - begin)

    print(
        f"ResNet-50, batch {options.batch}, {options.side} pixels, float32, {options.turns} turns; "
        f"jax {jax.__version__}, "
        f"flax {version('flax')}, {jax.devices()[0].device_kind}, {os.cpu_count()} cores, {platform.machine()}"
    )
    print(f"{'':28} {'GFLOP':>9} {'temporaries MB':>15} {'ms':>8}   against Flax's example: FLOP, temporaries, time")
    base = "Flax's example"
    for name, (_, flops, temporaries) in programs.items():
        ratios = sorted(one / other for one, other in zip(times[name], times[base], strict=True))
        quarter = len(ratios) // 4
        print(
            f"{name:28} {flops / 1e9:9.2f} {temporaries / 1e6:15.1f} {1000 * statistics.median(times[name]):8.0f}   "
            f"{flops / programs[base][1]:.4f}, {temporaries / programs[base][2]:.4f}, "
            f"{statistics.median(ratios):.3f} ({ratios[quarter]:.3f} to {ratios[-1 - quarter]:.3f})"
        )


def ours(drop: dict[str, DropCluster], batch: dict[str, jax.Array]) -> tuple[Any, float, float]:
    """A function that takes a step and waits, its operations and temporaries."""
    parallel = Parallel(mesh=jax.make_mesh((1,), ("batch",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:1]))
    tx = optax.chain(
        optax.add_decayed_weights(1e-4, mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)),
        optax.sgd(optax.warmup_cosine_decay_schedule(0.0, 0.1, 5, 100), momentum=0.9, nesterov=True),
    )
    steps = make_steps(resnet50(1000, drop=drop), tx, rate=lambda step: 0.0 * step.astype(jnp.float32))
    placed = parallel.put(batch)
    compiled = parallel.compile(steps)
    state = compiled.init(jax.random.key(0), placed)
    program = jax.jit(compiled.train, donate_argnums=0).lower(state, placed).compile()

    def step() -> None:
        nonlocal state
        state, metrics = program(state, placed)
        jax.block_until_ready((state, metrics))

    return step, *_costs(program)


def theirs(checkout: pathlib.Path, batch: dict[str, jax.Array], side: int) -> tuple[Any, float, float]:
    """The example's, from its own files."""
    # What it imports for its data and its logs, and the step does not need.
    for name in ("clu", "clu.metric_writers", "clu.periodic_actions", "input_pipeline", "ml_collections", "tensorflow"):
        module = types.ModuleType(name)
        module.__dict__.update(ConfigDict=dict, metric_writers=None, periodic_actions=None)
        sys.modules.setdefault(name, module)
    sys.path.insert(0, str(checkout / "examples" / "imagenet"))
    import models  # pyright: ignore[reportMissingImports]
    import train  # pyright: ignore[reportMissingImports]
    from flax import jax_utils

    config = types.SimpleNamespace(warmup_epochs=5, num_epochs=100, momentum=0.9, half_precision=False)
    learning_rate = train.create_learning_rate_fn(config, 0.1, 1)
    model = train.create_model(model_cls=models.ResNet50, half_precision=False)
    device = jax.devices()[:1]
    state = train.create_train_state(jax.random.key(0), config, model, side, learning_rate)
    state = jax_utils.replicate(state, devices=device)
    placed = jax_utils.replicate(batch, devices=device)
    step_of = functools.partial(train.train_step, learning_rate_fn=learning_rate)
    program = jax.pmap(step_of, axis_name="batch", devices=device).lower(state, placed).compile()

    def step() -> None:
        nonlocal state
        state, metrics = program(state, placed)
        jax.block_until_ready((state, metrics))

    return step, *_costs(program)


def _costs(program: Any) -> tuple[float, float]:
    return program.cost_analysis()["flops"], program.memory_analysis().temp_size_in_bytes


if __name__ == "__main__":
    main()
