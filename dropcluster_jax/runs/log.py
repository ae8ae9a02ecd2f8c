"""The log of a run: `metrics.jsonl`, `clusters.jsonl` and event files, written by training and read back."""

import base64
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

import numpy as np
from etils import epath

from dropcluster_jax.clustering import ClusterState
from dropcluster_jax.runs.config import as_path
from dropcluster_jax.runs.folder import CLUSTERS, METRICS, TENSORBOARD, DamagedFileError, to_json, write_file
from dropcluster_jax.runs.tensorboard import TensorBoard
from dropcluster_jax.training.loop import LogEntry


class RunLog:
    """The log of a run; a context manager.

    Entries are kept in memory; `write` and the end of the context rewrite the files.

    Args:
        folder: Run folder.
        names: Names of the files to write; entries of others are ignored.
        counts: Result of `write` at the restored checkpoint, beyond which entries are dropped; empty for a new run.
        tensorboard: Whether to write event files.

    Raises:
        ValueError: If a file is damaged.
    """

    def __init__(
        self, folder: epath.Path, names: Iterable[str], counts: Mapping[str, int], *, tensorboard: bool = False
    ) -> None:
        self._folder, self._lines = folder, dict[str, list[str]]()
        entries = {name: read_entries(folder / name)[: counts.get(name, 0)] for name in names}
        for name in entries:
            self._lines[name] = [to_json(entry) for entry in entries[name]]
        self._board = TensorBoard(folder / TENSORBOARD) if tensorboard else None
        if self._board is not None:
            for entry in entries[METRICS]:
                self._board(entry)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.write()
        finally:
            if self._board is not None:
                self._board.close()

    def log(self, entry: LogEntry) -> None:
        """Adds an entry of `fit`."""
        self._append(METRICS, entry)
        if self._board is not None:
            self._board(entry)

    def log_clusters(self, step: int, clusters: Mapping[str, ClusterState]) -> None:
        """Adds the labels of each place."""
        self._append(CLUSTERS, encode_clusters(step, clusters))

    def write(self) -> dict[str, int]:
        """Writes the files, and returns the number of entries in each, to be saved with a checkpoint."""
        for name, lines in self._lines.items():
            write_file(self._folder / name, "".join(f"{line}\n" for line in lines).encode())
        if self._board is not None:
            self._board.flush()
        return {name: len(lines) for name, lines in self._lines.items()}

    def _append(self, name: str, entry: LogEntry) -> None:
        if name in self._lines:
            self._lines[name].append(to_json(entry))


def read_entries(path: epath.Path) -> list[LogEntry]:
    """Returns the entries in a file of the log; none if there is no such file."""
    if not path.exists():
        return []
    try:
        entries = [json.loads(line) for line in path.read_text().splitlines()]
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{path} is damaged: {error}; a run can be resumed without it") from None
    if not all(isinstance(entry, dict) and "step" in entry for entry in entries):
        raise DamagedFileError(f"{path} is damaged: a line is not a log entry")
    return entries


def encode_clusters(step: int, clusters: Mapping[str, ClusterState]) -> LogEntry:
    """Returns the entry of `clusters.jsonl` with the compressed labels of each place after a step."""
    return {"step": step, "layers": {place: _encode(np.asarray(state.labels)) for place, state in clusters.items()}}


def decode_clusters(entries: Iterable[LogEntry]) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Yields the step and the labels by place of each entry of `clusters.jsonl`."""
    for entry in entries:
        yield entry["step"], {place: _decode(encoded) for place, encoded in entry["layers"].items()}


def read_history(folder: str | os.PathLike[str]) -> dict[str, list[tuple[int, np.ndarray]]]:
    r"""Returns the clusters of a run over the course of training, as `viz.cluster_history_figure` takes them.

    Args:
        folder: Run folder; the run may be unfinished.

    Returns:
        For each place, from the input to the output, a list of `(step, labels)`: the grid at step 0, then the result
        of each update. Labels are int32 `(height, width, 1 or channels)`.

    Raises:
        FileNotFoundError: If there is no `clusters.jsonl`, as in runs without clusters.
        ValueError: If the file is damaged.

    Example:
        >>> import json, pathlib, tempfile
        >>> from dropcluster_jax import Grid
        >>> state = Grid(num_clusters=4).init((4, 4, 8))
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / CLUSTERS).write_text(json.dumps(encode_clusters(20, {"stage1": state})) + "\n")
        >>> [(step, labels)] = read_history(folder)["stage1"]
        >>> step, bool((labels == state.labels).all())
        (20, True)
    """
    path, history = as_path(folder) / CLUSTERS, dict[str, list[tuple[int, np.ndarray]]]()
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        for step, places in decode_clusters(read_entries(path)):
            for place, labels in places.items():
                history.setdefault(place, []).append((step, labels))
    except (ValueError, KeyError, TypeError, AttributeError, zlib.error) as error:
        raise DamagedFileError(f"{path} is damaged: {error!r}") from None
    return history


def _encode(labels: np.ndarray) -> dict[str, Any]:
    compressed = zlib.compress(labels.astype("<i4").tobytes())
    return {"shape": list(labels.shape), "labels": base64.b64encode(compressed).decode()}


def _decode(encoded: Mapping[str, Any]) -> np.ndarray:
    flat = np.frombuffer(zlib.decompress(base64.b64decode(encoded["labels"])), "<i4")
    return flat.reshape(encoded["shape"]).astype(np.int32)
