"""Paths given by users."""

import os
import pathlib
import re


def local_path(path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns a path in which `~` is expanded.

    Raises:
        ValueError: If the path is the address of an object store or not Unicode, or `~` cannot be expanded.

    Example:
        >>> local_path("~/runs/digits").is_absolute()
        True
        >>> local_path("gs://bucket/run")
        Traceback (most recent call last):
        ValueError: paths must be local, got gs://bucket/run; mount the object store as a folder
    """
    if re.match("[A-Za-z][A-Za-z0-9+.-]+:/", os.fspath(path)):  # `pathlib.Path` removes one of the two slashes
        address = re.sub(":/+", "://", os.fspath(path))
        raise ValueError(f"paths must be local, got {address}; mount the object store as a folder")
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:  # Python cannot decode it; Orbax could not write to it
        raise ValueError(f"paths must be valid in the locale's encoding, got {os.fsencode(path)!r}") from None
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError as error:  # there is no such user
        raise ValueError(f"{path} cannot be expanded: {error}") from None
