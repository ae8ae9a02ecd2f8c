"""The command `dropcluster`: reads arguments, calls the library, says what happened. No logic of its own."""

import os
import sys
from typing import Annotated

# XLA's notes on the machine are for its developers.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

_EXAMPLES = """DropCluster: structured dropout whose clusters are learned while the network trains.

Examples:
  dropcluster train digits
  dropcluster train digits --drop.method none --seed 1
  dropcluster train cifar10 --data.dir ~/tensorflow_datasets --model resnet20 --steps 100
"""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exits with status 2 and a short message where the input is wrong."""
    try:
        import rich  # noqa: F401
        import tyro

        from dropcluster_jax.training.config import PRESETS, TrainConfig
    except ImportError as error:
        _refuse(f'{error}; the command needs an extra: pip install "dropcluster-jax[train]"')

    preset = tyro.extras.subcommand_type_from_defaults(
        {name: config for name, (_, config) in PRESETS.items()},
        {name: description for name, (description, _) in PRESETS.items()},
        prefix_names=False,
    )

    def train(config: Annotated[preset, tyro.conf.arg(name="")]) -> None:
        """Train a network from a preset; every value of the preset is an option."""
        _train(config)

    try:
        tyro.extras.subcommand_cli_from_dict(
            {"train": train}, prog="dropcluster", description=_EXAMPLES, args=arguments
        )
    except KeyboardInterrupt:
        sys.exit(130)


def _train(config: "TrainConfig") -> None:  # noqa: F821
    from dropcluster_jax.training import progress, run

    try:
        prepared = run.prepare(config)
    except (ValueError, TypeError, OSError, ImportError) as error:
        _refuse(str(error))
    if prepared.finished is not None:
        print(f"{prepared.folder} holds this run already, finished:")
        print(progress.summary(prepared.finished, prepared.folder))
        return
    with progress.Progress(prepared.num_steps) as show:
        finished = run.execute(prepared, show)
    print(progress.summary(finished, prepared.folder))


def _refuse(message: str) -> None:
    print(f"dropcluster: error: {message}", file=sys.stderr)
    sys.exit(2)
