"""Parses the arguments of the `dropcluster` command."""

import functools
import inspect
from collections.abc import Callable

import tyro

from dropcluster_jax.cli import commands
from dropcluster_jax.cli.compare import Compare
from dropcluster_jax.cli.errors import invalid_input
from dropcluster_jax.cli.train import Train
from dropcluster_jax.runs import PRESETS

_DESCRIPTION = """DropCluster: structured dropout with clusters that are learned during training.

Examples:
  dropcluster train digits
  dropcluster compare digits --out runs/comparison
  dropcluster train cifar10 --data.dir ~/tensorflow_datasets --model resnet20 --steps 100
  dropcluster clusters runs/digits
  dropcluster runs runs
  dropcluster --version

Rerun a command to resume an interrupted run; finished runs are not rerun.
"""
_TRAIN = "Train a network from a preset, whose values are options: `dropcluster train digits --help` lists them."
_COMPARE = "Compare drop layers on a dataset, and print which one helps; takes the presets and options of train."


def parse(arguments: list[str]) -> Callable[[], None]:
    """Returns the command, which runs when it is called; exits with a message if the arguments are invalid.

    Args:
        arguments: Command-line arguments.
    """
    app, data = tyro.extras.SubcommandApp(), tyro.extras.SubcommandApp()
    for name, kind, summary in (("train", Train, _TRAIN), ("compare", Compare, _COMPARE)):
        app.command(_presets_app(arguments, name, kind), name=name, help=summary)
    for command in (
        commands.Evaluate,
        commands.Predict,
        commands.Clusters,
        commands.Plot,
        commands.Runs,
        commands.Presets,
    ):
        _add(app, command, arguments)
    _add(data, commands.Check, arguments[1:])
    app.command(data, name="data", help="Inspect a dataset.")
    with invalid_input(ValueError, ImportError):  # from the validation of a configuration
        return app.cli(prog="dropcluster", description=_DESCRIPTION, args=arguments)


def _presets_app(arguments: list[str], command: str, kind: type[Train | Compare]) -> tyro.extras.SubcommandApp:
    """Returns a command for each preset, or only for the given one, so that tyro's hints refer to that one."""
    words = [word.replace("-", "_") for word in arguments[:2]]
    given = [name for name in PRESETS if words == [command, name]]
    app = tyro.extras.SubcommandApp()
    if words[:1] in (["train"], ["compare"]) and words[:1] != [command]:
        app.command(name="preset")(lambda: None)  # of the other command
        return app
    for name in given or PRESETS:
        description, preset = PRESETS[name]
        example = f"\n\nExample:\n  dropcluster {command} {name.replace('_', '-')} --epochs 20 --out runs/mine"
        constructor = functools.partial(kind, config=preset, arguments=tuple(arguments))
        app.command(name=name, help=description + (example if given else ""))(constructor)
    return app


def _add(app: tyro.extras.SubcommandApp, command: type, arguments: list[str]) -> None:
    """Adds a command; its help in a list of commands is the first paragraph of its docstring, without the example."""
    name = command.__name__.lower()
    paragraphs = (inspect.getdoc(command) or "").split("\n\n")
    app.command(name=name, help="\n\n".join(paragraphs[: 2 if arguments[:1] == [name] else 1]))(command)
