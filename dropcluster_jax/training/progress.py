"""What a run shows while it goes on: a live line on a terminal, a plain line for each evaluation elsewhere."""

import pathlib
from collections.abc import Mapping
from typing import Any

from dropcluster_jax.training.loop import Record


class Progress:
    """Shows the records of `fit`; a context manager.

    Args:
        num_steps: the number of the last step.

    Example:
        >>> with Progress(10) as show:
        ...     show({"event": "test", "step": 10, "loss": 0.5, "accuracy": 0.75, "count": 4.0})
        step 10/10  test loss 0.500  test accuracy 75.00 %
    """

    def __init__(self, num_steps: int) -> None:
        from rich import progress
        from rich.console import Console

        self.num_steps = num_steps
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
            ]
            self.line.update(self.task, completed=record["step"], metrics="  ".join(filter(None, parts)))
        elif record["event"] == "clusters":
            layers = [
                f"{name.removeprefix('drop_')} explain {layer['explained']:.0%}, agree {layer['agreement']:.2f}"
                for name, layer in record["layers"].items()
            ]
            self.console.print(f"step {record['step']}/{self.num_steps}  clusters: {'; '.join(layers)}")
        elif record["event"] == "test":
            self.console.print(
                f"step {record['step']}/{self.num_steps}  test loss {record['loss']:.3f}  "
                f"test accuracy {100 * record['accuracy']:.2f} %"
            )


def summary(results: Mapping[str, Any], folder: pathlib.Path) -> str:
    """The last lines of a run: how well, how long, what became of the clusters, and where all that lies."""
    lines = [
        f"test accuracy {100 * results['test_accuracy']:.2f} % after {results['steps']} steps "
        f"in {results['seconds']:.0f} s ({results['parameters']:,} parameters)"
    ]
    for layer, clusters in results["clusters"].items():
        refused = f", {clusters['skipped']} refused" if clusters["skipped"] else ""
        lines.append(
            f"{layer}: clusters updated {clusters['updates']} times{refused}; they explain "
            f"{clusters['explained']:.0%} of the variance"
        )
    if results["skipped"]:
        lines.append(f"{len(results['skipped'])} images were skipped, the first: {results['skipped'][0]}")
    lines.append(f"results: {', '.join(str(path) for path in sorted(folder.glob('*')))}")
    return "\n".join(lines)
