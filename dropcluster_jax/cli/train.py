"""`dropcluster train`."""

import logging
import pathlib
import shlex
import sys
import traceback
from typing import TYPE_CHECKING

from dropcluster_jax.cli.errors import fail, leave, reason, refuse

if TYPE_CHECKING:
    from dropcluster_jax.runs.config import TrainConfig
    from dropcluster_jax.runs.trainer import Stopped

_HEARTBEAT = 20  # seconds after which a process that is silent is given up


def train(
    config: "TrainConfig",
    restart: bool,
    dry_run: bool,
    processes: tuple[str | None, int | None, int | None] | None,
    arguments: list[str],
) -> None:
    import jax

    from dropcluster_jax.cache import enable_compilation_cache
    from dropcluster_jax.data import CorruptImageError
    from dropcluster_jax.runs.checkpoints import CheckpointVersionError, CorruptCheckpointError
    from dropcluster_jax.training import build, folder, progress, run
    from dropcluster_jax.training.loop import NonFiniteError

    enable_compilation_cache()
    for name in ("absl", "asyncio"):  # by these Orbax tells, with tracebacks, what `Checkpointer` says in a sentence
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        if processes is not None:
            _join(*processes)
        first = jax.process_index() == 0
        if config.out and not restart and not dry_run and (finished := folder.finished_run(config.out, config)):
            if first:
                print(f"{config.out} holds this run already, finished; give another --out to train again")
                print(progress.summary(finished, config.out))
            return
        prepared = run.prepare(config, restart, _note if first else lambda message: None)
        if dry_run:
            from dropcluster_jax.training import dry_run as dry

            print(dry.describe(prepared))
            return
        operations = build.model_operations(prepared.model, prepared.dataset.shape)
    except (ValueError, TypeError, OSError, ImportError) as error:
        refuse(reason(error))
    try:
        if first:
            with progress.Progress(prepared.num_steps, operations) as show:
                summary = run.execute(prepared, show, show.say, restart)
            print(progress.summary(summary, prepared.folder))
        else:
            run.execute(prepared, say=lambda message: None, restart=restart)
    except (CorruptImageError, CorruptCheckpointError, CheckpointVersionError) as error:  # an image is met on the way
        refuse(reason(error))
    except NonFiniteError as error:
        fail(
            f"{error}. With --max-nonfinite-steps the same command goes on from the last good checkpoint, in "
            f"{prepared.folder}; with other changes give another --out, or --restart"
        )
    except OSError as error:
        fail(f"{error}. The same command goes on from the last checkpoint")
    except run.Stopped as stopped:
        if first:
            print(_how_to_go_on(stopped, prepared.folder, arguments), file=sys.stderr)
        sys.exit(stopped.status)
    except Exception as error:
        if jax.process_count() == 1:
            raise
        if not isinstance(error, jax.errors.JaxRuntimeError):
            traceback.print_exc()
            leave(1)
        print(f"dropcluster: another process is gone: {str(error).splitlines()[0]}", file=sys.stderr)
        print("start all again: they go on from the last checkpoint", file=sys.stderr)
        leave(1)


def _note(message: str) -> None:
    print(f"dropcluster: note: {message}", file=sys.stderr)


def _join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Become one of several processes."""
    import jax

    try:
        jax.distributed.initialize(coordinator, num_processes, process_id, heartbeat_timeout_seconds=_HEARTBEAT)
    except (RuntimeError, ValueError) as error:
        refuse(
            f"the other processes are not found: {str(error).splitlines()[0]}; "
            "give --coordinator HOST:PORT --num-processes N --process-id I"
        )


def _how_to_go_on(stopped: "Stopped", folder: pathlib.Path, arguments: list[str]) -> str:
    again = [word for word in arguments if word != "--restart"]
    if not any(word.split("=")[0] == "--out" for word in again):
        again += ["--out", str(folder)]
    begin = "from the start" if stopped.checkpoint is None else f"from step {stopped.checkpoint}"
    return (
        f"stopped by {stopped.name} after step {stopped.step}; this goes on {begin}:\n"
        f"  {shlex.join(['dropcluster', *again])}"
    )
