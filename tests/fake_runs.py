"""Runs without training: results are functions of the job, so that tables are known in advance."""

import tempfile

import numpy as np
from etils import epath

from dropcluster_jax.data import CORRUPTIONS
from experiments.results import encode_bits, encode_counts
from experiments.run import Options, execute_study

ACCURACY = {
    "none": 0.5,
    "dropout": 0.51,
    "spatial_dropout": 0.52,
    "corr_drop": 0.53,
    "focused_dropout": 0.54,
    "drop_block": 0.55,
    "grid": 0.57,
    "rena": 0.58,
    "per-channel": 0.59,
    "drop_cluster": 0.6,
}


def accuracy(job):
    """Increases with DropCluster, the seed and the amount of data; the best rate is 0.2."""
    fraction = job.setting.get("fraction", 1.0)
    return ACCURACY[job.method] + 0.01 * (job.config.seed % 100) + 0.1 * fraction - abs(job.config.drop.rate - 0.2) / 10


class FakeMeasure:
    """Replaces `experiments.measure.Measure`."""

    digest = "0" * 16

    def __init__(self, accuracy=accuracy):
        self.accuracy = accuracy
        self.jobs = []
        self.root = epath.Path(tempfile.mkdtemp())

    def __call__(self, job):
        self.jobs.append(job)
        measured = self._trained(job) if job.corrupted is None else self._corrupted(job)
        return {"digest": self.digest, "count": 100, "finite": True, **measured}

    def folder(self, job):
        return self.root / job.id

    def _trained(self, job):
        line = {"accuracy": self.accuracy(job), "loss": 1.0, "train_loss": 0.5}
        if job.target == "test":
            line["correct"] = encode_bits(np.arange(100) < 100 * line["accuracy"])
            line["reestimated_accuracy"] = line["accuracy"] + 0.01
        if job.config.drop.method == "drop_cluster":
            line["clusters"] = {"stage1": {"explained_variance": 0.4, "ari_with_grid": 0.5, "num_updates": 3}}
        if job.has_snapshots:
            line["snapshots"] = {"stage1": [{"step": step, "labels": ["0011", "0022"]} for step in (0, 10)]}
        return line

    def _corrupted(self, job):
        accuracies = [self.accuracy(job) - 0.05 * severity for severity in range(5)]
        corruptions = {name: {"origin": "made", "accuracy": accuracies} for name in CORRUPTIONS}
        correct = [np.arange(100) < 100 * accuracy for accuracy in accuracies]
        counts = encode_counts(len(CORRUPTIONS) * np.sum(correct, axis=0))
        return {"accuracy": self.accuracy(job) - 0.1, "corruptions": corruptions, "correct_counts": counts}


def work(study, folder, measure=None, **options):
    """Executes a study, at the scale `small` unless given, and returns the printed text."""
    lines = []
    options = Options(**{"scale": "small", "results": folder, **options})
    execute_study(study, options, measure or FakeMeasure(), lines.append)
    return "\n".join(lines)
