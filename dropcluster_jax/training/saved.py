"""What a run has left: its network, for a notebook or another program, and how well it does on test images."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, PyTree, UInt8

from dropcluster_jax.data import ArrayExamples, Dataset, Road, corrupt, corrupted_test, normalize, open_road
from dropcluster_jax.data.corrupted import made
from dropcluster_jax.data.dataset import Known
from dropcluster_jax.models import ResNet
from dropcluster_jax.training.build import make_model, make_run_steps
from dropcluster_jax.training.checkpoints import Checkpoints
from dropcluster_jax.training.config import TrainConfig
from dropcluster_jax.training.folder import read_config
from dropcluster_jax.training.loop import evaluate
from dropcluster_jax.training.run import open_data
from dropcluster_jax.training.steps import Batch, TrainState


class LoadedRun(NamedTuple):
    """The network of a run.

    Attributes:
        model: the network; `model.apply(variables, images)` gives the logits of normalised images.
        variables: its parameters (the averages, where the run kept them), statistics and clusters.
        config: the configuration of the run.
        step: of the checkpoint.
        classes: their names.
        mean: the mean of each channel, by which images are normalised.
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
        The network, what it has learned, and how its images are normalised.

    Raises:
        FileNotFoundError: the folder holds no run, or one without a checkpoint.
        NoSoundCheckpointError: all checkpoints are damaged.
        ImportError: Orbax is not installed.
        ValueError: the run is of another version, which has other options or checkpoints, or its configuration is
            damaged.

    Example:
        >>> import tempfile
        >>> from dropcluster_jax.training import run
        >>> from dropcluster_jax.training.config import DropConfig, TrainConfig
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
    known = Known(len(classes), tuple(mean.tolist()), tuple(std.tolist()))
    steps = make_run_steps(config, model, Dataset(config.data.name, one, one, classes, known=known), 1)
    example = {"image": jax.ShapeDtypeStruct((1, *shape), jnp.uint8), "label": jax.ShapeDtypeStruct((1,), jnp.int32)}
    target = jax.eval_shape(steps.init, jax.random.key(0), example)
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), target)
    restored = Checkpoints(path / "checkpoints", say=say).restore(target, best=best, put_aside=False)
    if restored is None:
        raise FileNotFoundError(f"{path} holds no checkpoint yet")
    state = restored.state
    return LoadedRun(model, state.variables(average=True), config, int(state.step), classes, mean, std, state)


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
        FileNotFoundError, NoSoundCheckpointError, ImportError, ValueError: as of `load_run` and `run.prepare`.

    Example:
        >>> evaluate_run("runs/digts")  # evaluate_run("runs/digits")["test"]["accuracy"], after `dropcluster train`
        Traceback (most recent call last):
        FileNotFoundError: runs/digts holds no run: there is no config.json of one
    """
    loaded = load_run(folder, best=best, say=say)
    config = loaded.config
    if data_dir is not None:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, dir=data_dir))
    dataset, road = open_data(config)
    steps = jax.jit(make_run_steps(config, loaded.model, dataset, 1).evaluate)

    def measure(batches: Iterable[Batch], corruption: str | None, severity: int, origin: str) -> dict[str, Any]:
        results = evaluate(steps, loaded.state, batches)
        record = {"corruption": corruption, "severity": severity, **results, "origin": origin}
        report(record)
        return record

    clean = measure(road.test(), None, 0, dataset.name)
    corrupted = [
        measure(*_corrupted(dataset, road, config, name, severity)) for name in corruptions for severity in range(1, 6)
    ]
    mean = float(np.mean([record["accuracy"] for record in corrupted])) if corrupted else None
    return {"step": loaded.step, "test": clean, "corrupted": corrupted, "mean_corrupted_accuracy": mean}


def _corrupted(
    dataset: Dataset, road: Road, config: TrainConfig, name: str, severity: int
) -> tuple[Iterable[Batch], str, int, str]:
    if isinstance(dataset.test, ArrayExamples):
        examples, origin = corrupted_test(dataset, name, severity, data_dir=config.data.dir)
        batches = open_road(dataclasses.replace(dataset, test=examples), config.batch_size).test()
        return batches, name, severity, origin

    def stream() -> Iterable[Batch]:
        for number, batch in enumerate(road.test()):
            key = jax.random.fold_in(jax.random.key(0), number)
            yield {**batch, "image": jnp.asarray(corrupt(name, severity, key, np.asarray(batch["image"])))}

    return stream(), name, severity, made(name)
