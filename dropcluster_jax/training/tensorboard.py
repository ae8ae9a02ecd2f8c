"""TensorBoard's event files, without TensorFlow: scalars, and a picture of the clusters at each update."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from dropcluster_jax.extras import extra
from dropcluster_jax.linen import cluster_states
from dropcluster_jax.training.loop import Record
from dropcluster_jax.training.steps import TrainState

_NO_SCALARS = ("event", "step", "count")


def require() -> None:
    """Whether all that this needs is installed.

    Raises:
        ImportError: it is not; with what to install.
    """
    with extra("tensorboardX", "tensorboard"):
        import tensorboardX  # noqa: F401


class TensorBoard:
    """Writes what `fit` tells into event files; a context manager.

    The numbers of each record become the scalars `train/loss`, `test/accuracy`, `clusters/stage1/explained` and so on.
    Needs the extra `tensorboard`, and `plot` for the pictures.

    Args:
        folder: where the event files go.
        step: that from which a run goes on: what was written after it is hidden.

    Raises:
        ImportError: tensorboardX is not installed.

    Example:
        >>> import tempfile
        >>> with TensorBoard(tempfile.mkdtemp()) as board:  # fit(..., report=board, watch=board.watch)
        ...     board({"event": "train", "step": 10, "loss": 0.5, "rate": 0.1})
    """

    def __init__(self, folder: str | os.PathLike[str], step: int = 0) -> None:
        require()
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(os.fspath(folder), purge_step=step + 1 if step else None)

    def __enter__(self) -> "TensorBoard":
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def __call__(self, record: Record) -> None:
        """Write the numbers of a record.

        Args:
            record: as `fit` reports it.
        """
        for name, value in _flat({name: it for name, it in record.items() if name not in _NO_SCALARS}).items():
            self._writer.add_scalar(f"{record['event']}/{name}", value, record["step"])
        self._writer.flush()

    def watch(self, state: TrainState) -> None:
        """Write a picture of the clusters of each layer.

        Args:
            state: as `fit` watches it: the network's maps have two spatial dimensions.

        Raises:
            ImportError: Matplotlib is not installed.
        """
        from dropcluster_jax.viz import cluster_history_figure, pixels

        step, clusters = jax.device_get((state.step, state.clusters))
        for layer, one in cluster_states(clusters).items():
            image = pixels(cluster_history_figure({_short(layer): [(int(step), np.asarray(one.labels))]}))
            self._writer.add_image(f"clusters/{_short(layer)}", image, int(step), dataformats="HWC")
        self._writer.flush()


def _flat(values: Mapping[str, Any], within: str = "") -> dict[str, float]:
    """The numbers in nested mappings, by their paths; what is no number is left out."""
    found: dict[str, float] = {}
    for name, value in values.items():
        path = within if name == "layers" else f"{within}{_short(name)}"
        if isinstance(value, Mapping):
            found |= _flat(value, f"{path}/" if path and not path.endswith("/") else path)
        elif value is not None:
            found[path] = float(value)
    return found


def _short(layer: str) -> str:
    return layer.removeprefix("drop_")
