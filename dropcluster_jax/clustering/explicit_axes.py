"""Support for meshes with explicit axes."""

from collections.abc import Callable

import jax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import PyTree


def with_automatic_axes(function: Callable[..., PyTree], *args: PyTree) -> PyTree:
    """Returns `function(*args)`, with the explicit axes of a mesh made automatic inside of the function.

    XLA then chooses the shardings of intermediate results, as over automatic axes. Results are replicated over these
    axes. Without explicit axes, this only calls the function.
    """
    meshes = {jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves(args)}
    mesh = next((mesh for mesh in meshes if mesh.explicit_axes), None)
    if mesh is None:
        return function(*args)
    replicated = NamedSharding(mesh, PartitionSpec())
    return jax.sharding.auto_axes(function, axes=mesh.explicit_axes, out_sharding=replicated)(*args)
