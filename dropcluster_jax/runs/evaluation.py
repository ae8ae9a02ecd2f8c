"""Evaluation of a run on its test images, as they are and corrupted."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from dropcluster_jax.data import ArrayExamples, Dataset, Loader, corrupt, corrupted_test, make_loader
from dropcluster_jax.data.corrupted import computed_origin
from dropcluster_jax.data.opening import open_data
from dropcluster_jax.runs.build import make_run_steps
from dropcluster_jax.runs.config import TrainConfig, as_path
from dropcluster_jax.runs.figures import save_figure
from dropcluster_jax.runs.folder import EVALUATION, read_json
from dropcluster_jax.runs.load import load_run, open_run_data
from dropcluster_jax.runs.predictions import Predictions, confusion_matrix, describe_predictions, predict_batches
from dropcluster_jax.training.loop import evaluate
from dropcluster_jax.training.steps import Batch
from dropcluster_jax.viz import image_figure, prediction_figure


def evaluate_run(
    folder: str | os.PathLike[str],
    *,
    best: bool = False,
    corruptions: Iterable[str] = (),
    data_dir: str | None = None,
    allow_changed_data: bool = False,
    pictures: str | os.PathLike[str] | None = None,
    log: Callable[[dict[str, Any]], None] = lambda result: None,
    notify: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Evaluates the network of a run on its test images, and on corrupted ones.

    These are the test images of the dataset, even if the run was evaluated on validation images during training.

    Args:
        folder: Run folder.
        best: Whether to evaluate the checkpoint with the best accuracy on validation images.
        corruptions: Names of `CORRUPTIONS`, each of which is evaluated at five severities.
        data_dir: TFDS data directory, if not the one the run used, or the folder that an archive or image folder has
            been moved to.
        allow_changed_data: Whether to evaluate on data that are not those the run was trained on. Labels are compared
            by index; the number of classes and the image shape must be the same.
        pictures: Folder for `predictions.png`, the confusion matrix and the calibration, and `mistakes.png`, the most
            confident ones; None for no figures.
        log: Called with each result: `corruption` (None for the original images), `severity`, `accuracy`, `loss`,
            `count` and `origin`.
        notify: Called with a message if a checkpoint is damaged, the data have changed, or figures cannot be drawn.

    Returns:
        `step`, the step of the checkpoint; `test`, the result on the original images; `corrupted`, a list of the other
        results; `mean_corrupted_accuracy`, None if there are none; `changed_data`, a list of how the data differ
        from those the run was trained on; and `predictions` for the original images: `accuracy_by_class`, `confusions`
        (pairs of classes, the most frequent first), `calibration` (expected calibration error, and bins by confidence),
        and `mistakes` (the most confident ones).

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
    if config.data.evaluate_on == "validation":
        tested = dataclasses.replace(config.data, evaluate_on="test")
        dataset, loader = open_data(tested, config.batch_size, config.seed, fake=config.fake_data)
    evaluate_step = jax.jit(make_run_steps(config, loaded.model, loaded.spec).evaluate)

    def measure(batches: Iterable[Batch], corruption: str | None, severity: int, origin: str) -> dict[str, Any]:
        metrics = evaluate(evaluate_step, loaded.state, batches)
        result = {"corruption": corruption, "severity": severity, **metrics, "origin": origin}
        log(result)
        return result

    clean = measure(loader.test(), None, 0, dataset.name)
    predict = jax.jit(lambda variables, x: jax.nn.softmax(loaded._replace(variables=variables).logits(x)))
    predictions = predict_batches(functools.partial(predict, loaded.variables), loader.test())
    described = describe_predictions(predictions, dataset.classes, _locations(dataset, predictions))
    if pictures is not None:
        try:
            _draw(as_path(pictures), dataset, predictions, described)
        except (ImportError, OSError, ValueError, RuntimeError) as error:
            notify(f"the figures were not drawn: {error}")
    corrupted = []
    for name in corruptions:
        for severity in range(1, 6):
            batches, origin = _corrupted_batches(dataset, loader, config, name, severity)
            corrupted.append(measure(batches, name, severity, origin))
    mean = float(np.mean([result["accuracy"] for result in corrupted])) if corrupted else None
    return {
        "step": loaded.step,
        "test": clean,
        "predictions": described,
        "corrupted": corrupted,
        "mean_corrupted_accuracy": mean,
        "changed_data": differences,
    }


def _corrupted_batches(
    dataset: Dataset, loader: Loader, config: TrainConfig, name: str, severity: int
) -> tuple[Iterable[Batch], str]:
    """Returns corrupted test batches and the origin of the images."""
    if isinstance(dataset.test, ArrayExamples):
        examples, origin = corrupted_test(dataset, name, severity, data_dir=config.data.dir)
        loader = make_loader(dataclasses.replace(dataset, train=examples, test=examples), config.batch_size)
        return loader.test(), origin

    def stream() -> Iterator[Batch]:
        for index, batch in enumerate(loader.test()):
            key = jax.random.fold_in(jax.random.key(0), index)
            yield {**batch, "image": jnp.asarray(corrupt(name, severity, key, np.asarray(batch["image"])))}

    return stream(), computed_origin(name)


def _locations(dataset: Dataset, predictions: Predictions) -> list[str]:
    indices = [index for index, _ in predictions.mistakes]
    if isinstance(dataset.test, ArrayExamples):
        return [f"test image {index}" for index in indices]
    return [dataset.test.location(index) for index in indices]


def _draw(folder: epath.Path, dataset: Dataset, predictions: Predictions, described: Mapping[str, Any]) -> None:
    """Draws `predictions.png`, and `mistakes.png` if there are any."""
    error = described["calibration"]["error"]
    title = f"{dataset.name}: {len(predictions.labels):,} test images, expected calibration error {error:.1%}"
    bins = described["calibration"]["bins"]
    figure = prediction_figure(confusion_matrix(predictions), dataset.classes, bins, title)
    save_figure(figure, folder / "predictions.png")
    if mistakes := described["mistakes"]:
        titles = [f"{row['class']} as {row['predicted']}\n{pathlib.PurePath(row['image']).name}" for row in mistakes]
        images = np.stack([image for _, image in predictions.mistakes])
        save_figure(image_figure(images, titles, columns=6, title="most confident mistakes"), folder / "mistakes.png")


def read_evaluation(folder: epath.Path) -> dict[str, Any]:
    """Returns the content of `evaluation.json`, empty if there is none; raises ValueError if it is damaged."""
    try:
        return read_json(folder / EVALUATION)
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
