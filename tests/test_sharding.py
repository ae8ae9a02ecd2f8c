import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dropcluster_jax.sharding import check_automatic, num_shards, preserve_sharding, shard_batch


def make_mesh(shape, axis_type=AxisType.Auto):
    names = tuple("ab"[: len(shape)])
    devices = jax.devices()[: int(np.prod(shape))]
    return jax.make_mesh(shape, names, axis_types=(axis_type,) * len(shape), devices=devices)


def test_number_of_shards_counts_devices_of_the_first_axis():
    mesh = make_mesh((4, 2))
    expected = {("a",): 4, ("b",): 2, (("a", "b"),): 8, (): 1, ("a", None): 4}
    for axes, number in expected.items():
        assert num_shards(NamedSharding(mesh, PartitionSpec(*axes))) == number, axes
    assert num_shards(None) == 1


def test_explicit_axes_raise():
    check_automatic(make_mesh((2, 2)))
    with pytest.raises(ValueError, match=r"mesh must have automatic axes, .*, got Explicit, Explicit"):
        check_automatic(make_mesh((2, 2), AxisType.Explicit))


def test_batches_are_placed():
    batch = {"image": np.ones((8, 2)), "label": np.arange(8)}
    sharding = NamedSharding(make_mesh((4,)), PartitionSpec("a"))
    sharded = shard_batch(batch, sharding)
    assert all(leaf.sharding == sharding for leaf in sharded.values())
    assert (sharded["label"] == batch["label"]).all()
    assert isinstance(shard_batch(batch, None)["label"], jax.Array)


def test_shardings_on_explicit_meshes_are_kept():
    def reverse(key, arrays):
        return jax.tree.map(lambda array: array[::-1], arrays)

    arrays = {"x": jnp.arange(8.0), "y": jnp.arange(8)}
    mesh = make_mesh((4,), AxisType.Explicit)
    with jax.set_mesh(mesh):
        sharded = jax.device_put(arrays, NamedSharding(mesh, PartitionSpec("a")))
        result = jax.jit(lambda key, arrays: preserve_sharding(reverse, key, arrays))(jax.random.key(0), sharded)
    for name, array in arrays.items():
        assert result[name].sharding.spec == PartitionSpec("a")
        assert (np.asarray(result[name]) == np.asarray(array)[::-1]).all()
    plain = preserve_sharding(reverse, jax.random.key(0), arrays)
    assert (plain["y"] == arrays["y"][::-1]).all()
