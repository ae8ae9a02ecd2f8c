"""Reading runs back: their list, the trained network, and its evaluation."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath
from jaxtyping import Array, Float, PyTree, UInt8

from dropcluster_jax.data import (
    Dataset,
    DatasetSpec,
    Loader,
    normalize,
)
from dropcluster_jax.data.decoding import decode, decode_center
from dropcluster_jax.data.opening import open_data
from dropcluster_jax.models import ResNet
from dropcluster_jax.runs.build import abstract_state, make_model, make_run_steps
from dropcluster_jax.runs.checkpoints import Checkpointer
from dropcluster_jax.runs.config import TrainConfig, as_path, without_runtime_fields
from dropcluster_jax.runs.folder import CHECKPOINTS, METRICS, is_run, read_config, read_summary
from dropcluster_jax.runs.intervals import interval
from dropcluster_jax.runs.log import read_entries
from dropcluster_jax.training.data_parallel import DataParallel
from dropcluster_jax.training.steps import TrainState


def list_runs(folder: str | os.PathLike[str], *, aggregate: bool = False) -> list[dict[str, Any]]:
    """Returns a dict for each run in a folder and its subfolders, sorted by path.

    Symbolic links are not followed, and run folders are not searched for further runs.

    Args:
        folder: Folder to search.
        aggregate: Whether to return a dict for all finished runs that differ only in their seeds.

    Returns:
        For each run: `run`, its folder; `method`, `rate`, `size` (block or mean cluster size, or None), `fill`,
        `places`, `model`, `data`, `seed`; `step`, the last one logged; `finished`; `eval_accuracy`, that of the last
        evaluation, in [0, 1], or None; and `seconds`, None if unfinished. For a run that cannot be read: `run` and
        `error`.
        With `aggregate`, `eval_accuracy` is the mean, `low` and `high` are the bounds of its 95% interval, and `runs`
        lists the folders instead of `run`, `seed` and `seconds`.

    Raises:
        FileNotFoundError: If the folder does not exist or contains no run.

    Example:
        >>> list_runs("/nowhere")
        Traceback (most recent call last):
        FileNotFoundError: no folder /nowhere
    """
    root = as_path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}")
    runs = [_describe(path) for path in _find_runs(root)]
    if not runs:
        raise FileNotFoundError(f"{root} contains no runs; `dropcluster train digits --out {root}/digits` creates one")
    return _aggregate(runs) if aggregate else runs


def _aggregate(runs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        if run.get("finished"):
            config, _ = read_config(as_path(run["run"]))
            data = dataclasses.replace(config.data, seed=0, validation_seed=0)
            without_seeds = without_runtime_fields(dataclasses.replace(config, seed=0, data=data))
            groups.setdefault(json.dumps(without_seeds, sort_keys=True), []).append(run)
    rows = []
    for group in groups.values():
        common = {name: value for name, value in group[0].items() if name not in ("run", "seed", "seconds")}
        mean = interval([run["eval_accuracy"] for run in group])
        bounds = {"eval_accuracy": mean.mean, "low": mean.low, "high": mean.high}
        rows.append({**common, **bounds, "runs": [run["run"] for run in group]})
    return rows


def _find_runs(folder: epath.Path) -> Iterator[epath.Path]:
    if is_run(folder):
        yield folder
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not os.path.islink(path):
            yield from _find_runs(path)


def _describe(folder: epath.Path) -> dict[str, Any]:
    try:
        config, _ = read_config(folder)
        summary = read_summary(folder)
        entries = read_entries(folder / METRICS)
        accuracies = [entry["accuracy"] for entry in entries if entry["event"] == "eval"]
        seconds = summary["seconds"] if summary is not None else None
    except (ValueError, OSError) as error:
        return {"run": str(folder), "error": str(error)}
    except KeyError as error:
        return {"run": str(folder), "error": f"files are damaged: missing {error}"}
    drop, is_dropping = config.drop, config.drop.method != "none"
    sizes = {"drop_block": drop.block_size, "corr_drop": drop.block_size, "drop_cluster": drop.cluster_size}
    return {
        "run": str(folder),
        "method": drop.method,
        "rate": drop.rate if is_dropping else 0.0,
        "size": sizes.get(drop.method),
        "fill": drop.fill if is_dropping else None,
        "places": list(drop.places) if is_dropping else [],
        "model": config.model,
        "data": config.data.name,
        "seed": config.seed,
        "step": entries[-1]["step"] if entries else 0,
        "finished": summary is not None,
        "eval_accuracy": accuracies[-1] if accuracies else None,
        "seconds": seconds,
    }


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
        >>> import numpy as np
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
            images: uint8 `(batch, *spec.image_shape)`, values from 0 to 255.

        Returns:
            float32 `(batch, classes)`.

        Raises:
            TypeError: If `images` is not uint8.
            ValueError: If `images` has another shape than those that the network was trained on.
        """
        images = jnp.asarray(images)
        if images.shape[1:] != self.spec.image_shape:
            hint = "resize or crop images as for training, e.g. with PIL.Image.resize"
            if images.ndim == 3:
                hint = "add a batch axis to a single image: images[None]"
            shape = ", ".join(map(str, self.spec.image_shape))
            raise ValueError(f"images must have shape (batch, {shape}), got {tuple(images.shape)}; {hint}")
        normalized = normalize(images, self.spec.mean, self.spec.std)
        return self.model.apply(self.variables, normalized)  # pyright: ignore[reportReturnType]

    def predict(self, files: Iterable[str | os.PathLike[str]]) -> list[dict[str, Any]]:
        """Classifies image files, which are cropped and resized as the test images of the run were.

        Args:
            files: JPEG, PNG or WebP files.

        Returns:
            For each file: `file`; `class`, its most probable class; and `probabilities`, by class.

        Raises:
            CorruptImageError: If a file is not a readable image.
            OSError: If a file cannot be read.
            ValueError: If a file has another size than the images of the run, which were not resized.
        """
        results = []
        for file in map(as_path, files):
            size, content = self.config.data.image_size, file.read_bytes()
            if size is None:
                image = decode(content, str(file), self.spec.image_shape[-1])
            else:
                image = decode_center(content, str(file), size)
            try:
                probabilities = jax.nn.softmax(self.logits(jnp.asarray(image)[None])[0])
            except ValueError as error:
                raise ValueError(f"{file}: {error}") from None
            best = self.spec.classes[int(probabilities.argmax())]
            by_class = dict(zip(self.spec.classes, probabilities.tolist(), strict=True))
            results.append({"file": str(file), "class": best, "probabilities": by_class})
        return results


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
        best: Whether to load the checkpoint with the best accuracy on validation images.
        step: Step of the checkpoint to load instead; see `checkpoint.keep` in `TrainConfig`.
        notify: Called with a message if a checkpoint is damaged.

    Returns:
        The network with its variables, configuration and dataset description.

    Raises:
        FileNotFoundError: If the folder contains no run, or the run has no checkpoint, none of this step or, for the
            best, none that was evaluated.
        CorruptCheckpointError: If no checkpoint is intact.
        ImportError: If Orbax is not installed.
        ValueError: If the configuration is damaged, the run was written by a version with other options, or `best` is
            set for a run that was not evaluated on validation images.

    Example:
        >>> import pathlib, tempfile
        >>> from dropcluster_jax.runs import DropConfig, train
        >>> out = pathlib.Path(tempfile.mkdtemp(), "run")
        >>> config = TrainConfig(model="resnet8", steps=8, batch_size=32, drop=DropConfig("none"), out=out)
        >>> _ = train(config, notify=lambda message: None)
        >>> loaded = load_run(out)
        >>> loaded.logits(jnp.zeros((2, 8, 8, 1), jnp.uint8)).shape, loaded.step, sorted(loaded.variables)
        ((2, 10), 8, ['batch_stats', 'params'])
    """
    path = as_path(folder)
    config, spec = read_config(path)
    if best and config.data.evaluate_on != "validation":
        raise ValueError(
            f"best requires a run that was evaluated on validation images, but {path} was evaluated on test images: "
            "train with --data.validation-fraction FRACTION --data.evaluate-on validation"
        )
    model = make_model(config, spec)
    mesh = jax.make_mesh((1,), ("batch",), (jax.sharding.AxisType.Auto,), devices=jax.local_devices()[:1])
    target = abstract_state(config, spec, make_run_steps(config, model, spec), DataParallel(mesh=mesh))
    with contextlib.closing(Checkpointer(path / CHECKPOINTS, notify=notify)) as checkpointer:
        restored = checkpointer.restore(target, best=best, step=step, move_damaged=False)
        steps = checkpointer.steps()
    if restored is None:
        wanted = "evaluated checkpoint" if best else "checkpoint" if step is None else f"checkpoint of step {step}"
        raise FileNotFoundError(f"{path} has no {wanted} yet; steps of its checkpoints: {steps}")
    state = restored.state
    return LoadedRun(model, state.variables(ema=True), config, spec, int(state.step), state)


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
