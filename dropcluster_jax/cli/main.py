"""The command `dropcluster`: reads arguments, calls the library, says what happened. No logic of its own."""

import difflib
import functools
import inspect
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Annotated

from dropcluster_jax import __version__
from dropcluster_jax.cli.errors import refuse

Action = Callable[[], None]  # what a command does, once all its arguments are known to be right

# XLA's notes on the machine are for its developers.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

_DESCRIPTION = """DropCluster: structured dropout whose clusters are learned while the network trains.

Examples:
  dropcluster train digits
  dropcluster train cifar10 --data.dir ~/tensorflow_datasets --model resnet20 --steps 100
  dropcluster clusters runs/digits
  dropcluster runs runs
  dropcluster --version

The same command again goes on where a run was stopped, and does nothing where it is finished.
"""

_TRAIN = """Train a network from a preset; every value is an option.

`dropcluster train digits --help` names them, and likewise of each preset."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exits with status 2 and a short message where the input is wrong."""
    try:
        import tyro

        from dropcluster_jax.runs.config import PRESETS, DataConfig, TrainConfig
    except ImportError as error:
        refuse(f'{error}; the command needs an extra: pip install "dropcluster-jax[train]"')

    from dropcluster_jax.cli import commands as actions
    from dropcluster_jax.cli import train

    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments == ["--version"]:
        print(f"dropcluster-jax {__version__}")
        return
    # What else is said of a misspelt option is said of the preset that was named, not of each.
    begin = [word.replace("-", "_") for word in arguments[:2]]
    named = [name for name in PRESETS if begin == ["train", name]]
    train_commands = tyro.extras.SubcommandApp()
    for name in named or PRESETS:
        description, preset = PRESETS[name]

        def train_preset(
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
            return functools.partial(train.train, config, restart, dry_run, processes, arguments)

        example = f"\n\nExample:\n  dropcluster train {_typed(name)} --drop.rate 0.2 --out runs/mine"
        train_commands.command(name=name, help=description + (example if named else ""))(train_preset)

    def evaluate(
        run: tyro.conf.Positional[pathlib.Path],
        corruptions: bool = False,
        best: bool = False,
        data_dir: pathlib.Path | None = None,
        json: bool = False,
    ) -> Action:
        """Measure the network of a run on its test images.

        Example:
          dropcluster evaluate runs/digits --corruptions

        Args:
            run: The folder of the run, finished or not.
            corruptions: Also under 15 corruptions at 5 severities.
            best: Take the checkpoint with the best test accuracy, not the newest.
            data_dir: Where TFDS has prepared the data, if not where the run had it.
            json: Print what evaluation.json holds, and nothing else.
        """
        return functools.partial(actions.evaluate, run, corruptions, best, data_dir, json)

    def clusters(
        run: tyro.conf.Positional[pathlib.Path],
        out: pathlib.Path | None = None,
        best: bool = False,
        rate: float = 0.3,
        data_dir: pathlib.Path | None = None,
    ) -> Action:
        """Draw the clusters of a run: over activations, over the course of training, and what a mask drops.

        Example:
          dropcluster clusters runs/digits --rate 0.2

        Args:
            run: The folder of the run, finished or not.
            out: The folder for the pictures; else pictures/ in that of the run.
            best: Take the checkpoint with the best test accuracy, not the newest.
            rate: The share that the masks drop which are drawn, from 0 to 1.
            data_dir: Where TFDS has prepared the data, if not where the run had it.
        """
        if not 0 <= rate <= 1:
            raise ValueError(f"rate must be at least 0 and at most 1, got {rate}")
        return functools.partial(actions.clusters, run, out, best, rate, data_dir)

    def plot(
        runs: Annotated[tuple[pathlib.Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")],
        out: pathlib.Path = pathlib.Path("curves.png"),
    ) -> Action:
        """Draw the learning curves of runs into one picture: training loss, test accuracy, rate.

        Example:
          dropcluster plot runs/digits runs/mine --out curves.svg

        Args:
            runs: The folders of the runs, finished or not.
            out: The picture; its ending says what kind.
        """
        if not runs:
            raise ValueError("plot needs a run: dropcluster plot RUN [RUN ...]")
        return functools.partial(actions.plot, runs, out)

    def runs(directory: tyro.conf.Positional[pathlib.Path] = pathlib.Path("runs"), json: bool = False) -> Action:
        """List the runs of a folder: method, rate, data, accuracy, time.

        Example:
          dropcluster runs runs --json

        Args:
            directory: The folder in which they are, at any depth.
            json: Print them as JSON, and nothing else.
        """
        return functools.partial(actions.runs, directory, json)

    def check(
        name: tyro.conf.Positional[str],
        data: DataConfig = DataConfig(name=""),  # noqa: B008 - immutable
        batch_size: int = 128,
        seed: int = 0,
        out: pathlib.Path | None = None,
        json: bool = False,
    ) -> Action:
        """Show what a data set holds, what it looks like, and how fast it gets to the device.

        Example:
          dropcluster data check cifar10 --data.dir ~/tensorflow_datasets

        Args:
            name: digits, a data set that TFDS has prepared, folder:PATH or npz:PATH.
            data: How it is opened.
            batch_size: Images in a batch.
            seed: Decides the order, and the images on the sheets.
            out: The folder for check.json and the pictures; else one under runs/.
            json: Print what check.json holds, and nothing else.
        """
        return functools.partial(actions.check, name, data, batch_size, seed, out, json)

    def presets(json: bool = False) -> Action:
        """List the presets: network, data, schedule and drop layers.

        Example:
          dropcluster presets --json

        Args:
            json: Print every value of each as JSON, and nothing else.
        """
        return functools.partial(actions.presets, json)

    data_commands = tyro.extras.SubcommandApp()
    data_commands.command(help=_about(check, arguments[1:]))(check)
    commands = tyro.extras.SubcommandApp()
    commands.command(train_commands, name="train", help=_TRAIN)
    for command in (evaluate, clusters, plot, runs, presets):
        commands.command(help=_about(command, arguments))(command)
    commands.command(data_commands, name="data", help="Look at a data set.")
    _check_word(arguments, 0, "command", ["train", "evaluate", "clusters", "plot", "runs", "presets", "data"])
    if arguments[:1] == ["train"]:
        _check_word(arguments, 1, "preset", [*PRESETS, *map(_typed, PRESETS)])
    if arguments[:1] == ["data"]:
        _check_word(arguments, 1, "command", ["check"])
    try:
        action: Action = commands.cli(
            prog="dropcluster", description=_DESCRIPTION, args=arguments, config=(tyro.conf.FlagCreatePairsOff,)
        )
    except ValueError as error:  # from a configuration that cannot be
        refuse(str(error))
    try:
        action()
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # what reads the output has enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _about(command: Callable[..., Action], arguments: list[str]) -> str:
    """The first line of its docstring and, where it is the command that was named, the example."""
    paragraphs = (inspect.getdoc(command) or "").split("\n\n")
    return "\n\n".join(paragraphs[: 2 if arguments[:1] == [command.__name__] else 1])


def _typed(preset: str) -> str:
    """Its name as tyro spells it."""
    return preset.replace("_", "-")


def _check_word(arguments: list[str], place: int, kind: str, known: list[str]) -> None:
    """Refuse a word that is none of those known, and say which may have been meant."""
    if len(arguments) <= place or arguments[place].startswith("-") or arguments[place] in known:
        return
    meant = difflib.get_close_matches(arguments[place], known, n=1)
    hint = f"; did you mean {meant[0]}? There are:" if meant else ":"
    refuse(f"no {kind} is called {arguments[place]!r}{hint} {', '.join(dict.fromkeys(map(_typed, known)))}")
