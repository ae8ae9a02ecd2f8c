"""Output of a run on the terminal."""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

from etils import epath

from dropcluster_jax.runs.folder import visible_files
from dropcluster_jax.training.loop import LogEntry

_SECONDS_PER_LINE = 60  # of training metrics, if the output is not a terminal


class ProgressBar:
    """Prints log entries: a line per evaluation and cluster update; a context manager.

    Training metrics are in a live line on a terminal, and otherwise in a line per minute.

    Args:
        num_steps: Total number of steps.
        flops: Floating-point operations per training image, if known; see `build.training_flops`.

    Example:
        >>> with ProgressBar(10) as progress:
        ...     progress({"event": "eval", "step": 10, "loss": 0.5, "accuracy": 0.75, "count": 4.0})
        step 10/10  eval loss 0.500  eval accuracy 75.00%
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
            text = f"eval loss {entry['loss']:.3f}  eval accuracy {100 * entry['accuracy']:.2f}%"
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


def format_summary(summary: Mapping[str, Any], folder: epath.Path) -> str:
    """Formats the summary of a run: accuracy, duration, clusters, and the files in its folder."""
    top5 = f", top-5 {100 * summary['eval_accuracy_top5']:.2f}%" if "eval_accuracy_top5" in summary else ""
    lines = [
        f"eval accuracy {100 * summary['eval_accuracy']:.2f}%{top5} after {summary['steps']} steps "
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
    lines.append(f"results: {', '.join(map(str, visible_files(folder)))}")
    return "\n".join(lines)
