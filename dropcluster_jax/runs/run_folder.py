"""A run's folder: its files, its history, and loading a run from it."""

import datetime
import json
import math
import os
import pathlib
import re
import shutil
from collections.abc import Mapping
from typing import Any
from dropcluster_jax.runs.config import RUNTIME_FIELDS, TrainConfig
from dropcluster_jax.training.loop import LogEntry
import base64
import zlib
from collections.abc import Iterable, Iterator, Mapping
import numpy as np
from dropcluster_jax.clustering import ClusterState
import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, PyTree, UInt8
from dropcluster_jax.data import ArrayExamples, Dataset, Loader, corrupt, corrupted_test, normalize, make_loader
from dropcluster_jax.data.corrupted import made
from dropcluster_jax.data.dataset import DatasetSpec
from dropcluster_jax.models import ResNet
from dropcluster_jax.runs.build import make_model, make_run_steps
from dropcluster_jax.runs.checkpoints import Checkpointer
from dropcluster_jax.runs.config import TrainConfig
from dropcluster_jax.training.loop import evaluate
from dropcluster_jax.runs.trainer import open_data
from dropcluster_jax.training.steps import Batch, TrainState

_FILES = ("config.json", "metrics.jsonl", "clusters.jsonl", "summary.json", "clusters.png", "evaluation.json")
_FOLDERS = ("checkpoints", "damaged", "profile", "tensorboard", "pictures")


def new_folder(config: TrainConfig) -> pathlib.Path:
    """A folder under `runs/` that does not exist yet, named by what is run and when."""
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    name = f"{slug(config.data.name)}-{config.model}-{config.drop.method}-{now}"
    candidates = [pathlib.Path("runs", name), *(pathlib.Path("runs", f"{name}-{i}") for i in range(2, 100))]
    return next(folder for folder in candidates if not folder.exists())


def slug(name: str) -> str:
    """A data set's name as part of a folder's."""
    return re.sub(r"[^0-9A-Za-z_.-]+", "-", name)


def holds_run(folder: pathlib.Path) -> bool:
    """Whether a folder holds a run, of whatever configuration; else it is new or empty.

    Raises:
        FileExistsError: it holds anything else.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"out must be a folder, got the file {folder}")
    if not folder.exists() or not any(folder.iterdir()):
        return False
    if not is_run(folder):
        raise FileExistsError(f"out must be a new or empty folder or one with a run, but {folder} holds other files")
    return True


def is_run(folder: pathlib.Path) -> bool:
    """Whether a folder is that of a run, by its `config.json`, be it damaged."""
    written = folder / "config.json"
    try:
        return written.is_file() and "drop" in _read_json(written)
    except ValueError:
        return True


def read_config(folder: pathlib.Path) -> tuple[TrainConfig, dict[str, Any] | None]:
    """The configuration of a run, and what it says of its data set; None of runs before version 0.1.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: its configuration is damaged, or of a version that has other options.
    """
    written = folder / "config.json"
    if not is_run(folder):
        raise FileNotFoundError(f"{folder} holds no run: there is no config.json of one")
    content = _read_json(written)
    content.pop("version", None)
    dataset = content.pop("dataset", None)
    try:
        return TrainConfig.from_json(content), dataset
    except TypeError as error:
        raise ValueError(f"{written} is damaged: {error}") from None


def finished_run(folder: pathlib.Path, config: TrainConfig) -> dict[str, Any] | None:
    """The summary of this very run, if the folder holds it finished; None if it is new, empty or holds it unfinished.

    Raises:
        FileExistsError: the folder holds anything else; where it is another configuration the differences are named.
        ValueError: what it holds is damaged, or of a version that has other options.
    """
    if not holds_run(folder):
        return None
    there, here = read_config(folder)[0].to_json(), config.to_json()
    for each in (there, here):
        for part, options in RUNTIME_FIELDS.items():  # the same images may lie elsewhere, and come otherwise
            for option in options:
                del (each[part] if part else each)[option]
    _check_equal(f"a run of another configuration, {folder}", there, here)
    return read_summary(folder)


def read_summary(folder: pathlib.Path) -> dict[str, Any] | None:
    """What a finished run has written of how it went; None of one that is not finished.

    Raises:
        ValueError: it is damaged.
    """
    path = folder / "summary.json"
    return _read_json(path) if path.is_file() else None


def check_same_data(folder: pathlib.Path, dataset: Mapping[str, Any]) -> None:
    """Refuse to go on with other images than a run began with.

    Args:
        folder: of the run, or an empty or new one.
        dataset: what `config.json` is to hold of the data set.

    Raises:
        FileExistsError: with the differences.
    """
    there = read_config(folder)[1] if holds_run(folder) else None
    if there is None:
        return
    names = ("classes", "shape", "train_examples")  # a mean may be another in its last bit on another machine
    was, is_now = ({name: each[name] for name in names} for each in (there, dataset))
    _check_equal(f"a run on other images, {folder}", was, is_now)


def _check_equal(what: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    differences = [f"{name} is {was!r} there and {is_now!r} here" for name, was, is_now in _compare(there, here)]
    if differences:
        raise FileExistsError(
            f"out holds {what}: {'; '.join(differences)}. Give another folder, or --restart to remove it"
        )


def clear(folder: pathlib.Path) -> None:
    """Remove a run, and nothing else, from its folder.

    Raises:
        FileExistsError: the folder holds anything else.
    """
    if not holds_run(folder):
        return
    for name in _FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in reversed(_FILES):  # what tells that it is a run last, so that a kill leaves one
        (folder / name).unlink(missing_ok=True)


class RecordFile:
    """`metrics.jsonl` or `clusters.jsonl`: records are added at its end; a context manager.

    Args:
        path: of the file.
        size: how much of what is there stays, in bytes: what a run wrote after the checkpoint from which it goes on
            is written again.
    """

    def __init__(self, path: pathlib.Path, size: int = 0) -> None:
        self._path = path
        path.touch()
        os.truncate(path, min(size, path.stat().st_size))
        self._file = path.open("a")

    def __enter__(self) -> "RecordFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def records(self) -> list[LogEntry]:
        """Those that are there."""
        return read_records(self._path)

    def add(self, record: LogEntry) -> None:
        """Write a record; of numbers that are not finite, which JSON has not, null."""
        self._file.write(json.dumps(_finite(record), allow_nan=False) + "\n")
        self._file.flush()

    def size(self) -> int:
        """In bytes."""
        return self._path.stat().st_size


def read_records(path: pathlib.Path) -> list[LogEntry]:
    """What a `RecordFile` holds; without its last line, where a run is just being written or was killed in it.

    Raises:
        ValueError: a line before the last is damaged.
    """
    lines = path.read_text().split("\n")[:-1]
    try:
        records = [json.loads(line) for line in lines]
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not all(isinstance(record, dict) and "step" in record for record in records):
        raise ValueError(f"{path} is damaged: a line is no record")
    return records


def with_known(folder: pathlib.Path, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluation without corrupted images, with those that `evaluation.json` has of the same checkpoint."""
    path = folder / "evaluation.json"
    if evaluation["corrupted"] or not path.is_file():
        return dict(evaluation)
    known = _read_json(path)
    if known.get("step") != evaluation["step"]:
        return dict(evaluation)
    return {**evaluation, **{name: known[name] for name in ("corrupted", "mean_corrupted_accuracy") if name in known}}


def write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    beside = path.with_name(path.name + ".new")
    try:
        beside.write_text(json.dumps(content, indent=2) + "\n")
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it holds no object")
    return content


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(part) for name, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _compare(there: Any, here: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        names = list(dict.fromkeys([*there, *here]))
        dotted = [(key, f"{name}.{key}" if name else key) for key in names]
        return [row for key, path in dotted for row in _compare(there.get(key), here.get(key), path)]
    return [] if there == here else [(name, there, here)]


CLUSTERS_FILE = "clusters.jsonl"


def clusters_record(step: int, clusters: Mapping[str, ClusterState]) -> dict[str, Any]:
    """A line: the step, and for each layer its labels, compressed.

    Args:
        step: after which the clusters were learned; 0 for those that a run begins with.
        clusters: for each layer's name its state.

    Example:
        >>> from dropcluster_jax import Grid
        >>> line = clusters_record(20, {"stage1": Grid(num_clusters=4).init((4, 4, 8))})
        >>> line["step"], line["layers"]["stage1"]["shape"]
        (20, [4, 4, 1])
    """
    return {"step": step, "layers": {layer: _encoded(np.asarray(state.labels)) for layer, state in clusters.items()}}


def read_history(folder: str | os.PathLike[str]) -> dict[str, list[tuple[int, np.ndarray]]]:
    r"""The clusters of a run over the course of training, as `viz.cluster_history_figure` takes them.

    Args:
        folder: of the run, finished or not.

    Returns:
        For each place, from the input to the output, its `(step, labels)`: first the grid at step 0, then what each
        update made of it; labels are int32 `(height, width, 1 or channels)`.

    Raises:
        FileNotFoundError: there is no such file, as in runs without clusters.
        ValueError: it is damaged.

    Example:
        >>> import json, tempfile
        >>> from dropcluster_jax import Grid
        >>> state = Grid(num_clusters=4).init((4, 4, 8))
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / CLUSTERS_FILE).write_text(json.dumps(clusters_record(20, {"stage1": state})) + "\n")
        >>> [(step, labels)] = read_history(folder)["stage1"]
        >>> step, bool((labels == state.labels).all())
        (20, True)
    """
    path = pathlib.Path(folder) / CLUSTERS_FILE
    found: dict[str, list[tuple[int, np.ndarray]]] = {}
    try:
        for step, labels in decode_steps(read_records(path)):
            for layer, each in labels.items():
                found.setdefault(layer, []).append((step, each))
    except (ValueError, KeyError, TypeError, AttributeError, zlib.error) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from None
    return found


def decode_steps(lines: Iterable[Mapping[str, Any]]) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Of each line the step, and for each layer its labels."""
    for line in lines:
        yield line["step"], {layer: _decoded(encoded) for layer, encoded in line["layers"].items()}


def _encoded(labels: np.ndarray) -> dict[str, Any]:
    packed = zlib.compress(labels.astype("<i4").tobytes())
    return {"shape": list(labels.shape), "labels": base64.b64encode(packed).decode()}


def _decoded(encoded: Mapping[str, Any]) -> np.ndarray:
    flat = np.frombuffer(zlib.decompress(base64.b64decode(encoded["labels"])), "<i4")
    return flat.reshape(encoded["shape"]).astype(np.int32)


def list_runs(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """A dict for each run in a folder and the folders within, by their names; links to folders are not followed.

    Args:
        folder: to look in.

    Returns:
        For each run `run`, its folder; `method`, `rate`, `model`, `data`, `seed`; `step`, the last that was recorded;
        `finished`; `test_accuracy`, that of the last evaluation, in [0, 1], or None; and `seconds`, None where the run
        is not finished. Of a run that cannot be read `run` and `error`.

    Raises:
        FileNotFoundError: there is no such folder, or no run in it.

    Example:
        >>> list_runs("/nowhere")
        Traceback (most recent call last):
        FileNotFoundError: there is no folder /nowhere
    """
    root = pathlib.Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}")
    runs = [_list_entry(path.parent) for path in sorted(root.rglob("config.json")) if is_run(path.parent)]
    if not runs:
        raise FileNotFoundError(f"{root} holds no run; `dropcluster train digits --out {root}/digits` makes one")
    return runs


def _list_entry(folder: pathlib.Path) -> dict[str, Any]:
    try:
        config, _ = read_config(folder)
        summary = read_summary(folder)
        records = read_records(folder / "metrics.jsonl") if (folder / "metrics.jsonl").is_file() else []
        tests = [record["accuracy"] for record in records if record["event"] == "test"]
        seconds = summary["seconds"] if summary is not None else None
    except (ValueError, OSError) as error:
        return {"run": str(folder), "error": str(error)}
    except KeyError as error:
        return {"run": str(folder), "error": f"its files are damaged: there is no {error}"}
    return {
        "run": str(folder),
        "method": config.drop.method,
        "rate": config.drop.rate if config.drop.method != "none" else 0.0,
        "model": config.model,
        "data": config.data.name,
        "seed": config.seed,
        "step": records[-1]["step"] if records else 0,
        "finished": summary is not None,
        "test_accuracy": tests[-1] if tests else None,
        "seconds": seconds,
    }


class LoadedRun(NamedTuple):
    """The network of a run.

    Attributes:
        model: the network; `model.apply(variables, images)` gives the logits of normalized images.
        variables: its parameters (the averages, where the run kept them), statistics and clusters.
        config: the configuration of the run.
        step: of the checkpoint.
        classes: their names.
        mean: the mean of each channel, by which images are normalized.
        std: the standard deviation.
        state: the whole state of the training.

    Example:
        >>> import flax.linen as nn
        >>> class Sums(nn.Module):
        ...     def __call__(self, x):
        ...         return x.sum((1, 2))
        >>> half = np.array([0.5], np.float32)
        >>> loaded = LoadedRun(Sums(), {}, TrainConfig(), 0, ("white",), mean=half, std=half, state=None)
        >>> loaded.logits(np.full((1, 2, 2, 1), 255, np.uint8)).tolist()  # (1 - 0.5) / 0.5 of each of 4 pixels
        [[4.0]]
    """

    model: ResNet
    variables: dict[str, PyTree]
    config: TrainConfig
    step: int
    classes: tuple[str, ...]
    mean: Float32[np.ndarray, " channels"]
    std: Float32[np.ndarray, " channels"]
    state: TrainState

    def logits(self, images: UInt8[Array, "batch height width channels"]) -> Float[Array, "batch classes"]:
        """What the network says of images as they are stored.

        Args:
            images: uint8 `(batch, height, width, channels)`, values 0 to 255.

        Returns:
            float32 `(batch, classes)`.

        Raises:
            TypeError: `images` is not uint8.
        """
        prepared = normalize(jnp.asarray(images), self.mean, self.std)
        return self.model.apply(self.variables, prepared)  # pyright: ignore[reportReturnType]


def load_run(folder: str | os.PathLike[str], *, best: bool = False, say: Callable[[str], None] = print) -> LoadedRun:
    """The network that a run has trained, from its newest sound checkpoint.

    Needs no data set, and reads no pickle.

    Args:
        folder: of the run, as `dropcluster train` leaves it; the run need not be over.
        best: take the checkpoint with the best test accuracy.
        say: called with a message where a checkpoint is damaged.

    Returns:
        The network, what it has learned, and how its images are normalized.

    Raises:
        FileNotFoundError: the folder holds no run, or one without a checkpoint.
        CorruptCheckpointError: all checkpoints are damaged.
        ImportError: Orbax is not installed.
        ValueError: the run is of another version, which has other options or checkpoints, or its configuration is
            damaged.

    Example:
        >>> import tempfile
        >>> from dropcluster_jax.training import run
        >>> from dropcluster_jax.runs.config import DropConfig, TrainConfig
        >>> out = pathlib.Path(tempfile.mkdtemp(), "run")
        >>> config = TrainConfig(model="resnet8", steps=8, batch_size=32, drop=DropConfig("none"), out=out)
        >>> _ = run.execute(run.prepare(config))
        >>> loaded = load_run(out)
        >>> loaded.logits(jnp.zeros((2, 8, 8, 1), jnp.uint8)).shape, loaded.step, sorted(loaded.variables)
        ((2, 10), 8, ['batch_stats', 'params'])
    """
    path = pathlib.Path(folder)
    config, about = read_config(path)
    if about is None:
        raise FileNotFoundError(f"{path} holds a run of an older version, which kept no checkpoint")
    classes, shape = tuple(about["classes"]), tuple(about["shape"])
    mean, std = (np.array(about[name], np.float32) for name in ("mean", "std"))
    model = make_model(config, len(classes), shape)
    # Only the shapes of the state count here, so one image stands for all.
    one = ArrayExamples(np.zeros((1, *shape), np.uint8), np.zeros(1, np.int32))
    known = DatasetSpec(len(classes), tuple(mean.tolist()), tuple(std.tolist()))
    steps = make_run_steps(config, model, Dataset(config.data.name, one, one, classes, known=known), 1)
    example = {"image": jax.ShapeDtypeStruct((1, *shape), jnp.uint8), "label": jax.ShapeDtypeStruct((1,), jnp.int32)}
    target = jax.eval_shape(steps.init, jax.random.key(0), example)
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), target)
    restored = Checkpointer(path / "checkpoints", say=say).restore(target, best=best, quarantine=False)
    if restored is None:
        raise FileNotFoundError(f"{path} holds no checkpoint yet")
    state = restored.state
    return LoadedRun(model, state.variables(ema=True), config, int(state.step), classes, mean, std, state)


def evaluate_run(
    folder: str | os.PathLike[str],
    *,
    best: bool = False,
    corruptions: Iterable[str] = (),
    data_dir: pathlib.Path | None = None,
    report: Callable[[dict[str, Any]], None] = lambda record: None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """How well the network of a run does on its test images, as they are and corrupted.

    Args:
        folder: of the run.
        best: take the checkpoint with the best test accuracy.
        corruptions: names of `CORRUPTIONS`, each at five severities.
        data_dir: where TFDS has prepared the data, if not where the run had it.
        report: called with each result: `corruption` (None of the images as they are), `severity`, `accuracy`,
            `loss`, `count` and `origin`.
        say: called with a message where a checkpoint is damaged.

    Returns:
        `step`; `test`, the result on the images as they are; `corrupted`, a list of the others; and
        `mean_corrupted_accuracy`, over these, None where there are none.

    Raises:
        FileNotFoundError, CorruptCheckpointError, ImportError, ValueError: as of `load_run` and `run.prepare`.

    Example:
        >>> evaluate_run("runs/digts")  # evaluate_run("runs/digits")["test"]["accuracy"], after `dropcluster train`
        Traceback (most recent call last):
        FileNotFoundError: runs/digts holds no run: there is no config.json of one
    """
    loaded = load_run(folder, best=best, say=say)
    config = loaded.config
    if data_dir is not None:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, dir=data_dir))
    dataset, loader = open_data(config)
    steps = jax.jit(make_run_steps(config, loaded.model, dataset, 1).evaluate)

    def measure(batches: Iterable[Batch], corruption: str | None, severity: int, origin: str) -> dict[str, Any]:
        results = evaluate(steps, loaded.state, batches)
        record = {"corruption": corruption, "severity": severity, **results, "origin": origin}
        report(record)
        return record

    clean = measure(loader.test(), None, 0, dataset.name)
    corrupted = [
        measure(*_corrupted(dataset, loader, config, name, severity)) for name in corruptions for severity in range(1, 6)
    ]
    mean = float(np.mean([record["accuracy"] for record in corrupted])) if corrupted else None
    return {"step": loaded.step, "test": clean, "corrupted": corrupted, "mean_corrupted_accuracy": mean}


def _corrupted(
    dataset: Dataset, loader: Loader, config: TrainConfig, name: str, severity: int
) -> tuple[Iterable[Batch], str, int, str]:
    if isinstance(dataset.test, ArrayExamples):
        examples, origin = corrupted_test(dataset, name, severity, data_dir=config.data.dir)
        batches = make_loader(dataclasses.replace(dataset, test=examples), config.batch_size).test()
        return batches, name, severity, origin

    def stream() -> Iterable[Batch]:
        for number, batch in enumerate(loader.test()):
            key = jax.random.fold_in(jax.random.key(0), number)
            yield {**batch, "image": jnp.asarray(corrupt(name, severity, key, np.asarray(batch["image"])))}

    return stream(), name, severity, made(name)
