"""The command `dropcluster`: reads arguments, calls the library, says what happened. No logic of its own."""

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

if TYPE_CHECKING:
    from dropcluster_jax.training.config import TrainConfig

# XLA's notes on the machine are for its developers.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

_DESCRIPTION = """DropCluster: structured dropout whose clusters are learned while the network trains.

Examples:
  dropcluster train digits
  dropcluster train digits --drop.method none --seed 1
  dropcluster train cifar10 --data.dir ~/tensorflow_datasets --model resnet20 --steps 100
"""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exits with status 2 and a short message where the input is wrong."""
    try:
        import tyro

        from dropcluster_jax.training.config import PRESETS
    except ImportError as error:
        _refuse(f'{error}; the command needs an extra: pip install "dropcluster-jax[train]"')

    preset: Any = tyro.extras.subcommand_type_from_defaults(
        {name: config for name, (_, config) in PRESETS.items()},
        {name: description for name, (description, _) in PRESETS.items()},
        prefix_names=False,
    )

    def train(config: Annotated[preset, tyro.conf.arg(name="")]) -> None:  # pyright: ignore[reportInvalidTypeForm]
        """Train a network from a preset; every value of the preset is an option."""
        _train(config)

    try:
        tyro.extras.subcommand_cli_from_dict(
            {"train": train}, prog="dropcluster", description=_DESCRIPTION, args=arguments
        )
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
        _refuse(str(error))
    try:
        with progress.Progress(prepared.num_steps) as show:
            summary = run.execute(prepared, show)
    except BadImageError as error:  # met on the way, in a stream
        _refuse(f"{error}; --data.skip-bad leaves such images out")
    print(progress.summary(summary, prepared.folder))


def _refuse(message: str) -> NoReturn:
    print(f"dropcluster: error: {message}", file=sys.stderr)
    sys.exit(2)
