"""In a single process, communication is a no-op; `test_processes.py` tests several."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from training.helpers import mesh

from dropcluster_jax.runs import distributed


def test_messages_and_numbers_are_returned():
    distributed.barrier("here")
    assert distributed.allgather(["a", "b"]) == ["a", "b"]
    assert distributed.all_agree(True) and not distributed.all_agree(False)


def test_errors_of_the_first_process_are_raised():
    calls = []
    distributed.in_first_process(lambda: calls.append(1), OSError)
    assert calls == [1]

    def fail():
        raise PermissionError("read-only")

    with pytest.raises(PermissionError, match="read-only"):
        distributed.in_first_process(fail, OSError)


def test_addressable_part_of_a_batch_is_complete():
    batch = jnp.arange(16.0).reshape(8, 2)
    sharded = jax.device_put(batch, NamedSharding(mesh(4), PartitionSpec("batch")))
    np.testing.assert_array_equal(distributed.addressable(sharded), batch)
