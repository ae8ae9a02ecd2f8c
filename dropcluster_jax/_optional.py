"""Imports of optional dependencies."""

import contextlib
from collections.abc import Iterator
from importlib import metadata
from typing import Literal

Extra = Literal["train", "plot", "tensorboard", "tpu", "cuda", "gcs"]


@contextlib.contextmanager
def optional_import(package: str, extra: Extra = "train") -> Iterator[None]:
    """Adds the `pip install` command to the error of a failing import.

    Args:
        package: Name of the package, as the error message spells it.
        extra: Extra of dropcluster-jax that installs the package.

    Raises:
        ImportError: If the package is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{package} is not installed: {install_command(extra)}") from error


def install_command(extra: Extra) -> str:
    """Returns the command that installs the requirements of an extra, wherever dropcluster-jax was installed from.

    Example:
        >>> install_command("plot")
        'pip install "matplotlib>=3.9"'
    """
    requirements = [line.partition(";") for line in metadata.requires("dropcluster-jax") or ()]
    names = [name.strip() for name, _, marker in requirements if f'extra == "{extra}"' in marker.replace("'", '"')]
    return " ".join(["pip install", *(f'"{name}"' for name in names)])
