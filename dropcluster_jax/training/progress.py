"""What a run shows while it goes on: a live line on a terminal, a plain line for each evaluation elsewhere."""

import contextlib
import itertools
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dropcluster_jax.training.layers import place_of
from dropcluster_jax.training.loop import Record


class Progress:
    """Shows the records of `fit`; a context manager.

    Args:
        num_steps: the number of the last step.
        operations: of the model for one training image, as `build.model_operations` counts them.

    Example:
        >>> with Progress(10) as show:
        ...     show({"event": "test", "step": 10, "loss": 0.5, "accuracy": 0.75, "count": 4.0})
        step 10/10  test loss 0.500  test accuracy 75.00 %
    """

    def __init__(self, num_steps: int, operations: float | None = None) -> None:
        from rich import progress
        from rich.console import Console

        self.num_steps, self.operations = num_steps, operations
        self.console = Console(highlight=False, soft_wrap=True)
        self.line = progress.Progress(
            progress.TextColumn("step {task.completed}/{task.total}"),
            progress.BarColumn(bar_width=None),
            progress.TextColumn("{task.fields[metrics]}"),
            progress.TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.line.add_task("", total=num_steps, metrics="compiling")

    def __enter__(self) -> "Progress":
        self.line.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.line.stop()

    def __call__(self, record: Record) -> None:
        """Show one record."""
        if record["event"] == "train":
            speed = record["images_per_second"]
            rate = record["rate"]
            parts = [
                f"loss {record['loss']:.3f}",
                f"accuracy {record['accuracy']:.1%}",
                f"rate {rate:.3f}" if isinstance(rate, float) else "",
                f"{speed:,.0f} images/s" if speed else "",
                f"{si(speed * self.operations)}FLOP/s" if speed and self.operations else "",
            ]
            self.line.update(self.task, completed=record["step"], metrics="  ".join(filter(None, parts)))
        elif record["event"] == "clusters":
            layers = [
                f"{place_of(name)} explain {layer['explained']:.0%}, agree {layer['agreement']:.2f}"
                for name, layer in record["layers"].items()
            ]
            self.console.print(f"step {record['step']}/{self.num_steps}  clusters: {'; '.join(layers)}")
        elif record["event"] == "bad":
            self.console.print(
                f"step {record['step']}/{self.num_steps}  loss or gradients not finite; bad steps so far: "
                f"{record['bad_steps']}"
            )
        elif record["event"] == "test":
            top5 = f"  top-5 {100 * record['accuracy_top5']:.2f} %" if "accuracy_top5" in record else ""
            self.console.print(
                f"step {record['step']}/{self.num_steps}  test loss {record['loss']:.3f}  "
                f"test accuracy {100 * record['accuracy']:.2f} %{top5}"
            )

    def say(self, message: str) -> None:
        """Print a message, above the live line."""
        self.console.print(message, markup=False)


@contextlib.contextmanager
def parts(total: int) -> Iterator[Callable[[str], None]]:
    """A bar for work of so many parts, on stderr and only on a terminal.

    Args:
        total: the number of parts.

    Returns:
        A context manager; what it gives is called with what begins, when a part begins.

    Example:
        >>> with parts(2) as begin:
        ...     begin("opening")
        ...     begin("drawing")
    """
    from rich import progress
    from rich.console import Console

    console = Console(stderr=True)
    columns = (progress.SpinnerColumn(), progress.BarColumn(), progress.TextColumn("{task.description}"))
    shown = console.is_terminal
    with progress.Progress(
        *columns, progress.TimeElapsedColumn(), console=console, transient=True, disable=not shown
    ) as bar:
        task, done = bar.add_task("", total=total), itertools.count()
        yield lambda what: bar.update(task, description=what, completed=next(done))


def si(value: float) -> str:
    """A number with a prefix of the SI.

    Example:
        >>> si(1.234e12), si(56e9), si(7.0)
        ('1.23 T', '56 G', '7 ')
    """
    prefixes = ["", "k", "M", "G", "T", "P", "E"]
    power = min(max(0, (len(str(int(value))) - 1) // 3), len(prefixes) - 1)
    return f"{value / 1000**power:.3g} {prefixes[power]}"


def summary(results: Mapping[str, Any], folder: pathlib.Path) -> str:
    """The last lines of a run: how well, how long, what became of the clusters, and where all that lies."""
    top5 = f", top-5 {100 * results['test_accuracy_top5']:.2f} %" if "test_accuracy_top5" in results else ""
    lines = [
        f"test accuracy {100 * results['test_accuracy']:.2f} %{top5} after {results['steps']} steps "
        f"in {results['seconds']:.0f} s ({results['parameters']:,} parameters)"
    ]
    for layer, clusters in results["clusters"].items():
        refused = f", {clusters['skipped']} refused" if clusters["skipped"] else ""
        lines.append(
            f"{layer}: clusters updated {clusters['updates']} times{refused}; they explain "
            f"{clusters['explained']:.0%} of the variance"
        )
    if results["bad_steps"]:
        lines.append(f"{results['bad_steps']} steps were not finite, and skipped")
    if results["skipped"]:
        lines.append(f"{len(results['skipped'])} images were skipped, the first: {results['skipped'][0]}")
    lines.append(f"results: {', '.join(str(path) for path in sorted(folder.glob('*')))}")
    return "\n".join(lines)
