"""Executes the missing runs of a study: `python -m experiments.run STUDY`.

Each finished run is a line in `experiments/results/STUDY.jsonl`; rerun the command to resume. Runs that a study depends
on, i.e. choices of hyperparameters and networks to evaluate on corrupted images, are executed first.
"""

import contextlib
import dataclasses
import functools
import itertools
import multiprocessing
import os
import pathlib
import shutil
import signal
import statistics
import sys
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue
from typing import Annotated, Any, NoReturn

import jax
import tyro
from rich.console import Console

from dropcluster_jax.cache import compilation_cache
from dropcluster_jax.models import ModelName
from dropcluster_jax.runs import DataConfig, TrainConfig
from dropcluster_jax.runs.trainer import Stopped
from experiments import results, studies
from experiments.measure import Measure
from experiments.results import Line
from experiments.studies import Job, MethodName, Scale, StudyName


@dataclasses.dataclass(frozen=True)
class Options:
    """Selection of runs, and paths."""

    scale: studies.ScaleName = "cpu"
    """Size of the study: cpu or cpu-augmented for two CPU cores, gpu for one GPU, paper for full schedules, small for
    tests."""
    dataset: str | None = None
    """Dataset, instead of the scale's: digits, or one that TFDS has prepared."""
    model: ModelName | None = None
    """Network, instead of the scale's."""
    methods: tuple[MethodName, ...] | None = None
    """Methods, instead of the scale's."""
    seeds: int | None = None
    """Number of seeds, instead of the scale's."""
    steps: int | None = None
    """Number of optimizer steps, instead of the scale's."""
    fractions: tuple[float, ...] | None = None
    """Fractions of the training images, for limited_data, corruption and studies by fraction."""
    shard: str = "1/1"
    """i/n: execute the i-th of n parts of the study, one per machine. Concatenate their result files to merge them."""
    workers: int = 1
    """Number of processes that execute runs at the same time, on the same device."""
    max_minutes: float | None = None
    """Do not start runs that would exceed this time."""
    dry_run: bool = False
    """Print the number of missing runs and an estimate of their duration; train nothing."""
    npz: pathlib.Path | None = None
    """Archive with the images of the dataset, for machines without TFDS."""
    data_dir: str | None = None
    """TFDS data directory. Default: $TFDS_DATA_DIR, otherwise ~/tensorflow_datasets."""
    networks: pathlib.Path = results.FOLDER.parent / "networks"
    """Folder of the run folders."""
    results: pathlib.Path = results.FOLDER
    """Folder of the result files."""


class Runner:
    """Executes missing jobs and writes their lines.

    Args:
        options: Selection of runs, and paths.
        console: Prints progress.
        measure: Executes a job and returns the measured part of its line.

    Raises:
        ValueError: If an option is invalid or a result file is damaged.
    """

    def __init__(self, options: Options, console: Console, measure: Measure) -> None:
        self.options, self.console, self.measure = options, console, measure
        self.scale = resolve(options)
        self.shard, self.num_shards = _parse_shard(options.shard)
        self.lines = {study: _read(self._path(study)) for study in studies.STUDIES}  # by id
        self.start = time.perf_counter()
        results.commit()  # cached, so that all lines have the commit at the start

    def check(self, study: str) -> None:
        """Checks that a study can be executed.

        Raises:
            ValueError: If methods or runs that it depends on are missing, or existing results are on other images.
        """
        if (
            study in ("clustering", "clustering_by_fraction", "update_interval")
            and "drop_cluster" not in self.scale.methods
        ):
            raise ValueError(f"methods must include cluster for {study}, got {', '.join(self.scale.methods)}")
        if self.options.dry_run:
            return
        chosen: Mapping[str, studies.Options] = {}
        for tuning in studies.tuning_before(study):
            if self.num_shards > 1 and self._remaining(tuning, chosen):
                raise ValueError(
                    f"shard requires the choice of hyperparameters: execute python -m experiments.run {tuning} first, "
                    "on one machine"
                )
            chosen = self._choose(tuning, chosen)
        name, digest = self.scale.base.data.name, self.measure.digest
        if any(line["dataset"] == name and line["digest"] != digest for line in self._all_lines()):
            raise ValueError(f"{self.options.results} contains results on other images called {name}")

    def run(self, study: str) -> None:
        """Executes a study, after the choices and networks that it depends on."""
        self.check(study)
        chosen: Mapping[str, studies.Options] = {}
        for tuning in studies.tuning_before(study):
            if not self._tune(tuning, chosen):
                return
            chosen = self._choose(tuning, chosen)
        if study in studies.RACES:
            self._tune(study, chosen)
            return
        jobs = self._own_shard(studies.jobs(study, self.scale, chosen))
        if study in studies.CORRUPTED:
            trains, trained = studies.CORRUPTED[study], {job.trained.id for job in jobs}
            needed = [job for job in studies.jobs(trains, self.scale, chosen) if job.id in trained]
            if not self._work(trains, needed):
                return
        self._work(study, jobs)

    def _tune(self, tuning: str, chosen: Mapping[str, studies.Options]) -> bool:
        """Executes a tuning study; returns False if the time limit was reached."""
        while jobs := self._remaining(tuning, chosen):
            if not self._work(tuning, jobs):
                return False
            if self.options.dry_run:
                break
        return True

    def _choose(self, tuning: str, chosen: Mapping[str, studies.Options]) -> Mapping[str, studies.Options]:
        return studies.choose(tuning, self.scale, chosen, self._accuracies(tuning))

    def _remaining(self, tuning: str, chosen: Mapping[str, studies.Options]) -> list[Job]:
        return studies.remaining(tuning, self.scale, chosen, self._accuracies(tuning))

    def _accuracies(self, study: str) -> dict[str, float]:
        return {id_: line["accuracy"] for id_, line in self.lines[study].items()}

    def _own_shard(self, jobs: Sequence[Job]) -> list[Job]:
        """Returns this machine's jobs: all seeds of every n-th setting, independently of what is finished."""
        num_seeds = len({job.config.seed for job in jobs})
        return [job for index, job in enumerate(jobs) if index // num_seeds % self.num_shards == self.shard]

    def _work(self, study: str, jobs: Sequence[Job]) -> bool:
        """Executes missing jobs; returns False if the time limit was reached."""
        missing = self._missing(study, jobs)
        if self.options.dry_run:
            seconds = self._seconds(missing)
            duration = "duration unknown" if seconds is None else _format_seconds(seconds / self.options.workers)
            self.console.print(f"{study}: {len(missing)} runs missing, {duration}")
            return True
        for job in missing:
            if (line := self._find(job)) is not None:  # a run of another study
                self._write(study, line | self._names(study, job))
        missing, start = self._missing(study, missing), time.perf_counter()
        with contextlib.closing(self._execute(missing)) as executed:
            for index, (job, line) in enumerate(executed, 1):
                self._write(study, {"id": job.id, **self._names(study, job), **line})
                if job.target == "validation":  # `corruption` needs the others
                    shutil.rmtree(self.measure.folder(job), ignore_errors=True)
                left = (time.perf_counter() - start) / index * (len(missing) - index)
                accuracy = f"{100 * line['accuracy']:.2f}%"
                self.console.print(f"{study} {index}/{len(missing)}  {job}: {accuracy}  {_format_seconds(left)} left")
        if left := self._missing(study, missing):
            self.console.print(f"{study}: stopped before {self.options.max_minutes:g} minutes; {len(left)} runs left")
        return not left

    def _execute(self, jobs: Sequence[Job]) -> Generator[tuple[Job, Line]]:
        """Yields executed jobs and their lines until the next one would exceed the time limit."""
        if self.options.workers == 1:
            for job in itertools.takewhile(self._in_time, jobs):
                yield job, execute(self.measure, job)
            return
        # A process executes all seeds of a setting, for which it compiles once.
        groups = [list(group) for _, group in itertools.groupby(jobs, lambda job: (job.method, str(job.setting)))]
        waiting = iter(groups)
        running: dict[Future[list[Line]], list[Job]] = {}
        while True:
            for group in itertools.islice(waiting, self.options.workers - len(running)):
                if not self._in_time(*group):
                    waiting = iter(())
                    break
                running[self._workers.submit(_execute_in_worker, group)] = group
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield from zip(running.pop(future), future.result(), strict=True)

    @functools.cached_property
    def _workers(self) -> ProcessPoolExecutor:
        """Processes that share the device. Each executes jobs with its own copy of `measure`."""
        context = multiprocessing.get_context("spawn")
        cores = context.SimpleQueue()
        for share in _core_shares(self.options.workers):
            cores.put(share)
        return ProcessPoolExecutor(
            self.options.workers,
            context,
            initializer=_initialize_worker,
            initargs=(self.measure.data, self.measure.root, cores, results.commit()),
        )

    def _in_time(self, *jobs: Job) -> bool:
        """Whether jobs, executed one after the other, would end within the time limit."""
        limit = self.options.max_minutes
        return limit is None or time.perf_counter() - self.start + (self._seconds(jobs) or 0) <= 60 * limit

    def _names(self, study: str, job: Job) -> Line:
        return {
            "study": study,
            "scale": self.scale.name,
            "table": self.scale.table,
            "method": job.method,
            "setting": dict(job.setting),
            "seed": job.config.seed,
        }

    def _write(self, study: str, line: Line) -> None:
        results.append(self._path(study), line)
        self.lines[study][line["id"]] = line

    def _missing(self, study: str, jobs: Sequence[Job]) -> list[Job]:
        return [job for job in jobs if job.id not in self.lines[study]]

    def _find(self, job: Job) -> Line | None:
        return next((lines[job.id] for lines in self.lines.values() if job.id in lines), None)

    def _all_lines(self) -> Iterator[Line]:
        return (line for lines in self.lines.values() for line in lines.values())

    def _path(self, study: str) -> pathlib.Path:
        return self.options.results / f"{study}.jsonl"

    def _seconds(self, jobs: Sequence[Job]) -> float | None:
        """Estimates the duration of jobs from similar ones on such a device; None without any."""
        device, total = results.device(), 0.0
        for job in jobs:
            if self._find(job) is not None:
                continue
            kind = (device, job.config.model, job.config.data.name, job.corrupted is not None)
            seconds_per_image = [
                line["wall_seconds"] / _num_images(line["config"], line["corrupted"])
                for line in self._all_lines()
                if (line["device"], line["model"], line["dataset"], line["corrupted"] is not None) == kind
            ]
            if not seconds_per_image:
                return None
            total += statistics.median(seconds_per_image) * _num_images(job.config.to_json(), job.corrupted)
        return total


def execute(measure: Measure, job: Job) -> Line:
    """Executes a job and returns its line, without the names that depend on the study."""
    start = time.perf_counter()
    measured = measure(job)
    return {
        "corrupted": job.corrupted,
        "dataset": job.config.data.name,
        "model": job.config.model,
        "target": job.target,
        **measured,
        "wall_seconds": round(time.perf_counter() - start, 2),
        **results.provenance(),
        "config": job.config.to_json(),
    }


# Of a worker process:
_measure: Measure
_commit: str | None  # when the study started; the files may have changed since


def _core_shares(workers: int) -> list[Sequence[int]]:
    """Returns the cores of each worker: an equal share if JAX runs on the CPU, otherwise all.

    A share is empty if the operating system cannot restrict a process to cores.
    """
    if not hasattr(os, "sched_getaffinity"):
        return [()] * workers
    cores = sorted(os.sched_getaffinity(0))
    if jax.default_backend() != "cpu" or workers > len(cores):
        return [cores] * workers
    return [cores[index::workers] for index in range(workers)]


def _initialize_worker(
    data: DataConfig, folder: pathlib.Path, cores: SimpleQueue[Sequence[int]], commit: str | None
) -> None:
    global _measure, _commit
    if share := cores.get():
        os.sched_setaffinity(0, share)  # before JAX creates its threads
    _measure, _commit = Measure(data, folder, Console(quiet=True)), commit
    threading.Thread(target=_stop_with_parent, daemon=True).start()


def _stop_with_parent() -> None:
    """Stops this worker process, with a checkpoint, when the process that started it ends."""
    _parent().join()
    os.kill(os.getpid(), signal.SIGTERM)


def _parent() -> BaseProcess:
    parent = multiprocessing.parent_process()
    assert parent is not None
    return parent


def _execute_in_worker(jobs: Sequence[Job]) -> list[Line]:
    # The speed is not a result, because other runs use the device at the same time.
    without_speed = {"images_per_second": None, "commit": _commit}
    try:
        with compilation_cache():
            return [execute(_measure, job) | without_speed for job in jobs]
    except Stopped as error:
        if not _parent().is_alive():
            # The executor's worker catches SystemExit and would start the jobs that wait.
            os._exit(error.status)
        raise


def resolve(options: Options) -> Scale:
    """Returns the scale with the values that the options replace.

    Raises:
        ValueError: If an option is invalid.
    """
    scale = studies.SCALES[options.scale]
    if options.dataset is not None:
        scale = studies.for_dataset(scale, options.dataset)
    options_by_name = {"model": options.model, "steps": options.steps}
    base = studies.override(scale.base, **{name: value for name, value in options_by_name.items() if value is not None})
    methods = scale.methods if options.methods is None else options.methods
    seeds = scale.seeds if options.seeds is None else tuple(range(options.seeds))
    fractions = scale.fractions if options.fractions is None else options.fractions
    if not methods or not seeds or not fractions:
        raise ValueError("methods, seeds and fractions must not be empty")
    if options.workers < 1:
        raise ValueError(f"workers must be at least 1, got {options.workers}")
    if not all(0 < fraction <= 1 for fraction in fractions):
        raise ValueError(f"fractions must be above 0 and at most 1, got {', '.join(map(str, fractions))}")
    if options.npz is not None and base.data.image_size is not None:
        raise ValueError(f"npz is not available for {base.data.name}, whose images are encoded")
    return dataclasses.replace(scale, base=base, methods=methods, seeds=seeds, fractions=fractions)


def main(
    study: Annotated[StudyName, tyro.conf.Positional],
    options: tyro.conf.OmitArgPrefixes[Options] = Options(),
) -> None:
    """Executes the missing runs of a study.

    Args:
        study: The study.
        options: Selection of runs, and paths.
    """
    console = Console(highlight=False, soft_wrap=True)
    with compilation_cache():
        try:
            data = resolve(options).base.data
            if options.npz is not None:
                data = dataclasses.replace(data, name=f"npz:{options.npz.absolute()}")
            else:
                data = dataclasses.replace(data, dir=options.data_dir)
            runner = Runner(options, console, Measure(data, options.networks, console))
            runner.check(study)
        except (ValueError, TypeError, OSError, ImportError) as error:
            _exit(2, f"error: {error}")
        try:
            runner.run(study)
        except OSError as error:
            _exit(1, f"{error}; rerun the command to resume")
        except (KeyboardInterrupt, Stopped) as error:
            _exit(error.status if isinstance(error, Stopped) else 130, "stopped; rerun the command to resume")


def _exit(status: int, message: str) -> NoReturn:
    print(f"experiments.run: {message}", file=sys.stderr)
    sys.exit(status)


def _read(path: pathlib.Path) -> dict[str, Line]:
    """Returns the lines of a file by id. The id is recomputed, because options may have been added since."""
    lines: dict[str, Line] = {}
    for line in results.read(path):
        config = TrainConfig.from_json(line["config"])
        job = Job(line["method"], line["setting"], config, line["corrupted"], probed="features" in line)
        lines.setdefault(job.id, {**line, "id": job.id})
    return lines


def _parse_shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise ValueError(f"shard must be i/n with i from 1 to n, got {text!r}")
    return int(index) - 1, int(count)


def _format_seconds(seconds: float) -> str:
    return f"about {seconds / 60:.0f} minutes" if seconds > 90 else f"about {seconds:.0f} seconds"


def _num_images(config: Mapping[str, Any], corrupted: int | None) -> float:
    """Number of training images, to which the duration is proportional; 1 for the evaluation of all corruptions."""
    return config["steps"] * config["batch_size"] if corrupted is None else 1.0


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.run", description=__doc__)
