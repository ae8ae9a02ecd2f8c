"""Imports of optional dependencies."""

import contextlib
from collections.abc import Iterator
from typing import Literal


@contextlib.contextmanager
def optional_import(
    package: str, extra: Literal["train", "plot", "tensorboard", "tpu", "cuda", "gcs"] = "train"
) -> Iterator[None]:
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
        raise ImportError(f'{package} is not installed: pip install "dropcluster-jax[{extra}]"') from error
