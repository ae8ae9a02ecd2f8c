"""The command `dropcluster train`."""

import json
import shlex
import sys
from typing import TYPE_CHECKING

from dropcluster_jax.cli.errors import check_devices, describe, exit_failure, exit_usage

if TYPE_CHECKING:
    from etils import epath

    from dropcluster_jax.runs import TrainConfig
    from dropcluster_jax.runs.trainer import Stopped


def train(
    config: "TrainConfig",
    restart: bool,
    dry_run: bool,
    processes: tuple[str | None, int | None, int | None] | None,
    arguments: list[str],
) -> None:
    """Trains; `processes` are the arguments of `distributed.initialize`, `arguments` those of the command line."""
    import jax

    from dropcluster_jax.runs import CorruptCheckpointError, console, trainer
    from dropcluster_jax.runs.build import training_flops
    from dropcluster_jax.runs.folder import RunFolderError, new_folder
    from dropcluster_jax.training import NonFiniteError

    try:
        if processes is not None:
            _join(*processes)
        check_devices()
        first = jax.process_index() == 0
        run = trainer.prepare(config, _print_note if first else lambda message: None)
        if dry_run:
            from dropcluster_jax.runs.dry_run import describe as describe_run

            print(describe_run(run))
            return
        flops = training_flops(run.model, run.dataset.spec.image_shape)
        folder = config.out or new_folder(config)
    except (ValueError, TypeError, OSError, ImportError) as error:
        exit_usage(describe(error, can_skip=True))
    try:
        if first:
            with console.ProgressBar(run.num_steps, flops) as progress:
                summary = trainer.execute(run, folder, restart=restart, log=progress, notify=progress.notify)
            print(console.format_summary(summary, folder))
        else:
            trainer.execute(run, folder, restart=restart, notify=lambda message: None)
    except (ValueError, CorruptCheckpointError, RunFolderError, FileExistsError) as error:
        exit_usage(describe(error, can_skip=True))
    except NonFiniteError as error:
        exit_failure(
            f"{error}. To resume from the last good checkpoint in {folder}, repeat the command with "
            "--max-nonfinite-steps; to change other options, pass a different --out, or --restart"
        )
    except OSError as error:
        exit_failure(f"{describe(error)}. {_how_to_repeat(folder)}")
    except trainer.Stopped as stopped:
        if first:
            print(_how_to_resume(stopped, str(folder), arguments), file=sys.stderr)
        sys.exit(stopped.status)
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in str(error):
            raise
        exit_failure(
            f"another process died: {str(error).splitlines()[0]}. Restart all processes to resume from the last "
            "checkpoint"
        )


def analyze(config: "TrainConfig", topology: str, as_json: bool) -> None:
    """Prints what the compiler for a topology reports about the programs of a run."""
    import jax

    from dropcluster_jax.runs import dry_run
    from dropcluster_jax.runs.aot import DoesNotFitError
    from dropcluster_jax.runs.console import task_progress

    if not jax.config.values["jax_platforms"]:
        jax.config.update("jax_platforms", "cpu")  # nothing runs on other devices, which may be in use
    check_devices()
    try:
        with task_progress(3) as start:
            analysis = dry_run.analyze(config, topology, start)
    except (ValueError, TypeError, OSError, ImportError) as error:
        exit_usage(describe(error))
    except DoesNotFitError as error:
        exit_failure(str(error))
    print(json.dumps(analysis.to_json(), indent=2) if as_json else dry_run.describe_analysis(analysis))


def _how_to_repeat(folder: "epath.Path") -> str:
    from dropcluster_jax.runs import Checkpointer
    from dropcluster_jax.runs.folder import CHECKPOINTS

    if Checkpointer(folder / CHECKPOINTS).steps():
        return "Repeat the command to resume from the last checkpoint"
    return "There is no checkpoint yet: repeat the command to start again"


def _print_note(message: str) -> None:
    print(f"dropcluster: note: {message}", file=sys.stderr)


def _join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    from dropcluster_jax.runs import distributed

    try:
        distributed.initialize(coordinator, num_processes, process_id)
    except (RuntimeError, ValueError) as error:
        exit_usage(
            f"could not find the other processes: {str(error).splitlines()[0]}; "
            "pass --coordinator HOST:PORT --num-processes N --process-id I"
        )


def _how_to_resume(stopped: "Stopped", folder: str, arguments: list[str]) -> str:
    words = [word for word in arguments if word != "--restart"]
    if not any(word.split("=")[0] == "--out" for word in words):
        words += ["--out", folder]
    start = "the start" if stopped.checkpoint is None else f"step {stopped.checkpoint}"
    return (
        f"stopped by {stopped.name} after step {stopped.step}; to resume from {start}:\n"
        f"  {shlex.join(['dropcluster', *words])}"
    )
