"""Work through the runs of a study that are missing: `python -m experiments.run STUDY`.

Each finished run is one line in `experiments/results/STUDY.jsonl`; the same command again does what is left. What a
study needs of another, the choices of hyper-parameters and networks, is made first.
"""

import dataclasses
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import jax
import tyro
from rich.console import Console

from dropcluster_jax.cache import enable_compilation_cache
from dropcluster_jax.models import ModelName
from dropcluster_jax.runs.config import TrainConfig
from dropcluster_jax.runs.trainer import Stopped
from experiments import results, studies
from experiments.measure import Measure, describe
from experiments.results import Line
from experiments.studies import Choice, Job, Scale

StudyName = Literal[
    "choices",
    "headline",
    "limited_data",
    "corruption",
    "placement",
    "rate_and_size",
    "clustering",
    "cadence",
    "warm_up",
]
MethodName = Literal["none", "dropout", "spatial", "block", "grid", "cluster"]
_SMALL_NETWORKS = ("resnet8", "resnet20", "resnet32", "resnet44", "resnet56")
Lines = dict[str, dict[str, Line]]  # by study, then by the id of the run


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
    """Another number of optimizer steps than the scale's."""
    shares: tuple[float, ...] | None = None
    """Shares of the training images, for limited_data and corruption."""
    shard: str = "1/1"
    """i/n: the i-th of n parts of the study, for as many machines; their result files are merged by concatenation."""
    max_minutes: float | None = None
    """Begin no run that would not end in time."""
    dry_run: bool = False
    """Say how many runs are missing and how long they would take by those that were measured; train nothing."""
    together: int | None = None
    """So many runs are trained side by side in one program; else all seeds of a small network on a GPU or TPU."""
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
        measure: trains jobs that one program can do, and gives what was measured of each.

    Raises:
        ValueError: an option that cannot be, or a damaged result file.
    """

    def __init__(self, options: Options, console: Console, measure: Callable[..., list[dict[str, Any]]]) -> None:
        self.options, self.console, self.measure = options, console, measure
        self.scale = resolve(options)
        self.part, self.parts = _shard(options.shard)
        self.lines: Lines = {name: _known_lines(self._path(name)) for name in studies.STUDIES}
        self.begin = time.perf_counter()
        results.commit()  # of the code as it is now

    def check(self, study: str) -> None:
        """See whether a study can be run.

        Raises:
            ValueError: it needs what the options leave out.
        """
        if study in ("clustering", "cadence") and "cluster" not in self.scale.methods:
            raise ValueError(f"methods must hold cluster for {study}, got {', '.join(self.scale.methods)}")
        missing = self._missing("choices", studies.choices(self.scale, {}))
        if study != "choices" and missing and self.parts > 1 and not self.options.dry_run:
            raise ValueError(
                f"shard needs the {len(missing)} runs by which hyper-parameters are chosen: "
                "python -m experiments.run choices first, on one machine, for all"
            )

    def run(self, study: str) -> None:
        """Work through a study, and first through what it needs of others: choices, and networks to be corrupted."""
        self.check(study)
        if study != "choices" and not self._work("choices", studies.choices(self.scale, {})):
            return
        chosen = choose(self.scale, self.lines["choices"])
        jobs = self._own(studies.STUDIES[study](self.scale, chosen))
        if study == "corruption":
            trained = {job.trained.id for job in jobs}
            needed = [job for job in studies.limited_data(self.scale, chosen) if job.id in trained]
            if not self._work("limited_data", needed):
                return
        self._work(study, jobs)

    def _own(self, jobs: Sequence[Job]) -> list[Job]:
        """This machine's part: all seeds of a setting go to one, whatever it has done already."""
        seeds = len({job.config.seed for job in jobs})
        return [job for place, job in enumerate(jobs) if place // seeds % self.parts == self.part]

    def _missing(self, study: str, jobs: Sequence[Job]) -> list[Job]:
        return [job for job in jobs if job.id not in self.lines[study]]

    def _path(self, study: str) -> pathlib.Path:
        return self.options.results / f"{study}.jsonl"

    def _groups(self, jobs: Sequence[Job]) -> list[list[Job]]:
        """Jobs that one program can do side by side."""
        together = self.options.together
        if together is None:
            # On CPUs the convolutions of several networks at once are slower than one after the other; and a large
            # network keeps a GPU busy by itself.
            alone = jax.default_backend() == "cpu" or self.scale.base.model not in _SMALL_NETWORKS
            together = 1 if alone else len(self.scale.seeds)
        groups: list[list[Job]] = []
        for job in jobs:
            if groups and len(groups[-1]) < together and _kind(groups[-1][0]) == _kind(job):
                groups[-1].append(job)
            else:
                groups.append([job])
        return groups

    def _work(self, study: str, jobs: Sequence[Job]) -> bool:
        """Do those that are missing; whether all are done then, or would be."""
        missing = self._missing(study, jobs)
        if self.options.dry_run:
            left = f", {_time(self._seconds(missing))}" if missing else ""
            self.console.print(f"{study}: {len(missing)} runs are missing{left}")
            return True
        for job in missing:
            if (line := self._elsewhere(job)) is not None:
                self._write(study, [line | _name(study, self.scale, job)])
        groups = self._groups(self._missing(study, missing))
        number, done = sum(map(len, groups)), 0
        for place, group in enumerate(groups):
            limit, spent = self.options.max_minutes, time.perf_counter() - self.begin
            if limit is not None and spent + (self._seconds(group) or 0) > 60 * limit:
                self.console.print(f"{study}: stopped before {limit:g} minutes; {number - done} runs are left")
                return False
            lines = self._execute(study, group)
            self._write(study, lines)
            done += len(group)
            accuracies = ", ".join(f"{100 * line['accuracy']:.2f} %" for line in lines)
            left = _time(self._seconds([job for group in groups[place + 1 :] for job in group]))
            self.console.print(f"{study} {done}/{number}  {describe(group)}: {accuracies}  {left}")
        return True

    def _write(self, study: str, lines: Sequence[Line]) -> None:
        for line in lines:
            results.append(self._path(study), line)
            self.lines[study][line["id"]] = line

    def _elsewhere(self, job: Job) -> Line | None:
        return next((lines[job.id] for lines in self.lines.values() if job.id in lines), None)

    def _execute(self, study: str, group: Sequence[Job]) -> list[Line]:
        begin = time.perf_counter()
        measured = self._measured(group)
        if measured is None:  # there is not the memory for so many at once
            half = len(group) // 2
            return self._execute(study, group[:half]) + self._execute(study, group[half:])
        seconds = (time.perf_counter() - begin) / len(group)
        about = results.provenance()
        return [
            {
                "id": job.id,
                **_name(study, self.scale, job),
                "corrupted": job.corrupted,
                "dataset": job.config.data.name,
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

    def _measured(self, group: Sequence[Job]) -> list[dict[str, Any]] | None:
        """None where the device's memory was not enough."""
        try:
            found = self.measure(group)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or len(group) == 1:
                raise
            return None
        data, digest = group[0].config.data, found[0]["digest"]
        same = [line["digest"] == digest for line in self._all() if line["dataset"] == data.name]
        if data.image_size is None and not all(same):  # of streamed images the digest is of a run's own share
            raise ValueError(f"{self.options.results} holds results on other images called {data.name}")
        return found

    def _all(self) -> Iterator[Line]:
        return (line for lines in self.lines.values() for line in lines.values())

    def _seconds(self, jobs: Sequence[Job]) -> float | None:
        """How long runs take, by those that were measured on such a device; None where none was."""
        here, total = results.device(), 0.0
        for job in jobs:
            if self._elsewhere(job):
                continue
            kind = (here, job.config.model, job.config.data.name, job.corrupted is not None)
            rates = [
                line["wall_seconds"] / _size(line["config"], "corruptions" in line)
                for line in self._all()
                if (line["device"], line["model"], line["dataset"], "corruptions" in line) == kind
            ]
            if not rates:
                return None
            total += statistics.median(rates) * _size(job.config.to_json(), job.corrupted is not None)
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
    methods = scale.methods if options.methods is None else options.methods
    seeds = scale.seeds if options.seeds is None else tuple(range(options.seeds))
    shares = scale.shares if options.shares is None else options.shares
    if not methods or not seeds or not shares:
        raise ValueError("there must be a method, a seed and a share")
    if not all(0 < share <= 1 for share in shares):
        raise ValueError(f"shares must be above 0 and at most 1, got {', '.join(map(str, shares))}")
    if options.npz is not None and base.data.image_size is not None:
        raise ValueError(f"npz is not for {base.data.name}, whose images are streamed")
    return dataclasses.replace(scale, base=base, methods=methods, seeds=seeds, shares=shares)


def choose(scale: Scale, lines: Mapping[str, Line]) -> dict[str, Choice]:
    """For each method the choice with the best mean accuracy on the held-out images; of equal ones the first.

    Args:
        scale: whose methods.
        lines: of the study `choices`; a choice without any counts as 0.
    """
    accuracies: dict[tuple[str, Choice], list[float]] = {}
    for job in studies.choices(scale, {}):
        if job.id in lines:
            accuracies.setdefault((job.method, Choice(**job.setting)), []).append(lines[job.id]["accuracy"])

    def accuracy(method: str, choice: Choice) -> float:
        return statistics.mean(accuracies.get((method, choice), [0.0]))

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
    enable_compilation_cache()
    console = Console(highlight=False, soft_wrap=True)
    try:
        scale = resolve(options)
        measure = Measure(scale.base.data.name, console, options.npz, options.data_dir)
        runner = Runner(options, console, measure)
        runner.check(study)
        if scale.base.data.image_size is None and not options.dry_run:
            measure.open()
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"experiments.run: error: {error}", file=sys.stderr)
        sys.exit(2)
    try:
        runner.run(study)
    except OSError as error:
        print(f"experiments.run: {error}; the same command goes on with what is left", file=sys.stderr)
        sys.exit(1)
    except (KeyboardInterrupt, Stopped) as error:
        print("stopped; the same command goes on with what is left", file=sys.stderr)
        sys.exit(error.status if isinstance(error, Stopped) else 130)


def _known_lines(path: pathlib.Path) -> dict[str, Line]:
    """The lines of a file by the ids that their runs have now: an option that is new had its default then."""
    known: dict[str, Line] = {}
    for line in results.read(path):
        config = TrainConfig.from_json(line["config"])
        job = Job(line["method"], line["setting"], config, line["target"], line["corrupted"])
        known.setdefault(job.id, {**line, "id": job.id})
    return known


def _shard(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if not (part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise ValueError(f"shard must be i/n with i from 1 to n, got {text!r}")
    return int(part) - 1, int(parts)


def _kind(job: Job) -> tuple[Any, ...]:
    return job.program, job.target, job.corrupted, job.config.data.fraction, job.config.data.examples_per_class


def _name(study: str, scale: Scale, job: Job) -> dict[str, Any]:
    """What a line is in this study."""
    return {
        "study": study,
        "scale": scale.name,
        "table": scale.table,
        "method": job.method,
        "setting": dict(job.setting),
        "seed": job.config.seed,
    }


def _size(config: Mapping[str, Any], corrupted: bool) -> float:
    """What the time of a run goes with: images that are learned from; all corruptions are of one size."""
    return 1.0 if corrupted else config["steps"] * config["batch_size"]


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "of which none was measured here yet"
    return f"about {seconds / 60:.0f} minutes left" if seconds > 90 else f"about {seconds:.0f} seconds left"


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.run", description=__doc__)
