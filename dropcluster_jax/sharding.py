"""Sharding of batches over devices."""

from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding


def num_shards(sharding: NamedSharding | None) -> int:
    """Returns the number of parts into which a batch is split along its first axis."""
    if sharding is None:
        return 1
    devices = sharding.num_devices
    return devices // sharding.shard_shape((devices,))[0]


def check_automatic(mesh: Mesh | AbstractMesh) -> None:
    """Checks that all mesh axes are automatic, so that XLA partitions the computation.

    Raises:
        ValueError: An axis is not automatic.
    """
    if any(kind != AxisType.Auto for kind in mesh.axis_types):
        raise ValueError(
            "mesh must have automatic axes, jax.make_mesh(shape, names, axis_types=(jax.sharding.AxisType.Auto,)), "
            f"got {', '.join(kind.name for kind in mesh.axis_types)}"
        )


def shard_batch(batch: dict[str, Any], sharding: NamedSharding | None) -> dict[str, Any]:
    """Moves a host batch to its devices; with multiple processes, each passes its own part of the batch."""
    if sharding is None:
        return jax.device_put(batch)
    return jax.tree.map(lambda part: jax.make_array_from_process_local_data(sharding, part), batch)
