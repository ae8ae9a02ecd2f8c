"""Runs on images that are streamed, as of ImageNet: one by one, by what `dropcluster train` does, checkpoints included.

Held out is the last tenth of the training split, which is never trained on, as of arrays a tenth of each class.
"""

import dataclasses
import hashlib
import json
import pathlib
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

from dropcluster_jax.data import CORRUPTIONS, Dataset
from dropcluster_jax.runs.run_folder import evaluate_run, finished_run
from dropcluster_jax.training import run
from dropcluster_jax.training.loop import NonFiniteError
from experiments.studies import Job

_TRAIN, _HELD_OUT = "train[:90%]", "train[90%:]"


def measure(
    job: Job, folder: pathlib.Path, data_dir: pathlib.Path | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """Train a job, or go on with it where it was stopped, and say what was measured.

    Args:
        job: the run; all test images are corrupted, however few it asks for.
        folder: where run folders go.
        data_dir: where TFDS has prepared the data.
        say: called with what a run has to say.

    Raises:
        ValueError, OSError, ImportError: as of `run.prepare`.
        Stopped: told to, by a signal.
    """
    data = dataclasses.replace(
        job.config.data,
        dir=data_dir,
        train_split=_TRAIN,
        test_split=_HELD_OUT if job.target == "validation" else None,
    )
    out = folder / job.trained.id
    prepared = run.prepare(dataclasses.replace(job.config, data=data, out=out))
    about = {"digest": _digest(prepared.dataset), "count": len(prepared.dataset.test)}
    try:
        summary = finished_run(out, prepared.config) or run.execute(prepared, say=say)
    except NonFiniteError:  # nothing is left to be measured, so it counts as chance
        chance = 1 / prepared.dataset.num_classes
        found = {"accuracy": chance, "finite": False}
        if job.corrupted is not None:
            made = {"origin": "none, as the run failed", "accuracy": [chance] * 5}
            return {**about, **found, "corruptions": dict.fromkeys(CORRUPTIONS, made)}
        return {**about, **found, "loss": None, "train_loss": None, "images_per_second": None}
    if job.corrupted is not None:
        return {**about, **_corrupted(out, say), "finite": True}
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    speeds = [record["images_per_second"] for record in records if record.get("images_per_second")]
    return {
        **about,
        "accuracy": summary["test_accuracy"],
        "loss": summary["test_loss"],
        "train_loss": [record["loss"] for record in records if record["event"] == "train"][-1],
        "finite": True,
        "images_per_second": round(statistics.median(speeds), 1) if speeds else None,
        **({"clusters": summary["clusters"]} if summary["clusters"] else {}),
    }


def _corrupted(folder: pathlib.Path, say: Callable[[str], None]) -> dict[str, Any]:
    corruptions: dict[str, dict[str, Any]] = {}
    for one in evaluate_run(folder, corruptions=CORRUPTIONS, say=say)["corrupted"]:
        found = corruptions.setdefault(one["corruption"], {"origin": one["origin"], "accuracy": []})
        found["accuracy"].append(one["accuracy"])
    accuracy = float(np.mean([one["accuracy"] for one in corruptions.values()]))
    return {"accuracy": accuracy, "corruptions": corruptions}


def _digest(dataset: Dataset) -> str:
    """Of the labels, as the pixels are never all there."""
    digest = hashlib.sha256()
    for part in (dataset.train, dataset.test):
        digest.update(part.labels.tobytes())
    return f"labels {digest.hexdigest()[:16]}"
