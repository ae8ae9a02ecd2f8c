"""Runs without training: what was measured follows from the job alone, so that tables can be known beforehand."""

import io

from rich.console import Console

from dropcluster_jax.data import CORRUPTIONS
from experiments.run import Options, Runner

ACCURACY = {"none": 0.5, "dropout": 0.51, "spatial": 0.52, "block": 0.55, "grid": 0.57, "cluster": 0.6}


def accuracy(job):
    """Higher with DropCluster, with seeds, with data, and at rates near 0.2."""
    share = job.setting.get("share", 1.0)
    return ACCURACY[job.method] + 0.01 * (job.config.seed % 100) + 0.1 * share - abs(job.config.drop.rate - 0.2) / 10


def measure(group):
    """As `experiments.measure.Measure` does."""
    return [{"digest": "0" * 16, **(_trained(job) if job.corrupted is None else _corrupted(job))} for job in group]


def _trained(job):
    found = {"accuracy": accuracy(job), "loss": 1.0, "count": 100, "train_loss": 0.5, "finite": True}
    found["images_per_second"] = 1000.0
    if job.config.drop.method == "cluster":
        found["clusters"] = {"stage1": {"explained_variance": 0.4, "ari_with_grid": 0.5, "updates": 3}}
    if job.drawn:
        found["snapshots"] = {"stage1": [{"step": step, "labels": ["0011", "0022"]} for step in (0, 10)]}
    return found


def _corrupted(job):
    origin = {"frost": "made, a procedural stand-in for the original's pictures"}
    corruptions = {
        name: {
            "origin": origin.get(name, "made"),
            "accuracy": [accuracy(job) - 0.05 * severity for severity in range(5)],
        }
        for name in CORRUPTIONS
    }
    return {"accuracy": accuracy(job) - 0.1, "count": 100, "finite": True, "corruptions": corruptions}


def work(study, folder, measure=measure, **options):
    """What the runner printed."""
    out = io.StringIO()
    runner = Runner(Options(results=folder, **options), Console(file=out, width=200), measure)
    runner.run(study)
    return out.getvalue()
