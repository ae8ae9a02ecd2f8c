"""Imports of optional dependencies."""

import contextlib
from collections.abc import Iterator
from typing import Literal


@contextlib.contextmanager
def optional_import(package: str, extra: Literal["train", "plot", "tensorboard"] = "train") -> Iterator[None]:
    """Makes a failing import name the extra that provides the package.

    Raises:
        ImportError: The package is not installed; the message contains the `pip install` command.
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(f'{package} is not installed: pip install "dropcluster-jax[{extra}]"') from error
