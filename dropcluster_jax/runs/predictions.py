"""Predictions for test images: accuracy by class, confusions, calibration, and mistakes."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from dropcluster_jax.training.steps import Batch

NUM_BINS = 15
_MAX_MISTAKES = 24
_MAX_CONFUSIONS = 100


class Predictions(NamedTuple):
    """Predictions for labeled images.

    Attributes:
        probabilities: float32 `(images, classes)`.
        labels: True labels, integers `(images,)`.
        mistakes: Index and image of each of the most confident mistakes, the most confident first.
    """

    probabilities: np.ndarray
    labels: np.ndarray
    mistakes: list[tuple[int, np.ndarray]]


def predict_batches(predict: Callable[[jax.Array], jax.Array], batches: Iterable[Batch]) -> Predictions:
    """Returns the predictions for batches, given a function from images to probabilities; weights of 0 are left out."""
    probabilities, labels, mistakes, count = [], [], list[tuple[float, int, np.ndarray]](), 0
    for batch in batches:
        valid = np.asarray(batch["weight"]) > 0
        rows, true = np.asarray(predict(batch["image"]))[valid], np.asarray(batch["label"])[valid]
        for index in np.flatnonzero(rows.argmax(1) != true):
            mistakes.append((float(rows[index].max()), count + int(index), np.asarray(batch["image"])[valid][index]))
        mistakes = sorted(mistakes, key=lambda mistake: -mistake[0])[:_MAX_MISTAKES]
        probabilities.append(rows)
        labels.append(true)
        count += len(true)
    return Predictions(
        np.concatenate(probabilities), np.concatenate(labels), [(index, image) for _, index, image in mistakes]
    )


def confusion_matrix(predictions: Predictions) -> np.ndarray:
    """Returns the number of images by true and predicted class, integers `(classes, classes)`."""
    probabilities, labels, _ = predictions
    matrix = np.zeros((probabilities.shape[1],) * 2, np.int64)
    np.add.at(matrix, (labels, probabilities.argmax(1)), 1)
    return matrix


def calibration(predictions: Predictions) -> dict[str, Any]:
    """Returns the expected calibration error, and the confidence, accuracy and number of images of each bin.

    References:
        Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, arXiv:1706.04599,
        equation 3.
    """
    confidence, correct = predictions.probabilities.max(1), predictions.probabilities.argmax(1) == predictions.labels
    bins = np.clip(np.ceil(confidence * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
    counts = np.bincount(bins, minlength=NUM_BINS)
    used = counts > 0
    means = [np.bincount(bins, values, NUM_BINS)[used] / counts[used] for values in (confidence, correct)]
    error = float(np.sum(counts[used] * np.abs(means[0] - means[1])) / len(correct))
    rows = zip(*means, counts[used], strict=True)
    return {
        "error": error,
        "bins": [{"confidence": float(a), "accuracy": float(b), "count": int(count)} for a, b, count in rows],
    }


def describe_predictions(predictions: Predictions, classes: tuple[str, ...], locations: list[str]) -> dict[str, Any]:
    """Returns what `evaluation.json` contains of the predictions; `locations` are those of the mistakes."""
    matrix = confusion_matrix(predictions)
    totals = matrix.sum(1)
    errors = matrix - np.diag(np.diag(matrix))
    pairs = [np.unravel_index(index, errors.shape) for index in np.argsort(-errors, axis=None, kind="stable")]
    mistakes = []
    for (index, _), location in zip(predictions.mistakes, locations, strict=True):
        row = predictions.probabilities[index]
        names = {"class": classes[predictions.labels[index]], "predicted": classes[int(row.argmax())]}
        mistakes.append({"image": location, **names, "confidence": float(row.max())})
    return {
        "accuracy_by_class": {
            name: float(matrix[label, label] / totals[label]) for label, name in enumerate(classes) if totals[label]
        },
        "confusions": [
            {"class": classes[true], "predicted": classes[predicted], "count": int(errors[true, predicted])}
            for true, predicted in pairs[:_MAX_CONFUSIONS]
            if errors[true, predicted]
        ],
        "calibration": calibration(predictions),
        "mistakes": mistakes,
    }
