"""Work through the runs of a study that are missing: `python -m experiments.run STUDY`.

Each finished run is one line in `experiments/results/STUDY.jsonl`; the same command again does what is left. What a
study needs of another, the choices of hyper-parameters and networks, is made first.
"""

import dataclasses
import pathlib
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import flax.serialization
import jax
import numpy as np
import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from dropcluster_jax.data import KNOWN, load
from dropcluster_jax.models import ModelName
from dropcluster_jax.training.compilation import keep_compiled
from dropcluster_jax.training.steps import TrainState
from experiments import results, studies, training
from experiments.results import Line
from experiments.studies import Choice, Chosen, Job, Scale
from experiments.training import Images

StudyName = Literal[
    "choices", "headline", "limited_data", "corruption", "placement", "rate_and_size", "clustering", "cadence"
]
MethodName = Literal["none", "dropout", "spatial", "block", "grid", "cluster"]
Lines = dict[str, dict[str, Line]]  # by study, then by the id of the run

_NETWORKS = pathlib.Path(__file__).parent / "networks"


@dataclasses.dataclass(frozen=True)
class Options:
    """Which runs, and where."""

    scale: studies.ScaleName = "small"
    """How large: small for two CPU cores, gpu for one GPU, paper for full schedules."""
    dataset: str | None = None
    """Another data set than the scale's: digits, or what TFDS has prepared."""
    model: ModelName | None = None
    """Another network than the scale's."""
    methods: tuple[MethodName, ...] | None = None
    """Other methods than the scale's."""
    seeds: int | None = None
    """Another number of seeds than the scale's."""
    steps: int | None = None
    """Another number of optimiser steps than the scale's."""
    shard: str = "1/1"
    """i/n: the i-th of n parts of the study, for as many machines; their result files are merged by concatenation."""
    max_minutes: float | None = None
    """Begin no run that would not end in time."""
    dry_run: bool = False
    """Say how many runs are missing and how long they would take by those that were measured; train nothing."""
    together: int | None = None
    """So many runs are trained side by side in one program; else one on a CPU, all seeds on a GPU or TPU."""
    npz: pathlib.Path | None = None
    """An archive with the images of the data set, for a machine without TFDS."""
    data_dir: pathlib.Path | None = None
    """Where TFDS has prepared the data."""
    results: pathlib.Path = results.FOLDER
    """The folder of the result files."""


class Runner:
    """Runs what is missing, and writes it down.

    Args:
        options: which runs, and where.
        console: where it says what it does.

    Raises:
        ValueError: an option that cannot be.
    """

    def __init__(self, options: Options, console: Console) -> None:
        self.options, self.console = options, console
        self.scale = resolve(options)
        self.part, self.parts = _shard(options.shard)
        self.lines: Lines = {name: results.read(self._path(name)) for name in studies.STUDIES}
        self.begin = time.perf_counter()
        self._images: Images | None = None

    def run(self, study: str) -> None:
        """Work through a study."""
        if study != "choices":
            missing = self._missing("choices", {})
            if missing and self.parts > 1 and not self.options.dry_run:
                raise ValueError(
                    f"shard needs the {len(missing)} runs by which hyper-parameters are chosen: "
                    "python -m experiments.run choices first, for all machines"
                )
            if missing:
                self._work("choices", missing)
                missing = self._missing("choices", {})
            if missing and not self.options.dry_run:
                return
        chosen = choose(self.scale, self.lines["choices"])
        self._work(study, self._missing(study, chosen))

    def _missing(self, study: str, chosen: Chosen) -> list[Job]:
        return [job for job in studies.STUDIES[study](self.scale, chosen) if job.id not in self.lines[study]]

    def _path(self, study: str) -> pathlib.Path:
        return self.options.results / f"{study}.jsonl"

    def _work(self, study: str, jobs: list[Job]) -> None:
        groups = _groups(jobs, self.options.together or self._together())[self.part :: self.parts]
        number = sum(map(len, groups))
        if self.options.dry_run:
            self.console.print(f"{study}: {number} runs are missing, {_time(self._seconds(groups))}")
            return
        done = 0
        for group in groups:
            expected = self._seconds([group])
            limit = self.options.max_minutes
            if limit is not None and time.perf_counter() - self.begin + (expected or 0) > 60 * limit:
                self.console.print(f"{study}: stopped before {limit:g} minutes; {number - done} runs are left")
                return
            lines = self._known(study, group) or self._execute(study, group)
            for line in lines:
                results.append(self._path(study), line)
                self.lines[study][line["id"]] = line
            done += len(group)
            left = _time(self._seconds(groups[groups.index(group) + 1 :]))
            self.console.print(f"{study} {done}/{number}  {_describe(lines)}  {left}")

    def _together(self) -> int:
        return 1 if jax.default_backend() == "cpu" else len(self.scale.seeds)

    def _known(self, study: str, group: Sequence[Job]) -> list[Line]:
        """The lines of runs that another study has made already."""
        found = [line for job in group for line in [self._elsewhere(job)] if line]
        if len(found) < len(group):
            return []
        return [line | _name(study, self.scale, job) for line, job in zip(found, group, strict=True)]

    def _elsewhere(self, job: Job) -> Line | None:
        return next((lines[job.id] for lines in self.lines.values() if job.id in lines), None)

    def _execute(self, study: str, group: Sequence[Job]) -> list[Line]:
        begin, images = time.perf_counter(), self._open()
        first = group[0]
        if first.corrupted is None:
            measured = self._train(group, images)
        else:
            measured = self._corrupt(group, images, first.corrupted)
        seconds = (time.perf_counter() - begin) / len(group)
        about = results.provenance()
        return [
            {
                "id": job.id,
                **_name(study, self.scale, job),
                "dataset": self.scale.base.data.name,
                "digest": images.digest,
                "model": job.config.model,
                "target": job.target,
                **found,
                "together": len(group),
                "wall_seconds": round(seconds, 2),
                **about,
                "config": job.config.to_json(),
            }
            for job, found in zip(group, measured, strict=True)
        ]

    def _train(self, group: Sequence[Job], images: Images) -> list[dict[str, Any]]:
        """Train, keep the networks, and measure them."""
        configs = [job.config for job in group]
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("step {task.completed}/{task.total}"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        ) as progress:
            task = progress.add_task(_call(group), total=configs[0].steps)
            trained = training.train(configs, images, lambda step: progress.update(task, completed=step))
        variables = jax.device_get(_variables(trained.state))
        _NETWORKS.mkdir(exist_ok=True)
        for number, job in enumerate(group):
            one = jax.tree.map(lambda leaf, number=number: leaf[number], variables)
            (_NETWORKS / job.model).write_bytes(flax.serialization.msgpack_serialize(one))
        found = training.evaluate(configs[0], trained.state, images, training.measured(images, group[0].target))
        clusters = training.clusters_of(configs[0], trained.state, images)
        snapshots = [trained.snapshots] + [{}] * (len(group) - 1)
        return [
            {
                **one,
                "loss": _number(one["loss"]),
                "train_loss": _number(trained.train_loss[i]),
                "finite": trained.finite[i],
                "images_per_second": round(trained.images_per_second, 1),
                **({"clusters": clusters[i]} if clusters[i] else {}),
                **({"snapshots": snapshots[i]} if snapshots[i] and _drawn(job, self.scale) else {}),
            }
            for i, (job, one) in enumerate(zip(group, found, strict=True))
        ]

    def _corrupt(self, group: Sequence[Job], images: Images, number: int) -> list[dict[str, Any]]:
        if not all((_NETWORKS / job.model).exists() for job in group):
            self._train(group, images)
        networks = [flax.serialization.msgpack_restore((_NETWORKS / job.model).read_bytes()) for job in group]
        variables = jax.tree.map(lambda *leaves: np.stack(leaves), *networks)
        state = TrainState(variables["params"], variables["batch_stats"], {}, (), (), np.zeros(len(group), np.int32))  # pyright: ignore[reportArgumentType]
        data_dir = self.options.data_dir
        found = training.under_corruptions(group[0].config, state, images, number, data_dir and str(data_dir))
        return [
            {
                "accuracy": float(np.mean([each["accuracy"] for each in one.values()])),
                "count": number or len(images.test),
                "corruptions": one,
            }
            for one in found
        ]

    def _open(self) -> Images:
        if self._images is None:
            name, npz = self.scale.base.data.name, self.options.npz
            if npz is None:
                dataset = load(name, self.options.data_dir)
            else:
                dataset = dataclasses.replace(load(f"npz:{npz}"), name=name, test_split="test", known=KNOWN.get(name))
            self._images = training.divide(dataset)
        return self._images

    def _seconds(self, groups: Sequence[Sequence[Job]]) -> float | None:
        """How long runs take, by those that were measured here; None where none was."""
        here, total = results.device(), 0.0
        for job in (job for group in groups for job in group):
            if self._elsewhere(job):
                continue
            rates = [
                line["wall_seconds"] / _work_of(line["config"], "corruptions" in line)
                for lines in self.lines.values()
                for line in lines.values()
                if line["device"] == here
                and line["model"] == job.config.model
                and ("corruptions" in line) == (job.corrupted is not None)
            ]
            if not rates:
                return None
            total += statistics.median(rates) * _work_of(job.config.to_json(), job.corrupted is not None)
        return total


def resolve(options: Options) -> Scale:
    """The scale, with what the options say instead.

    Raises:
        ValueError: an option that cannot be.
    """
    scale = studies.SCALES[options.scale]
    if options.dataset is not None:
        scale = studies.for_dataset(scale, options.dataset)
    own = {"model": options.model, "steps": options.steps}
    base = dataclasses.replace(scale.base, **{name: value for name, value in own.items() if value is not None})
    scale = dataclasses.replace(scale, base=base)
    if options.methods is not None:
        scale = dataclasses.replace(scale, methods=options.methods)
    if options.seeds is not None:
        scale = dataclasses.replace(scale, seeds=tuple(range(options.seeds)))
    return scale


def choose(scale: Scale, lines: Mapping[str, Line]) -> dict[str, Choice]:
    """For each method the choice with the best mean accuracy on the held-out images; of equal ones the first.

    Where runs are missing, the first choice stands for what is not known yet.
    """
    accuracies: dict[tuple[str, Choice], list[float]] = {}
    for job in studies.choices(scale, {}):
        if job.id in lines:
            accuracies.setdefault((job.method, Choice(**job.setting)), []).append(lines[job.id]["accuracy"])

    def accuracy(method: str, choice: Choice) -> float:
        found = accuracies.get((method, choice))
        return statistics.mean(found) if found else 0.0

    return {
        method: max(studies.CHOICES[method], key=lambda choice, method=method: accuracy(method, choice))
        for method in scale.methods
    }


def main(
    study: Annotated[StudyName, tyro.conf.Positional],
    options: tyro.conf.OmitArgPrefixes[Options] = Options(),
) -> None:
    """Work through the runs of a study that are missing.

    Args:
        study: What is compared.
        options: Which runs, and where.
    """
    keep_compiled()
    console = Console(highlight=False, soft_wrap=True)
    try:
        Runner(options, console).run(study)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"experiments.run: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; the same command goes on with what is left", file=sys.stderr)
        sys.exit(130)


def _shard(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if not (part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise ValueError(f"shard must be i/n with i from 1 to n, got {text!r}")
    return int(part) - 1, int(parts)


def _groups(jobs: Sequence[Job], together: int) -> list[list[Job]]:
    """Jobs that one program can do side by side, so many at most."""
    groups: list[list[Job]] = []
    for job in jobs:
        last = groups[-1] if groups else []
        if last and len(last) < together and _kind(last[0]) == _kind(job):
            last.append(job)
        else:
            groups.append([job])
    return groups


def _kind(job: Job) -> tuple[Any, ...]:
    return job.program, job.target, job.corrupted, job.config.data.fraction, job.config.data.per_class


def _name(study: str, scale: Scale, job: Job) -> dict[str, Any]:
    return {
        "study": study,
        "scale": scale.name,
        "base": scale.base_id,
        "method": job.method,
        "setting": dict(job.setting),
        "seed": job.config.seed,
    }


def _call(group: Sequence[Job]) -> str:
    first = group[0]
    setting = "".join(f", {name.replace('_', ' ')} {value}" for name, value in first.setting.items())
    return f"{first.method}{setting}, seed {' '.join(str(job.config.seed) for job in group)}"


def _describe(lines: Sequence[Line]) -> str:
    first = lines[0]
    setting = "".join(f", {name.replace('_', ' ')} {value}" for name, value in first["setting"].items())
    seeds = " ".join(str(line["seed"]) for line in lines)
    return f"{first['method']}{setting}, seed {seeds}: " + " ".join(f"{100 * line['accuracy']:.2f} %" for line in lines)


def _variables(state: TrainState) -> dict[str, Any]:
    """What a network needs to be evaluated: the averages where there are any; no clusters."""
    variables = state.variables(average=True)
    return {name: variables.get(name, {}) for name in ("params", "batch_stats")}


def _drawn(job: Job, scale: Scale) -> bool:
    """Whether the report shows how the clusters of this run came about."""
    return job.setting.get("structure") == "k-means, shared" and job.config.seed == scale.seeds[0]


def _work_of(config: Mapping[str, Any], corrupted: bool) -> float:
    return 1.0 if corrupted else config["steps"] * config["batch_size"]


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "of which none was measured here yet"
    return f"about {seconds / 60:.0f} minutes left" if seconds > 90 else f"about {seconds:.0f} seconds left"


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.run", description=__doc__)
