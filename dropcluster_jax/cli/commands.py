"""The commands but `train` and `compare`: fields are options, a call runs."""

import dataclasses
import difflib
import json
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import tyro
from etils import epath
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from dropcluster_jax import data as datasets
from dropcluster_jax.cli.errors import check_devices, exit_usage, invalid_input
from dropcluster_jax.runs import (
    PRESETS,
    AugmentConfig,
    DataConfig,
    TrainConfig,
    data_check,
    evaluate_run,
    figures,
    list_runs,
    load_run,
)
from dropcluster_jax.runs import folder as run_folder
from dropcluster_jax.runs.config import as_path
from dropcluster_jax.runs.console import task_progress
from dropcluster_jax.runs.evaluation import merge_evaluation, read_evaluation

_NUM_SEVERITIES = 5
_NUM_WORST = 3  # classes to print


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Evaluate the network of a run on its test images.

    Example:
      dropcluster evaluate runs/digits --corruptions
    """

    run: Positional[epath.Path]
    """Run folder; the run may be unfinished."""
    corruptions: bool = False
    """Also evaluate 15 corruptions at 5 severities."""
    best: bool = False
    """Use the checkpoint with the best accuracy on validation images, not the latest."""
    data_dir: str | None = None
    """TFDS data directory, or the folder that an archive or image folder is in, if it was moved."""
    allow_changed_data: bool = False
    """Evaluate even if the data are not those that the run was trained on."""
    json: bool = False
    """Print the content of evaluation.json only."""

    def __call__(self) -> None:
        """Evaluates and writes `evaluation.json`."""
        folder = _run_folder(self.run)
        check_devices()
        names = datasets.CORRUPTIONS if self.corruptions else ()

        def log(result: dict[str, Any]) -> None:
            name, severity = result["corruption"], result["severity"]
            label = f"{name} {severity}" if name else "test images"
            start(f"evaluated {label}")
            if not self.json:
                print(f"{label:22} accuracy {100 * result['accuracy']:6.2f}%  loss {result['loss']:.3f}")

        with invalid_input(), task_progress(1 + _NUM_SEVERITIES * len(names)) as start:
            start("evaluating")
            previous = read_evaluation(folder)
            options = {name: getattr(self, name) for name in ("best", "data_dir", "allow_changed_data")}
            pictures = folder / run_folder.PICTURES
            results = evaluate_run(
                folder, corruptions=names, pictures=pictures, **options, log=log, notify=_print_to_stderr
            )
        results = merge_evaluation(previous, results)
        if self.json:
            print(run_folder.to_json(results, indent=2))
        elif self.corruptions:
            print(f"mean over corrupted images: {100 * results['mean_corrupted_accuracy']:.2f}%")
        run_folder.write_json(folder / run_folder.EVALUATION, results)
        if self.json:
            return
        accuracies = results["predictions"]["accuracy_by_class"]
        worst = sorted(accuracies, key=lambda name: accuracies[name])[:_NUM_WORST]
        print(f"least accurate classes: {', '.join(f'{name} {accuracies[name]:.1%}' for name in worst)}")
        print(f"expected calibration error: {results['predictions']['calibration']['error']:.1%}")
        print(f"checkpoint of step {results['step']}; results: {folder / run_folder.EVALUATION}, {pictures}")


@dataclasses.dataclass(frozen=True)
class Predict:
    """Classify image files with the network of a run.

    Example:
      dropcluster predict runs/photos a.jpg b.jpg
    """

    run: Positional[epath.Path]
    """Run folder; the run may be unfinished."""
    images: Annotated[tuple[epath.Path, ...], Positional, tyro.conf.arg(metavar="IMAGE [IMAGE ...]")]
    """JPEG, PNG or WebP files."""
    best: bool = False
    """Use the checkpoint with the best accuracy on validation images, not the latest."""
    json: bool = False
    """Print the probability of each class as JSON."""

    def __call__(self) -> None:
        """Prints the most probable class of each image."""
        if not self.images:
            exit_usage("predict needs an image: dropcluster predict RUN IMAGE [IMAGE ...]")
        folder = _run_folder(self.run)
        check_devices()
        with invalid_input():
            results = load_run(folder, best=self.best, notify=_print_to_stderr).predict(self.images)
        if self.json:
            print(run_folder.to_json(results, indent=2))
            return
        rows = [[row["file"], row["class"], f"{max(row['probabilities'].values()):.1%}"] for row in results]
        print_table(["image", "class", "probability"], rows, ("probability",))


@dataclasses.dataclass(frozen=True)
class Clusters:
    """Draw the clusters of a run: over activations, over the course of training, and as masks.

    Example:
      dropcluster clusters runs/digits --rate 0.2
    """

    run: Positional[epath.Path]
    """Run folder; the run may be unfinished."""
    out: epath.Path | None = None
    """Folder for the figures. Default: pictures/ in the run folder."""
    best: bool = False
    """Use the checkpoint with the best accuracy on validation images, not the latest."""
    rate: float = 0.3
    """Rate of the masks, from 0 to 1."""
    data_dir: str | None = None
    """TFDS data directory, or the folder that an archive or image folder is in, if it was moved."""
    allow_changed_data: bool = False
    """Draw even if the data are not those that the run was trained on."""

    def __call__(self) -> None:
        """Draws the figures and prints their paths."""
        if not 0 <= self.rate <= 1:
            exit_usage(f"--rate must be at least 0 and at most 1, got {self.rate}")
        options = dataclasses.asdict(self)
        folder = _run_folder(options.pop("run"))
        check_devices()
        with invalid_input(), task_progress(4) as start:
            files = figures.draw_run_clusters(folder, **options, on_progress=start, notify=_print_to_stderr)
        print(*files, sep="\n")


@dataclasses.dataclass(frozen=True)
class Plot:
    """Plot the learning curves of runs: training loss, evaluation accuracy and rate.

    Example:
      dropcluster plot runs/digits runs/mine --out curves.svg
    """

    runs: Annotated[tuple[epath.Path, ...], Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Run folders; runs may be unfinished."""
    out: epath.Path = epath.Path("curves.png")  # noqa: RUF009 - immutable
    """Output file; the suffix determines the format."""

    def __call__(self) -> None:
        """Draws the curves and prints the path of the figure."""
        if not self.runs:
            exit_usage("plot needs a run: dropcluster plot RUN [RUN ...]")
        with invalid_input():  # Matplotlib raises ValueError for unknown formats
            folders = [_run_folder(run) for run in self.runs]
            out = as_path(self.out if self.out.suffix else self.out.with_suffix(".png"))
            with task_progress(1) as start:
                start("drawing")
                figures.save_figure(figures.draw_run_curves(folders), out)
        print(out)


@dataclasses.dataclass(frozen=True)
class Runs:
    """List the runs in a folder: method, rate, data, accuracy and time.

    Example:
      dropcluster runs runs --json
    """

    directory: Positional[epath.Path] = epath.Path("runs")  # noqa: RUF009 - immutable
    """Folder to search, including its subfolders."""
    aggregate: bool = False
    """Average finished runs that differ only in their seeds."""
    json: bool = False
    """Print JSON only."""

    def __call__(self) -> None:
        """Prints a table."""
        with invalid_input():
            entries = list_runs(self.directory, aggregate=self.aggregate)
        if self.json:
            print(run_folder.to_json(entries, indent=2))
            return
        rows = [(_format_mean if self.aggregate else _format_run)(entry) for entry in entries if "error" not in entry]
        columns = ["method", "rate", "size", "fill", "places", "data", "model"]
        if self.aggregate:
            columns += ["step", "accuracy", "95% interval", "runs"]
        else:
            columns = ["run", *columns, "seed", "step", "accuracy", "time"]
        right = ("rate", "size", "seed", "step", "accuracy", "time", "runs")
        print_table(columns, rows, right)
        for entry in entries:
            if "error" in entry:
                _print_to_stderr(f"{entry['run']} cannot be read: {entry['error']}")


@dataclasses.dataclass(frozen=True)
class Check:
    """Inspect a dataset: contents, sample images and loading speed.

    Example:
      dropcluster data check cifar10 --data.dir ~/tensorflow_datasets
    """

    name: Positional[str]
    """digits, the name of a prepared TFDS dataset, folder:PATH or npz:PATH."""
    data: DataConfig = DataConfig(name="")  # noqa: RUF009 - immutable
    """Options that read the dataset."""
    batch_size: int | None = None
    """Images per batch. Default: 128, or all training images if there are fewer."""
    seed: int = 0
    """Determines the order and the sample images."""
    out: epath.Path | None = None
    """Output folder for check.json and the figures. Default: a folder under runs/."""
    json: bool = False
    """Print the content of check.json only."""

    def __call__(self) -> None:
        """Inspects the dataset and prints a summary."""
        if self.data.name:
            exit_usage(f"--data.name must not be given in addition to NAME, {self.name!r}, got {self.data.name!r}")
        presets = [preset for key, (_, preset) in PRESETS.items() if self.name in (key, preset.data.name)]
        augment = AugmentConfig(resized_crop=True, flip=True) if self.data.image_size else AugmentConfig()
        preset = presets[0] if presets else TrainConfig(data=DataConfig(name=self.name), augment=augment)
        check_devices()
        with invalid_input(), task_progress(5) as start:
            folder = as_path(self.out or f"runs/check-{run_folder.slug(self.name)}")
            data = dataclasses.replace(self.data, name=preset.data.name)
            config = dataclasses.replace(preset, data=data, seed=self.seed)
            report = data_check.check(config, folder, self.batch_size, start, _print_to_stderr)
        print(run_folder.to_json(report, indent=2) if self.json else data_check.describe(report, folder))


@dataclasses.dataclass(frozen=True)
class Presets:
    """List the presets: network, data, schedule and drop layers.

    Example:
      dropcluster presets --json
    """

    json: bool = False
    """Print all values as JSON only."""

    def __call__(self) -> None:
        """Prints a table."""
        if self.json:
            presets = {name: {"description": text, **config.to_json()} for name, (text, config) in PRESETS.items()}
            print(json.dumps(presets, indent=2))
            return
        header = ["preset", "model", "epochs", "batch", "rate", "places", ""]
        rows = [[name, *_format_preset(config), text] for name, (text, config) in PRESETS.items()]
        print_table(header, rows, right=("epochs", "batch", "rate"))
        print("\nTrain a preset: dropcluster train PRESET. List its options: dropcluster train PRESET --help.")


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str]) -> None:
    """Prints a table, with the columns in `right` aligned to the right; wraps lines on terminals only."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in header:
        table.add_column(name, justify="right" if name in right else "left")
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = sum(max(map(len, column)) + 2 for column in zip(header, *rows, strict=True))
    console.print(table)


def _format_run(entry: dict[str, Any]) -> list[str]:
    accuracy = entry["eval_accuracy"]
    return [
        *(entry["run"], *_format_options(entry), str(entry["seed"]), f"{entry['step']:,}"),
        "" if accuracy is None else f"{100 * accuracy:.2f}%",
        f"{entry['seconds']:,.0f} s" if entry["finished"] else "unfinished",
    ]


def _format_mean(entry: dict[str, Any]) -> list[str]:
    mean, low, high = (100 * entry[name] for name in ("eval_accuracy", "low", "high"))
    bounds = f"{low:.2f} to {high:.2f}%" if len(entry["runs"]) > 1 else ""
    return [*_format_options(entry), f"{entry['step']:,}", f"{mean:.2f}%", bounds, str(len(entry["runs"]))]


def _format_options(entry: dict[str, Any]) -> list[str]:
    size = "" if entry["size"] is None else f"{entry['size']:g}"
    places = " ".join(entry["places"])
    return [entry["method"], f"{entry['rate']:g}", size, entry["fill"] or "", places, entry["data"], entry["model"]]


def _format_preset(config: TrainConfig) -> list[str]:
    places = ", ".join(config.drop.places)
    return [config.model, f"{config.epochs:g}", str(config.batch_size), f"{config.drop.rate:g}", places]


def _run_folder(path: epath.Path) -> epath.Path:
    """Returns the path of a run; exits with suggestions if there is no run."""
    with invalid_input():
        folder = as_path(path)
        if run_folder.is_run(folder):
            return folder
        contained, siblings = (
            [path for path in run_folder.visible_files(place) if run_folder.is_run(path)]
            for place in (folder, folder.parent)
        )
    names = difflib.get_close_matches(folder.name, [path.name for path in siblings], cutoff=0.5)
    suggestions = contained or [folder.with_name(name) for name in names]
    hint = "`dropcluster runs DIR` lists runs"
    if suggestions:
        hint = f"did you mean {' or '.join(map(str, suggestions[:3]))}?"
    exit_usage(f"{folder} is not a run folder: it has no config.json of a run; {hint}")


def _print_to_stderr(message: str) -> None:
    print(message, file=sys.stderr)
