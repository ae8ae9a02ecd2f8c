"""Shapes, parameters, FLOPs and memory of a run, without training."""

import jax
import jax.numpy as jnp

from dropcluster_jax.runs import build
from dropcluster_jax.runs.logging import format_si
from dropcluster_jax.runs.trainer import Run

_TABLE_WIDTH = 140


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
    parallel = run.parallel
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=parallel.batch_sharding),
        build.abstract_batch(run.dataset.spec, run.config.batch_size),
    )
    step = jax.jit(parallel.compile(run.steps).train, donate_argnums=0)
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
