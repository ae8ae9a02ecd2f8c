"""From jobs to what was measured of them: opens the images, trains, keeps networks, evaluates."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import flax.serialization
import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from dropcluster_jax.data import DATASETS, load
from dropcluster_jax.training.steps import TrainState
from experiments import streamed, training
from experiments.studies import Job
from experiments.training import Images

NETWORKS = pathlib.Path(__file__).parent / "networks"


class Measure:
    """Trains and measures jobs that one program can do.

    Args:
        name: of the data set.
        console: where a bar shows the steps, if it is a terminal.
        npz: an archive with its images, instead of TFDS.
        data_dir: where TFDS has prepared it.
        networks: the folder in which trained networks are kept.
    """

    def __init__(
        self,
        name: str,
        console: Console,
        npz: pathlib.Path | None = None,
        data_dir: pathlib.Path | None = None,
        networks: pathlib.Path = NETWORKS,
    ) -> None:
        self._name, self._npz, self._data_dir = name, npz, data_dir
        self._console, self._networks = console, networks
        self._images: Images | None = None

    def __call__(self, group: Sequence[Job]) -> list[dict[str, Any]]:
        """What was measured of each job, as JSON takes it."""
        first = group[0]
        if first.config.data.image_size is not None:
            return [streamed.measure(job, self._networks, self._data_dir, self._console.print) for job in group]
        images = self.open()
        found = self._train(group, images) if first.corrupted is None else self._corrupt(group, images, first.corrupted)
        return [{"digest": images.digest, **one} for one in found]

    def open(self) -> Images:
        """The images, once and for all.

        Raises:
            ValueError, FileNotFoundError, ImportError: as of `load`.
        """
        if self._images is None:
            if self._npz is None:
                dataset = load(self._name, self._data_dir)
            else:
                dataset = load(f"npz:{self._npz}")
                dataset = dataclasses.replace(
                    dataset, name=self._name, test_split="test", known=DATASETS.get(self._name)
                )
            self._images = training.divide(dataset)
        return self._images

    def _train(self, group: Sequence[Job], images: Images) -> list[dict[str, Any]]:
        configs = [job.config for job in group]
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("step {task.completed}/{task.total}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        ) as progress:
            task = progress.add_task(describe(group), total=configs[0].steps)
            trained = training.train(configs, images, lambda step: progress.update(task, completed=step))
        if group[0].target == "test":  # whose networks `corruption` looks at
            self._keep(group, trained.state, images)
        found = training.evaluate(configs[0], trained.state, images, training.measured(images, group[0].target))
        clusters = training.clusters_of(configs[0], trained.state, images)
        return [
            {
                **one,
                "loss": _finite(one["loss"]),
                "train_loss": _finite(trained.train_loss[i]),
                "finite": trained.finite[i],
                "images_per_second": round(trained.images_per_second, 1),
                **({"clusters": clusters[i]} if clusters[i] else {}),
                **({"snapshots": trained.snapshots} if i == 0 and group[0].drawn else {}),
            }
            for i, one in enumerate(found)
        ]

    def _corrupt(self, group: Sequence[Job], images: Images, number: int) -> list[dict[str, Any]]:
        if not all(self._path(job, images).exists() for job in group):
            self._console.print("the networks are not here, and are trained again")
            self._train(group, images)
        networks = [flax.serialization.msgpack_restore(self._path(job, images).read_bytes()) for job in group]
        variables = jax.device_put(jax.tree.map(lambda *leaves: np.stack(leaves), *networks))
        data_dir = self._data_dir and str(self._data_dir)
        found = training.under_corruptions(group[0].config, _state(variables), images, number, data_dir)
        return [
            {
                "accuracy": float(np.mean([each["accuracy"] for each in one.values()])),
                "count": min(number or len(images.test), len(images.test)),
                "finite": bool(np.all([np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(network)])),
                "corruptions": one,
            }
            for one, network in zip(found, networks, strict=True)
        ]

    def _keep(self, group: Sequence[Job], state: TrainState, images: Images) -> None:
        """Write the networks, each whole or not at all; without clusters, as nothing is dropped in evaluation."""
        variables = state.variables(ema=True)
        variables = jax.device_get({name: variables.get(name, {}) for name in ("params", "batch_stats")})
        self._networks.mkdir(parents=True, exist_ok=True)
        for number, job in enumerate(group):
            one = jax.tree.map(lambda leaf, number=number: leaf[number], variables)
            path = self._path(job, images)
            beside = path.with_suffix(".new")
            beside.write_bytes(flax.serialization.msgpack_serialize(one))
            beside.replace(path)

    def _path(self, job: Job, images: Images) -> pathlib.Path:
        return self._networks / f"{job.model}-{images.digest}.msgpack"


def describe(group: Sequence[Job]) -> str:
    """In a line: the method, what the study varies, and the seeds."""
    first = group[0]
    setting = "".join(f", {name.replace('_', ' ')} {value}" for name, value in first.setting.items())
    return f"{first.method}{setting}, seed {' '.join(str(job.config.seed) for job in group)}"


def _state(variables: Mapping[str, Any]) -> TrainState:
    """As much of a state as evaluation takes."""
    steps: Any = np.zeros(len(jax.tree.leaves(variables)[0]), np.int32)
    return TrainState(variables["params"], variables["batch_stats"], {}, (), (), steps)  # pyright: ignore[reportArgumentType]


def _finite(value: float) -> float | None:
    """JSON has no other numbers."""
    return value if np.isfinite(value) else None
