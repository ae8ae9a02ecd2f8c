"""A look at a data set before training: what it holds, what it looks like, and how fast it gets to the device.

That is what `dropcluster data check` does. The folder holds `check.json`, `images.png` and `corruptions.png`.
"""

import contextlib
import json
import pathlib
import time
from typing import Any

import jax
import numpy as np

from dropcluster_jax.data import (
    CORRUPTIONS,
    EXTRA_CORRUPTIONS,
    ArrayExamples,
    BadImageError,
    Road,
    corrupt,
    normalize,
)
from dropcluster_jax.data.examples import Examples, decode_block
from dropcluster_jax.training.config import TrainConfig
from dropcluster_jax.training.run import augmentation, open_data

_SHEET = 48  # images on the contact sheet
_SECONDS = 2.0  # how long the road's speed is measured


def check(config: TrainConfig, folder: pathlib.Path) -> dict[str, Any]:
    """Look at the data of a run.

    Args:
        config: of the run.
        folder: where the pictures and `check.json` go.

    Returns:
        What `check.json` holds: `name`, `train` and `test` (the numbers of examples), `classes` (for each its numbers
        of `train` and `test` examples), `shape`, `mean`, `std`, `skipped`, `road`, `batch_size`, `augment`,
        `first_batch_seconds` and `images_per_second`, augmented and normalised.

    Raises:
        ValueError, FileNotFoundError, ImportError: as of `run.prepare`.
    """
    begin = time.perf_counter()
    dataset, road = open_data(config)
    seconds, speed = _measure(config, road, augmentation(config.augment, dataset), dataset.mean, dataset.std, begin)
    counts = [np.bincount(_sound(part.labels), minlength=dataset.num_classes) for part in (dataset.train, dataset.test)]
    found = {
        "name": dataset.name,
        "train": len(dataset.train),
        "test": len(dataset.test),
        "classes": {
            name: {"train": int(train), "test": int(test)}
            for name, train, test in zip(dataset.classes, *counts, strict=True)
        },
        "shape": list(dataset.shape),
        "mean": [round(float(value), 4) for value in dataset.mean],
        "std": [round(float(value), 4) for value in dataset.std],
        "road": type(road).__name__.removesuffix("Road").lower(),
        "batch_size": config.batch_size,
        "first_batch_seconds": round(seconds, 2),
        "images_per_second": round(speed),
    }
    folder.mkdir(parents=True, exist_ok=True)
    probe = jax.device_get(road.probe(_SHEET, 0))
    _draw(folder, dataset.name, dataset.classes, probe["image"], probe["label"], config.seed)
    found["skipped"] = [*dataset.skipped, *road.skipped]
    (folder / "check.json").write_text(json.dumps(found, indent=2) + "\n")
    return found
