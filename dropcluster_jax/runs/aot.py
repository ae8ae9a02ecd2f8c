"""Ahead-of-time compilation for TPUs that this machine does not have, and what the compiler reports.

`libtpu` compiles programs for TPUs on any Linux machine. Nothing is executed.
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
#: TPU7x is one of the two cores of a chip.
CHIPS = {
    "TPU v4": Chip(32 * _GIB, 275e12, 1.05e9),
    "TPU v5 lite": Chip(16 * _GIB, 197e12, 1.5e9),
    "TPU v5": Chip(95 * _GIB, 459e12, 1.75e9),
    "TPU v6 lite": Chip(32 * _GIB, 918e12, 1.75e9),
    "TPU7x": Chip(96 * _GIB),
}


class DoesNotFitError(Exception):
    """A program needs more memory than a device has."""


@dataclasses.dataclass(frozen=True)
class Analysis:
    """The compiler's report on a program. All values are per device and execution.

    Attributes:
        device_kind: Kind of the devices, as in `jax.Device.device_kind`.
        num_devices: Number of devices.
        argument_bytes: Size of the arguments.
        output_bytes: Size of the results that do not reuse the memory of donated arguments.
        temporary_bytes: Size of the temporary memory.
        code_bytes: Size of the program, if it resides in device memory.
        flops: Floating-point operations, with the body of a loop counted once; None if they are not counted.
        bytes_accessed: Bytes read and written, with the body of a loop counted once; None if they are not counted.
        cycles: The compiler's estimate of the cycles of all operations, without waiting for collectives. A loop over a
            constant range counts its number of iterations, others count once. None if there is no estimate.
        collectives: The collectives of the program.
    """

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

    @property
    def chip(self) -> Chip | None:
        """Published properties of the device; None if the kind is unknown."""
        return CHIPS.get(self.device_kind)

    @property
    def peak_bytes(self) -> int:
        """Memory of a device that the program needs: arguments, results, temporaries and code."""
        return self.argument_bytes + self.output_bytes + self.temporary_bytes + self.code_bytes

    @property
    def estimated_seconds(self) -> float | None:
        """The compiler's estimate of the time of an execution; None if there is none."""
        clock = self.chip and self.chip.clock
        return self.cycles / clock if self.cycles is not None and clock else None


def compile_for(
    topology: str | Mesh,
    function: Callable[..., Any],
    *arguments: Any,
    batch_argnums: int | tuple[int, ...] = (),
    donate_argnums: int | tuple[int, ...] = (),
) -> Analysis:
    """Compiles a function for devices that need not be present.

    On a machine with TPUs, call it in a process that does not use them, with `JAX_PLATFORMS=cpu`.

    Args:
        topology: TPU topology, e.g. `"v5e:4x4"`, or a mesh.
        function: Pure function of arrays, e.g. a training step.
        *arguments: Its arguments: pytrees of arrays or `jax.ShapeDtypeStruct`s. Leaves that are sharded over the mesh,
            or `topology_mesh(topology)`, keep their sharding, others are replicated.
        batch_argnums: Positions of arguments to shard along their first axis instead.
        donate_argnums: Positions of arguments whose memory may be reused for results.

    Raises:
        ValueError: If the topology is unknown.
        ImportError: If the compiler is not installed or cannot be loaded.
        DoesNotFitError: If the program needs more memory than a device has.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jax.ShapeDtypeStruct((1024, 512), jnp.bfloat16)
        >>> analysis = compile_for("v5e:2x2", lambda x: x @ x.T, x, batch_argnums=0)  # doctest: +SKIP
        >>> analysis.num_devices, analysis.argument_bytes  # doctest: +SKIP
        (4, 262144)
    """
    mesh = topology_mesh(topology) if isinstance(topology, str) else topology
    batch_argnums = (batch_argnums,) if isinstance(batch_argnums, int) else batch_argnums

    def place(position: int, leaf: Any) -> jax.ShapeDtypeStruct:
        sharding = getattr(leaf, "sharding", None)
        if not isinstance(sharding, NamedSharding) or sharding.mesh != mesh:
            spec = PartitionSpec(mesh.axis_names) if position in batch_argnums else PartitionSpec()
            sharding = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    abstract = [jax.tree.map(functools.partial(place, i), argument) for i, argument in enumerate(arguments)]
    lowered = jax.jit(function, donate_argnums=donate_argnums).lower(*abstract)
    try:
        with _without_persistent_cache() if isinstance(topology, str) else contextlib.nullcontext():
            compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        sizes = re.findall(r"\b(\d+(?:\.\d+)?)G\b", str(error))
        reason = f"needs {sizes[0]} of {sizes[1]} GiB" if len(sizes) > 1 else _first_line(error)
        raise DoesNotFitError(reason) from None
    memory, estimates = compiled.memory_analysis(), compiled.cost_analysis() or {}
    assert memory is not None  # all compilers report it
    program = costs(compiled.as_text() or "")
    analysis = Analysis(
        device_kind=mesh.devices.flat[0].device_kind,
        num_devices=mesh.size,
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        code_bytes=memory.generated_code_size_in_bytes,
        flops=estimates.get("flops"),
        bytes_accessed=estimates.get("bytes accessed"),
        cycles=program.cycles,
        collectives=program.collectives,
    )
    if analysis.chip is not None and analysis.peak_bytes > analysis.chip.memory_bytes:
        needed, available = (size / 2**30 for size in (analysis.peak_bytes, analysis.chip.memory_bytes))
        raise DoesNotFitError(f"needs {needed:.2f} of {available:.2f} GiB")
    return analysis


@functools.cache
def topology_mesh(topology: str) -> Mesh:
    """Returns a mesh with the axis `"batch"` over the devices of a topology; they cannot hold arrays.

    Args:
        topology: See `compile_for`.

    Raises:
        ValueError, ImportError: See `compile_for`.
    """
    if not re.fullmatch(r"\w+:\d+(x\d+)*", topology):
        raise ValueError(f"topology must be a TPU topology, e.g. v5e:4x4, got {topology!r}")
    devices = _tpus(topology.lower())
    return jax.make_mesh((len(devices),), ("batch",), axis_types=(AxisType.Auto,), devices=devices)


def _tpus(name: str) -> list[Any]:
    with optional_import("libtpu", "tpu"):
        import libtpu  # noqa: F401  # pyright: ignore[reportMissingImports]
    kind, _, shape = name.partition(":")
    options: dict[str, Any] = {}
    if set(shape.split("x")) == {"1"}:
        options["chips_per_host_bounds"] = (1, 1, 1)
    if kind == "v4":
        options["chip_config_name"] = "megacore"  # one JAX device per chip, as on Cloud TPUs
    # Without these, libtpu waits for the metadata server of a cloud machine, and lets one process at a time use it.
    environment = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    try:
        with _loading_compiler(environment):
            return topologies.get_topology_desc(name, platform="tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"topology must be one that libtpu supports, got {name!r}: {_first_line(error)}") from None


def _first_line(error: object) -> str:
    return str(error).splitlines()[0]


@contextlib.contextmanager
def _loading_compiler(environment: dict[str, str]) -> Iterator[None]:
    """Sets environment variables that are not set, and discards what native code writes to stderr.

    The compilers warn about missing hardware when they are loaded.
    """
    added = {name: value for name, value in environment.items() if name not in os.environ}
    stderr = os.dup(2)
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 2)
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
        os.dup2(stderr, 2)
        os.close(stderr)


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
