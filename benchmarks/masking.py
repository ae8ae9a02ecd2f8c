"""What each drop costs, forward and forward with backward, beside Flax's dropout and a plain DropBlock: one run.

    python benchmarks/masking.py
    python benchmarks/masking.py --shapes 16 --dtypes float32 --keys threefry2x32

Forward and backward gives what a layer inside a network gives, its output and the gradient to its input. The contenders
take turns, so that what slows the machine slows all; medians. `identity` multiplies by 2, in both directions: what
it costs only to read and write. `temporaries` is what XLA's compiled program holds beside its arguments and results.
The plain DropBlocks stand here, frozen, as people write them: a max-pool over seeds drawn by the paper's formula.
On Linux, glibc is told to keep freed memory: else a CPU spends most of its time on pages that are new.
"""

import argparse
import functools
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version

import flax.linen as nn
import jax
import jax.numpy as jnp

import dropcluster_jax as dc

# (batch, height, width, channels) and numbers of clusters
SHAPES = {
    "32": ((64, 32, 32, 64), (16,)),
    "16": ((64, 16, 16, 256), (16,)),
    "56": ((32, 56, 56, 64), (32, 64)),
    "112": ((128, 112, 112, 64), (64,)),
}
RATE, BLOCK = 0.1, 7
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**35), "MALLOC_TRIM_THRESHOLD_": str(2**35)}
IDENTITY, FLAX, PLAIN, PLAIN_PER_CHANNEL = "identity", "flax.linen.Dropout", "plain DropBlock", "plain, per channel"

Drop = Callable[[jax.Array, jax.Array], jax.Array]


def plain_drop_block(key: jax.Array, x: jax.Array, per_channel: bool = False) -> jax.Array:
    """DropBlock as it is usually written."""
    batch, height, width, channels = x.shape
    starts = (height - BLOCK + 1, width - BLOCK + 1)
    gamma = RATE / BLOCK**2 * height * width / (starts[0] * starts[1])
    seeds = jax.random.bernoulli(key, gamma, (batch, *starts, channels if per_channel else 1)).astype(x.dtype)
    pad = (BLOCK - 1, BLOCK - 1)
    mask = 1 - nn.max_pool(seeds, (BLOCK, BLOCK), padding=(pad, pad))
    return x * mask * (mask.size / jnp.sum(mask, dtype=jnp.float32)).astype(x.dtype)


def members(shape: tuple[int, ...], clusters: tuple[int, ...]) -> dict[str, Drop]:
    """Every contender as a function of a key and activations."""
    half = functools.partial

    def of_flax(key: jax.Array, x: jax.Array) -> jax.Array:
        return nn.Dropout(RATE, deterministic=False).apply({}, x, rngs={"dropout": key})

    def learned(num_clusters: int, per_channel: bool) -> dc.ClusterState:
        """Labels without order, as after learning."""
        state = dc.Grid(num_clusters=num_clusters, per_channel=per_channel).init(shape[1:])
        return state._replace(labels=jax.random.permutation(jax.random.key(0), state.labels, axis=1, independent=True))

    who: dict[str, Drop] = {
        IDENTITY: lambda key, x: 2 * x,
        FLAX: of_flax,
        PLAIN: plain_drop_block,
        PLAIN_PER_CHANNEL: half(plain_drop_block, per_channel=True),
        "dropout": half(dc.dropout, rate=RATE),
        "spatial_dropout": half(dc.spatial_dropout, rate=RATE),
        "drop_path": half(dc.drop_path, rate=RATE),
        "cutout": half(dc.cutout, rate=RATE),
        "drop_block": half(dc.drop_block, rate=RATE, block_size=BLOCK),
        "drop_block, per channel": half(dc.drop_block, rate=RATE, block_size=BLOCK, per_channel=True),
    }
    for number in clusters:
        who[f"drop_cluster, K={number}"] = half(dc.drop_cluster, rate=RATE, state=learned(number, False))
        who[f"drop_cluster, per channel, K={number}"] = half(dc.drop_cluster, rate=RATE, state=learned(number, True))
    return who


def with_gradient(drop: Drop) -> Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """The output, and the gradient to the input from one to the output."""

    def both(key: jax.Array, x: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
        y, pull = jax.vjp(functools.partial(drop, key), x)
        return y, pull(gradient)[0]

    return both


def table(shape: tuple[int, ...], clusters: tuple[int, ...], dtype: str, impl: str, turns: int) -> None:
    """Measure and print."""
    x = jax.random.normal(jax.random.key(1), shape, jnp.dtype(dtype))
    key = jax.random.key(2, impl=impl)
    who = members(shape, clusters)
    forward = {name: jax.jit(drop).lower(key, x).compile() for name, drop in who.items()}
    both = {name: jax.jit(with_gradient(drop)).lower(key, x, x).compile() for name, drop in who.items()}
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in who}
    for turn in range(turns + 1):
        for name in who:
            for call, into in ((lambda f=forward[name]: f(key, x), 0), (lambda f=both[name]: f(key, x, x), 1)):
                begin = time.perf_counter()
                jax.block_until_ready(call())
                if turn:  # the first warms up
                    times[name][into].append(1e3 * (time.perf_counter() - begin))

    middle = {name: tuple(map(statistics.median, pair)) for name, pair in times.items()}
    print(f"\n{shape}, {dtype}, {impl}, rate {RATE}, blocks of {BLOCK}; ms")
    print(f"{'':34}{'forward':>9}{'/identity':>10}{'+backward':>10}{'/identity':>10}{'temporaries':>14}")
    for name, (one, two) in middle.items():
        size = both[name].memory_analysis().temp_size_in_bytes / 2**20
        ratios = one / middle[IDENTITY][0], two / middle[IDENTITY][1]
        print(f"{name:34}{one:9.2f}{ratios[0]:10.2f}{two:10.2f}{ratios[1]:10.2f}{size:10.1f} MiB")
    for name in who:
        if name.startswith("drop_cluster"):
            against = [f"{middle[name][1] / middle[other][1]:.2f} of {other}" for other in (PLAIN, FLAX)]
            print(f"forward and backward, {name}: {', '.join(against)}")
    ratio = middle["drop_block, per channel"][1] / middle[PLAIN_PER_CHANNEL][1]
    print(f"forward and backward, drop_block, per channel: {ratio:.2f} of {PLAIN_PER_CHANNEL}", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), help="sides of the maps")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--keys", nargs="+", default=["threefry2x32", "rbg"])
    parser.add_argument("--turns", type=int, default=15, help="a fifth of them at the largest shape")
    options = parser.parse_args()
    device = jax.devices()[0].device_kind
    names = ", ".join(f"{name} {version(name)}" for name in ("jax", "flax"))
    print(f"{platform.machine()}, {os.cpu_count()} CPU cores, {device}; {names}")
    for name in options.shapes:
        for dtype in options.dtypes:
            for impl in options.keys:
                turns = options.turns if name != "112" else max(1, options.turns // 5)
                table(*SHAPES[name], dtype, impl, turns)


if __name__ == "__main__":
    if sys.platform == "linux" and not KEEP_MEMORY.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP_MEMORY})
    main()
