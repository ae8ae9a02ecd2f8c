"""What tells whether a file is still the one that was read."""

import os
from typing import Any


def stamp(path: Any) -> tuple[str, int, int]:
    """What changes when a file does: its path, its size and when it was written."""
    if os.path.exists(path):
        status = os.stat(path)  # in nanoseconds: epath gives seconds, in which a file can be written twice
        return str(path), status.st_size, status.st_mtime_ns
    if isinstance(path, str):  # a link that leads nowhere, or a file that is gone: so reading it will say
        return path, -1, -1
    status = path.stat()  # in a bucket
    return str(path), status.length, status.mtime
