"""Executes jobs in run folders and returns the measured part of their result lines."""

import dataclasses
import functools
import hashlib
import inspect
import statistics
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from dropcluster_jax.cache import cached
from dropcluster_jax.data import (
    CORRUPTIONS,
    ArrayExamples,
    Dataset,
    DatasetSpec,
    corrupted_test,
    corruptions,
    load,
    normalize,
)
from dropcluster_jax.data.corrupted import CorruptedTest
from dropcluster_jax.models import ResNet
from dropcluster_jax.runs import (
    DataConfig,
    LoadedRun,
    load_run,
    read_history,
    train,
)
from dropcluster_jax.runs.folder import METRICS, read_config
from dropcluster_jax.runs.log import read_entries
from dropcluster_jax.training import NonFiniteError
from experiments.results import Line, encode_bits, encode_counts, encode_labels
from experiments.studies import Job

_MAX_MAPS = 6  # label maps of a place in a line
_MOMENTUM = 0.9  # of the moving averages in `ResNet`
_BATCH = 100  # images that are classified at once; on a CPU, a third faster than 1,000


class Measure:
    """Executes jobs.

    Args:
        data: The dataset.
        root: Folder that contains the run folder of each job.
        notify: Called with messages of the runs.
    """

    def __init__(self, data: DataConfig, root: epath.Path, notify: Callable[[str], None] = print) -> None:
        self._data, self._root, self._notify = data, root, notify

    @functools.cached_property
    def digest(self) -> str:
        """Start of the SHA-256 of all pixels and labels; of the labels only, if images are encoded.

        Raises:
            ValueError, FileNotFoundError, ImportError: As in `load`.
        """
        dataset, digest = self._dataset, hashlib.sha256()
        for examples in (dataset.train, dataset.test):
            if isinstance(examples, ArrayExamples):
                digest.update(examples.images.tobytes())
            digest.update(examples.labels.tobytes())
        return f"{'labels ' if dataset.spec.encoded else ''}{digest.hexdigest()[:16]}"

    @functools.cached_property
    def _dataset(self) -> Dataset:
        """The whole dataset."""
        return load(self._data.name, dir=self._data.dir, image_size=self._data.image_size)

    def __call__(self, job: Job) -> Line:
        """Trains the network of a job, unless its run folder contains it, and evaluates it.

        An interrupted job resumes from its latest checkpoint. If the loss becomes non-finite, the accuracy is chance.

        Returns:
            `digest`, `accuracy`, `count` (evaluated images) and `finite`. Under corruptions, also `corruptions` and
            `correct_counts`: under how many of them each image is classified correctly. Otherwise `loss`, `train_loss`,
            `clusters`, `snapshots` and, on the test set, `correct`: whether each image is classified correctly, and
            `reestimated_accuracy`: that with BatchNorm statistics computed again, with dropping off.

        Raises:
            ValueError, OSError, ImportError: As in `train`.
            Stopped: If the process received a signal to stop.
        """
        folder = self.folder(job.trained) / "run"
        try:
            summary = train(dataclasses.replace(job.config, out=folder), notify=self._notify)
        except NonFiniteError:
            _, spec = read_config(folder)
            return {"digest": self.digest, **_failed(job, 1 / spec.num_classes)}
        if job.corrupted is not None:
            return {"digest": self.digest, **self._corrupted(job, folder)}
        return {"digest": self.digest, **_trained(job, folder, summary), **self._correct(job, folder)}

    def folder(self, job: Job) -> epath.Path:
        """Returns the folder of a job, whose subfolder `run` is the run folder."""
        return self._root / job.id

    def _correct(self, job: Job, folder: epath.Path) -> Line:
        examples = self._dataset.test
        if job.target != "test" or not isinstance(examples, ArrayExamples):
            return {}
        run = load_run(folder, notify=self._notify)
        train = load(job.config.data).train
        assert isinstance(train, ArrayExamples)
        return {
            "correct": encode_bits(_is_correct(run, examples)),
            "reestimated_accuracy": float(_is_correct(_reestimate(run, train.images), examples).mean()),
        }

    def _corrupted(self, job: Job, folder: epath.Path) -> Line:
        run = load_run(folder, notify=self._notify)
        results: dict[str, dict[str, Any]] = {}
        correct: list[np.ndarray] = []
        for name in CORRUPTIONS:
            corrupted = [self._corrupted_test(name, severity, job.corrupted or None) for severity in range(1, 6)]
            by_severity = [_is_correct(run, examples) for examples, _ in corrupted]
            results[name] = {
                "origin": corrupted[0].origin,
                "accuracy": [float(values.mean()) for values in by_severity],
            }
            correct += by_severity
        return {
            "accuracy": float(np.mean(correct)),
            "count": len(correct[0]),
            "finite": True,
            "corruptions": results,
            "correct_counts": encode_counts(np.sum(correct, axis=0)),
        }

    def _corrupted_test(self, name: str, severity: int, number: int | None) -> CorruptedTest:
        """Returns the first `number` test examples under a corruption; images computed here are cached on disk."""
        dataset = self._dataset
        if number is not None and number < len(dataset.test):  # the published sets contain all test images
            assert isinstance(dataset.test, ArrayExamples)
            dataset = dataclasses.replace(dataset, test=dataset.test.take(slice(number)), test_split=None)

        def compute() -> dict[str, np.ndarray]:
            examples, computed_origin = corrupted_test(dataset, name, severity, data_dir=self._data.dir)
            return {"images": examples.images, "labels": examples.labels, "origin": np.array(computed_origin)}

        arrays = cached("corrupted", [self.digest, name, severity, number, _code(corruptions)], compute)
        return CorruptedTest(ArrayExamples(arrays["images"], arrays["labels"]), str(arrays["origin"]))


def _code(module: types.ModuleType) -> str:
    """Returns the digest of a module's source."""
    return hashlib.sha256(inspect.getsource(module).encode()).hexdigest()


def _is_correct(run: LoadedRun, examples: ArrayExamples) -> np.ndarray:
    """Returns whether each example is classified correctly, bool `(examples,)`."""
    batches = range(0, len(examples), _BATCH)
    logits = [_logits(run.model, run.spec, run.variables, examples.images[start : start + _BATCH]) for start in batches]
    return np.argmax(np.concatenate(logits), axis=-1) == examples.labels


def _reestimate(run: LoadedRun, images: np.ndarray) -> LoadedRun:
    """Returns the network with the mean BatchNorm statistics of full batches of images, with dropping off.

    Zeros change the variance of activations in training, but not in evaluation.
    """
    starts = range(0, max(1, len(images) - _BATCH + 1), _BATCH)
    statistics_of_batches = [
        _batch_statistics(run.model, run.spec, run.variables, images[start : start + _BATCH]) for start in starts
    ]
    mean = jax.tree.map(lambda *values: sum(values) / len(values), *statistics_of_batches)
    return run._replace(variables={**run.variables, "batch_stats": mean})


@functools.partial(jax.jit, static_argnums=(0, 1))
def _batch_statistics(model: ResNet, spec: DatasetSpec, variables: dict[str, Any], images: jax.Array) -> dict[str, Any]:
    state = {**variables, "batch_stats": jax.tree.map(jnp.zeros_like, variables["batch_stats"])}
    x = normalize(images, spec.mean, spec.std)
    _, updated = model.apply(state, x, train=True, deterministic=True, mutable=["batch_stats"])
    updated_statistics: Any = updated["batch_stats"]
    return jax.tree.map(lambda moving: moving / (1 - _MOMENTUM), updated_statistics)  # the average started at 0


# Networks that differ only in their variables share a compiled program.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _logits(model: ResNet, spec: DatasetSpec, variables: dict[str, Any], images: jax.Array) -> jax.Array:
    return model.apply(variables, normalize(images, spec.mean, spec.std))  # pyright: ignore[reportReturnType]


def _trained(job: Job, folder: epath.Path, summary: dict[str, Any]) -> Line:
    entries = read_entries(folder / METRICS)
    train = [entry for entry in entries if entry["event"] == "train"]
    evaluation = [entry for entry in entries if entry["event"] == "eval"][-1]
    last = [entry["loss"] for entry in train if entry["step"] > 0.9 * summary["steps"]]
    clusters = {"clusters": summary["clusters"]} if summary["clusters"] else {}
    snapshots = {"snapshots": _snapshots(folder)} if job.has_snapshots else {}
    return {
        "accuracy": evaluation["accuracy"],
        "loss": evaluation["loss"],
        "count": int(evaluation["count"]),
        "train_loss": statistics.mean(last),
        "finite": True,
        **clusters,
        **snapshots,
    }


def _failed(job: Job, chance: float) -> Line:
    if job.corrupted is None:
        missing = dict.fromkeys(("loss", "train_loss"))
        return {"accuracy": chance, "count": 0, "finite": False, **missing}
    corruption = {"origin": "none, the run failed", "accuracy": [chance] * 5}
    return {"accuracy": chance, "count": 0, "finite": False, "corruptions": dict.fromkeys(CORRUPTIONS, corruption)}


def _snapshots(folder: epath.Path) -> dict[str, list[dict[str, Any]]]:
    """Returns label maps of each place, from the initial grid to the last update."""
    return {
        place: [
            {"step": history[index][0], "labels": encode_labels(history[index][1][..., 0])}
            for index in np.unique(np.linspace(0, len(history) - 1, _MAX_MAPS).round().astype(int))
        ]
        for place, history in read_history(folder).items()
    }
