"""What a run would take: shapes, parameters, operations and memory, without a training step."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dropcluster_jax.linen import cluster_states
from dropcluster_jax.runs.build import model_operations
from dropcluster_jax.runs.logging import si
from dropcluster_jax.runs.trainer import Run


def describe(run: Run) -> str:
    """A table of the network's parts, and what XLA says of the compiled training step.

    Args:
        run: what `run.prepare` gave.
    """
    parallel, example = run.parallel, run.example()
    state = parallel.abstract_state(run.steps, jax.random.key(0), example)
    batch = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=parallel.batch_sharding)
        for name, leaf in example.items()
    }
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    devices, size = parallel.mesh.size, run.config.batch_size
    lines = [
        _table(run),
        f"{parameters:,} parameters; {run.num_steps:,} steps of {size:,} images, on {devices} "
        f"{jax.devices()[0].platform} devices: {size // devices:,} images on each",
    ]
    operations = model_operations(run.model, run.dataset.shape)
    if operations:
        lines.append(f"model: {si(operations)}FLOP an image in training, {si(operations * size)}FLOP a step")
    # By the way "pmap" what is compiled is no single program of JAX; "shard_map"'s is the same.
    if run.config.strategy != "pmap":
        compiled = jax.jit(parallel.compile(run.steps).train, donate_argnums=0).lower(state, batch).compile()
        cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
        if cost and cost.get("flops"):
            lines.append(f"compiled step, with all that is beside the network: {si(cost['flops'])}FLOP a device")
        if memory is not None:
            held, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
            lines.append(
                f"memory a device: state and batch {_bytes(held)}, temporaries {_bytes(temporary)}, "
                f"together {_bytes(held + temporary)}"
            )
    return "\n".join(lines)


def _table(run: Run) -> str:
    """The parts of the network in the order of their calls: what each gives for an image, and its parameters."""
    rows: list[tuple[str, tuple[int, ...]]] = []

    def note(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        output = call(*args, **kwargs)
        if len(context.module.path) == 1 and context.method_name == "__call__":
            rows.append((context.module.name, output.shape[1:]))
        return output

    images = jax.ShapeDtypeStruct((1, *run.dataset.shape), jnp.float32)
    with nn.intercept_methods(note):
        variables = jax.eval_shape(run.model.clone(remat=False).init, jax.random.key(0), images)
    clusters = {layer: len(found.sizes) for layer, found in cluster_states(variables.get("clusters", {})).items()}
    lines = [f"{'part':16} {'output':>16} {'parameters':>12} {'clusters':>9}"]
    for name, shape in [("image", run.dataset.shape), *rows]:
        parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"].get(name)))
        lines.append(
            f"{name:16} {'x'.join(map(str, shape)):>16} {parameters or '':>12{',' if parameters else ''}} "
            f"{clusters.get(name, ''):>9}".rstrip()
        )
    return "\n".join(lines)


def _bytes(number: float) -> str:
    return f"{si(number)}B"
