"""What a run would take: shapes, parameters, operations and memory, without a training step."""

import re

import jax
import jax.numpy as jnp
from flax.linen.summary import tabulate

from dropcluster_jax.training.build import model_operations
from dropcluster_jax.training.progress import si
from dropcluster_jax.training.run import Run


def describe(run: Run) -> str:
    """A table of the network's parts, and what XLA says of the compiled training step.

    Args:
        run: what `run.prepare` gave.
    """
    parallel, example = run.parallel, run.example()
    state = parallel.shapes(run.steps, jax.random.key(0), example)
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
    if run.config.parallel != "pmap":
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
    """Flax's table of the network, a line for each part."""
    images = jnp.zeros((1, *run.dataset.shape), jnp.float32)
    model = run.model.clone(axis_name=None, remat=False)
    table = tabulate(
        model,
        jax.random.key(0),
        depth=1,
        compute_flops=False,
        console_kwargs={"width": 110, "force_terminal": False, "no_color": True},
    )(images)
    return re.sub(r"\n\s*\n+", "\n", table).strip("\n")


def _bytes(number: float) -> str:
    return f"{si(number)}B"
