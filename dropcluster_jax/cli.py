"""The command `dropcluster`: reads arguments, calls the library, says what happened. No logic of its own."""

import dataclasses
import functools
import os
import pathlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, NoReturn

if TYPE_CHECKING:
    from dropcluster_jax.training.config import DataConfig, TrainConfig

Action = Callable[[], None]  # what a command does, once all its arguments are known to be right

# XLA's notes on the machine are for its developers.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

_DESCRIPTION = """DropCluster: structured dropout whose clusters are learned while the network trains.

Examples:
  dropcluster train digits
  dropcluster train digits --drop.method none --seed 1
  dropcluster train cifar10 --data.dir ~/tensorflow_datasets --model resnet20 --steps 100
  dropcluster train cifar10 --data.name folder:photos --data.size 64
  dropcluster data check cifar10
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

        def train(config: Annotated[TrainConfig, tyro.conf.arg(name="")] = preset) -> Action:
            return functools.partial(_train, config)

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

    data_commands = tyro.extras.SubcommandApp()
    data_commands.command(check)
    commands = tyro.extras.SubcommandApp()
    commands.command(train_commands, name="train", help="Train a network from a preset; every value is an option.")
    commands.command(data_commands, name="data", help="Look at a data set.")
    try:
        action: Action = commands.cli(prog="dropcluster", description=_DESCRIPTION, args=arguments)
    except ValueError as error:  # from a configuration that cannot be
        _refuse(str(error))
    try:
        action()
    except KeyboardInterrupt:
        sys.exit(130)


def _train(config: "TrainConfig") -> None:
    from dropcluster_jax.data import BadImageError
    from dropcluster_jax.training import progress, run

    try:
        if config.out and (finished := run.finished_run(config.out, config)):
            print(f"{config.out} holds this run already, finished; give another --out to train again")
            print(progress.summary(finished, config.out))
            return
        prepared = run.prepare(config)
    except (ValueError, TypeError, OSError, ImportError) as error:
        _refuse(_reason(error))
    try:
        with progress.Progress(prepared.num_steps) as show:
            summary = run.execute(prepared, show)
    except BadImageError as error:  # met on the way, in a stream
        _refuse(_reason(error))
    print(progress.summary(summary, prepared.folder))


def _check(name: str, data: "DataConfig", batch_size: int, seed: int, out: pathlib.Path | None) -> None:
    from rich.console import Console

    from dropcluster_jax.training import check, run
    from dropcluster_jax.training.config import PRESETS, AugmentConfig, TrainConfig

    if data.name:
        _refuse(f"data.name must not be given beside NAME, {name!r}, got {data.name!r}")
    folder = out or pathlib.Path("runs", f"check-{run.slug(name)}")
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
    sys.exit(2)
