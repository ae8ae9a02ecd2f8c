"""The commands that look: `evaluate`, `clusters`, `plot` and `runs`, `data check`, `presets`."""

import dataclasses
import difflib
import json
import pathlib
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from dropcluster_jax.cli.errors import reason, refuse

if TYPE_CHECKING:
    from dropcluster_jax.runs.config import DataConfig
    from dropcluster_jax.training.loop import LogEntry

_SEVERITIES = 5


def evaluate(folder: pathlib.Path, corruptions: bool, best: bool, data_dir: pathlib.Path | None, as_json: bool) -> None:
    """Measure the network of a run, and write `evaluation.json`."""
    from dropcluster_jax.cache import enable_compilation_cache
    from dropcluster_jax.data import CORRUPTIONS, CorruptImageError
    from dropcluster_jax.runs.checkpoints import CorruptCheckpointError
    from dropcluster_jax.runs.logging import parts
    from dropcluster_jax.runs.run_folder import evaluate_run, with_known, write_json

    _check_run(folder)
    enable_compilation_cache()
    names = CORRUPTIONS if corruptions else ()
    with parts(1 + _SEVERITIES * len(names)) as begin:
        begin("measuring")

        def report(record: "LogEntry") -> None:
            name = record["corruption"] or "test images"
            begin(f"measuring; so far up to {name} {record['severity'] or ''}")
            if not as_json:
                label = f"{name} {record['severity']}" if record["corruption"] else name
                print(f"{label:22} accuracy {100 * record['accuracy']:6.2f} %  loss {record['loss']:.3f}")

        try:
            results = evaluate_run(folder, best=best, corruptions=names, data_dir=data_dir, report=report, say=_aside)
            results = with_known(folder, results)
            write_json(folder / "evaluation.json", results)
        except (ValueError, TypeError, OSError, ImportError, CorruptImageError, CorruptCheckpointError) as error:
            refuse(reason(error))
    if as_json:
        print(json.dumps(results, indent=2))
        return
    if corruptions:
        print(f"mean over the corrupted images: {100 * results['mean_corrupted_accuracy']:.2f} %")
    print(f"checkpoint of step {results['step']}; results: {folder / 'evaluation.json'}")


def clusters(
    folder: pathlib.Path, out: pathlib.Path | None, best: bool, rate: float, data_dir: pathlib.Path | None
) -> None:
    """Draw the clusters of a run, and say where the pictures are."""
    from dropcluster_jax.cache import enable_compilation_cache
    from dropcluster_jax.data import CorruptImageError
    from dropcluster_jax.runs.checkpoints import CorruptCheckpointError
    from dropcluster_jax.runs.figures import draw_clusters_of
    from dropcluster_jax.runs.logging import parts

    _check_run(folder)
    enable_compilation_cache()
    with parts(4) as begin:
        try:
            files = draw_clusters_of(folder, out=out, best=best, rate=rate, data_dir=data_dir, tell=begin, say=_aside)
        except (ValueError, TypeError, OSError, ImportError, CorruptImageError, CorruptCheckpointError) as error:
            refuse(reason(error))
    _say_where(files)


def plot(folders: Sequence[pathlib.Path], out: pathlib.Path) -> None:
    """Draw the learning curves of runs, and say where the picture is."""
    from dropcluster_jax.runs.figures import DPI, draw_curves_of
    from dropcluster_jax.runs.logging import parts

    for folder in folders:
        _check_run(folder)
    if not out.suffix:
        out = out.with_suffix(".png")
    try:
        with parts(1) as begin:
            begin("drawing")
            draw_curves_of(folders).savefig(out, dpi=DPI)
    except (ValueError, OSError, ImportError) as error:  # an ending that Matplotlib has no format for is a ValueError
        refuse(str(error))
    _say_where([out])


def runs(folder: pathlib.Path, as_json: bool) -> None:
    """Print a table of the runs that a folder holds."""
    from dropcluster_jax.runs.run_folder import list_runs

    try:
        found = list_runs(folder)
    except OSError as error:
        refuse(str(error))
    if as_json:
        print(json.dumps(found, indent=2))
        return
    _table(
        ["run", "method", "rate", "data", "model", "seed", "step", "accuracy", "time"],
        [_row(run) for run in found if "error" not in run],
        right=("rate", "seed", "step", "accuracy", "time"),
    )
    for run in found:
        if "error" in run:
            print(f"{run['run']} cannot be read: {run['error']}", file=sys.stderr)


def check(name: str, data: "DataConfig", batch_size: int, seed: int, out: pathlib.Path | None, as_json: bool) -> None:
    """Look at a data set, and say what it holds."""
    from dropcluster_jax.cache import enable_compilation_cache
    from dropcluster_jax.runs.config import PRESETS, AugmentConfig, TrainConfig
    from dropcluster_jax.runs.logging import parts
    from dropcluster_jax.runs.run_folder import slug
    from dropcluster_jax.training import check

    if data.name:
        refuse(f"data.name must not be given beside NAME, {name!r}, got {data.name!r}")
    enable_compilation_cache()
    folder = out or pathlib.Path("runs", f"check-{slug(name)}")
    preset = PRESETS[name][1] if name in PRESETS else TrainConfig()
    augment = AugmentConfig(resized_crop=True, flip=True) if data.image_size and name not in PRESETS else preset.augment
    try:
        config = dataclasses.replace(
            preset, data=dataclasses.replace(data, name=name), augment=augment, batch_size=batch_size, seed=seed
        )
        with parts(4) as begin:
            found = check.check(config, folder, begin)
    except (ValueError, TypeError, OSError, ImportError) as error:
        refuse(reason(error))
    print(json.dumps(found, indent=2) if as_json else check.describe(found, folder))


def presets(as_json: bool) -> None:
    """Print a table of the presets."""
    from dropcluster_jax.runs.config import PRESETS

    if as_json:
        content = {name: {"description": about, **config.to_json()} for name, (about, config) in PRESETS.items()}
        print(json.dumps(content, indent=2))
        return
    _table(
        ["preset", "model", "epochs", "batch", "rate", "places", ""],
        [
            [
                name,
                config.model,
                f"{config.epochs:g}",
                str(config.batch_size),
                f"{config.drop.rate:g}",
                ", ".join(config.drop.places),
                about,
            ]
            for name, (about, config) in PRESETS.items()
        ],
        right=("epochs", "batch", "rate"),
    )
    print("\ndropcluster train PRESET trains one; dropcluster train PRESET --help names every option and its value")


def _row(run: dict[str, Any]) -> list[str]:
    accuracy, seconds = run["test_accuracy"], run["seconds"]
    return [
        run["run"],
        run["method"],
        f"{run['rate']:g}",
        run["data"],
        run["model"],
        str(run["seed"]),
        f"{run['step']:,}",
        "" if accuracy is None else f"{100 * accuracy:.2f} %",
        f"{seconds:,.0f} s" if run["finished"] else "not finished",
    ]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str]) -> None:
    """As wide as the terminal; as wide as it needs elsewhere."""
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


def _check_run(folder: pathlib.Path) -> None:
    """Refuse a folder that holds no run, and say which may have been meant."""
    from dropcluster_jax.runs.run_folder import is_run

    if is_run(folder):
        return
    inside = [path for path in sorted(folder.glob("*")) if is_run(path)]
    beside = {path.name: path for path in sorted(folder.parent.glob("*")) if is_run(path)}
    meant = inside or [beside[name] for name in difflib.get_close_matches(folder.name, beside, cutoff=0.5)]
    hint = f"did you mean {' or '.join(map(str, meant[:3]))}?" if meant else "`dropcluster runs DIR` lists runs"
    refuse(f"{folder} holds no run: there is no config.json of one; {hint}")


def _say_where(files: Iterable[pathlib.Path]) -> None:
    for file in files:
        print(file)


def _aside(message: str) -> None:
    print(message, file=sys.stderr)
