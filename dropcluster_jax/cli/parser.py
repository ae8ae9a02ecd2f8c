"""Parses the arguments of the `dropcluster` command."""

import difflib
import functools
import inspect
import math
import re
from collections.abc import Callable
from typing import Annotated

import tyro
from etils import epath
from tyro.conf import Positional

from dropcluster_jax.cli import commands
from dropcluster_jax.cli.errors import exit_usage
from dropcluster_jax.cli.train import analyze, train
from dropcluster_jax.runs import PRESETS, DataConfig, TrainConfig
from dropcluster_jax.runs.config import as_path

Action = Callable[[], None]  # runs a command whose arguments have been validated

_COMMANDS = ["train", "evaluate", "clusters", "plot", "runs", "presets", "data"]

_DESCRIPTION = """DropCluster: structured dropout with clusters that are learned during training.

Examples:
  dropcluster train digits
  dropcluster train cifar10 --data.dir ~/tensorflow_datasets --model resnet20 --steps 100
  dropcluster clusters runs/digits
  dropcluster runs runs
  dropcluster --version

Rerun a command to resume an interrupted run; finished runs are not rerun.
"""

_TRAIN = """Train a network from a preset; every value of the preset is an option.

`dropcluster train digits --help` lists them."""


def parse(arguments: list[str]) -> Action:
    """Returns a function that runs the command; exits with a message if the arguments are invalid.

    Args:
        arguments: Command-line arguments.
    """
    _check_word(arguments, 0, "command", _COMMANDS)
    if arguments[:1] == ["train"]:
        _check_word(arguments, 1, "preset", [*PRESETS, *map(_option_style, PRESETS)])
    if arguments[:1] == ["data"]:
        _check_word(arguments, 1, "command", ["check"])
    app = tyro.extras.SubcommandApp()
    app.command(_train_app(arguments), name="train", help=_TRAIN)
    for command in (evaluate, clusters, plot, runs, presets):
        app.command(help=_help(command, arguments))(command)
    data_app = tyro.extras.SubcommandApp()
    data_app.command(help=_help(check, arguments[1:]))(check)
    app.command(data_app, name="data", help="Inspect a dataset.")
    try:
        return app.cli(
            prog="dropcluster", description=_DESCRIPTION, args=arguments, config=(tyro.conf.FlagCreatePairsOff,)
        )
    except (ValueError, ImportError) as error:  # from the validation of a configuration
        exit_usage(str(error))


def _train_app(arguments: list[str]) -> tyro.extras.SubcommandApp:
    """Returns a command for each preset, or only for the given one, so that tyro's hints refer to that one."""
    words = [word.replace("-", "_") for word in arguments[:2]]
    given = [name for name in PRESETS if words == ["train", name]]
    app = tyro.extras.SubcommandApp()
    for name in given or PRESETS:
        description, preset = PRESETS[name]

        def train_preset(
            config: Annotated[TrainConfig, tyro.conf.arg(name="")] = preset,
            restart: bool = False,
            dry_run: bool = False,
            topology: str | None = None,
            json: bool = False,
            distributed: bool = False,
            coordinator: str | None = None,
            process_id: int | None = None,
            num_processes: int | None = None,
        ) -> Action:
            """Train a network.

            Args:
                config: The run.
                restart: Remove an existing run in the output folder and start over. Resuming needs no option.
                dry_run: Print shapes, parameters, FLOPs and memory, without training.
                topology: Dry run for devices that need not be present: a TPU, e.g. v5e:4x4, or GPUs, e.g. h100:8.
                json: With --topology, print JSON only.
                distributed: Join the other processes of the TPU pod, SLURM or Kubernetes job (detected automatically).
                coordinator: HOST:PORT of the first process, if processes cannot be detected.
                process_id: Index of this process, from 0.
                num_processes: Number of processes.
            """
            if json and topology is None:
                raise ValueError("json requires --topology")
            if topology is not None:
                return functools.partial(analyze, config, topology, json)
            processes = None
            if coordinator is not None and not re.fullmatch(r".+:\d+", coordinator):
                raise ValueError(f"coordinator must be HOST:PORT, got {coordinator!r}")
            if process_id is not None and not 0 <= process_id < (num_processes or math.inf):
                raise ValueError(f"process_id must be at least 0 and below num_processes, got {process_id}")
            if distributed or coordinator is not None:
                processes = (coordinator, num_processes, process_id)
            elif process_id is not None or num_processes is not None:
                raise ValueError("process_id and num_processes require --coordinator HOST:PORT")
            return functools.partial(train, config, restart, dry_run, processes, arguments)

        example = f"\n\nExample:\n  dropcluster train {_option_style(name)} --drop.rate 0.2 --out runs/mine"
        app.command(name=name, help=description + (example if given else ""))(train_preset)
    return app


def evaluate(
    run: Positional[epath.Path],
    corruptions: bool = False,
    best: bool = False,
    data_dir: str | None = None,
    allow_changed_data: bool = False,
    json: bool = False,
) -> Action:
    """Evaluate the network of a run on its test images.

    Example:
      dropcluster evaluate runs/digits --corruptions

    Args:
        run: Run folder; the run may be unfinished.
        corruptions: Also evaluate 15 corruptions at 5 severities.
        best: Use the checkpoint with the best accuracy on validation images, not the latest.
        data_dir: TFDS data directory, or the folder that an archive or image folder is in, if it was moved.
        allow_changed_data: Evaluate even if the data are not those that the run was trained on.
        json: Print the content of evaluation.json only.
    """
    return functools.partial(commands.evaluate, as_path(run), corruptions, best, data_dir, allow_changed_data, json)


def clusters(
    run: Positional[epath.Path],
    out: epath.Path | None = None,
    best: bool = False,
    rate: float = 0.3,
    data_dir: str | None = None,
    allow_changed_data: bool = False,
) -> Action:
    """Draw the clusters of a run: over activations, over the course of training, and as masks.

    Example:
      dropcluster clusters runs/digits --rate 0.2

    Args:
        run: Run folder; the run may be unfinished.
        out: Folder for the figures. Default: pictures/ in the run folder.
        best: Use the checkpoint with the best accuracy on validation images, not the latest.
        rate: Rate of the masks, from 0 to 1.
        data_dir: TFDS data directory, or the folder that an archive or image folder is in, if it was moved.
        allow_changed_data: Draw even if the data are not those that the run was trained on.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate must be at least 0 and at most 1, got {rate}")
    return functools.partial(
        commands.clusters, as_path(run), out and as_path(out), best, rate, data_dir, allow_changed_data
    )


def plot(
    runs: Annotated[tuple[epath.Path, ...], Positional, tyro.conf.arg(metavar="RUN [RUN ...]")],
    out: epath.Path = epath.Path("curves.png"),  # noqa: B008 - immutable
) -> Action:
    """Plot the learning curves of runs: training loss, evaluation accuracy and rate.

    Example:
      dropcluster plot runs/digits runs/mine --out curves.svg

    Args:
        runs: Run folders; runs may be unfinished.
        out: Output file; the suffix determines the format.
    """
    if not runs:
        raise ValueError("plot needs a run: dropcluster plot RUN [RUN ...]")
    return functools.partial(commands.plot, [as_path(run) for run in runs], as_path(out))


def runs(
    directory: Positional[epath.Path] = epath.Path("runs"),  # noqa: B008 - immutable
    json: bool = False,
) -> Action:
    """List the runs in a folder: method, rate, data, accuracy and time.

    Example:
      dropcluster runs runs --json

    Args:
        directory: Folder to search, including its subfolders.
        json: Print JSON only.
    """
    return functools.partial(commands.runs, as_path(directory), json)


def check(
    name: Positional[str],
    data: DataConfig = DataConfig(name=""),  # noqa: B008 - immutable
    batch_size: int | None = None,
    seed: int = 0,
    out: epath.Path | None = None,
    json: bool = False,
) -> Action:
    """Inspect a dataset: contents, sample images and loading speed.

    Example:
      dropcluster data check cifar10 --data.dir ~/tensorflow_datasets

    Args:
        name: digits, the name of a prepared TFDS dataset, folder:PATH or npz:PATH.
        data: How the dataset is read.
        batch_size: Images per batch. Default: 128, or all training images if there are fewer.
        seed: Determines the order and the sample images.
        out: Output folder for check.json and the figures. Default: a folder under runs/.
        json: Print the content of check.json only.
    """
    folder = None if out is None else as_path(out)
    return functools.partial(commands.check, name, data, batch_size, seed, folder, json)


def presets(json: bool = False) -> Action:
    """List the presets: network, data, schedule and drop layers.

    Example:
      dropcluster presets --json

    Args:
        json: Print all values as JSON only.
    """
    return functools.partial(commands.presets, json)


def _help(command: Callable[..., Action], arguments: list[str]) -> str:
    """Returns the first line of a docstring, with the example if the command was given."""
    paragraphs = (inspect.getdoc(command) or "").split("\n\n")
    return "\n\n".join(paragraphs[: 2 if arguments[:1] == [command.__name__] else 1])


def _option_style(preset: str) -> str:
    """Returns the name of a preset as tyro spells it."""
    return preset.replace("_", "-")


def _check_word(arguments: list[str], index: int, kind: str, known: list[str]) -> None:
    """Exits if an argument is an unknown word, with a suggestion."""
    if len(arguments) <= index or arguments[index].startswith("-") or arguments[index] in known:
        return
    matches = difflib.get_close_matches(arguments[index], known, n=1)
    hint = f"did you mean {matches[0]}? Choices" if matches else "choices"
    choices = ", ".join(dict.fromkeys(map(_option_style, known)))
    exit_usage(f"unknown {kind} {arguments[index]!r}; {hint}: {choices}")
