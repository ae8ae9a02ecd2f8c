"""Ahead-of-time compilation for TPUs and GPUs that are not present, and what their compilers report.

`libtpu` compiles programs for TPUs on any Linux machine, JAX's CUDA plugin for NVIDIA GPUs. Nothing is executed.
"""

import contextlib
import dataclasses
import functools
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dropcluster_jax._optional import optional_import
from dropcluster_jax.runs.hlo import Collective, costs

_GIB = 2**30
_GPUS_PER_HOST = 8


class Chip(NamedTuple):
    """Published properties of a device.

    Attributes:
        memory_bytes: Size of its memory (HBM).
        peak_flops: Floating-point operations per second in bfloat16, if a time can be estimated.
        clock: Cycles per second, if a time can be estimated.
    """

    memory_bytes: int
    peak_flops: float | None = None
    clock: float | None = None


#: Properties of a JAX device of each kind, by `jax.Device.device_kind`. Memory and peak of TPUs: the pages of the
#: versions at https://docs.cloud.google.com/tpu/docs/v5e (v4, v5p, v6e, tpu7x). Clock of v4: Jouppi et al., "TPU v4: An
#: Optically Reconfigurable Supercomputer for Machine Learning", ISCA 2023, arXiv:2304.01433. The other clocks are the
#: peak divided by the FLOPs per cycle of the matrix units: 2**17 for v5e, 2**18 for v5p and 2**19 for v6e. A device of
#: TPU7x is one of the two cores of a chip. Memory of GPUs: as the driver reports it.
CHIPS = {
    "TPU v4": Chip(32 * _GIB, 275e12, 1.05e9),
    "TPU v5 lite": Chip(16 * _GIB, 197e12, 1.5e9),
    "TPU v5": Chip(95 * _GIB, 459e12, 1.75e9),
    "TPU v6 lite": Chip(32 * _GIB, 918e12, 1.75e9),
    "TPU7x": Chip(96 * _GIB),
    "NVIDIA H100 80GB HBM3": Chip(84_942_979_072),
    "NVIDIA A100-SXM4-80GB": Chip(85_100_068_864),
}

# Properties of GPUs for XLA, as a `GpuTargetConfigProto`. Limits by compute capability:
# https://docs.nvidia.com/cuda/cuda-programming-guide/05-appendices/compute-capabilities.html
_GPU_TARGET = """
gpu_device_info {{
  cuda_compute_capability {{ major: {major} }}
  core_count: {cores}
  fpus_per_core: {fpus_per_core}
  clock_rate_ghz: {clock_rate_ghz}
  device_memory_size: {memory_bytes}
  memory_bandwidth: {memory_bandwidth}
  l2_cache_size: {l2_cache_size}
  shared_memory_per_core: {shared_memory_per_core}
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {shared_memory_per_block}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_core_limit: 2048
  threads_per_block_limit: 1024
  threads_per_warp: 32
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 12 minor: 8 }}
device_description_str: "{kind}"
"""
_GPUS: dict[str, dict[str, Any]] = {
    "h100": {
        "kind": "NVIDIA H100 80GB HBM3",
        "major": 9,
        "cores": 132,
        "fpus_per_core": 128,
        "clock_rate_ghz": 1.98,
        "memory_bandwidth": 3_352_320_000_000,
        "l2_cache_size": 50 * 2**20,
        "shared_memory_per_core": 228 * 2**10,
        "shared_memory_per_block": 227 * 2**10,
    },
    "a100": {
        "kind": "NVIDIA A100-SXM4-80GB",
        "major": 8,
        "cores": 108,
        "fpus_per_core": 64,
        "clock_rate_ghz": 1.41,
        "memory_bandwidth": 2_039_040_000_000,
        "l2_cache_size": 40 * 2**20,
        "shared_memory_per_core": 164 * 2**10,
        "shared_memory_per_block": 163 * 2**10,
    },
}


class DoesNotFitError(Exception):
    """A program needs more memory than a device has."""


@dataclasses.dataclass(frozen=True)
class Analysis:
    """The compiler's report on a program. All values are per device and execution.

    Attributes:
        topology: Name of the topology.
        device_kind: Kind of its devices, as in `jax.Device.device_kind`.
        num_devices: Number of devices.
        argument_bytes: Size of the arguments.
        output_bytes: Size of the results that do not reuse the memory of donated arguments.
        temporary_bytes: Size of the temporary memory. On GPUs, without the workspaces of cuDNN.
        code_bytes: Size of the program, if it resides in device memory.
        flops: Floating-point operations, with the body of a loop counted once; None on GPUs.
        bytes_accessed: Bytes read and written; on TPUs, with the body of a loop counted once.
        cycles: The compiler's estimate of the cycles of all operations, without waiting for collectives. A loop over a
            constant range counts that number of times, others once. None on GPUs.
        collectives: The collectives of the program.
        has_loops: Whether the program has loops.
    """

    topology: str
    device_kind: str
    num_devices: int
    argument_bytes: int
    output_bytes: int
    temporary_bytes: int
    code_bytes: int
    flops: float | None
    bytes_accessed: float | None
    cycles: int | None
    collectives: tuple[Collective, ...]
    has_loops: bool

    @property
    def chip(self) -> Chip | None:
        """Published properties of the device; None if the kind is unknown."""
        return CHIPS.get(self.device_kind)

    @property
    def peak_bytes(self) -> int:
        """Memory of a device that the program needs: arguments, results, temporaries and code."""
        return self.argument_bytes + self.output_bytes + self.temporary_bytes + self.code_bytes

    @property
    def fits(self) -> bool | None:
        """Whether the program fits into the memory of a device; None if its size is unknown."""
        return None if self.chip is None else self.peak_bytes <= self.chip.memory_bytes

    @property
    def estimated_seconds(self) -> float | None:
        """The compiler's estimate of the time of an execution; None if there is none."""
        if self.cycles is None or self.chip is None or self.chip.clock is None:
            return None
        return self.cycles / self.chip.clock


def compile_for(
    topology: str,
    function: Callable[..., Any],
    *arguments: Any,
    batch_argnums: int | tuple[int, ...] = (),
    donate_argnums: int | tuple[int, ...] = (),
) -> Analysis:
    """Compiles a function for devices that need not be present.

    On a machine with TPUs, call it in a process that does not use them, with `JAX_PLATFORMS=cpu`.

    Args:
        topology: TPU topology, e.g. `"v5e:4x4"`, or a number of GPUs of one kind, `"h100:8"` or `"a100:8"`.
        function: Pure function of arrays, e.g. a training step.
        *arguments: Its arguments: pytrees of arrays or `jax.ShapeDtypeStruct`s. Leaves that are sharded over
            `topology_mesh(topology)` keep their sharding, others are replicated.
        batch_argnums: Positions of arguments to shard along their first axis instead.
        donate_argnums: Positions of arguments whose memory may be reused for results.

    Raises:
        ValueError: If the topology is unknown.
        ImportError: If the compiler is not installed or cannot be loaded.
        DoesNotFitError: If the compiler finds that the program needs too much memory.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jax.ShapeDtypeStruct((1024, 512), jnp.bfloat16)
        >>> analysis = compile_for("v5e:2x2", lambda x: x @ x.T, x, batch_argnums=0)  # doctest: +SKIP
        >>> analysis.num_devices, analysis.argument_bytes, analysis.fits  # doctest: +SKIP
        (4, 262144, True)
    """
    mesh = topology_mesh(topology)
    batch_argnums = (batch_argnums,) if isinstance(batch_argnums, int) else batch_argnums

    def place(leaf: Any, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
        sharding = getattr(leaf, "sharding", None)
        if not isinstance(sharding, NamedSharding) or sharding.mesh != mesh:
            sharding = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    specs = [PartitionSpec("batch") if i in batch_argnums else PartitionSpec() for i in range(len(arguments))]
    abstract = [
        jax.tree.map(functools.partial(place, spec=spec), argument)
        for argument, spec in zip(arguments, specs, strict=True)
    ]
    lowered = jax.jit(function, donate_argnums=donate_argnums).lower(*abstract)
    with _without_persistent_cache():
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise DoesNotFitError(_describe_exhausted_memory(str(error))) from None
    return _analyze(topology, mesh, compiled)


@functools.cache
def topology_mesh(topology: str) -> Mesh:
    """Returns a mesh with the axis `"batch"` over the devices of a topology; they cannot hold arrays.

    Args:
        topology: See `compile_for`.

    Raises:
        ValueError, ImportError: See `compile_for`.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", topology)
    if match is None:
        raise ValueError(
            f"topology must be a TPU topology, e.g. v5e:4x4, or a number of GPUs, e.g. h100:8, got {topology!r}"
        )
    kind, shape = match[1].lower(), [int(length) for length in match[2].split("x")]
    devices = _gpus(kind, shape) if kind in _GPUS else _tpus(kind, shape)
    return jax.make_mesh((len(devices),), ("batch",), axis_types=(AxisType.Auto,), devices=devices)


def _tpus(kind: str, shape: list[int]) -> list[Any]:
    with optional_import("libtpu", "tpu"):
        import libtpu  # noqa: F401  # pyright: ignore[reportMissingImports]
    options: dict[str, Any] = {}
    if set(shape) == {1}:
        options["chips_per_host_bounds"] = (1, 1, 1)
    if kind == "v4":
        options["chip_config_name"] = "megacore"  # one JAX device per chip, as on Cloud TPUs
    name = f"{kind}:{'x'.join(map(str, shape))}"
    # Without these, libtpu waits for the metadata server of a cloud machine, prints warnings, and lets only one process
    # at a time use it.
    environment = {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    try:
        with _environment(environment), _silent_stderr():
            return topologies.get_topology_desc(name, platform="tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"topology must be one that libtpu knows, got {name!r}: {_first_line(error)}") from None


def _gpus(kind: str, shape: list[int]) -> list[Any]:
    if len(shape) != 1 or shape[0] < 1 or (shape[0] > _GPUS_PER_HOST and shape[0] % _GPUS_PER_HOST):
        number = "x".join(map(str, shape))
        raise ValueError(f"topology must have 1 to 8 GPUs or a multiple of 8, got '{kind}:{number}'")
    hosts = -(-shape[0] // _GPUS_PER_HOST)
    name = f"1x{hosts}x{shape[0] // hosts}"  # slices, hosts, GPUs of a host
    properties = _GPUS[kind]
    target = _GPU_TARGET.format(**properties, memory_bytes=CHIPS[properties["kind"]].memory_bytes)
    with _environment({"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}), _silent_stderr():
        with optional_import("jax-cuda12-plugin", "cuda"):
            import jax_plugins.xla_cuda12  # noqa: F401  # pyright: ignore[reportMissingImports]
        try:
            return topologies.get_topology_desc(name, platform="cuda", topology=name, target_config=target).devices
        except NotImplementedError:  # JAX had initialized its plugins before, and this one failed without a driver
            raise ImportError(
                "JAX could not load its CUDA plugin: on a machine without GPUs, set JAX_PLATFORMS=cpu"
            ) from None


def _analyze(topology: str, mesh: Mesh, compiled: jax.stages.Compiled) -> Analysis:
    memory, estimates = compiled.memory_analysis(), compiled.cost_analysis() or {}
    assert memory is not None  # both compilers report it
    program = costs(compiled.as_text() or "")
    return Analysis(
        topology=topology,
        device_kind=mesh.devices.flat[0].device_kind,
        num_devices=mesh.size,
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        code_bytes=memory.generated_code_size_in_bytes,
        flops=estimates.get("flops"),
        bytes_accessed=estimates.get("bytes accessed", program.bytes_accessed),
        cycles=program.cycles,
        collectives=program.collectives,
        has_loops=program.has_loops,
    )


def _describe_exhausted_memory(message: str) -> str:
    """Returns a phrase such as "412.01 of 15.75 GiB", or the compiler's message if it contains no such sizes."""
    sizes = re.findall(r"\b(\d+(?:\.\d+)?)([KMG])\b", message)
    if len(sizes) < 2:
        return _first_line(message)
    needed, available = (float(size) * {"K": 2**-20, "M": 2**-10, "G": 1}[unit] for size, unit in sizes[:2])
    return f"needs {needed:.2f} of {available:.2f} GiB"


def _first_line(error: object) -> str:
    return str(error).splitlines()[0]


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Sets environment variables that are not set."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Discards what native code writes to stderr: the compilers warn about missing hardware when they are loaded."""
    saved = os.dup(2)
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


@contextlib.contextmanager
def _without_persistent_cache() -> Iterator[None]:
    """Keeps JAX from caching a program on disk, because it cannot read programs for absent devices.

    Reading fails with "PjRtCompiler must be constructed with a Client to call DeserializeExecutable".
    """
    name = "jax_persistent_cache_min_compile_time_secs"
    previous = jax.config.values[name]
    jax.config.update(name, float("inf"))
    try:
        yield
    finally:
        jax.config.update(name, previous)
