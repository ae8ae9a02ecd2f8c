"""Shapes, parameters, FLOPs and memory of a run, without training: on the present devices, or on a TPU or GPUs."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dropcluster_jax.data import DATASETS, DatasetSpec
from dropcluster_jax.data.config import open_dataset
from dropcluster_jax.data.loaders.loader import check_divisible
from dropcluster_jax.runs import build
from dropcluster_jax.runs.aot import Analysis, DoesNotFitError, compile_for, topology_mesh
from dropcluster_jax.runs.config import TrainConfig
from dropcluster_jax.runs.console import format_si
from dropcluster_jax.runs.trainer import Run
from dropcluster_jax.training.data_parallel import DataParallel
from dropcluster_jax.training.steps import Batch

_TABLE_WIDTH = 140
_PROGRAMS = {"train": "training step", "update_clusters": "cluster update", "evaluate": "evaluation"}


def describe(run: Run) -> str:
    """Returns a table of the network's layers and what XLA reports about the compiled training step.

    Args:
        run: The result of `trainer.prepare`.
    """
    parallel, spec, batch_size = run.parallel, run.dataset.spec, run.config.batch_size
    state = run.abstract_state()
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    num_devices, platform = parallel.mesh.size, jax.devices()[0].platform
    lines = [
        run.model.clone(remat=False)
        .tabulate(
            jax.random.key(0),
            jnp.zeros((1, *spec.image_shape)),
            depth=1,
            compute_flops=True,
            console_kwargs={"width": _TABLE_WIDTH, "force_terminal": False},
        )
        .strip(),
        f"{parameters:,} parameters; {run.num_steps:,} steps of {batch_size:,} images on {num_devices} {platform} "
        f"devices, {batch_size // num_devices:,} images each",
    ]
    flops = build.training_flops(run.model, spec.image_shape)
    if flops:
        lines.append(
            f"network: {format_si(flops)}FLOPs per training image, {format_si(flops * batch_size)}FLOPs per step"
        )
    if run.config.strategy != "pmap":  # whose compiled program is not accessible
        lines += _describe_compiled_step(run)
    return "\n".join(lines)


def _describe_compiled_step(run: Run) -> list[str]:
    batch = _shard(run.parallel, build.abstract_batch(run.dataset.spec, run.config.batch_size))
    step = jax.jit(run.parallel.compile(run.steps).train, donate_argnums=0)
    compiled = step.lower(run.abstract_state(), batch).compile()
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    lines = []
    if cost and cost.get("flops"):
        lines.append(f"compiled step: {format_si(cost['flops'])}FLOPs per device")
    if memory is not None:
        arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
        lines.append(
            f"memory per device: state and batch {format_si(arguments)}B, temporaries {format_si(temporaries)}B, "
            f"total {format_si(arguments + temporaries)}B"
        )
    return lines


class RunAnalysis(NamedTuple):
    """The programs of a run, compiled for a topology.

    Attributes:
        config: The configuration.
        num_parameters: Number of parameters of the network.
        flops_per_image: Floating-point operations of the network per training image; see `build.training_flops`.
        programs: Analyses by program: `"train"`, `"update_clusters"` if the network has clusters, and `"evaluate"`.
        images: Number of images that each program processes, over all devices.
    """

    config: TrainConfig
    num_parameters: int
    flops_per_image: float | None
    programs: dict[str, Analysis]
    images: dict[str, int]

    def images_per_second(self, program: str) -> float | None:
        """Returns the compiler's estimate for a program; None if there is none."""
        seconds = self.programs[program].estimated_seconds
        return self.images[program] / seconds if seconds else None

    def model_flops_utilization(self) -> float | None:
        """Returns the compiler's estimate of the fraction of the peak, in bfloat16, that training uses.

        Only the operations of the network count. None if there is no estimate.
        """
        train, speed = self.programs["train"], self.images_per_second("train")
        if speed is None or self.flops_per_image is None or train.chip is None or train.chip.peak_flops is None:
            return None
        return speed * self.flops_per_image / (train.num_devices * train.chip.peak_flops)

    def to_json(self) -> dict[str, Any]:
        """Returns everything as JSON types."""
        train = self.programs["train"]
        programs: dict[str, Any] = {}
        for name, analysis in self.programs.items():
            fields = dataclasses.asdict(analysis)
            for field in ("topology", "device_kind", "num_devices", "cycles"):
                del fields[field]
            fields["collectives"] = [collective._asdict() for collective in analysis.collectives]
            programs[name] = {
                **fields,
                "peak_bytes": analysis.peak_bytes,
                "fits": analysis.fits,
                "images": self.images[name],
                "compiler_estimate": {
                    "cycles": analysis.cycles,
                    "seconds": analysis.estimated_seconds,
                    "images_per_second": self.images_per_second(name),
                },
            }
        programs["train"]["compiler_estimate"]["mfu"] = self.model_flops_utilization()
        return {
            "topology": train.topology,
            "device_kind": train.device_kind,
            "num_devices": train.num_devices,
            "memory_bytes": train.chip and train.chip.memory_bytes,
            "strategy": self.config.strategy,
            "batch_size": self.config.batch_size,
            "parameters": self.num_parameters,
            "flops_per_image": self.flops_per_image,
            "programs": programs,
        }


def analyze(
    config: TrainConfig, topology: str, on_progress: Callable[[str], None] = lambda description: None
) -> RunAnalysis:
    """Compiles the training step, cluster update and evaluation of a run for devices that need not be present.

    Images are not read, except to learn the shape of a dataset that is not in `DATASETS`.

    Args:
        config: The configuration of the run.
        topology: See `aot.compile_for`.
        on_progress: Called with the name of each program before it is compiled, which takes seconds to minutes.

    Raises:
        ValueError: If the topology is unknown, or its devices do not divide the batch size.
        ImportError: If the compiler for the topology is not installed.
        DoesNotFitError: If a program needs more memory than a device has; the message suggests options.
    """
    mesh = topology_mesh(topology)
    # `pmap` would take the part of each host, and there is only this one.
    if config.strategy == "pmap" and mesh.is_multi_process:
        raise ValueError(
            f"strategy pmap can only be compiled for the devices of one host, got topology {topology}; use --strategy "
            "shard_map, which runs the same steps"
        )
    parallel = DataParallel(config.strategy, mesh=mesh, shard_optimizer=config.shard_optimizer)
    check_divisible(config.batch_size, parallel.batch_sharding)
    spec = _spec(config)
    build.check_probe_size(config, spec, mesh.size)
    model = build.make_model(config, spec, parallel.axis_name)
    steps = build.make_run_steps(config, model, spec, parallel.axis_name)
    compiled = parallel.compile(steps)
    batch = _shard(parallel, build.abstract_batch(spec, config.batch_size))
    state = parallel.abstract_state(steps, jax.random.key(config.seed), batch)
    weight = _shard(parallel, {"weight": jax.ShapeDtypeStruct((config.batch_size,), jnp.float32)})
    calls: dict[str, tuple[Callable[..., Any], Batch]] = {"train": (compiled.train, batch)}
    if state.clusters:
        probe_size = min(config.drop.probe_size, spec.num_train_examples) // parallel.mesh.size
        probe = _shard(parallel, build.abstract_batch(spec, probe_size * parallel.mesh.size))
        calls["update_clusters"] = (lambda state, batch: compiled.update_clusters(state, batch).clusters, probe)
    calls["evaluate"] = (compiled.evaluate, {**batch, **weight})
    programs = {}
    for name, (function, images) in calls.items():
        on_progress(f"compiling the {_PROGRAMS[name]}")
        programs[name] = _compile(config, name, topology, function, state, images)
    return RunAnalysis(
        config=config,
        num_parameters=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        flops_per_image=build.training_flops(model, spec.image_shape),
        programs=programs,
        images={name: len(images["label"]) for name, (_, images) in calls.items()},
    )


def describe_analysis(analysis: RunAnalysis) -> str:
    """Returns the analysis as text: a table with a column for each program."""
    config, programs = analysis.config, analysis.programs
    train, memory = programs["train"], max(program.peak_bytes for program in programs.values())
    rows = [
        ["per device", *(_PROGRAMS[name] for name in programs)],
        ["images", *(f"{images // train.num_devices:,}" for images in analysis.images.values())],
    ]
    for label, attribute in (
        ("arguments", "argument_bytes"),
        ("results", "output_bytes"),
        ("temporaries", "temporary_bytes"),
        ("program", "code_bytes"),
        ("peak memory", "peak_bytes"),
        ("bytes accessed", "bytes_accessed"),
    ):
        rows.append([label, *(f"{format_si(getattr(program, attribute))}B" for program in programs.values())])
    if train.flops is not None:
        rows.append(["FLOPs", *(format_si(program.flops or 0).strip() for program in programs.values())])
    kinds = sorted({collective.name for program in programs.values() for collective in program.collectives})
    for kind in kinds:
        rows.append([kind, *(_describe_collective(program, kind) for program in programs.values())])
    speed = analysis.images_per_second("train")
    if speed is not None:
        rows.append(
            ["cycles (compiler's estimate)", *(format_si(program.cycles or 0).strip() for program in programs.values())]
        )
        milliseconds = [1000 * (program.estimated_seconds or 0) for program in programs.values()]
        rows.append(["time (compiler's estimate)", *(f"{value:.3g} ms" for value in milliseconds)])
    flops = analysis.flops_per_image
    lines = [
        f"{train.topology}: {train.num_devices} x {train.device_kind}; strategy {config.strategy}; "
        f"{config.batch_size:,} images per step",
        f"{analysis.num_parameters:,} parameters" + (f"; {format_si(flops)}FLOPs per training image" if flops else ""),
        "",
        *_align(rows),
        "",
    ]
    if train.flops is not None and any(program.has_loops for program in programs.values()):
        lines.append("FLOPs and bytes count each loop body once; cycles do so only if the trip count is unknown.")
    if train.chip is None:
        lines.append(f"peak memory: {memory / 2**30:.1f} GiB; the memory of a {train.device_kind} is unknown")
    else:
        workspaces = "" if train.flops is not None else ", without the workspaces of cuDNN"
        lines.append(f"fits: {memory / 2**30:.1f} of {train.chip.memory_bytes / 2**30:.0f} GiB{workspaces}")
    if speed is not None:
        utilization = analysis.model_flops_utilization()
        mfu = "" if utilization is None else f", {100 * utilization:.0f}% of the peak in bfloat16 (MFU)"
        lines.append(
            f"compiler's estimate: {speed:,.0f} images/s over all devices{mfu}, without waiting for collectives"
        )
    return "\n".join(lines)


def _compile(
    config: TrainConfig, name: str, topology: str, function: Callable[..., Any], state: Any, batch: Batch
) -> Analysis:
    """Compiles a program; if it does not fit, the error suggests what to try."""
    advice = {
        "train": "--remat, a larger --grad-accum-steps, or a smaller --batch-size",
        "update_clusters": "a smaller --drop.probe-size",
        "evaluate": "a smaller --batch-size",
    }
    try:
        analysis = compile_for(topology, function, state, batch, donate_argnums=0 if name == "train" else ())
        if analysis.fits is False:
            memory = analysis.chip.memory_bytes if analysis.chip else 0
            raise DoesNotFitError(f"needs {analysis.peak_bytes / 2**30:.2f} of {memory / 2**30:.2f} GiB")
    except DoesNotFitError as error:
        raise DoesNotFitError(
            f"the {_PROGRAMS[name]} does not fit into the memory of a device of {topology}: {error}; try {advice[name]}"
        ) from None
    return analysis


def _spec(config: TrainConfig) -> DatasetSpec:
    """Returns the description of the dataset, without its images if it is known."""
    if config.data.name not in DATASETS:
        return open_dataset(config.data).spec
    spec = DATASETS[config.data.name]
    if config.data.image_size is not None:
        spec = dataclasses.replace(spec, image_shape=(*2 * (config.data.image_size,), spec.image_shape[-1]))
    return dataclasses.replace(spec, encoded=spec.encoded and not config.fake_data)


def _shard(parallel: DataParallel, batch: Batch) -> Batch:
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=parallel.batch_sharding)
        for name, leaf in batch.items()
    }


def _describe_collective(program: Analysis, kind: str) -> str:
    matches = [collective for collective in program.collectives if collective.name == kind]
    return f"{matches[0].num_calls:,} x, {format_si(matches[0].num_bytes)}B" if matches else "none"


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligns the first column to the left and others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
