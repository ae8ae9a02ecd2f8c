"""Imports that may fail, because an extra is not installed."""

import contextlib
from collections.abc import Iterator
from typing import Literal


@contextlib.contextmanager
def extra(package: str, name: Literal["train", "plot", "tensorboard"] = "train") -> Iterator[None]:
    """Imports within say which extra to install where they fail.

    Raises:
        ImportError: with what to install.
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(f'{package} cannot be imported: pip install "dropcluster-jax[{name}]"') from error
