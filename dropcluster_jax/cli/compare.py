"""The command `dropcluster compare`."""

import dataclasses
import shlex
import sys
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import tyro
from rich.progress import Progress, TextColumn, TimeRemainingColumn

from dropcluster_jax import runs
from dropcluster_jax.cli.errors import check_devices, exit_failure, exit_usage, invalid_input
from dropcluster_jax.runs import trainer
from dropcluster_jax.runs.folder import differences
from dropcluster_jax.training.loop import LogEntry

# Options that a comparison sets for each run, and those of the comparison instead.
_CHOSEN = {
    "drop.method": "methods",
    "drop.rate": "rates",
    "drop.fill": "fills",
    "drop.block_size": "sides",
    "drop.cluster_size": "sides",
    "seed": "seeds",
    "data.seed": "seeds",
    "data.validation_seed": "seeds",
}


@dataclasses.dataclass(frozen=True)
class Compare:
    """Compare drop layers on a dataset."""

    config: Annotated[runs.TrainConfig, tyro.conf.arg(name="")]
    """The run."""
    comparison: Annotated[runs.CompareConfig, tyro.conf.arg(name="")] = runs.CompareConfig()  # noqa: RUF009 - immutable
    """The candidates and the budget."""
    arguments: tyro.conf.Suppress[tyro.conf.Fixed[tuple[str, ...]]] = ()
    """The command line, which names the preset."""

    def __call__(self) -> None:
        """Compares, and prints the verdict and the command that trains the recommended network."""
        check_devices()
        preset = self.arguments[1]
        changed = differences(runs.PRESETS[preset.replace("-", "_")][1].to_json(), self.config.to_json())
        for name, _, value in changed:
            if name in _CHOSEN:
                exit_usage(f"--{name.replace('_', '-')} is set for each run, got {value}; use --{_CHOSEN[name]}")
        words = ["dropcluster", "train", preset, *_options(changed)]
        columns = (TextColumn("{task.description}, step {task.completed}/{task.total}"), TimeRemainingColumn())
        with Progress(*columns, transient=True, disable=not sys.stdout.isatty()) as bar:
            task = bar.add_task("")

            def log(job: str, entry: LogEntry) -> None:
                bar.update(task, description=job, completed=entry["step"])

            def notify(message: str) -> None:
                bar.console.print(message, markup=False, highlight=False, soft_wrap=True)

            try:
                with invalid_input():
                    result = runs.compare(
                        self.config, self.comparison, command=shlex.join(words), log=log, notify=notify
                    )
            except runs.BudgetError as error:
                exit_failure(f"{error}. Repeat the command to continue")
            except trainer.Stopped as stopped:
                print(f"stopped by {stopped.name}; to resume, repeat the command", file=sys.stderr)
                sys.exit(stopped.status)
        print(f"\n{result['verdict']}")
        if result["test_accuracy"] is not None:
            print(f"Trained on all training images: {result['test_accuracy']:.2%} on the test images.")
        print(f"\n  {result['command']}\n\nresults: {self.config.out}/report.md")


def _options(changed: Iterable[tuple[str, Any, Any]]) -> Iterator[str]:
    """Yields the words that set options to the second of their values."""
    for name, _, value in changed:
        section, _, field = name.replace("_", "-").rpartition(".")
        prefix = f"--{section}." if section else "--"
        if value is None:
            continue
        if isinstance(value, bool):
            yield f"{prefix}{'' if value else 'no-'}{field}"
        else:
            words = value if isinstance(value, list) else [value]
            yield from (f"{prefix}{field}", *(f"{word:g}" if isinstance(word, float) else str(word) for word in words))
