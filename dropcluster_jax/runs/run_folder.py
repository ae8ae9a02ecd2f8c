"""The folder of a run: its files, and what can be read back from it.

A run folder contains `config.json`, `metrics.jsonl` (log entries of `fit`, one per line), `clusters.jsonl` (cluster
labels after each update), `summary.json`, `clusters.png`, `checkpoints/`, `damaged/` (checkpoints that failed
verification), `profile/`, `tensorboard/`, and what later commands add: `evaluation.json` and `pictures/`.
"""

import base64
import contextlib
import dataclasses
import datetime
import itertools
import json
import math
import os
import pathlib
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, UInt8

from dropcluster_jax.clustering import ClusterState
from dropcluster_jax.data import (
    ArrayExamples,
    Dataset,
    DatasetSpec,
    Loader,
    corrupt,
    corrupted_test,
    load,
    make_loader,
    normalize,
)
from dropcluster_jax.data.corrupted import computed_origin
from dropcluster_jax.data.opening import open_data
from dropcluster_jax.models import ResNet
from dropcluster_jax.runs import paths
from dropcluster_jax.runs.build import abstract_batch, make_model, make_run_steps
from dropcluster_jax.runs.checkpoints import Checkpointer
from dropcluster_jax.runs.config import TrainConfig, without_runtime_fields
from dropcluster_jax.runs.paths import AnyPath, as_path
from dropcluster_jax.training.loop import LogEntry, evaluate
from dropcluster_jax.training.steps import Batch, TrainState

CONFIG, METRICS, CLUSTERS, SUMMARY = "config.json", "metrics.jsonl", "clusters.jsonl", "summary.json"
EVALUATION, CLUSTERS_FIGURE = "evaluation.json", "clusters.png"
CHECKPOINTS, PROFILE, TENSORBOARD, PICTURES = "checkpoints", "profile", "tensorboard", "pictures"
_FILES = (CONFIG, METRICS, CLUSTERS, SUMMARY, CLUSTERS_FIGURE, EVALUATION)
_FOLDERS = (CHECKPOINTS, "damaged", PROFILE, TENSORBOARD, PICTURES)
_LOCK = ".lock"
_FILES_OF_SYSTEMS = ("Thumbs.db", "desktop.ini", "@eaDir", "lost+found")  # in addition to hidden files
_MAX_SLUG = 80


class RunFolderError(OSError):
    """The folder of a run cannot be created or is damaged, or another process is writing to it."""


# ---- The folder


def new_folder(config: TrainConfig) -> pathlib.Path:
    """Creates a folder under `runs/`, named after the configuration and the time, and returns its path.

    Processes that start at the same time get different folders.
    """
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    name = f"{slug(config.data.name)}-{config.model}-{config.drop.method}-{now}"
    parent = pathlib.Path("runs")
    try:
        parent.mkdir(exist_ok=True)
        for suffix in itertools.chain([""], (f"-{i}" for i in itertools.count(2))):
            with contextlib.suppress(FileExistsError):
                (parent / f"{name}{suffix}").mkdir()
                return parent / f"{name}{suffix}"
    except OSError as error:
        raise RunFolderError(f"no folder can be created in {parent}: {error.strerror}; pass --out") from None
    raise AssertionError("unreachable")


def slug(name: str) -> str:
    """Returns the name of a dataset as part of a folder name; of long paths, the end."""
    return re.sub(r"[^0-9A-Za-z_.-]+", "-", name)[-_MAX_SLUG:]


@contextlib.contextmanager
def lock(folder: AnyPath, notify: Callable[[str], None]) -> Iterator[None]:
    """Creates the folder if needed, and locks it while this process writes a run to it.

    The operating system releases the lock when the process ends, for whatever reason. `notify` is called if the file
    system does not support locks. Object stores do not.

    Raises:
        RunFolderError: If another process holds the lock, or the folder cannot be written to.
    """
    if not isinstance(folder, pathlib.Path):
        notify(f"{folder} cannot be locked: make sure that no other process writes to it")
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / _LOCK).open("ab")
    except FileExistsError as error:  # a file, or a symbolic link to nothing
        raise RunFolderError(f"out must be a folder, but {error.filename} exists and is not one") from None
    except OSError as error:
        raise RunFolderError(f"out cannot be written to: {error.strerror}: {error.filename}") from None
    with file:
        try:
            _lock_file(file.fileno())
        except (BlockingIOError, PermissionError):
            raise RunFolderError(
                f"another process is writing to the run folder {folder}; wait until it ends, or pass a different --out"
            ) from None
        except OSError as error:
            notify(f"{folder} cannot be locked ({error.strerror}): make sure that no other process writes to it")
        yield


def _lock_file(descriptor: int) -> None:
    """Locks an open file; raises BlockingIOError (PermissionError on Windows) if another process has locked it."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_run(folder: AnyPath) -> bool:
    """Returns whether a folder contains a run, by its `config.json`, even if that is damaged."""
    path = folder / CONFIG
    try:
        return "drop" in _read_json(path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False
    except ValueError:
        return True


def holds_run(folder: AnyPath) -> bool:
    """Returns whether a folder contains a run; raises FileExistsError if it contains anything else.

    Hidden files and those that operating systems create do not count.
    """
    if isinstance(folder, pathlib.Path) and folder.exists() and not folder.is_dir():
        raise FileExistsError(f"out must be a folder, got the file {folder}")
    if all(path.name.startswith(_FILES_OF_SYSTEMS) for path in paths.visible_children(folder)):
        return False
    if not is_run(folder):
        raise FileExistsError(f"out must be a new or empty folder or contain a run, but {folder} contains other files")
    for name in (*_FILES, *_FOLDERS) if isinstance(folder, pathlib.Path) else ():
        if (folder / name).exists() and (folder / name).is_dir() != (name in _FOLDERS):
            kind = "folder" if name in _FOLDERS else "file"
            raise FileExistsError(f"{folder / name} must be a {kind}; remove it to train in {folder}")
    return True


def clear(folder: AnyPath) -> None:
    """Removes a run from its folder, and no other files."""
    if not holds_run(folder):
        return
    for name in _FOLDERS:
        paths.remove_folder(folder / name)
    for name in reversed(_FILES):  # config.json, which identifies a run, last
        (folder / name).unlink(missing_ok=True)


# ---- Configuration, dataset and results


def write_config(folder: AnyPath, config: TrainConfig, spec: DatasetSpec, version: str) -> None:
    """Writes `config.json`, creating the folder if needed."""
    paths.create_folder(folder)
    write_json(folder / CONFIG, {"version": version, **config.to_json(), "dataset": spec.to_json()})


def read_config(folder: AnyPath) -> tuple[TrainConfig, DatasetSpec]:
    """Returns the configuration and the dataset description of a run.

    Raises:
        FileNotFoundError: If the folder contains no run.
        ValueError: If `config.json` is damaged, or was written by a version with other options.
    """
    path = folder / CONFIG
    if not is_run(folder):
        raise FileNotFoundError(f"{folder} is not a run folder: it has no {CONFIG} of a run")
    content = _read_json(path)
    content.pop("version", None)
    try:
        spec = DatasetSpec.from_json(content.pop("dataset"))
        return TrainConfig.from_json(content), spec
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is damaged or was written by a different version: {error}") from None


def finished_run(folder: AnyPath, config: TrainConfig) -> dict[str, Any] | None:
    """Returns the summary if the folder contains this run, finished; None if it is empty or the run is unfinished.

    A different path of the dataset is not a difference, as long as the examples are the same.

    Raises:
        FileExistsError: If the folder contains anything else; for a different configuration, with the differences.
        ValueError: If the files are damaged, or were written by a version with other options.
    """
    if not holds_run(folder):
        return None
    saved, spec = read_config(folder)
    moved = _is_moved(saved.data.name, config.data.name) and spec.test_fingerprint is not None
    if moved:
        saved = dataclasses.replace(saved, data=dataclasses.replace(saved.data, name=config.data.name))
    differences = _differences(without_runtime_fields(saved), without_runtime_fields(config))
    _check_equal(
        f"a run with a different configuration, {folder}",
        [f"{name} is {old!r} there and {new!r} here" for name, old, new in differences],
    )
    summary = read_summary(folder)
    if moved and summary is not None:  # an unfinished run is checked when its data are opened
        check_same_dataset(folder, load(config.data).spec)
    return summary


def _is_moved(*names: str) -> bool:
    """Returns whether the names of datasets are different paths of the same kind."""
    kinds = {name.partition(":")[0] for name in names}
    return len(set(names)) > 1 and kinds in ({"npz"}, {"folder"})


def check_same_dataset(folder: AnyPath, spec: DatasetSpec) -> None:
    """Raises FileExistsError if the folder contains a run on a different dataset."""
    if not holds_run(folder):
        return
    _, saved = read_config(folder)
    _check_equal(f"a run on a different dataset, {folder}", saved.differences(spec))


def open_run_data(
    config: TrainConfig, spec: DatasetSpec, allow_changed_data: bool, notify: Callable[[str], None]
) -> tuple[Dataset, Loader, list[str]]:
    """Opens the data of a run, whose dataset `spec` describes, and returns how they differ from that description.

    With `allow_changed_data`, `notify` is called with the differences.

    Raises:
        FileNotFoundError: If the data do not exist.
        ValueError: If they have changed and `allow_changed_data` is False, or the network does not apply to them.
    """
    try:
        dataset, loader = open_data(config.data, config.batch_size, config.seed, fake=config.fake_data)
    except FileNotFoundError as error:
        if config.data.name.startswith(("npz:", "folder:")):
            raise FileNotFoundError(f"{error}; if it was moved, --data-dir is the folder that it is in now") from None
        raise
    differences = spec.differences(dataset.spec)
    if differences:
        message = f"the data are not those the run was trained on: {'; '.join(differences)}"
        if (dataset.spec.num_classes, dataset.spec.image_shape) != (spec.num_classes, spec.image_shape):
            raise ValueError(f"{message}; the network needs the same number of classes and image shape")
        if not allow_changed_data:
            raise ValueError(f"{message}; --allow-changed-data uses them anyway")
        notify(message)
    return dataset, loader, differences


def read_summary(folder: AnyPath) -> dict[str, Any] | None:
    """Returns the summary of a finished run; None if the run is unfinished."""
    try:
        return _read_json(folder / SUMMARY)
    except FileNotFoundError:
        return None


def read_evaluation(folder: AnyPath) -> dict[str, Any]:
    """Returns the content of `evaluation.json`, empty if there is none; raises ValueError if it is damaged."""
    try:
        return _read_json(folder / EVALUATION)
    except FileNotFoundError:
        return {}


def merge_evaluation(previous: Mapping[str, Any], evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Adds the earlier results on corrupted images of the same checkpoint and data, unless there are new ones."""
    if evaluation["corrupted"]:
        return dict(evaluation)
    if previous.get("step") != evaluation["step"] or previous.get("changed_data", []) != evaluation["changed_data"]:
        return dict(evaluation)
    names = ("corrupted", "mean_corrupted_accuracy")
    return {**evaluation, **{name: previous[name] for name in names if name in previous}}


def to_json(content: Any) -> str:
    """Returns JSON, in which NaN and infinities, which JSON does not have, become null."""
    return json.dumps(_nonfinite_to_none(content), indent=2, allow_nan=False)


def write_json(path: AnyPath, content: Mapping[str, Any]) -> None:
    """Writes a JSON file atomically; see `to_json`."""
    paths.write_bytes(path, f"{to_json(content)}\n".encode())


def _read_json(path: AnyPath) -> dict[str, Any]:
    try:
        content = json.loads(paths.read_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it does not contain a JSON object")
    return content


def _check_equal(description: str, differences: Sequence[str]) -> None:
    if differences:
        raise FileExistsError(
            f"out contains {description}: {'; '.join(differences)}. Choose a different folder, or pass --restart to "
            "remove the run"
        )


def _differences(saved: Any, current: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """Returns the dotted name and both values of each leaf that differs."""
    if isinstance(saved, Mapping) and isinstance(current, Mapping):
        names = list(dict.fromkeys([*saved, *current]))
        dotted = [(key, f"{name}.{key}" if name else key) for key in names]
        return [row for key, path in dotted for row in _differences(saved.get(key), current.get(key), path)]
    return [] if saved == current else [(name, saved, current)]


# ---- Log entries


class JsonLinesFile:
    """A file with a log entry per line; a context manager.

    Existing entries beyond `size` bytes, which are later than the restored checkpoint, are removed, and an incomplete
    last line, which a power failure may leave.
    """

    def __init__(self, path: pathlib.Path, size: int = 0) -> None:
        self._path = path
        path.touch()
        os.truncate(path, path.read_bytes()[:size].rfind(b"\n") + 1)
        self._file = path.open("a")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self) -> list[LogEntry]:
        """Returns the entries in the file."""
        return read_json_lines(self._path)

    def append(self, entry: LogEntry) -> None:
        """Appends an entry; NaN and infinities, which JSON does not have, become null."""
        self._file.write(json.dumps(_nonfinite_to_none(entry), allow_nan=False) + "\n")
        self._file.flush()

    def size(self) -> int:
        """Returns the size in bytes, all of which are on the disk."""
        os.fsync(self._file.fileno())
        return self._path.stat().st_size


def read_json_lines(path: AnyPath) -> list[LogEntry]:
    """Returns the entries of a `JsonLinesFile`, except for an incomplete last line."""
    try:
        entries = [json.loads(line) for line in paths.read_text(path).split("\n")[:-1]]
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not all(isinstance(entry, dict) and "step" in entry for entry in entries):
        raise ValueError(f"{path} is damaged: a line is not a log entry")
    return entries


def _nonfinite_to_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _nonfinite_to_none(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_nonfinite_to_none(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---- Cluster history


def encode_clusters(step: int, clusters: Mapping[str, ClusterState]) -> LogEntry:
    """Returns the entry of `clusters.jsonl` with the compressed labels of each place after a step."""
    return {"step": step, "layers": {place: _encode(np.asarray(state.labels)) for place, state in clusters.items()}}


def decode_clusters(entries: Iterable[LogEntry]) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Yields the step and the labels by place of each entry of `clusters.jsonl`."""
    for entry in entries:
        yield entry["step"], {place: _decode(encoded) for place, encoded in entry["layers"].items()}


def read_history(folder: str | os.PathLike[str]) -> dict[str, list[tuple[int, np.ndarray]]]:
    r"""Returns the clusters of a run over the course of training, as `viz.cluster_history_figure` takes them.

    Args:
        folder: Run folder; the run may be unfinished.

    Returns:
        For each place, from the input to the output, a list of `(step, labels)`: the grid at step 0, then the result
        of each update. Labels are int32 `(height, width, 1 or channels)`.

    Raises:
        FileNotFoundError: If there is no `clusters.jsonl`, as in runs without clusters.
        ValueError: If the file is damaged.

    Example:
        >>> import json, tempfile
        >>> from dropcluster_jax import Grid
        >>> state = Grid(num_clusters=4).init((4, 4, 8))
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / CLUSTERS).write_text(json.dumps(encode_clusters(20, {"stage1": state})) + "\n")
        >>> [(step, labels)] = read_history(folder)["stage1"]
        >>> step, bool((labels == state.labels).all())
        (20, True)
    """
    path = as_path(folder) / CLUSTERS
    entries, history = read_json_lines(path), dict[str, list[tuple[int, np.ndarray]]]()
    try:
        for step, places in decode_clusters(entries):
            for place, labels in places.items():
                history.setdefault(place, []).append((step, labels))
    except (ValueError, KeyError, TypeError, AttributeError, zlib.error) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from None
    return history


def _encode(labels: np.ndarray) -> dict[str, Any]:
    compressed = zlib.compress(labels.astype("<i4").tobytes())
    return {"shape": list(labels.shape), "labels": base64.b64encode(compressed).decode()}


def _decode(encoded: Mapping[str, Any]) -> np.ndarray:
    flat = np.frombuffer(zlib.decompress(base64.b64decode(encoded["labels"])), "<i4")
    return flat.reshape(encoded["shape"]).astype(np.int32)


# ---- Listing


def list_runs(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Returns a dict for each run in a folder and its subfolders, sorted by path; symbolic links are not followed.

    Args:
        folder: Folder to search.

    Returns:
        For each run: `run`, its folder; `method`, `rate`, `model`, `data`, `seed`; `step`, the last one logged;
        `finished`; `test_accuracy`, that of the last evaluation, in [0, 1], or None; and `seconds`, None if
        unfinished. For a run that cannot be read: `run` and `error`.

    Raises:
        FileNotFoundError: If the folder does not exist or contains no run.

    Example:
        >>> list_runs("/nowhere")
        Traceback (most recent call last):
        FileNotFoundError: no folder /nowhere
    """
    root = as_path(folder)
    if isinstance(root, pathlib.Path) and not root.is_dir():
        raise FileNotFoundError(f"no folder {root}")
    runs = [_describe(path.parent) for path in paths.find_files(root, CONFIG) if is_run(path.parent)]
    if not runs:
        raise FileNotFoundError(f"{root} contains no runs; `dropcluster train digits --out {root}/digits` creates one")
    return runs


def _describe(folder: AnyPath) -> dict[str, Any]:
    try:
        config, _ = read_config(folder)
        summary = read_summary(folder)
        entries = read_json_lines(folder / METRICS) if (folder / METRICS).exists() else []
        accuracies = [entry["accuracy"] for entry in entries if entry["event"] == "test"]
        seconds = summary["seconds"] if summary is not None else None
    except (ValueError, OSError) as error:
        return {"run": str(folder), "error": str(error)}
    except KeyError as error:
        return {"run": str(folder), "error": f"files are damaged: missing {error}"}
    return {
        "run": str(folder),
        "method": config.drop.method,
        "rate": config.drop.rate if config.drop.method != "none" else 0.0,
        "model": config.model,
        "data": config.data.name,
        "seed": config.seed,
        "step": entries[-1]["step"] if entries else 0,
        "finished": summary is not None,
        "test_accuracy": accuracies[-1] if accuracies else None,
        "seconds": seconds,
    }


# ---- The trained network


class LoadedRun(NamedTuple):
    """The trained network of a run.

    Attributes:
        model: The network; `model.apply(variables, images)` returns the logits of normalized images.
        variables: Its parameters (moving averages, if the run kept them), statistics and clusters.
        config: The configuration of the run.
        spec: The description of its dataset: class names, image shape, mean and standard deviation.
        step: Step of the checkpoint.
        state: The whole training state.

    Example:
        >>> import flax.linen as nn
        >>> class Sum(nn.Module):
        ...     def __call__(self, x):
        ...         return x.sum((1, 2))
        >>> spec = DatasetSpec("gray", ("white",), (2, 2, 1), mean=(0.5,), std=(0.5,), num_train_examples=1)
        >>> loaded = LoadedRun(Sum(), {}, TrainConfig(), spec, step=0, state=None)
        >>> loaded.logits(np.full((1, 2, 2, 1), 255, np.uint8)).tolist()  # (1 - 0.5) / 0.5 for each of 4 pixels
        [[4.0]]
    """

    model: ResNet
    variables: dict[str, PyTree]
    config: TrainConfig
    spec: DatasetSpec
    step: int
    state: TrainState

    def logits(self, images: UInt8[Array, "batch height width channels"]) -> Float[Array, "batch classes"]:
        """Returns the logits of unnormalized images.

        Args:
            images: uint8 `(batch, height, width, channels)`, values from 0 to 255.

        Returns:
            float32 `(batch, classes)`.

        Raises:
            TypeError: If `images` is not uint8.
            ValueError: If `images` has a different number of axes or channels.
        """
        images, channels = jnp.asarray(images), self.spec.image_shape[-1]
        if images.ndim != 4 or images.shape[-1] != channels:
            hint = "; add a batch axis to a single image: images[None]" if images.ndim == 3 else ""
            raise ValueError(
                f"images must have shape (batch, height, width, {channels}), got {tuple(images.shape)}{hint}"
            )
        normalized = normalize(images, self.spec.mean, self.spec.std)
        return self.model.apply(self.variables, normalized)  # pyright: ignore[reportReturnType]


def load_run(
    folder: str | os.PathLike[str],
    *,
    best: bool = False,
    step: int | None = None,
    notify: Callable[[str], None] = print,
) -> LoadedRun:
    """Loads the network of a run from its latest intact checkpoint. Does not open the dataset.

    Args:
        folder: Run folder; the run may be unfinished.
        best: Whether to load the checkpoint with the best test accuracy.
        step: Step of the checkpoint to load instead; see `checkpoint.keep` in `TrainConfig`.
        notify: Called with a message if a checkpoint is damaged.

    Returns:
        The network with its variables, configuration and dataset description.

    Raises:
        FileNotFoundError: If the folder contains no run, or the run has no checkpoint or none of this step.
        CorruptCheckpointError: If no checkpoint is intact.
        ImportError: If Orbax is not installed.
        ValueError: If the configuration is damaged, or the run was written by a version with other options.

    Example:
        >>> import tempfile
        >>> from dropcluster_jax.runs import DropConfig, trainer
        >>> out = pathlib.Path(tempfile.mkdtemp(), "run")
        >>> config = TrainConfig(model="resnet8", steps=8, batch_size=32, drop=DropConfig("none"), out=out)
        >>> _ = trainer.execute(trainer.prepare(config))
        >>> loaded = load_run(out)
        >>> loaded.logits(jnp.zeros((2, 8, 8, 1), jnp.uint8)).shape, loaded.step, sorted(loaded.variables)
        ((2, 10), 8, ['batch_stats', 'params'])
    """
    path = as_path(folder)
    config, spec = read_config(path)
    model = make_model(config, spec)
    init = make_run_steps(config, model, spec).init
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
        jax.eval_shape(init, jax.random.key(0), abstract_batch(spec, batch_size=1)),
    )
    with contextlib.closing(Checkpointer(path / CHECKPOINTS, notify=notify)) as checkpointer:
        restored = checkpointer.restore(target, best=best, step=step, quarantine=False)
        steps = checkpointer.steps()
    if restored is None and steps:
        raise FileNotFoundError(f"{path} has no checkpoint of step {step}, only of {', '.join(map(str, steps))}")
    if restored is None:
        raise FileNotFoundError(f"{path} has no checkpoint yet")
    state = restored.state
    return LoadedRun(model, state.variables(ema=True), config, spec, int(state.step), state)


def evaluate_run(
    folder: str | os.PathLike[str],
    *,
    best: bool = False,
    corruptions: Iterable[str] = (),
    num_corrupted: int | None = None,
    data_dir: pathlib.Path | None = None,
    allow_changed_data: bool = False,
    log: Callable[[dict[str, Any]], None] = lambda result: None,
    notify: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Evaluates the network of a run on its test images, and on corrupted ones.

    Args:
        folder: Run folder.
        best: Whether to evaluate the checkpoint with the best test accuracy.
        corruptions: Names of `CORRUPTIONS`, each of which is evaluated at five severities.
        num_corrupted: Number of test images to corrupt, the first ones; None for all. Only for in-memory datasets.
        data_dir: TFDS data directory, if not the one the run used, or the folder that an archive or image folder has
            been moved to.
        allow_changed_data: Whether to evaluate on data that are not those the run was trained on. Labels are compared
            by index; the number of classes and the image shape must be the same.
        log: Called with each result: `corruption` (None for the original images), `severity`, `accuracy`, `loss`,
            `count` and `origin`.
        notify: Called with a message if a checkpoint is damaged or the data have changed.

    Returns:
        `step`, the step of the checkpoint; `test`, the result on the original images; `corrupted`, a list of the other
        results; `mean_corrupted_accuracy`, None if there are none; and `changed_data`, a list of how the data differ
        from those the run was trained on.

    Raises:
        FileNotFoundError, CorruptCheckpointError, ImportError: As in `load_run` and `data.load`.
        ValueError: As in `load_run` and `data.load`; if the data have changed, unless that is allowed.

    Example:
        >>> evaluate_run("runs/digts")
        Traceback (most recent call last):
        FileNotFoundError: runs/digts is not a run folder: it has no config.json of a run
    """
    loaded = load_run(folder, best=best, notify=notify)
    config = loaded.config
    if data_dir is not None:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, dir=data_dir))
    dataset, loader, differences = open_run_data(config, loaded.spec, allow_changed_data, notify)
    evaluate_step = jax.jit(make_run_steps(config, loaded.model, loaded.spec).evaluate)

    def measure(batches: Iterable[Batch], corruption: str | None, severity: int, origin: str) -> dict[str, Any]:
        metrics = evaluate(evaluate_step, loaded.state, batches)
        result = {"corruption": corruption, "severity": severity, **metrics, "origin": origin}
        log(result)
        return result

    clean = measure(loader.test(), None, 0, dataset.name)
    corrupted = []
    for name in corruptions:
        for severity in range(1, 6):
            batches, origin = _corrupted_batches(dataset, loader, config, name, severity, num_corrupted)
            corrupted.append(measure(batches, name, severity, origin))
    mean = float(np.mean([result["accuracy"] for result in corrupted])) if corrupted else None
    return {
        "step": loaded.step,
        "test": clean,
        "corrupted": corrupted,
        "mean_corrupted_accuracy": mean,
        "changed_data": differences,
    }


def _corrupted_batches(
    dataset: Dataset, loader: Loader, config: TrainConfig, name: str, severity: int, number: int | None
) -> tuple[Iterable[Batch], str]:
    """Returns corrupted test batches and the origin of the images."""
    if isinstance(dataset.test, ArrayExamples):
        if number is not None and number < len(dataset.test):  # the published sets contain all test images
            dataset = dataclasses.replace(dataset, test=dataset.test.take(slice(number)), test_split=None)
        examples, origin = corrupted_test(dataset, name, severity, data_dir=config.data.dir)
        loader = make_loader(dataclasses.replace(dataset, train=examples, test=examples), config.batch_size)
        return loader.test(), origin

    def stream() -> Iterator[Batch]:
        for index, batch in enumerate(loader.test()):
            key = jax.random.fold_in(jax.random.key(0), index)
            yield {**batch, "image": jnp.asarray(corrupt(name, severity, key, np.asarray(batch["image"])))}

    return stream(), computed_origin(name)
