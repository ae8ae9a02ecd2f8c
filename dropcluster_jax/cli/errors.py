"""Exits of the command: one line on stderr, no traceback."""

import contextlib
import dataclasses
import re
import sys
from collections.abc import Iterator
from typing import NoReturn

from dropcluster_jax._optional import install_command


def exit_usage(message: str) -> NoReturn:
    """Exits with status 2, for invalid input."""
    print(f"dropcluster: error: {message}", file=sys.stderr)
    sys.exit(2)


def exit_failure(message: str) -> NoReturn:
    """Exits with status 1, for failures that are not due to the input."""
    print(f"dropcluster: {message}", file=sys.stderr)
    sys.exit(1)


@contextlib.contextmanager
def invalid_input(*errors: type[Exception]) -> Iterator[None]:
    """Exits with status 2 if the library raises one of the errors, or finds that a file is corrupt.

    By default, the errors are those that invalid arguments and missing files and packages cause.
    """
    from dropcluster_jax.data import CorruptImageError
    from dropcluster_jax.runs import CorruptCheckpointError

    errors = errors or (ValueError, TypeError, OSError, ImportError)
    try:
        yield
    except (*errors, CorruptImageError, CorruptCheckpointError) as error:
        hint = "; `train` and `data check` skip such images with --data.skip-corrupt"
        exit_usage(name_options(describe(error)) + (hint if isinstance(error, CorruptImageError) else ""))


def describe(error: Exception) -> str:
    """Returns the message for an error that the library raised."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {error.filename}"
    return str(error)


def name_options(message: str) -> str:
    """Replaces the names of the configuration's fields by options, e.g. `data.image_size` by `--data.image-size`.

    The library omits the section in some messages.
    """
    from dropcluster_jax.runs import TrainConfig

    paths = []
    for name, value in dataclasses.asdict(TrainConfig()).items():
        paths += [f"{name}.{nested}" for nested in value] if isinstance(value, dict) else [name]
    options = {path.rpartition(".")[2]: path for path in reversed(paths)} | {path: path for path in paths}

    def replace(match: re.Match[str]) -> str:
        return f"--{options[match[0]].replace('_', '-')}" if match[0] in options else match[0]

    return re.sub(r"(?<![\w./:'-])[a-z]+([._][a-z]+)+(?![\w/])|^[a-z]+(?= (must|requires|contains) )", replace, message)


def check_devices() -> None:
    """Exits if JAX cannot use its devices, e.g. because JAX_PLATFORMS names a platform that is not installed."""
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX asserts that the plugin of a platform is installed
        platforms = jax.config.values["jax_platforms"]
        reason = "".join(str(error).splitlines()[:1])
        if not platforms:
            exit_usage(f"JAX cannot use its devices: {reason}")
        exit_usage(
            f"JAX has no devices of the platform {platforms!r}, which JAX_PLATFORMS selects: unset JAX_PLATFORMS, or "
            f"install the platform, e.g. {install_command('cuda')}{reason and f' ({reason})'}"
        )
