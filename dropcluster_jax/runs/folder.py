"""The folder of a run: its files, its lock, and whether a run may be trained in it.

A run folder contains `config.json`, `metrics.jsonl` (log entries of `fit`, one per line), `clusters.jsonl` (cluster
labels after each update), `summary.json`, `clusters.png`, `checkpoints/`, `damaged/` (checkpoints that failed
verification), `profile/`, `tensorboard/`, and what later commands add: `evaluation.json` and `pictures/`.
"""

import contextlib
import datetime
import itertools
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from etils import epath

from dropcluster_jax.data import DatasetSpec
from dropcluster_jax.runs.config import TrainConfig, as_path, without_runtime_fields

CONFIG, METRICS, CLUSTERS, SUMMARY = "config.json", "metrics.jsonl", "clusters.jsonl", "summary.json"
EVALUATION, CLUSTERS_FIGURE = "evaluation.json", "clusters.png"
CHECKPOINTS, PROFILE, TENSORBOARD, PICTURES = "checkpoints", "profile", "tensorboard", "pictures"
_FILES = (CONFIG, METRICS, CLUSTERS, SUMMARY, CLUSTERS_FIGURE, EVALUATION)
_FOLDERS = (CHECKPOINTS, "damaged", PROFILE, TENSORBOARD, PICTURES)
_LOCK = ".lock"
_FILES_OF_SYSTEMS = ("Thumbs.db", "desktop.ini", "@eaDir", "lost+found")  # in addition to hidden files
_MAX_SLUG = 80


class RunFolderError(OSError):
    """The folder of a run cannot be created or is damaged, or another process is writing to it."""


class LockedError(RunFolderError):
    """Another process is writing to the folder of a run."""


class DamagedFileError(ValueError):
    """A file of a run is damaged, or was written by a version with other options."""


def new_folder(config: TrainConfig) -> epath.Path:
    """Creates a folder under `runs/`, named after the configuration and the time, and returns its path.

    Processes that start at the same time get different folders. Raises OSError if the folder cannot be created.
    """
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    name = f"{slug(config.data.name)}-{config.model}-{config.drop.method}-{now}"
    for number in itertools.count(1):
        folder = as_path("runs") / (name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise AssertionError("unreachable")


def slug(name: str) -> str:
    """Returns the name of a dataset as part of a folder name; of long paths, the end."""
    return re.sub(r"[^0-9A-Za-z_.-]+", "-", name)[-_MAX_SLUG:]


@contextlib.contextmanager
def lock(folder: epath.Path, notify: Callable[[str], None]) -> Iterator[None]:
    """Creates the folder if needed, and locks it while this process writes a run to it.

    The operating system releases the lock when the process ends, for whatever reason. `notify` is called if the file
    system does not support locks. Object stores do not.

    Raises:
        RunFolderError: If another process holds the lock, or the folder cannot be written to.
    """
    if _is_remote(folder):
        notify(f"{folder} cannot be locked: make sure that no other process writes to it")
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / _LOCK).open("ab")
    except FileExistsError as error:  # a file, or a symbolic link to nothing
        raise RunFolderError(f"out must be a folder, but {error.filename} exists and is not one") from None
    except OSError as error:
        raise RunFolderError(f"out cannot be written to: {error.strerror}: {error.filename}") from None
    with file:
        try:
            _lock_file(file.fileno())
        except (BlockingIOError, PermissionError):
            raise LockedError(
                f"another process is writing to the run folder {folder}; wait until it ends, or pass a different --out"
            ) from None
        except OSError as error:
            notify(f"{folder} cannot be locked ({error.strerror}): make sure that no other process writes to it")
        yield


def check_out(folder: epath.Path, config: TrainConfig, spec: DatasetSpec) -> dict[str, Any] | None:
    """Returns the summary if the folder contains this run, finished; None if it is empty or the run is unfinished.

    To be called under the lock. A different path of an archive or an image folder is not a difference, as long as the
    examples are the same.

    Raises:
        FileExistsError: If the folder contains other files; for a run with a different configuration or dataset, with
            the differences.
        ValueError: If the files are damaged, or were written by a version with other options.
    """
    if not _contains_run(folder):
        return None
    saved_config, saved_spec = read_config(folder)
    saved, current = _comparable(saved_config), _comparable(config)
    found = [f"{name} is {old!r} there and {new!r} here" for name, old, new in differences(saved, current)]
    kind = "configuration" if found else "dataset"
    found = found or saved_spec.differences(spec)
    if found:
        raise FileExistsError(
            f"out contains a run with a different {kind}, {folder}: {'; '.join(found)}. Choose a different "
            "folder, or pass --restart to remove the run"
        )
    return read_summary(folder)


def clear(folder: epath.Path) -> None:
    """Removes a run from its folder, and no other files; raises FileExistsError if it contains only others."""
    if not _contains_run(folder):
        return
    for name in _FOLDERS:
        (folder / name).rmtree(missing_ok=True)
    for name in reversed(_FILES):  # config.json, which identifies a run, last
        (folder / name).unlink(missing_ok=True)


def is_run(folder: epath.Path) -> bool:
    """Returns whether a folder contains a run, by its `config.json`, even if that is damaged."""
    try:
        return "drop" in read_json(folder / CONFIG)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False
    except ValueError:
        return True


def visible_files(folder: epath.Path) -> list[epath.Path]:
    """Returns the files and folders in a folder, sorted by name, except hidden ones and those of operating systems."""
    names = (".", *_FILES_OF_SYSTEMS)
    return sorted(path for path in folder.iterdir() if not path.name.startswith(names)) if folder.exists() else []


def write_config(folder: epath.Path, config: TrainConfig, spec: DatasetSpec, version: str) -> None:
    """Writes `config.json`."""
    write_json(folder / CONFIG, {"version": version, **config.to_json(), "dataset": spec.to_json()})


def read_config(folder: epath.Path) -> tuple[TrainConfig, DatasetSpec]:
    """Returns the configuration and the dataset description of a run.

    Raises:
        FileNotFoundError: If the folder contains no run.
        ValueError: If `config.json` is damaged, or was written by a version with other options.
    """
    path = folder / CONFIG
    if not is_run(folder):
        raise FileNotFoundError(f"{folder} is not a run folder: it has no {CONFIG} of a run")
    content = read_json(path)
    content.pop("version", None)
    try:
        spec = DatasetSpec.from_json(content.pop("dataset"))
        return TrainConfig.from_json(content), spec
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedFileError(f"{path} is damaged or was written by a different version: {error}") from None


def read_summary(folder: epath.Path) -> dict[str, Any] | None:
    """Returns the summary of a finished run; None if the run is unfinished."""
    try:
        return read_json(folder / SUMMARY)
    except FileNotFoundError:
        return None


def read_json(path: epath.Path) -> dict[str, Any]:
    """Returns the JSON object in a file; raises ValueError if the file contains anything else."""
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{path} is damaged: {error}") from None
    if not isinstance(content, dict):
        raise DamagedFileError(f"{path} is damaged: it does not contain a JSON object")
    return content


def write_json(path: epath.Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file atomically; see `to_json`."""
    write_file(path, f"{to_json(content, indent=2)}\n".encode())


def to_json(content: Any, indent: int | None = None) -> str:
    """Returns JSON, in which NaN and infinities, which JSON does not have, become null."""
    return json.dumps(_nonfinite_to_none(content), indent=indent, allow_nan=False)


def write_file(path: epath.Path, content: bytes) -> None:
    """Writes a file atomically, and creates its folder if needed; if that fails, the previous file is unchanged."""
    if _is_remote(path):  # objects are written as a whole, and have no folders
        path.write_bytes(content)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _is_remote(path: epath.Path) -> bool:
    return str(path).startswith("gs://")


def _lock_file(descriptor: int) -> None:
    """Locks an open file; raises BlockingIOError (PermissionError on Windows) if another process has locked it."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _contains_run(folder: epath.Path) -> bool:
    """Returns whether a folder contains a run; raises FileExistsError if it contains anything else."""
    if not visible_files(folder):
        return False
    if not is_run(folder):
        (folder / _LOCK).unlink(missing_ok=True)
        raise FileExistsError(f"out must be a new or empty folder or contain a run, but {folder} contains other files")
    return True


def _comparable(config: TrainConfig) -> dict[str, Any]:
    """Returns the options that determine the results; of the path of a dataset, only whether it is one."""
    content = without_runtime_fields(config)
    kind = content["data"]["name"].partition(":")[0]
    if kind in ("npz", "folder"):
        content["data"]["name"] = kind
    return content


def differences(saved: Any, current: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """Returns the dotted name and both values of each leaf that differs."""
    if isinstance(saved, Mapping) and isinstance(current, Mapping):
        names = list(dict.fromkeys([*saved, *current]))
        dotted = [(key, f"{name}.{key}" if name else key) for key in names]
        return [row for key, path in dotted for row in differences(saved.get(key), current.get(key), path)]
    return [] if saved == current else [(name, saved, current)]


def _nonfinite_to_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _nonfinite_to_none(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_nonfinite_to_none(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
