"""Measures the cost of DropCluster in a training step of ResNet-50: operations, temporary memory and time.

    python benchmarks/training_step.py --batch 16 --side 64

Compares the network with drop layers at `stem`, `stage3` and `stage4` to the same network without. Operations and
temporaries are those reported by XLA for the compiled programs. Times are medians over repeats in which both programs
run in turn, so that background load affects both.
"""

import argparse
import os
import platform
import statistics
import time
from importlib.metadata import version

import jax
import jax.numpy as jnp
import optax

import dropcluster_jax as dc
from dropcluster_jax.linen import DropCluster
from dropcluster_jax.models import resnet50
from dropcluster_jax.training import make_steps

PLACES = ("stem", "stage3", "stage4")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16, help="batch size")
    parser.add_argument("--side", type=int, default=64, help="height and width of the images")
    parser.add_argument("--dtype", default="float32", help="dtype of the activations")
    parser.add_argument("--cluster-size", type=float, default=49.0, help="mean number of positions per cluster")
    parser.add_argument("--per-channel", action="store_true", help="cluster each channel separately")
    parser.add_argument("--repeats", type=int, default=10, help="number of timed steps of each program")
    options = parser.parse_args()

    images = jax.random.normal(jax.random.key(0), (options.batch, options.side, options.side, 3))
    batch = {"image": images, "label": jnp.arange(options.batch)}
    clusterer = dc.KMeans(cluster_size=options.cluster_size, per_channel=options.per_channel)
    programs = {}
    for name, places in (("none", ()), ("DropCluster", PLACES)):
        model = resnet50(drop={place: DropCluster(clusterer) for place in places}, dtype=jnp.dtype(options.dtype))
        steps = make_steps(model, optax.sgd(0.1, momentum=0.9), rate=lambda step: jnp.float32(0.1))
        state = jax.jit(steps.init)(jax.random.key(1), batch)
        state = jax.jit(steps.update_clusters)(state, batch)
        programs[name] = jax.jit(steps.train).lower(state, batch).compile(), state

    times: dict[str, list[float]] = {name: [] for name in programs}
    for repeat in range(options.repeats + 1):
        for name, (train, state) in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(train(state, batch))
            if repeat > 0:  # the first one warms up
                times[name].append(time.perf_counter() - start)

    device = jax.devices()[0].device_kind
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "flax"))
    print(f"{platform.machine()}, {os.cpu_count()} CPU cores, {device}; {versions}")
    kind = "per channel" if options.per_channel else "shared"
    print(f"ResNet-50, images {images.shape}, {options.dtype}; cluster size {options.cluster_size:g}, {kind} labels\n")
    costs = {}
    for name, (train, _) in programs.items():
        cost, memory = train.cost_analysis(), train.memory_analysis()
        costs[name] = cost["flops"], memory.temp_size_in_bytes, statistics.median(times[name])
    print(f"{'':14}{'operations':>12}{'temporaries':>14}{'ms per step':>13}")
    for name, (flops, temporaries, seconds) in costs.items():
        print(f"{name:14}{flops / 1e9:10.2f} G{temporaries / 2**20:10.1f} MiB{1e3 * seconds:13.1f}")
    flops, temporaries, seconds = (a / b for a, b in zip(costs["DropCluster"], costs["none"], strict=True))
    print(f"{'ratio':14}{flops:12.4f}{temporaries:14.4f}{seconds:13.4f}")
    ratios = sorted(a / b for a, b in zip(times["DropCluster"], times["none"], strict=True))
    low, high = ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]
    print(f"time ratio of consecutive steps, middle half: {low:.4f} to {high:.4f}")


if __name__ == "__main__":
    main()
