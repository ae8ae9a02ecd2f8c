"""TensorBoard's event files, without TensorFlow: scalars, and a picture of the clusters at each update."""

import numbers
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from dropcluster_jax.extras import extra
from dropcluster_jax.linen import cluster_states
from dropcluster_jax.training.layers import place_of
from dropcluster_jax.training.loop import Record
from dropcluster_jax.training.steps import TrainState
from dropcluster_jax.viz import cluster_history_figure, pixels
from dropcluster_jax.viz.clusters import renumbered

_NO_SCALARS = ("event", "step", "count")


def require() -> None:
    """Refuse where what this needs is not installed.

    Raises:
        ImportError: with what to install.
    """
    with extra("tensorboardX", "tensorboard"):
        import tensorboardX  # noqa: F401
    with extra("Matplotlib", "tensorboard"):
        import matplotlib  # noqa: F401


class TensorBoard:
    """Writes what `fit` tells into an event file; a context manager.

    The numbers of each record become the scalars `train/loss`, `test/accuracy`, `clusters/stage1/explained` and so on.
    Needs the extra `tensorboard`. Each record is on the disk when the call is over.

    Args:
        folder: where the event file goes; those of an earlier training that lie there are removed.

    Raises:
        ImportError: tensorboardX or Matplotlib is not installed.
        OSError: the folder cannot be written to.

    Example:
        >>> import tempfile
        >>> with TensorBoard(tempfile.mkdtemp()) as board:  # fit(..., report=board, watch=board.watch)
        ...     board({"event": "train", "step": 10, "loss": 0.5, "rate": 0.1})
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        require()
        # What writes at once: tensorboardX's usual writer has a queue and a thread, in which an error would be lost.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog  # pyright: ignore[reportAttributeAccessIssue]

        path = pathlib.Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        for earlier in path.glob("events.out.tfevents.*"):
            earlier.unlink()
        self._writer = EventsWriter(str(path / "events"))
        self._labels: dict[str, np.ndarray] = {}
        # A TensorBoard that is open meanwhile forgets what it has read.
        self._write(0, session_log=SessionLog(status=SessionLog.START))

    def __enter__(self) -> "TensorBoard":
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def __call__(self, record: Record) -> None:
        """Write the numbers of a record.

        Args:
            record: as `fit` reports it.
        """
        from tensorboardX.summary import scalar

        for name, value in _flat({name: it for name, it in record.items() if name not in _NO_SCALARS}).items():
            self._write(record["step"], summary=scalar(f"{record['event']}/{name}", value))
        self._writer.flush()

    def watch(self, state: TrainState) -> None:
        """Write a picture of the clusters of each layer.

        Args:
            state: as `fit` watches it: the network's maps have two spatial dimensions.
        """
        step, clusters = jax.device_get((state.step, state.clusters))
        self.draw(int(step), {layer: np.asarray(one.labels) for layer, one in cluster_states(clusters).items()})

    def draw(self, step: int, labels: Mapping[str, np.ndarray]) -> None:
        """Write a picture of the clusters of each layer; of channels with clusters of their own, the first.

        Args:
            step: after which they were learned.
            labels: for each layer's name, integers `(height, width, 1 or channels)`.
        """
        from tensorboardX.summary import image

        for layer, each in labels.items():
            name, first = place_of(layer), each[..., 0]
            if name in self._labels:  # so that a cluster keeps its shade
                first = renumbered(self._labels[name], first)
            self._labels[name] = first
            drawn = pixels(cluster_history_figure({name: [(step, first[..., None])]}))
            self._write(step, summary=image(f"clusters/{name}", drawn, dataformats="HWC"))
        self._writer.flush()

    def _write(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

        self._writer.write_event(Event(wall_time=time.time(), step=step, **content))


def _flat(values: Mapping[str, Any], within: str = "") -> dict[str, float]:
    """The numbers in nested mappings, by their paths; what is no number is left out."""
    found: dict[str, float] = {}
    for name, value in values.items():
        path = within if name == "layers" else f"{within}{place_of(name)}"
        if isinstance(value, Mapping):
            found |= _flat(value, f"{path}/" if path and not path.endswith("/") else path)
        elif isinstance(value, numbers.Real):
            found[path] = float(value)
    return found
