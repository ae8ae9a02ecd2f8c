"""Communication between the processes of a run; no-ops in a single process."""

import json
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

# A process that does not respond for this long is considered dead.
_TIMEOUT_SECONDS = 20

_Result = TypeVar("_Result")


def initialize(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins the processes of a run; None values are detected on TPU pods, SLURM and Kubernetes.

    Raises:
        RuntimeError, ValueError: If the other processes are not found.
    """
    jax.distributed.initialize(
        coordinator,
        num_processes,
        process_id,
        heartbeat_timeout_seconds=_TIMEOUT_SECONDS,
        shutdown_timeout_seconds=_TIMEOUT_SECONDS,
    )


def barrier(name: str) -> None:
    """Waits until all processes have reached the barrier."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def in_first_process(action: Callable[[], _Result], error_class: type[OSError]) -> _Result:
    """Calls `action` in the first process and returns its result, JSON-serializable, in all.

    If it raises an OSError or ValueError, the others raise `error_class` with its message.
    """
    if jax.process_count() == 1:
        return action()
    result, error = None, None
    if jax.process_index() == 0:
        try:
            result = action()
        except (OSError, ValueError) as failure:
            error = failure
    messages = allgather([json.dumps([error and str(error), result])] if jax.process_index() == 0 else [])
    if error is not None:
        raise error
    message, result = json.loads(messages[0])
    if message is not None:
        raise error_class(message)
    return result


def all_agree(value: bool) -> bool:
    """Returns whether `value` is True in all processes."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.process_allgather(jnp.array(value)).all())


def allgather(messages: list[str]) -> list[str]:
    """Returns the messages of all processes, in the order of the processes."""
    if jax.process_count() == 1:
        return messages
    text = np.frombuffer(json.dumps(messages).encode(), np.uint8)
    length = int(np.max(multihost_utils.process_allgather(np.array(len(text)))))
    padded = np.pad(text, (0, length - len(text)), constant_values=ord(" "))
    return [message for row in multihost_utils.process_allgather(padded) for message in json.loads(bytes(row))]


def addressable(batch: jax.Array) -> np.ndarray:
    """Returns the part of a sharded batch that is on this process's devices."""
    return np.concatenate([np.asarray(shard.data) for shard in batch.addressable_shards])
