"""TensorBoard event files."""

import numbers
import os
import time
from collections.abc import Mapping
from typing import Any, Self

from dropcluster_jax._optional import optional_import
from dropcluster_jax.runs.config import as_path
from dropcluster_jax.training.loop import LogEntry

_NOT_SCALARS = ("event", "step", "count")


def require_tensorboard() -> None:
    """Raises ImportError if tensorboardX is missing."""
    with optional_import("tensorboardX", "tensorboard"):
        import tensorboardX  # noqa: F401


class TensorBoard:
    """Writes the log entries of `fit` to a TensorBoard event file, without TensorFlow; a context manager.

    Numbers become scalars named `train/loss`, `eval/accuracy`, `clusters/stage1/explained_variance` and so on. `flush`
    and the end of the context write entries that are still buffered. Requires the extra `tensorboard`.

    Args:
        folder: Folder for the event file, local or at `gs://`; existing event files in it are removed.

    Raises:
        ImportError: If tensorboardX is not installed.
        OSError: If the folder cannot be written to.

    Example:
        >>> import tempfile
        >>> with TensorBoard(tempfile.mkdtemp()) as board:  # fit(..., on_metrics=board)
        ...     board({"event": "train", "step": 10, "loss": 0.5, "rate": 0.1})
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        require_tensorboard()
        # The synchronous writer: tensorboardX's default one has a queue and a thread in which errors are lost.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboardX.record_writer import directory_check

        path = as_path(folder)
        directory_check(str(path))
        for previous in list(path.glob("events.out.tfevents.*")):
            previous.unlink()
        self._writer = EventsWriter(str(path / "events"))
        # Makes a running TensorBoard discard what it has read from the removed files.
        self._write(0, session_log=SessionLog(status=SessionLog.START))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def flush(self) -> None:
        """Writes buffered entries; at `gs://`, this uploads the whole file."""
        self._writer.flush()

    def close(self) -> None:
        """Writes buffered entries and closes the file."""
        self._writer.close()

    def __call__(self, entry: LogEntry) -> None:
        """Writes the numbers of a log entry of `fit`."""
        from tensorboardX.summary import scalar

        for name, value in _flatten({name: value for name, value in entry.items() if name not in _NOT_SCALARS}).items():
            self._write(entry["step"], summary=scalar(f"{entry['event']}/{name}", value))

    def _write(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

        self._writer.write_event(Event(wall_time=time.time(), step=step, **content))


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Returns the numbers in nested mappings by path; the level "layers" does not appear in paths."""
    flat: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, prefix if name == "layers" else f"{prefix}{name}/")
        elif isinstance(value, numbers.Real):
            flat[f"{prefix}{name}"] = float(value)
    return flat
