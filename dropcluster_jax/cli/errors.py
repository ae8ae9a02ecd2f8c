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


def check_devices() -> None:
    """Exits if JAX cannot use its devices, e.g. because JAX_PLATFORMS names a platform that is not installed."""
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX asserts that the plugin of a platform is installed
        platforms = jax.config.values["jax_platforms"]
        if not platforms:
            exit_usage(f"JAX cannot use its devices: {str(error).splitlines()[0]}")
        reason = (str(error).splitlines() or [""])[0]
        exit_usage(
            f"JAX has no devices of the platform {platforms!r}, which JAX_PLATFORMS selects: unset JAX_PLATFORMS, or "
            'install the platform, e.g. pip install "dropcluster-jax[cuda]"' + (f" ({reason})" if reason else "")
        )


def describe(error: Exception, can_skip: bool = False) -> str:
    """Returns the message for an error that the library raised.

    If the command has the option to skip corrupt images (`can_skip`), the message of a corrupt image names it.
    """
    from dropcluster_jax.data import CorruptImageError

    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {error.filename}"
    hint = "; --data.skip-corrupt skips such images" if can_skip and isinstance(error, CorruptImageError) else ""
    return f"{error}{hint}"
