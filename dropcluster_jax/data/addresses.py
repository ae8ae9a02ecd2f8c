"""Addresses of object stores."""

import os
import re


def parse_address(path: str | os.PathLike[str]) -> str | None:
    """Returns a path as an address if it is one; None for a local path.

    `pathlib.Path` removes one of the two slashes of an address, which this restores.

    Example:
        >>> import pathlib
        >>> parse_address(pathlib.PurePosixPath("gs://bucket/folder"))
        'gs://bucket/folder'
        >>> parse_address("folder") is None
        True
    """
    match = re.match("([A-Za-z][A-Za-z0-9+.-]+):/+", os.fspath(path))
    return None if match is None else f"{match[1]}://{os.fspath(path)[match.end() :]}"
