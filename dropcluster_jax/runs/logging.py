"""Logging of a run: log files, TensorBoard event files, and the terminal."""

import contextlib
import itertools
import numbers
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import jax
import numpy as np

from dropcluster_jax._optional import optional_import
from dropcluster_jax.clustering import ClusterState
from dropcluster_jax.linen import cluster_states
from dropcluster_jax.runs import run_folder
from dropcluster_jax.runs.paths import AnyPath, as_path, visible_children
from dropcluster_jax.runs.run_folder import JsonLinesFile
from dropcluster_jax.training.loop import LogEntry
from dropcluster_jax.training.steps import TrainState
from dropcluster_jax.viz import cluster_history_figure
from dropcluster_jax.viz.canvas import figure_to_array
from dropcluster_jax.viz.clusters import match_labels

_NOT_SCALARS = ("event", "step", "count")
_SECONDS_PER_LINE = 60  # of training metrics, if the output is not a terminal


class RunWriter:
    """Writes the log of a run to its folder: `metrics.jsonl`, `clusters.jsonl` and event files. A context manager.

    Entries beyond `sizes`, the result of `sizes()` at the restored checkpoint, are removed. `last` is the last entry of
    each event.
    """

    def __init__(
        self, folder: pathlib.Path, sizes: Mapping[str, int], *, clusters: bool = True, tensorboard: bool = False
    ) -> None:
        names = (run_folder.METRICS, run_folder.CLUSTERS) if clusters else (run_folder.METRICS,)
        with contextlib.ExitStack() as stack:
            self._files = {
                name: stack.enter_context(JsonLinesFile(folder / name, sizes.get(name, 0))) for name in names
            }
            self._board = stack.enter_context(TensorBoard(folder / run_folder.TENSORBOARD)) if tensorboard else None
            self.last: dict[str, LogEntry] = {entry["event"]: entry for entry in self._files[run_folder.METRICS].read()}
            self._stack = stack.pop_all()
        if self._board is not None:
            self._copy_to_board(self._board)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def log(self, entry: LogEntry) -> None:
        """Writes an entry of `fit`."""
        self.last[entry["event"]] = entry
        self._files[run_folder.METRICS].append(entry)
        if self._board is not None:
            self._board(entry)

    def log_clusters(self, step: int, clusters: Mapping[str, ClusterState]) -> None:
        """Writes the labels of each place."""
        self._files[run_folder.CLUSTERS].append(run_folder.encode_clusters(step, clusters))
        if self._board is not None:
            self._board.log_labels(step, {place: np.asarray(state.labels) for place, state in clusters.items()})

    def sizes(self) -> dict[str, int]:
        """Returns the sizes of the log files in bytes, to be saved with a checkpoint."""
        return {name: file.size() for name, file in self._files.items()}

    def _copy_to_board(self, board: "TensorBoard") -> None:
        """Writes all entries before the restored checkpoint to the new event file."""
        for entry in self._files[run_folder.METRICS].read():
            board(entry)
        if run_folder.CLUSTERS in self._files:
            for step, labels in run_folder.decode_clusters(self._files[run_folder.CLUSTERS].read()):
                board.log_labels(step, labels)


class NullWriter:
    """No-op `RunWriter` for all processes but the first."""

    def __init__(self) -> None:
        self.last: dict[str, LogEntry] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def log(self, entry: LogEntry) -> None:
        """Does nothing."""

    def log_clusters(self, step: int, clusters: Mapping[str, ClusterState]) -> None:
        """Does nothing."""

    def sizes(self) -> dict[str, int]:
        """Returns nothing."""
        return {}


def require_tensorboard() -> None:
    """Raises ImportError if a package for event files is missing."""
    with optional_import("tensorboardX", "tensorboard"):
        import tensorboardX  # noqa: F401
    with optional_import("Matplotlib", "tensorboard"):
        import matplotlib  # noqa: F401


class TensorBoard:
    """Writes the log entries of `fit` to a TensorBoard event file, without TensorFlow; a context manager.

    Numbers become scalars named `train/loss`, `test/accuracy`, `clusters/stage1/explained_variance` and so on. Entries
    are on disk when the call returns. Requires the extra `tensorboard`.

    Args:
        folder: Folder for the event file; existing event files in it are removed.

    Raises:
        ImportError: If tensorboardX or Matplotlib is not installed.
        OSError: If the folder cannot be written to.
        ValueError: If the folder is in an object store.

    Example:
        >>> import tempfile
        >>> with TensorBoard(tempfile.mkdtemp()) as board:  # fit(..., on_metrics=board, on_clusters=board.log_clusters)
        ...     board({"event": "train", "step": 10, "loss": 0.5, "rate": 0.1})
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        require_tensorboard()
        # The synchronous writer: tensorboardX's default one has a queue and a thread in which errors are lost.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog  # pyright: ignore[reportAttributeAccessIssue]

        path = as_path(folder)
        if not isinstance(path, pathlib.Path):
            raise ValueError(f"folder must be local, got {path}")
        path.mkdir(parents=True, exist_ok=True)
        for previous in path.glob("events.out.tfevents.*"):
            previous.unlink()
        self._writer = EventsWriter(str(path / "events"))
        self._labels: dict[str, np.ndarray] = {}
        # Makes a running TensorBoard discard what it has read from the removed files.
        self._write(0, session_log=SessionLog(status=SessionLog.START))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def __call__(self, entry: LogEntry) -> None:
        """Writes the numbers of a log entry of `fit`."""
        from tensorboardX.summary import scalar

        for name, value in _flatten({name: value for name, value in entry.items() if name not in _NOT_SCALARS}).items():
            self._write(entry["step"], summary=scalar(f"{entry['event']}/{name}", value))
        self._writer.flush()

    def log_clusters(self, state: TrainState) -> None:
        """Writes images of the clusters of a state, as `fit(on_clusters=board.log_clusters)`. See `log_labels`."""
        step, clusters = jax.device_get((state.step, state.clusters))
        self.log_labels(int(step), {name: np.asarray(layer.labels) for name, layer in cluster_states(clusters).items()})

    def log_labels(self, step: int, labels: Mapping[str, np.ndarray]) -> None:
        """Writes an image of the clusters of each layer; with clusters per channel, of the first channel.

        Args:
            step: Step after which the clusters were learned.
            labels: Labels by layer, integers `(height, width, 1 or channels)`.
        """
        from tensorboardX.summary import image

        for name, layer_labels in labels.items():
            current = layer_labels[..., 0]
            if name in self._labels:  # clusters keep their shade from one update to the next
                current = match_labels(self._labels[name], current)
            self._labels[name] = current
            figure = cluster_history_figure({name: [(step, current[..., None])]})
            self._write(step, summary=image(f"clusters/{name}", figure_to_array(figure), dataformats="HWC"))
        self._writer.flush()

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


class ProgressBar:
    """Prints log entries: a line per evaluation and cluster update; a context manager.

    Training metrics are in a live line on a terminal, and otherwise in a line per minute.

    Args:
        num_steps: Total number of steps.
        flops: Floating-point operations per training image, if known; see `build.training_flops`.

    Example:
        >>> with ProgressBar(10) as progress:
        ...     progress({"event": "test", "step": 10, "loss": 0.5, "accuracy": 0.75, "count": 4.0})
        step 10/10  test loss 0.500  test accuracy 75.00%
    """

    def __init__(self, num_steps: int, flops: float | None = None) -> None:
        from rich import progress
        from rich.console import Console

        self.num_steps, self.flops = num_steps, flops
        self.console = Console(highlight=False, soft_wrap=True)
        self.bar = progress.Progress(
            progress.TextColumn("step {task.completed}/{task.total}"),
            progress.BarColumn(bar_width=None),
            progress.TextColumn("{task.fields[metrics]}"),
            progress.TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task("", total=num_steps, metrics="compiling")
        self._printed = time.monotonic()

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def __call__(self, entry: LogEntry) -> None:
        """Prints a log entry of `fit`."""
        if entry["event"] == "train":
            self.bar.update(self.task, completed=entry["step"], metrics=self._train_metrics(entry))
            if self.console.is_terminal or time.monotonic() < self._printed + _SECONDS_PER_LINE:
                return
            text = self._train_metrics(entry)
        elif entry["event"] == "clusters":
            layers = [
                f"{name} explained variance {layer['explained_variance']:.0%}, ARI {layer['adjusted_rand_index']:.2f}"
                for name, layer in entry["layers"].items()
            ]
            text = f"clusters: {'; '.join(layers)}"
        elif entry["event"] == "nonfinite":
            text = f"non-finite loss or gradients; {entry['nonfinite_steps']} non-finite steps so far"
        else:
            text = f"test loss {entry['loss']:.3f}  test accuracy {100 * entry['accuracy']:.2f}%"
            if "accuracy_top5" in entry:
                text += f"  top-5 {100 * entry['accuracy_top5']:.2f}%"
        self.console.print(f"step {entry['step']}/{self.num_steps}  {text}")
        self._printed = time.monotonic()

    def notify(self, message: str) -> None:
        """Prints a message above the live line."""
        self.console.print(message, markup=False)

    def _train_metrics(self, entry: LogEntry) -> str:
        speed, rate = entry["images_per_second"], entry["rate"]
        parts = [f"loss {entry['loss']:.3f}", f"accuracy {entry['accuracy']:.1%}"]
        if isinstance(rate, float):
            parts.append(f"rate {rate:.3f}")
        if speed:
            parts.append(f"{speed:,.0f} images/s")
            if self.flops:
                parts.append(f"{format_si(speed * self.flops)}FLOP/s")
        return "  ".join(parts)


@contextlib.contextmanager
def task_progress(total: int) -> Iterator[Callable[[str], None]]:
    """Shows a progress bar on stderr, on terminals only; yields a function to call when one of the tasks starts."""
    from rich import progress
    from rich.console import Console

    console = Console(stderr=True)
    columns = (progress.SpinnerColumn(), progress.BarColumn(), progress.TextColumn("{task.description}"))
    with progress.Progress(
        *columns, progress.TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task, completed = bar.add_task("", total=total), itertools.count()
        yield lambda description: bar.update(task, description=description, completed=next(completed))


def format_si(value: float) -> str:
    """Formats a number with an SI prefix.

    Example:
        >>> format_si(1.234e12), format_si(999_999), format_si(7.0)
        ('1.23 T', '1 M', '7 ')
    """
    prefixes = ["", "k", "M", "G", "T", "P", "E"]
    rounded = float(f"{value:.3g}")
    power = min(max(0, (len(str(int(rounded))) - 1) // 3), len(prefixes) - 1)
    return f"{rounded / 1000**power:.3g} {prefixes[power]}"


def format_summary(summary: Mapping[str, Any], folder: AnyPath) -> str:
    """Formats the summary of a run: accuracy, duration, clusters, and the files in its folder."""
    top5 = f", top-5 {100 * summary['test_accuracy_top5']:.2f}%" if "test_accuracy_top5" in summary else ""
    lines = [
        f"test accuracy {100 * summary['test_accuracy']:.2f}%{top5} after {summary['steps']} steps "
        f"in {summary['seconds']:.0f} s ({summary['parameters']:,} parameters)"
    ]
    for place, clusters in summary["clusters"].items():
        skipped = f" ({clusters['num_skipped']} skipped)" if clusters["num_skipped"] else ""
        lines.append(
            f"{place}: {clusters['num_updates']} cluster updates{skipped}; clusters explain "
            f"{clusters['explained_variance']:.0%} of the variance"
        )
    if summary["nonfinite_steps"]:
        lines.append(f"{summary['nonfinite_steps']} non-finite steps were skipped")
    if summary["skipped"]:
        lines.append(f"{len(summary['skipped'])} images were skipped, the first: {summary['skipped'][0]}")
    lines.append(f"results: {', '.join(map(str, visible_children(folder)))}")
    return "\n".join(lines)
