"""The folder of a run: what is in it, whose it is, and how its metrics are written.

`config.json`, `metrics.jsonl` (a record a line, as `fit` reports them), `clusters.jsonl` (the labels after each
update), `summary.json`, `clusters.png`, `checkpoints/`, `damaged/` (checkpoints that could not be trusted), `profile/`,
`tensorboard/`, and what is made of a run later: `evaluation.json`, `pictures/`.
"""

import datetime
import json
import math
import os
import pathlib
import re
import shutil
from collections.abc import Mapping
from typing import Any

from dropcluster_jax.training.config import HOW, TrainConfig
from dropcluster_jax.training.loop import Record

FILES = ("config.json", "metrics.jsonl", "clusters.jsonl", "summary.json", "clusters.png", "evaluation.json")
FOLDERS = ("checkpoints", "damaged", "profile", "tensorboard", "pictures")


def new_folder(config: TrainConfig) -> pathlib.Path:
    """A folder under `runs/` that does not exist yet, named by what is run and when."""
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    name = f"{slug(config.data.name)}-{config.model}-{config.drop.method}-{now}"
    candidates = [pathlib.Path("runs", name), *(pathlib.Path("runs", f"{name}-{i}") for i in range(2, 100))]
    return next(folder for folder in candidates if not folder.exists())


def slug(name: str) -> str:
    """A data set's name as part of a folder's."""
    return re.sub(r"[^0-9A-Za-z_.-]+", "-", name)


def holds_run(folder: pathlib.Path) -> bool:
    """Whether a folder holds a run, of whatever configuration; else it is new or empty.

    Raises:
        FileExistsError: it holds anything else.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"out must be a folder, got the file {folder}")
    if not folder.exists() or not any(folder.iterdir()):
        return False
    if not is_run(folder):
        raise FileExistsError(f"out must be a new or empty folder or one with a run, but {folder} holds other files")
    return True


def is_run(folder: pathlib.Path) -> bool:
    """Whether a folder is that of a run, by its `config.json`, be it damaged."""
    written = folder / "config.json"
    try:
        return written.is_file() and "drop" in _read_json(written)
    except ValueError:
        return True


def read_config(folder: pathlib.Path) -> tuple[TrainConfig, dict[str, Any] | None]:
    """The configuration of a run, and what it says of its data set; None of runs before version 0.1.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: its configuration is damaged, or of a version that has other options.
    """
    written = folder / "config.json"
    if not is_run(folder):
        raise FileNotFoundError(f"{folder} holds no run: there is no config.json of one")
    content = _read_json(written)
    content.pop("version", None)
    dataset = content.pop("dataset", None)
    try:
        return TrainConfig.from_json(content), dataset
    except TypeError as error:
        raise ValueError(f"{written} is damaged: {error}") from None


def finished_run(folder: pathlib.Path, config: TrainConfig) -> dict[str, Any] | None:
    """The summary of this very run, if the folder holds it finished; None if it is new, empty or holds it unfinished.

    Raises:
        FileExistsError: the folder holds anything else; where it is another configuration the differences are named.
        ValueError: what it holds is damaged, or of a version that has other options.
    """
    if not holds_run(folder):
        return None
    there, here = read_config(folder)[0].to_json(), config.to_json()
    for each in (there, here):
        for part, options in HOW.items():  # the same images may lie elsewhere, and come otherwise
            for option in options:
                del (each[part] if part else each)[option]
    _check_equal(f"a run of another configuration, {folder}", there, here)
    return read_summary(folder)


def read_summary(folder: pathlib.Path) -> dict[str, Any] | None:
    """What a finished run has written of how it went; None of one that is not finished.

    Raises:
        ValueError: it is damaged.
    """
    path = folder / "summary.json"
    return _read_json(path) if path.is_file() else None


def check_same_data(folder: pathlib.Path, dataset: Mapping[str, Any]) -> None:
    """Refuse to go on with other images than a run began with.

    Args:
        folder: of the run, or an empty or new one.
        dataset: what `config.json` is to hold of the data set.

    Raises:
        FileExistsError: with the differences.
    """
    there = read_config(folder)[1] if holds_run(folder) else None
    if there is None:
        return
    names = ("classes", "shape", "train_examples")  # a mean may be another in its last bit on another machine
    was, is_now = ({name: each[name] for name in names} for each in (there, dataset))
    _check_equal(f"a run on other images, {folder}", was, is_now)


def _check_equal(what: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    differences = [f"{name} is {was!r} there and {is_now!r} here" for name, was, is_now in _compare(there, here)]
    if differences:
        raise FileExistsError(
            f"out holds {what}: {'; '.join(differences)}. Give another folder, or --restart to remove it"
        )


def clear(folder: pathlib.Path) -> None:
    """Remove a run, and nothing else, from its folder.

    Raises:
        FileExistsError: the folder holds anything else.
    """
    if not holds_run(folder):
        return
    for name in FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in reversed(FILES):  # what tells that it is a run last, so that a kill leaves one
        (folder / name).unlink(missing_ok=True)


class RecordFile:
    """`metrics.jsonl` or `clusters.jsonl`: records are added at its end; a context manager.

    Args:
        path: of the file.
        size: how much of what is there stays, in bytes: what a run wrote after the checkpoint from which it goes on
            is written again.
    """

    def __init__(self, path: pathlib.Path, size: int = 0) -> None:
        self._path = path
        path.touch()
        os.truncate(path, min(size, path.stat().st_size))
        self._file = path.open("a")

    def __enter__(self) -> "RecordFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def records(self) -> list[Record]:
        """Those that are there."""
        return read_records(self._path)

    def add(self, record: Record) -> None:
        """Write a record; of numbers that are not finite, which JSON has not, null."""
        self._file.write(json.dumps(_finite(record), allow_nan=False) + "\n")
        self._file.flush()

    def size(self) -> int:
        """In bytes."""
        return self._path.stat().st_size


def read_records(path: pathlib.Path) -> list[Record]:
    """What a `RecordFile` holds; without its last line, where a run is just being written or was killed in it.

    Raises:
        ValueError: a line before the last is damaged.
    """
    lines = path.read_text().split("\n")[:-1]
    try:
        records = [json.loads(line) for line in lines]
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not all(isinstance(record, dict) and "step" in record for record in records):
        raise ValueError(f"{path} is damaged: a line is no record")
    return records


def with_known(folder: pathlib.Path, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluation without corrupted images, with those that `evaluation.json` has of the same checkpoint."""
    path = folder / "evaluation.json"
    if evaluation["corrupted"] or not path.is_file():
        return dict(evaluation)
    known = _read_json(path)
    if known.get("step") != evaluation["step"]:
        return dict(evaluation)
    return {**evaluation, **{name: known[name] for name in ("corrupted", "mean_corrupted_accuracy") if name in known}}


def write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    beside = path.with_name(path.name + ".new")
    try:
        beside.write_text(json.dumps(content, indent=2) + "\n")
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it holds no object")
    return content


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(part) for name, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _compare(there: Any, here: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        names = list(dict.fromkeys([*there, *here]))
        dotted = [(key, f"{name}.{key}" if name else key) for key in names]
        return [row for key, path in dotted for row in _compare(there.get(key), here.get(key), path)]
    return [] if there == here else [(name, there, here)]
