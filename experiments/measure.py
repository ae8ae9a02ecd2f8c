"""Executes jobs in run folders and returns the measured part of their result lines."""

import dataclasses
import functools
import hashlib
import pathlib
import statistics
from typing import Any

import numpy as np
from rich.console import Console

from dropcluster_jax.data import CORRUPTIONS, ArrayExamples, load
from dropcluster_jax.runs import DataConfig, TrainConfig, evaluate_run, read_history, run_folder, trainer
from dropcluster_jax.runs.run_folder import read_json_lines
from dropcluster_jax.training import NonFiniteError
from experiments.results import Line, encode_labels
from experiments.studies import Job

_MAX_MAPS = 6  # label maps of a place in a line


class Measure:
    """Executes jobs.

    Args:
        data: The dataset, including where it is.
        folder: Folder that contains the run folder of each job.
        console: Prints messages and shows the current step.
    """

    def __init__(self, data: DataConfig, folder: pathlib.Path, console: Console) -> None:
        self._data, self._folder, self._console = data, folder, console

    @functools.cached_property
    def digest(self) -> str:
        """Start of the SHA-256 of all pixels and labels; of the labels only, if images are encoded.

        Raises:
            ValueError, FileNotFoundError, ImportError: As in `load`.
        """
        dataset = load(self._data.name, self._data.dir, image_size=self._data.image_size)
        digest = hashlib.sha256()
        for examples in (dataset.train, dataset.test):
            if isinstance(examples, ArrayExamples):
                digest.update(examples.images.tobytes())
            digest.update(examples.labels.tobytes())
        return f"{'labels ' if dataset.spec.encoded else ''}{digest.hexdigest()[:16]}"

    def __call__(self, job: Job) -> Line:
        """Trains the network of a job, unless its run folder contains it, and evaluates it.

        An interrupted job resumes from its latest checkpoint. If the loss becomes non-finite, the accuracy is chance.

        Returns:
            `digest`, `accuracy`, `count` (evaluated images), `finite`, and either `corruptions` or `loss`,
            `train_loss`, `images_per_second`, `clusters` and `snapshots`.

        Raises:
            ValueError, OSError, ImportError: As in `trainer.prepare` and `trainer.execute`.
            Stopped: If the process received a signal to stop.
        """
        folder = self.folder(job)
        data = dataclasses.replace(job.config.data, name=self._data.name, dir=self._data.dir)
        config = dataclasses.replace(job.config, data=data, out=folder)
        try:
            summary = run_folder.finished_run(folder, config) or self._train(job, config)
        except NonFiniteError:
            _, spec = run_folder.read_config(folder)
            return {"digest": self.digest, **_failed(job, 1 / spec.num_classes)}
        if job.corrupted is None:
            return {"digest": self.digest, **_trained(job, folder, summary)}
        with self._console.status(f"{job}: corrupted images"):
            return {"digest": self.digest, **self._corrupted(job, folder)}

    def folder(self, job: Job) -> pathlib.Path:
        """Returns the run folder of a job."""
        return self._folder / job.trained.id

    def _train(self, job: Job, config: TrainConfig) -> dict[str, Any]:
        if job.corrupted is not None:
            self._console.print(f"{job}: the network is missing and is trained again")
        run = trainer.prepare(config, notify=self._notify)
        with self._console.status(f"{job}: compiling") as status:
            return trainer.execute(
                run,
                log=lambda entry: status.update(f"{job}: step {entry['step']}/{run.num_steps}"),
                notify=self._notify,
            )

    def _corrupted(self, job: Job, folder: pathlib.Path) -> Line:
        evaluation = evaluate_run(
            folder,
            corruptions=CORRUPTIONS,
            num_corrupted=job.corrupted or None,
            data_dir=self._data.dir,
            notify=self._notify,
        )
        corruptions: dict[str, dict[str, Any]] = {}
        for result in evaluation["corrupted"]:
            corruption = corruptions.setdefault(result["corruption"], {"origin": result["origin"], "accuracy": []})
            corruption["accuracy"].append(result["accuracy"])
        return {
            "accuracy": evaluation["mean_corrupted_accuracy"],
            "count": int(evaluation["corrupted"][0]["count"]),
            "finite": True,
            "corruptions": corruptions,
        }

    def _notify(self, message: str) -> None:
        self._console.print(message, markup=False)


def _trained(job: Job, folder: pathlib.Path, summary: dict[str, Any]) -> Line:
    entries = read_json_lines(folder / run_folder.METRICS)
    train = [entry for entry in entries if entry["event"] == "train"]
    test = [entry for entry in entries if entry["event"] == "test"][-1]
    speeds = [entry["images_per_second"] for entry in train if entry["images_per_second"]]
    last = [entry["loss"] for entry in train if entry["step"] > 0.9 * summary["steps"]]
    clusters = {"clusters": summary["clusters"]} if summary["clusters"] else {}
    snapshots = {"snapshots": _snapshots(folder)} if job.drawn else {}
    return {
        "accuracy": test["accuracy"],
        "loss": test["loss"],
        "count": int(test["count"]),
        "train_loss": statistics.mean(last),
        "finite": True,
        "images_per_second": round(statistics.median(speeds), 1) if speeds else None,
        **clusters,
        **snapshots,
    }


def _failed(job: Job, chance: float) -> Line:
    if job.corrupted is None:
        missing = dict.fromkeys(("loss", "train_loss", "images_per_second"))
        return {"accuracy": chance, "count": 0, "finite": False, **missing}
    corruption = {"origin": "none, the run failed", "accuracy": [chance] * 5}
    return {"accuracy": chance, "count": 0, "finite": False, "corruptions": dict.fromkeys(CORRUPTIONS, corruption)}


def _snapshots(folder: pathlib.Path) -> dict[str, list[dict[str, Any]]]:
    """Returns label maps of each place, from the initial grid to the last update."""
    return {
        place: [
            {"step": history[index][0], "labels": encode_labels(history[index][1][..., 0])}
            for index in np.unique(np.linspace(0, len(history) - 1, _MAX_MAPS).round().astype(int))
        ]
        for place, history in read_history(folder).items()
    }
