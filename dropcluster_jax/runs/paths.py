"""Paths given by users: local ones, and addresses of folders in object stores."""

import contextlib
import importlib.util
import logging
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Union

from dropcluster_jax.data.addresses import parse_address

if TYPE_CHECKING:
    from etils import epath

AnyPath = Union[pathlib.Path, "epath.Path"]

_PACKAGES: dict[str, tuple[str, str]] = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}


def as_path(path: str | os.PathLike[str]) -> AnyPath:
    """Returns a local path, in which `~` is expanded, or the path of an object store: `gs://...` or `s3://...`.

    Raises:
        ValueError: If the path is the address of anything else or not Unicode, or `~` cannot be expanded.
        ImportError: If the package for the object store is not installed.

    Example:
        >>> as_path("~/runs/digits").is_absolute()
        True
        >>> as_path("hdfs://host/run")
        Traceback (most recent call last):
        ValueError: paths must be local, gs://... or s3://..., got hdfs://host/run
    """
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:  # Python cannot decode it; Orbax could not write to it
        raise ValueError(f"paths must be valid in the locale's encoding, got {os.fsencode(path)!r}") from None
    if address := parse_address(path):
        return _remote_path(address)
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError as error:  # there is no such user
        raise ValueError(f"{path} cannot be expanded: {error}") from None


def _remote_path(address: str) -> "epath.Path":
    scheme = address.partition(":")[0]
    if scheme not in _PACKAGES:
        raise ValueError(f"paths must be local, gs://... or s3://..., got {address}")
    package, extra = _PACKAGES[scheme]
    if importlib.util.find_spec(package) is None:
        raise ImportError(
            f'{address} requires {package}, which is not installed: pip install "dropcluster-jax[{extra}]"'
        )
    import fsspec.config
    from etils import epath

    # Other processes write to the same folder, and Orbax writes to it without fsspec, so listings must not be cached.
    fsspec.config.conf.setdefault(scheme, {})["use_listings_cache"] = False
    if (logger := logging.getLogger("gcsfs")).level == logging.NOTSET:
        logger.setLevel(logging.CRITICAL)  # gcsfs logs a traceback for each error that it also raises
    return epath.Path(address)


def is_remote(path: AnyPath) -> bool:
    """Returns whether a path is in an object store."""
    return not isinstance(path, pathlib.Path)


def children(folder: AnyPath) -> list[AnyPath]:
    """Returns the files and folders in a folder, sorted by name; none if there is no such folder."""
    with as_os_error(folder):
        try:
            return sorted(folder.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []


def visible_children(folder: AnyPath) -> list[AnyPath]:
    """Returns `children` that are not hidden, i.e. whose names do not start with a dot."""
    return [path for path in children(folder) if not path.name.startswith(".")]


def read_text(path: AnyPath) -> str:
    """Returns the content of a text file."""
    with as_os_error(path):
        return path.read_text()


def write_bytes(path: AnyPath, content: bytes) -> None:
    """Writes a file atomically; if that fails, the previous file is unchanged."""
    with as_os_error(path):
        if not isinstance(path, pathlib.Path):  # objects are written as a whole
            path.write_bytes(content)
            return
        temporary = path.with_name(f".{os.getpid()}-{path.name}")
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def create_folder(folder: AnyPath) -> None:
    """Creates a local folder and its parents; object stores have none."""
    if isinstance(folder, pathlib.Path):
        folder.mkdir(parents=True, exist_ok=True)


def remove_folder(folder: AnyPath) -> None:
    """Removes a folder, if it exists, with its contents."""
    if isinstance(folder, pathlib.Path):
        shutil.rmtree(folder, ignore_errors=True)
        return
    with as_os_error(folder):
        folder.rmtree(missing_ok=True)


def move_folder(folder: AnyPath, target: AnyPath) -> None:
    """Moves a folder; in object stores by copying every object, which is not atomic."""
    create_folder(target.parent)
    if isinstance(folder, pathlib.Path):
        folder.rename(target)
        return
    with as_os_error(folder):
        store, root = file_system(folder)
        files, target_root = store.find(root), file_system(target)[1]
        store.copy(files, [f"{target_root}{file.removeprefix(root)}" for file in files])
        store.rm(files)


def file_system(path: AnyPath) -> tuple[Any, str]:
    """Returns the fsspec file system of a path in an object store, and the path without its scheme."""
    import fsspec

    return fsspec.url_to_fs(str(path))


def find_files(folder: AnyPath, name: str) -> list[AnyPath]:
    """Returns the files with a name in a folder and its subfolders; symbolic links are not followed."""
    if isinstance(folder, pathlib.Path):
        return sorted(folder.rglob(name))
    with as_os_error(folder):
        store, root = file_system(folder)
        scheme = str(folder).partition("://")[0]
        return [as_path(f"{scheme}://{path}") for path in sorted(store.find(root)) if path.endswith(f"/{name}")]


@contextlib.contextmanager
def as_os_error(path: AnyPath) -> Iterator[None]:
    """Raises OSError for any other error of the packages for object stores, e.g. of credentials."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) or not is_remote(path):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise OSError(f"{path} cannot be accessed: {reason}") from error
