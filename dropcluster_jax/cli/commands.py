"""The commands `evaluate`, `clusters`, `plot`, `runs`, `data check` and `presets`."""

import dataclasses
import difflib
import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from dropcluster_jax.cli.errors import check_devices, describe, exit_failure, exit_usage

if TYPE_CHECKING:
    from etils import epath

    from dropcluster_jax.runs import DataConfig

_NUM_SEVERITIES = 5


def evaluate(
    folder: "epath.Path",
    corruptions: bool,
    best: bool,
    data_dir: str | None,
    allow_changed_data: bool,
    as_json: bool,
) -> None:
    """Evaluates the network of a run and writes `evaluation.json`."""
    from dropcluster_jax.data import CORRUPTIONS
    from dropcluster_jax.runs import CorruptCheckpointError, evaluate_run
    from dropcluster_jax.runs import folder as run_folder
    from dropcluster_jax.runs.console import task_progress
    from dropcluster_jax.runs.load import merge_evaluation, read_evaluation

    _check_run(folder)
    check_devices()
    names = CORRUPTIONS if corruptions else ()
    with task_progress(1 + _NUM_SEVERITIES * len(names)) as start:
        start("evaluating")

        def log(result: dict[str, Any]) -> None:
            name, severity = result["corruption"], result["severity"]
            label = f"{name} {severity}" if name else "test images"
            start(f"evaluated {label}")
            if not as_json:
                print(f"{label:22} accuracy {100 * result['accuracy']:6.2f}%  loss {result['loss']:.3f}")

        try:
            previous = read_evaluation(folder)
            results = evaluate_run(
                folder,
                best=best,
                corruptions=names,
                data_dir=data_dir,
                allow_changed_data=allow_changed_data,
                log=log,
                notify=_print_to_stderr,
            )
        except (ValueError, TypeError, OSError, ImportError, CorruptCheckpointError) as error:
            exit_usage(describe(error))
    results = merge_evaluation(previous, results)
    if as_json:
        print(run_folder.to_json(results, indent=2))
    elif corruptions:
        print(f"mean over corrupted images: {100 * results['mean_corrupted_accuracy']:.2f}%")
    try:
        run_folder.write_json(folder / run_folder.EVALUATION, results)
    except OSError as error:
        exit_failure(f"the results could not be written: {describe(error)}")
    if not as_json:
        print(f"checkpoint of step {results['step']}; results: {folder / run_folder.EVALUATION}")


def clusters(
    folder: "epath.Path",
    out: "epath.Path | None",
    best: bool,
    rate: float,
    data_dir: str | None,
    allow_changed_data: bool,
) -> None:
    """Draws the clusters of a run and prints the paths of the figures."""
    from dropcluster_jax.runs import CorruptCheckpointError
    from dropcluster_jax.runs.console import task_progress
    from dropcluster_jax.runs.figures import draw_run_clusters

    _check_run(folder)
    check_devices()
    with task_progress(4) as start:
        try:
            files = draw_run_clusters(
                folder,
                out=out,
                best=best,
                rate=rate,
                data_dir=data_dir,
                allow_changed_data=allow_changed_data,
                on_progress=start,
                notify=_print_to_stderr,
            )
        except (ValueError, TypeError, OSError, ImportError, CorruptCheckpointError) as error:
            exit_usage(describe(error))
    _print_paths(files)


def plot(folders: Sequence["epath.Path"], out: "epath.Path") -> None:
    """Draws the learning curves of runs and prints the path of the figure."""
    from dropcluster_jax.runs.console import task_progress
    from dropcluster_jax.runs.figures import draw_run_curves, save_figure

    for folder in folders:
        _check_run(folder)
    if not out.suffix:
        out = out.with_suffix(".png")
    try:
        with task_progress(1) as start:
            start("drawing")
            save_figure(draw_run_curves(folders), out)
    except (ValueError, OSError, ImportError) as error:  # Matplotlib raises ValueError for unknown formats
        exit_usage(describe(error))
    _print_paths([out])


def runs(folder: "epath.Path", as_json: bool) -> None:
    """Prints a table of the runs in a folder."""
    from dropcluster_jax.runs import list_runs
    from dropcluster_jax.runs.folder import to_json

    try:
        entries = list_runs(folder)
    except OSError as error:
        exit_usage(str(error))
    if as_json:
        print(to_json(entries, indent=2))
        return
    _print_table(
        ["run", "method", "rate", "data", "model", "seed", "step", "accuracy", "time"],
        [_format_run(entry) for entry in entries if "error" not in entry],
        right=("rate", "seed", "step", "accuracy", "time"),
    )
    for entry in entries:
        if "error" in entry:
            print(f"{entry['run']} cannot be read: {entry['error']}", file=sys.stderr)


def check(
    name: str, data: "DataConfig", batch_size: int | None, seed: int, out: "epath.Path | None", as_json: bool
) -> None:
    """Inspects a dataset and prints a summary."""
    from dropcluster_jax.runs import PRESETS, AugmentConfig, TrainConfig, data_check
    from dropcluster_jax.runs.config import as_path
    from dropcluster_jax.runs.console import task_progress
    from dropcluster_jax.runs.folder import slug, to_json

    if data.name:
        exit_usage(f"data.name must not be given in addition to NAME, {name!r}, got {data.name!r}")
    folder = out or as_path(f"runs/check-{slug(name)}")
    preset = next((preset for key, (_, preset) in PRESETS.items() if name in (key, preset.data.name)), None)
    streamed = data.image_size and preset is None
    preset, name = (TrainConfig(), name) if preset is None else (preset, preset.data.name)
    augment = AugmentConfig(resized_crop=True, flip=True) if streamed else preset.augment
    check_devices()
    try:
        config = dataclasses.replace(preset, data=dataclasses.replace(data, name=name), augment=augment, seed=seed)
        with task_progress(4) as start:
            report = data_check.check(config, folder, batch_size, start, _print_to_stderr)
    except (ValueError, TypeError, OSError, ImportError) as error:
        exit_usage(describe(error, can_skip=True))
    print(to_json(report, indent=2) if as_json else data_check.describe(report, folder))


def presets(as_json: bool) -> None:
    """Prints a table of the presets."""
    from dropcluster_jax.runs import PRESETS

    if as_json:
        content = {
            name: {"description": description, **config.to_json()} for name, (description, config) in PRESETS.items()
        }
        print(json.dumps(content, indent=2))
        return
    rows = [
        [
            name,
            config.model,
            f"{config.epochs:g}",
            str(config.batch_size),
            f"{config.drop.rate:g}",
            ", ".join(config.drop.places),
            description,
        ]
        for name, (description, config) in PRESETS.items()
    ]
    _print_table(["preset", "model", "epochs", "batch", "rate", "places", ""], rows, right=("epochs", "batch", "rate"))
    print("\nTrain a preset: dropcluster train PRESET. List its options: dropcluster train PRESET --help.")


def _format_run(entry: dict[str, Any]) -> list[str]:
    accuracy, seconds = entry["eval_accuracy"], entry["seconds"]
    return [
        entry["run"],
        entry["method"],
        f"{entry['rate']:g}",
        entry["data"],
        entry["model"],
        str(entry["seed"]),
        f"{entry['step']:,}",
        "" if accuracy is None else f"{100 * accuracy:.2f}%",
        f"{seconds:,.0f} s" if entry["finished"] else "unfinished",
    ]


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str]) -> None:
    """Prints a table; wraps lines on terminals only."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*header, box=None, pad_edge=False, header_style="bold")
    for column in table.columns:
        column.justify = "right" if column.header in right else "left"
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = sum(max(map(len, column)) + 2 for column in zip(header, *rows, strict=True))
    console.print(table)


def _check_run(folder: "epath.Path") -> None:
    """Exits if a folder contains no run, with suggestions."""
    from dropcluster_jax.runs.folder import is_run, visible_files

    if is_run(folder):
        return
    contained = [path for path in visible_files(folder) if is_run(path)]
    siblings = {path.name: path for path in visible_files(folder.parent) if is_run(path)}
    suggestions = contained or [siblings[name] for name in difflib.get_close_matches(folder.name, siblings, cutoff=0.5)]
    hint = "`dropcluster runs DIR` lists runs"
    if suggestions:
        hint = f"did you mean {' or '.join(map(str, suggestions[:3]))}?"
    exit_usage(f"{folder} is not a run folder: it has no config.json of a run; {hint}")


def _print_paths(paths: Iterable["epath.Path"]) -> None:
    for path in paths:
        print(path)


def _print_to_stderr(message: str) -> None:
    print(message, file=sys.stderr)
