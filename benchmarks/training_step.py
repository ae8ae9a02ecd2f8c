"""Measures a training step: the cost of DropCluster in ResNet-50, or the time compared to PyTorch.

    python benchmarks/training_step.py --batch 16 --side 64
    python benchmarks/training_step.py --vs torch --profile

By default, compares the network with drop layers at `stem`, `stage3` and `stage4` to the same network without.
Operations and temporaries are those reported by XLA for the compiled programs.

With `--vs torch`, compares ResNet-20 and ResNet-50 on 32x32 images, with and without drop layers after the last two
stages, to the same networks in PyTorch with timm's DropBlock. This requires `pip install torch timm`.

With `--profile`, also prints the time of our steps without drop layers by kind of operation, on CPU.

Times are medians over repeats in which all programs run in turn, so that background load affects all of them.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version

import hlo_profile
import jax
import jax.numpy as jnp
import optax

import dropcluster_jax as dc
from dropcluster_jax.linen import DropCluster
from dropcluster_jax.models import ResNet, resnet20, resnet50
from dropcluster_jax.training import make_steps

PLACES = ("stem", "stage3", "stage4")
RATE = 0.1
# Networks for the comparison with PyTorch: constructor, options, batch size, places of the drop layers.
NETWORKS = {
    "resnet20": (resnet20, {}, 128, ("stage2", "stage3")),
    "resnet50": (resnet50, {"num_classes": 10, "stem": "cifar"}, 32, ("stage3", "stage4")),
}


class Program:
    """A compiled training step, with its state and batch."""

    def __init__(self, model: ResNet, images: jax.Array, donate: bool) -> None:
        steps = make_steps(model, optax.sgd(0.1, momentum=0.9), rate=lambda step: jnp.float32(RATE))
        self.batch = {"image": images, "label": jnp.arange(len(images)) % model.num_classes}
        self.state = jax.jit(steps.init)(jax.random.key(1), self.batch)
        self.state = jax.jit(steps.update_clusters)(self.state, self.batch)
        train = jax.jit(steps.train, donate_argnums=0 if donate else ())
        self.compiled = train.lower(self.state, self.batch).compile()

    def __call__(self) -> None:
        """Runs a step and waits for the result."""
        self.state, metrics = self.compiled(self.state, self.batch)
        jax.block_until_ready((self.state, metrics))


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16, help="batch size")
    parser.add_argument("--side", type=int, default=64, help="height and width of the images")
    parser.add_argument("--dtype", default="float32", help="dtype of the activations")
    parser.add_argument("--cluster-size", type=float, default=49.0, help="mean number of positions per cluster")
    parser.add_argument("--per-channel", action="store_true", help="cluster each channel separately")
    parser.add_argument("--repeats", type=int, default=10, help="number of timed steps of each program")
    parser.add_argument(
        "--vs", choices=["torch"], help="compare to PyTorch; of the options above, only --repeats applies"
    )
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS, help="networks for --vs")
    parser.add_argument("--profile", action="store_true", help="print the time by kind of operation (CPU only)")
    options = parser.parse_args()

    device = jax.devices()[0].device_kind
    packages = ("jax", "flax", *(("torch", "timm") if options.vs else ()))
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    print(f"{platform.machine()}, {os.cpu_count()} CPU cores, {device}; {versions}\n")
    if options.vs:
        for name in options.networks:
            compare_to_torch(name, options.repeats, options.profile)
    else:
        compare_to_none(options)


def compare_to_none(options: argparse.Namespace) -> None:
    """Prints the cost of DropCluster in a training step of ResNet-50."""
    images = jax.random.normal(jax.random.key(0), (options.batch, options.side, options.side, 3))
    clusterer = dc.KMeans(cluster_size=options.cluster_size, per_channel=options.per_channel)
    programs = {}
    for name, places in (("none", ()), ("DropCluster", PLACES)):
        model = resnet50(drop={place: DropCluster(clusterer) for place in places}, dtype=jnp.dtype(options.dtype))
        programs[name] = Program(model, images, donate=False)
    times = measure(programs, options.repeats)

    kind = "per channel" if options.per_channel else "shared"
    print(f"ResNet-50, images {images.shape}, {options.dtype}; cluster size {options.cluster_size:g}, {kind} labels\n")
    costs = {}
    for name, program in programs.items():
        cost, memory = program.compiled.cost_analysis(), program.compiled.memory_analysis()
        costs[name] = cost["flops"], memory.temp_size_in_bytes, statistics.median(times[name])
    print(f"{'':14}{'operations':>12}{'temporaries':>14}{'ms per step':>13}")
    for name, (flops, temporaries, seconds) in costs.items():
        print(f"{name:14}{flops / 1e9:10.2f} G{temporaries / 2**20:10.1f} MiB{1e3 * seconds:13.1f}")
    flops, temporaries, seconds = (a / b for a, b in zip(costs["DropCluster"], costs["none"], strict=True))
    print(f"{'ratio':14}{flops:12.4f}{temporaries:14.4f}{seconds:13.4f}")
    low, high = middle_half(times["DropCluster"], times["none"])
    print(f"time ratio of consecutive steps, middle half: {low:.4f} to {high:.4f}")
    if options.profile:
        print_profile(programs["none"])


def compare_to_torch(name: str, repeats: int, profile: bool) -> None:
    """Prints the time of training steps of a network in JAX and in PyTorch."""
    import torch_resnet

    constructor, arguments, batch_size, places = NETWORKS[name]
    images = jax.random.normal(jax.random.key(0), (batch_size, 32, 32, 3))
    drop = {place: DropCluster(dc.KMeans(cluster_size=16)) for place in places}
    ours = {
        "none": Program(constructor(**arguments), images, donate=True),
        "DropCluster": Program(constructor(**arguments, drop=drop), images, donate=True),
    }
    torch = {
        "PyTorch": torch_resnet.make_training_step(name, batch_size, 0.0),
        "PyTorch, DropBlock": torch_resnet.make_training_step(name, batch_size, RATE),
    }
    times = measure({**ours, **torch}, repeats)
    print(f"{name}, images {images.shape}, float32")
    print(f"\n{'':20}{'ms per step':>12}{'images/s':>10}{'/ PyTorch':>11}  middle half")
    for program, seconds in times.items():
        reference = times["PyTorch, DropBlock" if program == "DropCluster" else "PyTorch"]
        median, (low, high) = statistics.median(seconds), middle_half(seconds, reference)
        ratio = f"{median / statistics.median(reference):11.2f}  {low:.2f} to {high:.2f}"
        print(f"{program:20}{1e3 * median:12.0f}{batch_size / median:10.1f}{ratio}")
    print()
    if profile:
        print_profile(ours["none"])


def measure(programs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Returns the seconds of each run of each program; the programs run in turn.

    Each turn runs the program twice and measures the second run, as the first one also pays for what the other programs
    left in the caches and in memory: after PyTorch's steps, ResNet-50's first step with huge pages takes 1.4 times as
    long as its second.
    """
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(repeats):
        for name, program in programs.items():
            program()
            start = time.perf_counter()
            program()
            times[name].append(time.perf_counter() - start)
    return times


def middle_half(times: Sequence[float], reference: Sequence[float]) -> tuple[float, float]:
    """Returns the middle half of the ratios of consecutive times."""
    ratios = sorted(a / b for a, b in zip(times, reference, strict=True))
    return ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]


def print_profile(program: Program) -> None:
    """Prints the time of a step by kind of operation."""
    seconds = hlo_profile.profile(program.compiled, program)
    print(f"{'':36}{'ms per step':>12}{'share':>8}")
    for kind, value in seconds.items():
        print(f"{kind:36}{1e3 * value:12.1f}{value / sum(seconds.values()):8.1%}")
    print()


if __name__ == "__main__":
    main()
