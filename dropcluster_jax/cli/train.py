"""The command `dropcluster train`."""

import dataclasses
import json
import re
import shlex
import sys
from typing import Annotated

import jax
import tyro

from dropcluster_jax import runs
from dropcluster_jax.cli.errors import check_devices, describe, exit_failure, exit_usage, invalid_input
from dropcluster_jax.runs import build, console, distributed, dry_run, trainer
from dropcluster_jax.runs.aot import DoesNotFitError
from dropcluster_jax.runs.checkpoints import CheckpointMismatchError
from dropcluster_jax.runs.folder import CHECKPOINTS, DamagedFileError, RunFolderError, new_folder
from dropcluster_jax.training import NonFiniteError


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a network."""

    config: Annotated[runs.TrainConfig, tyro.conf.arg(name="")]
    """The run."""
    restart: bool = False
    """Remove an existing run in the output folder and start over. Resuming needs no option."""
    dry_run: bool = False
    """Print the layers, and the memory and FLOPs of the compiled programs, without training."""
    topology: str | None = None
    """Dry run for a TPU that this machine does not have, e.g. v5e:4x4."""
    json: bool = False
    """With --dry-run or --topology, print JSON only."""
    distributed: bool = False
    """Join the other processes of the TPU pod, SLURM or Kubernetes job (detected automatically)."""
    coordinator: str | None = None
    """HOST:PORT of the first process, if processes cannot be detected."""
    process_id: int | None = None
    """Index of this process, from 0."""
    num_processes: int | None = None
    """Number of processes."""
    arguments: tyro.conf.Suppress[tyro.conf.Fixed[tuple[str, ...]]] = ()
    """The command line, which the message of a stopped run repeats."""

    def __post_init__(self) -> None:
        if self.json and not self.dry_run and self.topology is None:
            raise ValueError("--json requires --dry-run or --topology")
        if self.coordinator is not None and not re.fullmatch(r".+:\d+", self.coordinator):
            raise ValueError(f"--coordinator must be HOST:PORT, got {self.coordinator!r}")
        if self.process_id is not None and not 0 <= self.process_id < (self.num_processes or float("inf")):
            raise ValueError(f"--process-id must be at least 0 and below --num-processes, got {self.process_id}")
        if not self.distributed and self.coordinator is None and (self.process_id, self.num_processes) != (None, None):
            raise ValueError("--process-id and --num-processes require --coordinator HOST:PORT")

    def __call__(self) -> None:
        """Trains, or prints the result of the dry run."""
        if self.topology is not None:
            if not jax.config.values["jax_platforms"]:
                jax.config.update("jax_platforms", "cpu")  # nothing runs on other devices, which may be in use
        elif self.distributed or self.coordinator is not None:
            self._join()
        check_devices()
        if self.dry_run or self.topology is not None:
            self._analyze()
        else:
            self._train(first=jax.process_index() == 0)

    def _join(self) -> None:
        try:
            distributed.initialize(self.coordinator, self.num_processes, self.process_id)
        except (RuntimeError, ValueError) as error:
            exit_usage(
                f"could not find the other processes: {str(error).splitlines()[0]}; "
                "pass --coordinator HOST:PORT --num-processes N --process-id I"
            )

    def _analyze(self) -> None:
        try:
            with invalid_input(), console.task_progress(3) as start:
                report = dry_run.analyze(self.config, self.topology, start)
        except DoesNotFitError as error:
            exit_failure(str(error))
        print(json.dumps(report, indent=2) if self.json else dry_run.describe(report))

    def _train(self, first: bool) -> None:
        with invalid_input():
            run = trainer.prepare(self.config, _print_note if first else _ignore)
            flops = build.training_flops(run.model, run.dataset.spec.image_shape)
            folder = self.config.out or new_folder(self.config)
        try:
            with invalid_input(DamagedFileError, CheckpointMismatchError, RunFolderError, FileExistsError):
                if first:
                    with console.ProgressBar(run.num_steps, flops) as progress:
                        summary = trainer.execute(
                            run, folder, restart=self.restart, log=progress, notify=progress.notify
                        )
                    print(console.format_summary(summary, folder))
                else:
                    trainer.execute(run, folder, restart=self.restart, notify=_ignore)
        except OSError as error:
            advice = "to start again: there is no checkpoint yet"
            if runs.Checkpointer(folder / CHECKPOINTS).steps():
                advice = "to resume from the last checkpoint"
            exit_failure(f"{describe(error)}. Repeat the command {advice}")
        except NonFiniteError as error:
            exit_failure(
                f"{error}. To resume from the last good checkpoint in {folder}, repeat the command with "
                "--max-nonfinite-steps; to change other options, pass a different --out, or --restart"
            )
        except trainer.Stopped as stopped:
            if first:
                print(self._how_to_resume(stopped, str(folder)), file=sys.stderr)
            sys.exit(stopped.status)
        except jax.errors.JaxRuntimeError as error:
            if jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in str(error):
                raise
            reason = str(error).splitlines()[0]
            exit_failure(f"another process died: {reason}. Restart all processes to resume from the last checkpoint")

    def _how_to_resume(self, stopped: trainer.Stopped, folder: str) -> str:
        words = [word for word in self.arguments if word != "--restart"]
        if not any(word.split("=")[0] == "--out" for word in words):
            words += ["--out", folder]
        start = "the start" if stopped.checkpoint is None else f"step {stopped.checkpoint}"
        command = shlex.join(["dropcluster", *words])
        return f"stopped by {stopped.name} after step {stopped.step}; to resume from {start}:\n  {command}"


def _print_note(message: str) -> None:
    print(f"dropcluster: note: {message}", file=sys.stderr)


def _ignore(message: str) -> None:
    pass
