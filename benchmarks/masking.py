"""Measures all dropout methods, forward and forward plus backward, against Flax's dropout and a common DropBlock.

    python benchmarks/masking.py
    python benchmarks/masking.py --shapes 16 --dtypes float32 --keys threefry2x32

Times are medians over repeats in which all methods run in turn, so that background load affects all of them. `backward`
returns the output and the gradient of the input, as a layer inside a network does. `identity` multiplies by 2 and
measures memory bandwidth. `temporaries` is the memory that the compiled program needs besides arguments and results.

The plain DropBlock is the usual implementation, a max-pool over seeds drawn by the paper's formula.

On Linux, the script restarts itself with glibc configured to keep freed memory, because page faults would otherwise
dominate the times on CPU.
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

# Shapes (batch, height, width, channels) and numbers of clusters, by the side of the map.
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
    """Drops blocks as most implementations do."""
    batch, height, width, channels = x.shape
    locations = (height - BLOCK + 1, width - BLOCK + 1)
    gamma = RATE / BLOCK**2 * height * width / (locations[0] * locations[1])
    seeds = jax.random.bernoulli(key, gamma, (batch, *locations, channels if per_channel else 1)).astype(x.dtype)
    pad = (BLOCK - 1, BLOCK - 1)
    mask = 1 - nn.max_pool(seeds, (BLOCK, BLOCK), padding=(pad, pad))
    return x * mask * (mask.size / jnp.sum(mask, dtype=jnp.float32)).astype(x.dtype)


def flax_dropout(key: jax.Array, x: jax.Array) -> jax.Array:
    """Drops units with Flax's own layer."""
    return nn.Dropout(RATE, deterministic=False).apply({}, x, rngs={"dropout": key})


def shuffled_grid(shape: tuple[int, ...], num_clusters: int, per_channel: bool) -> dc.ClusterState:
    """Returns clusters of equal size without spatial order, similar to learned ones."""
    state = dc.Grid(num_clusters=num_clusters, per_channel=per_channel).init(shape)
    return state._replace(labels=jax.random.permutation(jax.random.key(0), state.labels, axis=1, independent=True))


def make_methods(shape: tuple[int, ...], cluster_counts: tuple[int, ...]) -> dict[str, Drop]:
    """Returns all methods by name."""
    partial = functools.partial
    methods: dict[str, Drop] = {
        IDENTITY: lambda key, x: 2 * x,
        FLAX: flax_dropout,
        PLAIN: plain_drop_block,
        PLAIN_PER_CHANNEL: partial(plain_drop_block, per_channel=True),
        "dropout": partial(dc.dropout, rate=RATE),
        "spatial_dropout": partial(dc.spatial_dropout, rate=RATE),
        "drop_path": partial(dc.drop_path, rate=RATE),
        "cutout": partial(dc.cutout, rate=RATE),
        "drop_block": partial(dc.drop_block, rate=RATE, block_size=BLOCK),
        "drop_block, per channel": partial(dc.drop_block, rate=RATE, block_size=BLOCK, per_channel=True),
    }
    for k in cluster_counts:
        shared, separate = (shuffled_grid(shape[1:], k, per_channel) for per_channel in (False, True))
        methods[f"drop_cluster, K={k}"] = partial(dc.drop_cluster, rate=RATE, state=shared)
        for fill in ("noise", "swap"):
            methods[f"drop_cluster, {fill}, K={k}"] = partial(dc.drop_cluster, rate=RATE, state=shared, fill=fill)
        methods[f"drop_cluster, per channel, K={k}"] = partial(dc.drop_cluster, rate=RATE, state=separate)
    return methods


def with_backward(drop: Drop) -> Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """Returns a function to the output and the gradient of the input."""

    def forward_and_backward(key: jax.Array, x: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
        y, vjp = jax.vjp(functools.partial(drop, key), x)
        return y, vjp(gradient)[0]

    return forward_and_backward


def elapsed_ms(function: Callable[..., object], *args: jax.Array) -> float:
    """Returns the time of one call in milliseconds."""
    start = time.perf_counter()
    jax.block_until_ready(function(*args))
    return 1e3 * (time.perf_counter() - start)


def measure(shape: tuple[int, ...], cluster_counts: tuple[int, ...], dtype: str, impl: str, repeats: int) -> None:
    """Prints the table of one configuration."""
    x = jax.random.normal(jax.random.key(1), shape, jnp.dtype(dtype))
    key = jax.random.key(2, impl=impl)
    methods = make_methods(shape, cluster_counts)
    forward = {name: jax.jit(drop).lower(key, x).compile() for name, drop in methods.items()}
    backward = {name: jax.jit(with_backward(drop)).lower(key, x, x).compile() for name, drop in methods.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
    for _ in range(repeats + 1):
        for name in methods:
            times[name].append((elapsed_ms(forward[name], key, x), elapsed_ms(backward[name], key, x, x)))

    # The first repeat warms up.
    medians = {
        name: [statistics.median(column) for column in zip(*rows[1:], strict=True)] for name, rows in times.items()
    }
    print(f"\n{shape}, {dtype}, {impl}, rate {RATE}, blocks of {BLOCK}; ms")
    print(f"{'':34}{'forward':>9}{'/identity':>10}{'+backward':>10}{'/identity':>10}{'temporaries':>14}")
    for name, (forward_ms, backward_ms) in medians.items():
        forward_ratio, backward_ratio = forward_ms / medians[IDENTITY][0], backward_ms / medians[IDENTITY][1]
        temporaries = backward[name].memory_analysis().temp_size_in_bytes / 2**20
        print(
            f"{name:34}{forward_ms:9.2f}{forward_ratio:10.2f}{backward_ms:10.2f}{backward_ratio:10.2f}"
            f"{temporaries:10.1f} MiB"
        )
    for name in methods:
        if name.startswith("drop_cluster"):
            ratios = [f"{medians[name][1] / medians[other][1]:.2f} of {other}" for other in (PLAIN, FLAX)]
            print(f"forward and backward, {name}: {', '.join(ratios)}")
    ratio = medians["drop_block, per channel"][1] / medians[PLAIN_PER_CHANNEL][1]
    print(f"forward and backward, drop_block, per channel: {ratio:.2f} of {PLAIN_PER_CHANNEL}", flush=True)


def main() -> None:
    """Prints a table for each shape, dtype, and key implementation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), help="sides of the maps")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--keys", nargs="+", default=["threefry2x32", "rbg"], help="PRNG implementations")
    parser.add_argument("--repeats", type=int, default=15, help="repeats; one fifth of them for the largest shape")
    options = parser.parse_args()
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "flax"))
    print(f"{platform.machine()}, {os.cpu_count()} CPU cores, {jax.devices()[0].device_kind}; {versions}")
    for name in options.shapes:
        for dtype in options.dtypes:
            for impl in options.keys:
                repeats = options.repeats if name != "112" else max(1, options.repeats // 5)
                measure(*SHAPES[name], dtype, impl, repeats)


if __name__ == "__main__":
    if sys.platform == "linux" and not KEEP_MEMORY.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP_MEMORY})
    main()
