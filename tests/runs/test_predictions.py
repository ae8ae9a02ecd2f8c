"""Predictions are summarized as scikit-learn and the definitions do."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from dropcluster_jax.runs.predictions import calibration, confusion_matrix, describe_predictions, predict_batches


def predict(images):
    """Returns probabilities that are the pixels of the images."""
    return jnp.asarray(images, jnp.float32).reshape(len(images), -1) / 255


def batches(probabilities, labels, size):
    """Yields padded batches of images whose pixels are the probabilities."""
    images = np.round(255 * probabilities).astype(np.uint8)[:, None, :, None]
    for start in range(0, len(labels), size):
        part = slice(start, start + size)
        padding = max(0, start + size - len(labels))
        yield {
            "image": np.pad(images[part], ((0, padding), (0, 0), (0, 0), (0, 0))),
            "label": np.pad(labels[part], (0, padding)),
            "weight": np.pad(np.ones(len(labels[part]), np.float32), (0, padding)),
        }


@given(num_images=st.integers(1, 40), num_classes=st.integers(2, 5), size=st.integers(1, 9), seed=st.integers(0, 99))
def test_summary_matches_scikit_learn(num_images, num_classes, size, seed):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(num_classes), num_images)
    labels = rng.integers(0, num_classes, num_images)
    predictions = predict_batches(predict, batches(probabilities, labels, size))
    np.testing.assert_array_equal(predictions.labels, labels)
    predicted = predictions.probabilities.argmax(1)
    matrix = confusion_matrix(predictions)
    np.testing.assert_array_equal(matrix, metrics.confusion_matrix(labels, predicted, labels=range(num_classes)))
    classes = tuple("abcde"[:num_classes])
    described = describe_predictions(predictions, classes, [str(index) for index, _ in predictions.mistakes])
    recall = metrics.recall_score(labels, predicted, labels=np.unique(labels), average=None)
    assert list(described["accuracy_by_class"].values()) == pytest.approx(recall.tolist())
    wrong = np.flatnonzero(predicted != labels)
    assert sum(row["count"] for row in described["confusions"]) == len(wrong)
    confidences = [row["confidence"] for row in described["mistakes"]]
    assert confidences == sorted(confidences, reverse=True) and len(confidences) == min(24, len(wrong))
    for row, (index, image) in zip(described["mistakes"], predictions.mistakes, strict=True):
        assert index in wrong and row["class"] == classes[labels[index]]
        np.testing.assert_array_equal(image.ravel(), np.round(255 * probabilities[index]))


def test_calibration_error_is_the_mean_gap_between_confidence_and_accuracy():
    probabilities = np.array([[0.6, 0.4], [0.6, 0.4], [0.8, 0.2], [0.2, 0.8]])
    predictions = predict_batches(predict, batches(probabilities, np.array([0, 1, 0, 1]), 4))
    result = calibration(predictions)
    assert [row["count"] for row in result["bins"]] == [2, 2]
    assert result["error"] == pytest.approx((0.1 + 0.2) / 2) and result["bins"][0]["accuracy"] == 0.5
