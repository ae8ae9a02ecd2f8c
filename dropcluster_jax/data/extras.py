"""Imports that may fail, because an extra is not installed."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def train_extra(package: str) -> Iterator[None]:
    """Imports within say what to install where they fail."""
    try:
        yield
    except ImportError as error:
        raise ImportError(f'{package} cannot be imported: pip install "dropcluster-jax[train]"') from error
