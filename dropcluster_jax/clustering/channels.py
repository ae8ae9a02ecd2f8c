"""Loops over channels, a chunk of channels at a time.

Chunks bound the memory of intermediate results and, on CPU, keep them in the cache. The chunk size affects results only
through the order of floating-point sums over channels.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim
from jaxtyping import Array, Float, Int, PyTree

# Maximum size of a chunk. On CPU it should fit in the cache; accelerators need enough work to be fully occupied.
_CPU_CHUNK_BYTES = 2 * 2**20
_DEFAULT_CHUNK_BYTES = 256 * 2**20


def map_channels(function: Callable[..., PyTree[Array]], *arrays: Array, elements: int) -> Any:
    """Applies `function` to each channel, like `jax.vmap(function)(*arrays)`.

    Args:
        function: Function of one channel of each array.
        *arrays: Arrays whose first axis is channels.
        elements: Number of float32 values that `function` needs in memory. Determines the chunk size.

    Returns:
        The results, stacked along a leading axis of channels.
    """

    def map_chunks(chunk: int, *arrays: Array) -> PyTree[Array]:
        # Not `jax.lax.map(..., batch_size=chunk)`: it reshapes the arrays, and XLA then copies them.
        results = jax.lax.map(
            lambda i: jax.vmap(function)(*_slice_chunk(arrays, i, chunk)), jnp.arange(len(arrays[0]) // chunk)
        )
        return jax.tree.map(jnp.concatenate, results)

    return _with_chunk_size(map_chunks, elements, *arrays)


def map_channels_in_place(function: Callable[[Array], tuple[Array, PyTree[Array]]], x: Array) -> Any:
    """Overwrites each channel of `x`, without a second copy of `x` in memory.

    Args:
        function: Function of one channel that returns the new channel and auxiliary results.
        x: Array whose first axis is channels.

    Returns:
        The new array, and the auxiliary results stacked along a leading axis of channels.
    """

    def map_chunks(chunk: int, x: Array) -> tuple[Array, PyTree[Array]]:
        def step(x: Array, i: Array) -> tuple[Array, PyTree[Array]]:
            (x_chunk,) = _slice_chunk((x,), i, chunk)
            x_chunk, aux = jax.vmap(function)(x_chunk)
            return jax.lax.dynamic_update_slice_in_dim(x, x_chunk, i * chunk, axis=0), aux

        x, aux = jax.lax.scan(step, x, jnp.arange(len(x) // chunk))
        return x, jax.tree.map(jnp.concatenate, aux)

    return _with_chunk_size(map_chunks, x[0].size, x)


def sum_over_channels(function: Callable[..., Float[Array, "..."]], *arrays: Array) -> Float[Array, "..."]:
    """Sums `function` over channels, like `jnp.sum(jax.vmap(function)(*arrays), axis=0)`.

    Args:
        function: Function of one channel of each array.
        *arrays: Arrays whose first axis is channels, the largest one first.
    """
    first_channel = [array[0] for array in arrays]
    if len(arrays[0]) == 1:  # a leading dimension of length 1 would slow XLA down
        return function(*first_channel)

    def sum_chunks(chunk: int, *arrays: Array) -> Array:
        def sum_chunk(i: Array | int) -> Array:
            return jnp.sum(jax.vmap(function)(*_slice_chunk(arrays, i, chunk)), axis=0)

        num_chunks = len(arrays[0]) // chunk
        if num_chunks == 1:
            return sum_chunk(0)
        return jax.lax.fori_loop(1, num_chunks, lambda i, total: total + sum_chunk(i), sum_chunk(0))

    elements = first_channel[0].size + jax.eval_shape(function, *first_channel).size
    return _with_chunk_size(sum_chunks, elements, *arrays)


def _slice_chunk(arrays: tuple[Array, ...], i: Int[Array, ""] | int, chunk: int) -> list[Array]:
    """Returns the i-th chunk of channels of each array."""
    return [jax.lax.dynamic_slice_in_dim(array, i * chunk, chunk) for array in arrays]


def _with_chunk_size(function: Callable[..., PyTree[Array]], elements: int, *arrays: Array) -> PyTree[Array]:
    """Returns `function(chunk, *arrays)` for the chunk size of the platform that the program is compiled for.

    Args:
        function: Function of the chunk size, which divides the number of channels, and of the arrays.
        elements: Number of float32 values that `function` needs in memory per channel.
        *arrays: Arrays whose first axis is channels.
    """

    def chunk_size(num_bytes: int) -> int:
        channels = len(arrays[0])
        # The batch size of an exported program can be symbolic. A chunk of one channel needs the least memory.
        largest = 1 if is_symbolic_dim(elements) else max(1, num_bytes // (4 * elements))
        return next(chunk for chunk in range(min(largest, channels), 0, -1) if channels % chunk == 0)

    cpu, default = chunk_size(_CPU_CHUNK_BYTES), chunk_size(_DEFAULT_CHUNK_BYTES)
    if cpu == default:
        return function(cpu, *arrays)
    return jax.lax.platform_dependent(
        *arrays, cpu=functools.partial(function, cpu), default=functools.partial(function, default)
    )
