"""On-disk cache of decoded datasets and compiled programs.

The cache is `$XDG_CACHE_HOME/dropcluster-jax`, by default `~/.cache/dropcluster-jax`. It can be deleted at any time.
No pickle is written or read.
"""

import contextlib
import functools
import hashlib
import json
import os
import pathlib
import shutil
import uuid
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

_FORMAT = 1  # Increment when the contents of an entry change meaning.


def cache_root() -> pathlib.Path | None:
    """Returns the cache directory, or None with a warning if the user has no home directory."""
    try:
        return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dropcluster-jax"
    except RuntimeError:  # e.g. in a container, for a user id without an account
        _warn("nothing is cached, because there is no home directory: set XDG_CACHE_HOME")
        return None


def cached(name: str, key: Any, make: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Returns the result of `make`, read from disk if it was computed before.

    Entries read from disk are memory-mapped and verified by checksum; corrupt entries are recomputed. If the cache
    cannot be written, a warning is issued. All arrays are read-only, of any dtype but object. `key` is everything that
    they depend on, JSON-serializable; `name` is the prefix of the entry's directory name.

    Example:
        >>> import os, tempfile
        >>> with tempfile.TemporaryDirectory() as os.environ["XDG_CACHE_HOME"]:
        ...     for _ in range(2):
        ...         print(cached("squares", 3, lambda: print("computed") or {"squares": np.arange(3) ** 2})["squares"])
        computed
        [0 1 4]
        [0 1 4]
    """
    digest = hashlib.sha256(json.dumps([_FORMAT, key]).encode()).hexdigest()[:32]
    root = cache_root()
    if root is not None and (entry := _read(root / f"{name}-{digest}")) is not None:
        return entry
    arrays = dict(make())
    for array in arrays.values():
        array.setflags(write=False)
    if root is not None:
        try:
            _write(root / f"{name}-{digest}", arrays)
        except OSError as error:
            _warn(f"the cache {root} cannot be written: {error.strerror or error}")
    return arrays


def file_stamp(path: Any) -> tuple[str, int, *tuple[int, ...]]:
    """Returns a file's absolute path, size in bytes, and what changes when its content or the file does.

    On local disks, that is the device, inode, and times of modification and change, which no program can set.
    """
    if os.path.exists(path):
        # Nanoseconds; epath reports seconds, too coarse to notice a file that was just rewritten.
        status = os.stat(path)
        identity = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
        return os.path.abspath(path), status.st_size, *identity
    if isinstance(path, str):  # A dangling link or a deleted file; reading it raises the error.
        return path, -1
    status = path.stat()  # Object storage.
    return str(path), status.length, status.mtime


@contextlib.contextmanager
def compilation_cache() -> Iterator[None]:
    """Makes JAX cache compiled programs under `cache_root()`, unless the user has configured a cache directory."""
    import jax

    previous = jax.config.values["jax_compilation_cache_dir"]
    with warnings.catch_warnings():
        # An entry that another process is still writing, or left incomplete, is recompiled.
        warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")
        if not previous and (root := cache_root()) is not None:
            jax.config.update("jax_compilation_cache_dir", str(root / "compiled"))
        try:
            yield
        finally:
            jax.config.update("jax_compilation_cache_dir", previous)


@functools.cache
def _warn(message: str) -> None:
    """Issues a warning once per process; Python's own record is lost whenever the filters change."""
    warnings.warn(message, stacklevel=3)


def _read(folder: pathlib.Path) -> dict[str, np.ndarray] | None:
    """Returns the arrays of an entry, or None if it is missing or corrupt."""
    try:
        checksums = json.loads((folder / "checksums.json").read_text())
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in checksums}
    except (OSError, ValueError, EOFError):
        return None
    return arrays if {name: _checksum(array) for name, array in arrays.items()} == checksums else None


def _write(folder: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an entry to a temporary directory and renames it, so that readers never see half an entry."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f"{folder.name}-{uuid.uuid4().hex}")
    try:
        temporary.mkdir()  # unlike `tempfile`, with the permissions of the umask, for users who share a cache
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array, allow_pickle=False)
        checksums = {name: _checksum(array) for name, array in arrays.items()}
        (temporary / "checksums.json").write_text(json.dumps(checksums))
        if folder.exists():
            if _read(folder) is not None:  # Another process has just written it, and may have mapped it.
                shutil.rmtree(temporary, ignore_errors=True)
                return
            shutil.rmtree(folder, ignore_errors=True)  # A corrupt entry.
        os.replace(temporary, folder)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        if _read(folder) is None:
            raise


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
