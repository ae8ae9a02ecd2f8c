"""The command `dropcluster`: reads arguments, calls the library, says what happened. No logic of its own."""

import dataclasses
import functools
import json
import logging
import os
import pathlib
import shlex
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, NoReturn

if TYPE_CHECKING:
    from dropcluster_jax.training.config import DataConfig, TrainConfig
    from dropcluster_jax.training.loop import Record
    from dropcluster_jax.training.run import Stopped

Action = Callable[[], None]  # what a command does, once all its arguments are known to be right

_HEARTBEAT = 20  # seconds after which a process that is silent is given up

# XLA's notes on the machine are for its developers.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

_DESCRIPTION = """DropCluster: structured dropout whose clusters are learned while the network trains.

Examples:
  dropcluster train digits
  dropcluster train digits --drop.method none --seed 1
  dropcluster train cifar10 --data.dir ~/tensorflow_datasets --model resnet20 --steps 100
  dropcluster train cifar10 --data.name folder:photos --data.size 64
  dropcluster train imagenet --fake-data --dry-run
  dropcluster evaluate runs/digits --corruptions
  dropcluster data check cifar10

The same command again goes on where a run was stopped, and does nothing where it is finished.
"""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exits with status 2 and a short message where the input is wrong."""
    try:
        import tyro

        from dropcluster_jax.training.config import PRESETS, DataConfig, TrainConfig
    except ImportError as error:
        _refuse(f'{error}; the command needs an extra: pip install "dropcluster-jax[train]"')

    arguments = sys.argv[1:] if arguments is None else arguments
    # What else is said of a misspelt option is said of the preset that was named, not of each.
    begin = [word.replace("-", "_") for word in arguments[:2]]
    named = [name for name in PRESETS if begin == ["train", name]]
    train_commands = tyro.extras.SubcommandApp()
    for name in named or PRESETS:
        description, preset = PRESETS[name]

        def train(
            config: Annotated[TrainConfig, tyro.conf.arg(name="")] = preset,
            restart: bool = False,
            dry_run: bool = False,
            distributed: bool = False,
            coordinator: str | None = None,
            process_id: int | None = None,
            num_processes: int | None = None,
        ) -> Action:
            """Train a network.

            Args:
                config: What is trained, on what, and how.
                restart: Remove the run that the folder holds, and start over.
                dry_run: Show shapes, parameters, operations and memory, and train nothing.
                distributed: One of several processes, found by itself on TPU pods, SLURM and Kubernetes.
                coordinator: HOST:PORT of the first process, where they are not found.
                process_id: The number of this process, from 0.
                num_processes: How many processes there are.
            """
            processes = None
            if distributed or coordinator is not None:
                processes = (coordinator, num_processes, process_id)
            elif process_id is not None or num_processes is not None:
                raise ValueError("process_id and num_processes need --coordinator HOST:PORT")
            return functools.partial(_train, config, restart, dry_run, processes, arguments)

        train_commands.command(name=name, help=description)(train)

    def check(
        name: tyro.conf.Positional[str],
        data: DataConfig = DataConfig(name=""),  # noqa: B008 - immutable
        batch_size: int = 128,
        seed: int = 0,
        out: pathlib.Path | None = None,
    ) -> Action:
        """Show what a data set holds, what it looks like, and how fast it gets to the device.

        Args:
            name: digits, a data set that TFDS has prepared, folder:PATH or npz:PATH.
            data: How it is opened.
            batch_size: Images in a batch.
            seed: Decides the order, and the images on the sheets.
            out: The folder for check.json and the pictures; else one under runs/.
        """
        return functools.partial(_check, name, data, batch_size, seed, out)

    def evaluate(
        run: tyro.conf.Positional[pathlib.Path],
        corruptions: bool = False,
        best: bool = False,
        data_dir: pathlib.Path | None = None,
        json: bool = False,
    ) -> Action:
        """Measure the network of a run on its test images.

        Args:
            run: The folder of the run, finished or not.
            corruptions: Also under 15 corruptions at 5 severities.
            best: Take the checkpoint with the best test accuracy, not the newest.
            data_dir: Where TFDS has prepared the data, if not where the run had it.
            json: Print what evaluation.json holds, and nothing else.
        """
        return functools.partial(_evaluate, run, corruptions, best, data_dir, json)

    data_commands = tyro.extras.SubcommandApp()
    data_commands.command(check)
    commands = tyro.extras.SubcommandApp()
    commands.command(train_commands, name="train", help="Train a network from a preset; every value is an option.")
    commands.command(evaluate)
    commands.command(data_commands, name="data", help="Look at a data set.")
    try:
        action: Action = commands.cli(prog="dropcluster", description=_DESCRIPTION, args=arguments)
    except ValueError as error:  # from a configuration that cannot be
        _refuse(str(error))
    try:
        action()
    except KeyboardInterrupt:
        sys.exit(130)


def _train(
    config: "TrainConfig",
    restart: bool,
    dry_run: bool,
    processes: tuple[str | None, int | None, int | None] | None,
    arguments: list[str],
) -> None:
    import jax

    from dropcluster_jax.data import BadImageError
    from dropcluster_jax.training import build, folder, progress, run
    from dropcluster_jax.training.checkpoints import NoSoundCheckpointError, OtherFormatError
    from dropcluster_jax.training.compilation import keep_compiled
    from dropcluster_jax.training.loop import NonFiniteError

    keep_compiled()
    for name in ("absl", "asyncio"):  # by these Orbax tells, with tracebacks, what `Checkpoints` says in a sentence
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
        prepared = run.prepare(config, restart)
        if dry_run:
            from dropcluster_jax.training import dry_run as dry

            print(dry.describe(prepared))
            return
        operations = build.model_operations(prepared.model, prepared.dataset.shape)
    except (ValueError, TypeError, OSError, ImportError) as error:
        _refuse(_reason(error))
    try:
        if first:
            with progress.Progress(prepared.num_steps, operations) as show:
                summary = run.execute(prepared, show, show.say, restart)
            print(progress.summary(summary, prepared.folder))
        else:
            run.execute(prepared, say=lambda message: None, restart=restart)
    except (BadImageError, NoSoundCheckpointError, OtherFormatError) as error:  # an image is met on the way
        _refuse(_reason(error))
    except NonFiniteError as error:
        _fail(
            f"{error}. With --max-bad-steps the same command goes on from the last good checkpoint, in "
            f"{prepared.folder}; with other changes give another --out, or --restart"
        )
    except OSError as error:
        _fail(f"{error}. The same command goes on from the last checkpoint")
    except run.Stopped as stopped:
        if first:
            print(_how_to_go_on(stopped, prepared.folder, arguments), file=sys.stderr)
        sys.exit(stopped.status)
    except Exception as error:
        if jax.process_count() == 1:
            raise
        if not isinstance(error, jax.errors.JaxRuntimeError):
            traceback.print_exc()
            _leave(1)
        print(f"dropcluster: another process is gone: {str(error).splitlines()[0]}", file=sys.stderr)
        print("start all again: they go on from the last checkpoint", file=sys.stderr)
        _leave(1)


def _join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Become one of several processes."""
    import jax

    try:
        jax.distributed.initialize(coordinator, num_processes, process_id, heartbeat_timeout_seconds=_HEARTBEAT)
    except (RuntimeError, ValueError) as error:
        _refuse(
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


def _evaluate(
    folder: pathlib.Path, corruptions: bool, best: bool, data_dir: pathlib.Path | None, as_json: bool
) -> None:
    from rich.console import Console

    from dropcluster_jax.data import CORRUPTIONS, BadImageError
    from dropcluster_jax.training.checkpoints import NoSoundCheckpointError
    from dropcluster_jax.training.compilation import keep_compiled
    from dropcluster_jax.training.folder import write_json
    from dropcluster_jax.training.saved import evaluate_run

    keep_compiled()
    with Console(stderr=True).status("opening the run") as status:

        def report(record: "Record") -> None:
            name = record["corruption"] or "test images"
            status.update(f"{name} {record['severity'] or ''}")
            if not as_json:
                label = f"{name} {record['severity']}" if record["corruption"] else name
                print(f"{label:22} accuracy {100 * record['accuracy']:6.2f} %  loss {record['loss']:.3f}")

        try:
            results = evaluate_run(
                folder,
                best=best,
                corruptions=CORRUPTIONS if corruptions else (),
                data_dir=data_dir,
                report=report,
                say=lambda message: print(message, file=sys.stderr),
            )
            write_json(folder / "evaluation.json", results)
        except (ValueError, TypeError, OSError, ImportError, BadImageError, NoSoundCheckpointError) as error:
            _refuse(_reason(error))
    if as_json:
        print(json.dumps(results, indent=2))
        return
    if corruptions:
        print(f"mean over the corrupted images: {100 * results['mean_corrupted_accuracy']:.2f} %")
    print(f"checkpoint of step {results['step']}; results: {folder / 'evaluation.json'}")


def _check(name: str, data: "DataConfig", batch_size: int, seed: int, out: pathlib.Path | None) -> None:
    from rich.console import Console

    from dropcluster_jax.training import check
    from dropcluster_jax.training.compilation import keep_compiled
    from dropcluster_jax.training.config import PRESETS, AugmentConfig, TrainConfig
    from dropcluster_jax.training.folder import slug

    if data.name:
        _refuse(f"data.name must not be given beside NAME, {name!r}, got {data.name!r}")
    keep_compiled()
    folder = out or pathlib.Path("runs", f"check-{slug(name)}")
    preset = PRESETS[name][1] if name in PRESETS else TrainConfig()
    augment = AugmentConfig(resized_crop=True, flip=True) if data.size and name not in PRESETS else preset.augment
    try:
        config = dataclasses.replace(
            preset, data=dataclasses.replace(data, name=name), augment=augment, batch_size=batch_size, seed=seed
        )
        with Console(stderr=True).status("") as status:
            found = check.check(config, folder, status.update)
    except (ValueError, TypeError, OSError, ImportError) as error:
        _refuse(_reason(error))
    print(check.describe(found, folder))


def _reason(error: Exception) -> str:
    from dropcluster_jax.data import BadImageError

    return f"{error}; --data.skip-bad leaves such images out" if isinstance(error, BadImageError) else str(error)


def _refuse(message: str) -> NoReturn:
    print(f"dropcluster: error: {message}", file=sys.stderr)
    _leave(2)


def _fail(message: str) -> NoReturn:
    """What went wrong on the way, not with the input."""
    print(f"dropcluster: {message}", file=sys.stderr)
    _leave(1)


def _leave(status: int) -> NoReturn:
    """End the process. One of several ends at once: an orderly end would wait for the others, which wait for it."""
    jax = sys.modules.get("jax")
    if jax is not None and jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    main()
