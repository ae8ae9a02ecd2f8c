"""How a command ends that cannot do what it was asked: with a line, and no traceback."""

import os
import sys
from typing import NoReturn


def refuse(message: str) -> NoReturn:
    """Something is wrong with the input."""
    print(f"dropcluster: error: {message}", file=sys.stderr)
    leave(2)


def fail(message: str) -> NoReturn:
    """Something went wrong on the way, not with the input."""
    print(f"dropcluster: {message}", file=sys.stderr)
    leave(1)


def leave(status: int) -> NoReturn:
    """End the process. One of several ends at once: an orderly end would wait for the others, which wait for it."""
    jax = sys.modules.get("jax")
    if jax is not None and jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def reason(error: Exception) -> str:
    """What to say of an error that the library raised."""
    from dropcluster_jax.data import CorruptImageError

    return (
        f"{error}; --data.skip-corrupt leaves such images out" if isinstance(error, CorruptImageError) else str(error)
    )
