"""The command `dropcluster train`."""

import json
import shlex
import sys
from typing import TYPE_CHECKING

from dropcluster_jax.cli.errors import check_devices, describe, exit_failure, exit_usage

if TYPE_CHECKING:
    from dropcluster_jax.runs import TrainConfig
    from dropcluster_jax.runs.paths import AnyPath
    from dropcluster_jax.runs.trainer import Stopped


def train(
    config: "TrainConfig",
    restart: bool,
    dry_run: bool,
    as_json: bool,
    processes: tuple[str | None, int | None, int | None] | None,
    arguments: list[str],
) -> None:
    """Trains; `processes` are the arguments of `distributed.initialize`, `arguments` those of the command line."""
    import jax

    from dropcluster_jax.data import CorruptImageError
    from dropcluster_jax.runs import (
        CheckpointMismatchError,
        CheckpointVersionError,
        CorruptCheckpointError,
        logging,
        run_folder,
        trainer,
    )
    from dropcluster_jax.runs.build import training_flops
    from dropcluster_jax.training import NonFiniteError

    try:
        if processes is not None:
            _join(*processes)
        check_devices()
        if dry_run:
            return analyze(config, None, as_json)
        first = jax.process_index() == 0
        if config.out and not restart and (summary := run_folder.finished_run(config.out, config)):
            if first:
                print(f"{config.out} already contains this run, finished; pass a different --out to train again")
                print(logging.format_summary(summary, config.out))
            return
        run = trainer.prepare(config, restart, _print_note if first else lambda message: None)
        flops = training_flops(run.model, run.dataset.spec.image_shape)
    except (ValueError, TypeError, OSError, ImportError) as error:
        exit_usage(describe(error, can_skip=True))
    try:
        if first:
            with logging.ProgressBar(run.num_steps, flops) as progress:
                summary = trainer.execute(run, progress, progress.notify, restart)
            print(logging.format_summary(summary, run.folder))
        else:
            trainer.execute(run, notify=lambda message: None, restart=restart)
    except (CorruptImageError, CorruptCheckpointError, CheckpointVersionError, CheckpointMismatchError) as error:
        exit_usage(describe(error, can_skip=True))
    except (run_folder.RunFolderError, FileExistsError) as error:
        exit_usage(describe(error))
    except NonFiniteError as error:
        exit_failure(
            f"{error}. To resume from the last good checkpoint in {run.folder}, repeat the command with "
            "--max-nonfinite-steps; to change other options, pass a different --out, or --restart"
        )
    except OSError as error:
        exit_failure(f"{describe(error)}. {_how_to_repeat(run.folder)}")
    except trainer.Stopped as stopped:
        if first:
            print(_how_to_resume(stopped, str(run.folder), arguments), file=sys.stderr)
        sys.exit(stopped.status)
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in str(error):
            raise
        exit_failure(
            f"another process died: {str(error).splitlines()[0]}. Restart all processes to resume from the last "
            "checkpoint"
        )


def analyze(config: "TrainConfig", topology: str | None, as_json: bool) -> None:
    """Prints the compilers' report on the programs of a run, for the present devices or for a topology."""
    import jax

    from dropcluster_jax.runs import dry_run
    from dropcluster_jax.runs.aot import DoesNotFitError
    from dropcluster_jax.runs.logging import task_progress

    if topology is not None and not jax.config.values["jax_platforms"]:
        jax.config.update("jax_platforms", "cpu")  # nothing runs on other devices, which may be in use
    check_devices()
    try:
        with task_progress(3) as start:
            report = dry_run.analyze(config, topology, start)
    except (ValueError, TypeError, OSError, ImportError) as error:
        exit_usage(describe(error, can_skip=True))
    except DoesNotFitError as error:
        exit_failure(str(error))
    print(json.dumps(report, indent=2) if as_json else dry_run.describe(report))


def _how_to_repeat(folder: "AnyPath") -> str:
    from dropcluster_jax.runs import Checkpointer, run_folder

    if Checkpointer(folder / run_folder.CHECKPOINTS).steps():
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
