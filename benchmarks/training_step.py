"""What DropCluster adds to a training step of ResNet-50: operations, temporaries and time, in one run.

    python benchmarks/training_step.py --batch 16 --side 64

Drop layers at `stem`, `stage3` and `stage4` against none: the same network, images, optimizer and keys. Operations and
temporaries are those of XLA's compiled programs. The two take turns, so that what slows the machine slows both;
medians, and the middle half of the ratios of neighboring turns.
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
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--side", type=int, default=64, help="of the images; 224 is ImageNet's")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--cluster-size", type=float, default=49.0)
    parser.add_argument("--per-channel", action="store_true")
    parser.add_argument("--turns", type=int, default=10)
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
    for turn in range(options.turns + 1):
        for name, (train, state) in programs.items():
            begin = time.perf_counter()
            jax.block_until_ready(train(state, batch))
            if turn:  # the first warms up
                times[name].append(time.perf_counter() - begin)

    device = jax.devices()[0].device_kind
    names = ", ".join(f"{name} {version(name)}" for name in ("jax", "flax"))
    print(f"{platform.machine()}, {os.cpu_count()} CPU cores, {device}; {names}")
    kind = "per channel" if options.per_channel else "shared"
    print(f"ResNet-50, images {images.shape}, {options.dtype}; clusters of {options.cluster_size:g}, {kind}\n")
    figures = {}
    for name, (train, _) in programs.items():
        cost, memory = train.cost_analysis(), train.memory_analysis()
        figures[name] = cost["flops"], memory.temp_size_in_bytes, statistics.median(times[name])
    print(f"{'':14}{'operations':>12}{'temporaries':>14}{'ms per step':>13}")
    for name, (operations, size, seconds) in figures.items():
        print(f"{name:14}{operations / 1e9:10.2f} G{size / 2**20:10.1f} MiB{1e3 * seconds:13.1f}")
    print(f"{'ratio':14}", end="")
    ratios = [one / other for one, other in zip(figures["DropCluster"], figures["none"], strict=True)]
    print(f"{ratios[0]:12.4f}{ratios[1]:14.4f}{ratios[2]:13.4f}")
    pairs = sorted(one / other for one, other in zip(times["DropCluster"], times["none"], strict=True))
    low, high = pairs[len(pairs) // 4], pairs[3 * len(pairs) // 4]
    print(f"time, ratios of neighboring turns, middle half: {low:.4f} to {high:.4f}")


if __name__ == "__main__":
    main()
