"""Sharding of batches over devices."""

from collections.abc import Callable, Collection
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree


def num_shards(sharding: NamedSharding | None) -> int:
    """Returns the number of parts into which `sharding` splits the first axis of an array."""
    if sharding is None:
        return 1
    devices = sharding.num_devices
    return devices // sharding.shard_shape((devices,))[0]


def check_automatic(mesh: Mesh | AbstractMesh) -> None:
    """Checks that all axes of `mesh` are automatic, i.e. that XLA partitions computations over them.

    Raises:
        ValueError: If an axis is explicit or manual.
    """
    if any(axis_type != AxisType.Auto for axis_type in mesh.axis_types):
        raise ValueError(
            "mesh must have automatic axes, jax.make_mesh(shape, names, axis_types=(jax.sharding.AxisType.Auto,)), "
            f"got {', '.join(axis_type.name for axis_type in mesh.axis_types)}"
        )


def preserve_sharding(
    function: Callable[[Any, PyTree], PyTree], key: PyTree, arrays: PyTree, reduced: Collection[int] = ()
) -> PyTree:
    """Returns `function(key, arrays)`, with the shardings of `arrays` on a mesh with explicit axes.

    Inside of the function, the axes are automatic, because many operations do not support explicit ones. The result has
    the structure of `arrays`; dimensions in `reduced` are not sharded, because their length is 1.
    """
    types = [jax.typeof(array) for array in jax.tree.leaves(arrays)]
    mesh = next((array.sharding.mesh for array in types if array.sharding.mesh.explicit_axes), None)
    if mesh is None:
        return function(key, arrays)

    def sharding_of(array: Array) -> NamedSharding:
        spec = jax.typeof(array).sharding.spec
        return NamedSharding(mesh, PartitionSpec(*(None if i in reduced else axes for i, axes in enumerate(spec))))

    out_sharding = jax.tree.map(sharding_of, arrays)
    automatic: Callable[..., PyTree] = jax.sharding.auto_axes(
        function, axes=mesh.explicit_axes, out_sharding=out_sharding
    )
    return automatic(key, arrays)


def shard_batch(batch: PyTree, sharding: NamedSharding | None) -> PyTree:
    """Moves a host batch to its devices. With multiple processes, each passes its own part of the batch."""
    if sharding is None:
        return jax.device_put(batch)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), batch)
