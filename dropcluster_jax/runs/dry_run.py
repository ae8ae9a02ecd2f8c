"""Parameters, memory, FLOPs and collectives of a run, without training: for the present devices or a TPU."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dropcluster_jax.data import DATASETS, DatasetSpec, load
from dropcluster_jax.data.loaders.loader import check_divisible
from dropcluster_jax.models import ResNet
from dropcluster_jax.runs import build
from dropcluster_jax.runs.aot import CHIPS, DoesNotFitError, compile_for, topology_mesh
from dropcluster_jax.runs.config import TrainConfig
from dropcluster_jax.runs.console import format_si
from dropcluster_jax.training.data_parallel import DataParallel
from dropcluster_jax.training.steps import Batch

# The name of each program, and what to try if it does not fit.
_PROGRAMS = {
    "train": ("training step", "--remat, a larger --grad-accum-steps, or a smaller --batch-size"),
    "update_clusters": ("cluster update", "a smaller --drop.probe-size"),
    "evaluate": ("evaluation", "a smaller --batch-size"),
}
_ROWS = {
    "arguments": ("argument_bytes", "B"),
    "results": ("output_bytes", "B"),
    "temporaries": ("temporary_bytes", "B"),
    "program": ("code_bytes", "B"),
    "peak memory": ("peak_bytes", "B"),
    "bytes accessed": ("bytes_accessed", "B"),
    "FLOPs": ("flops", ""),
    "cycles (compiler's estimate)": ("cycles", ""),
}


def analyze(
    config: TrainConfig,
    topology: str | None = None,
    on_progress: Callable[[str], None] = lambda description: None,
) -> dict[str, Any]:
    """Compiles the training step, cluster update and evaluation of a run.

    Args:
        config: The configuration of the run.
        topology: Devices that need not be present, see `aot.compile_for`; the present devices if None. For a topology,
            images are read only to get the shape of a dataset that is not in `DATASETS`.
        on_progress: Called with the name of each program before it is compiled, which takes seconds to minutes.

    Returns:
        JSON types: the devices, the network, and in `"programs"` the fields and properties of each `aot.Analysis`. For
        the present devices, `"steps"` is the number of steps and `"layers"` a table of the layers.

    Raises:
        ValueError: If the topology is unknown, or its devices do not divide the batch size.
        ImportError: If the compiler for the topology is not installed.
        DoesNotFitError: If a program needs more memory than a device has; the message suggests options.
    """
    mesh = DataParallel().mesh if topology is None else topology_mesh(topology)
    # `pmap` would take the part of each host, and there is only this one.
    if config.strategy == "pmap" and mesh.is_multi_process:
        raise ValueError(
            f"strategy pmap can only be compiled for one host, got topology {topology}; shard_map runs the same steps"
        )
    parallel = DataParallel(config.strategy, mesh=mesh, shard_optimizer=config.shard_optimizer)
    check_divisible(config.batch_size, parallel.batch_sharding)
    spec = _spec(config, topology)
    build.check_probe_size(config, spec, mesh.size)
    model = build.make_model(config, spec, parallel.axis_name)
    steps = build.make_run_steps(config, model, spec, parallel.axis_name)
    compiled = parallel.compile(steps)
    batch = build.abstract_batch(spec, config.batch_size)
    state = parallel.abstract_state(steps, jax.random.key(config.seed), batch)
    calls: dict[str, tuple[Callable[..., Any], Batch]] = {"train": (compiled.train, batch)}
    if state.clusters:
        probe_size = min(config.drop.probe_size, spec.num_train_examples) // mesh.size * mesh.size
        probe = build.abstract_batch(spec, probe_size)
        calls["update_clusters"] = (lambda state, batch: compiled.update_clusters(state, batch).clusters, probe)
    weight = jax.ShapeDtypeStruct((config.batch_size,), jnp.float32)
    calls["evaluate"] = (compiled.evaluate, {**batch, "weight": weight})
    programs, flops = {}, build.training_flops(model, spec.image_shape)
    for name, (function, images) in calls.items():
        on_progress(f"compiling the {_PROGRAMS[name][0]}")
        programs[name] = _compile(name, topology or mesh, function, state, images)
    kind, seconds = mesh.devices.flat[0].device_kind, programs["train"]["estimated_seconds"]
    chip, speed = CHIPS.get(kind), config.batch_size / seconds if seconds else None
    peak = chip and chip.peak_flops
    report = {
        "topology": topology,
        "device_kind": kind,
        "num_devices": mesh.size,
        "memory_bytes": chip and chip.memory_bytes,
        "strategy": config.strategy,
        "batch_size": config.batch_size,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "flops_per_image": flops,
        "estimated_images_per_second": speed,
        "estimated_mfu": speed * flops / (mesh.size * peak) if speed and flops and peak else None,
        "programs": programs,
    }
    if topology is None:
        report["steps"] = build.num_steps(config, spec)
        report["layers"] = _layer_table(model, spec)
    return report


def describe(report: Mapping[str, Any]) -> str:
    """Returns the result of `analyze` as text: a table with a column for each program."""
    programs, train = report["programs"].values(), report["programs"]["train"]
    speed, mfu = report["estimated_images_per_second"], report["estimated_mfu"]
    rows = [
        ["per device", *(_PROGRAMS[name][0] for name in report["programs"])],
        ["images", *(f"{program['images'] // report['num_devices']:,}" for program in programs)],
    ]
    for label, (name, unit) in _ROWS.items():
        if train[name] is not None:
            rows.append([label, *(f"{format_si(program[name] or 0)}{unit}".strip() for program in programs)])
    if speed is not None:
        seconds = [program["estimated_seconds"] or 0 for program in programs]
        rows.append(["time (compiler's estimate)", *(f"{1000 * value:.3g} ms" for value in seconds)])
    collectives = [{item["name"]: item for item in program["collectives"]} for program in programs]
    for name in sorted({name for items in collectives for name in items}):
        rows.append([name, *(_describe_collective(items.get(name)) for items in collectives)])
    lines = [
        *([report["layers"]] if "layers" in report else []),
        f"{report['topology'] or 'present devices'}: {report['num_devices']} x {report['device_kind']}; strategy "
        f"{report['strategy']}; {report['batch_size']:,} images per step",
        f"{report['parameters']:,} parameters"
        + (f"; {report['steps']:,} steps" if "steps" in report else "")
        + (f"; {format_si(report['flops_per_image'])}FLOPs per training image" if report["flops_per_image"] else ""),
        "",
        *_align(rows),
        "",
    ]
    if report["memory_bytes"] is not None:
        memory = _format_memory(max(program["peak_bytes"] for program in programs))
        lines.append(f"fits: {memory} of {_format_memory(report['memory_bytes'])}")
    if train["flops"] is not None:
        lines.append("FLOPs and bytes count each loop body once, cycles only if the trip count is unknown.")
    if speed is not None:
        share = "" if mfu is None else f", {f'{mfu:.0%}' if mfu > 0.01 else 'below 1%'} of the peak in bfloat16 (MFU)"
        lines.append(
            f"compiler's estimate: {speed:,.0f} images/s over all devices{share}, without waiting for collectives"
        )
    return "\n".join(lines)


def _spec(config: TrainConfig, topology: str | None) -> DatasetSpec:
    """Returns the description of the dataset; for a topology without its images if it is known."""
    if config.data.name not in DATASETS or (topology is None and not config.fake_data):
        return load(config.data).spec
    spec = DATASETS[config.data.name]
    if config.data.image_size is not None:
        spec = dataclasses.replace(spec, image_shape=(*2 * (config.data.image_size,), spec.image_shape[-1]))
    return dataclasses.replace(spec, encoded=spec.encoded and not config.fake_data)


def _compile(name: str, devices: str | Mesh, function: Callable[..., Any], state: Any, batch: Batch) -> dict[str, Any]:
    """Returns the analysis of a program as JSON types; if it does not fit, the error suggests what to try."""
    program, advice = _PROGRAMS[name]
    donated = 0 if name == "train" else ()
    try:
        analysis = compile_for(devices, function, state, batch, batch_argnums=1, donate_argnums=donated)
    except DoesNotFitError as error:
        where = f" of {devices}" if isinstance(devices, str) else ""
        message = f"the {program} does not fit into the memory of a device{where}: {error}; try {advice}"
        raise DoesNotFitError(message) from None
    fields = {"images": len(batch["label"]), "peak_bytes": analysis.peak_bytes, **dataclasses.asdict(analysis)}
    del fields["device_kind"], fields["num_devices"]
    return {**fields, "estimated_seconds": analysis.estimated_seconds}


def _layer_table(model: ResNet, spec: DatasetSpec) -> str:
    key, images = jax.random.key(0), jnp.zeros((1, *spec.image_shape))
    console = {"width": 140, "force_terminal": False}
    table = model.clone(remat=False).tabulate(key, images, depth=1, compute_flops=True, console_kwargs=console)
    return table.strip()


def _describe_collective(collective: Mapping[str, Any] | None) -> str:
    return f"{collective['num_calls']:,} x, {format_si(collective['num_bytes'])}B" if collective else "none"


def _format_memory(num_bytes: int) -> str:
    """Formats a size in GiB, as the memory of chips is given, or in MiB if it is below 1 GiB."""
    power, unit = (30, "GiB") if num_bytes >= 2**30 else (20, "MiB")
    return f"{num_bytes / 2**power:.1f}".removesuffix(".0") + f" {unit}"


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligns the first column to the left and others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    template = "  ".join([f"{{:<{widths[0]}}}", *(f"{{:>{width}}}" for width in widths[1:])])
    return [template.format(*row) for row in rows]
