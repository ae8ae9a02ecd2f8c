"""Exits of the command: one line on stderr, no traceback."""

import sys
from typing import NoReturn


def exit_usage(message: str) -> NoReturn:
    """Exits with status 2, for invalid input."""
    print(f"dropcluster: error: {message}", file=sys.stderr)
    sys.exit(2)


def exit_failure(message: str) -> NoReturn:
    """Exits with status 1, for failures that are not due to the input."""
    print(f"dropcluster: {message}", file=sys.stderr)
    sys.exit(1)


def describe(error: Exception) -> str:
    """Returns the message for an error that the library raised."""
    from dropcluster_jax.data import CorruptImageError

    hint = "; --data.skip-corrupt skips such images" if isinstance(error, CorruptImageError) else ""
    return f"{error}{hint}"
