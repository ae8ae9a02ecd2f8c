"""Executes the missing runs of a study: `python -m experiments.run STUDY`.

Each finished run is a line in `experiments/results/STUDY.jsonl`; rerun the command to resume. Runs that a study depends
on, i.e. choices of hyperparameters and networks to evaluate on corrupted images, are executed first. Any number of
processes can execute the command at the same time to share the work.
"""

import dataclasses
import functools
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any, NoReturn

import tyro
from etils import epath

from dropcluster_jax.cache import compilation_cache
from dropcluster_jax.runs import TrainConfig
from dropcluster_jax.runs.engine import work
from dropcluster_jax.runs.folder import lock
from dropcluster_jax.runs.trainer import Stopped
from experiments import results, studies
from experiments.measure import Measure
from experiments.results import Line
from experiments.studies import Chosen, Job, Scale

OpenJob = tuple[str, Job]  # with its study


@dataclasses.dataclass(frozen=True)
class Options:
    """Selection of runs, and paths."""

    scale: str = "cpu"
    """Size of the study: cpu or cpu-augmented for two CPU cores, gpu for one GPU, paper for full schedules, small for
    tests."""
    dataset: str | None = None
    """Dataset, instead of the scale's: digits, or one that TFDS has prepared."""
    methods: tuple[str, ...] | None = None
    """Methods, instead of the scale's."""
    seeds: int | None = None
    """Number of seeds, instead of the scale's."""
    steps: int | None = None
    """Number of optimizer steps, instead of the scale's."""
    fractions: tuple[float, ...] | None = None
    """Fractions of the training images, instead of the scale's, for limited_data, corruption, fills and studies by
    fraction."""
    max_minutes: float | None = None
    """Start no further run after this time."""
    dry_run: bool = False
    """Print the number of missing runs; train nothing."""
    networks: pathlib.Path = results.FOLDER.parent / "networks"
    """Folder of the run folders."""
    results: pathlib.Path = results.FOLDER
    """Folder of the result files."""

    def resolve(self) -> Scale:
        """Returns the scale with the values that the options replace.

        Raises:
            ValueError: If an option is invalid.
        """
        scale = _lookup("scale", self.scale, studies.SCALES)
        if self.dataset is not None:
            scale = studies.for_dataset(scale, self.dataset)
        if self.steps is not None:
            scale = dataclasses.replace(scale, base=studies.override(scale.base, steps=self.steps))
        values = {
            "methods": self.methods,
            "seeds": None if self.seeds is None else tuple(range(self.seeds)),
            "fractions": self.fractions,
        }
        scale = dataclasses.replace(scale, **{name: value for name, value in values.items() if value is not None})
        for method in scale.methods:
            _lookup("methods", method, studies.METHODS)
        if not scale.methods or not scale.seeds or not scale.fractions:
            raise ValueError("methods, seeds and fractions must not be empty")
        if not all(0 < fraction <= 1 for fraction in scale.fractions):
            raise ValueError(f"fractions must be above 0 and at most 1, got {', '.join(map(str, scale.fractions))}")
        return scale


def execute_study(study: str, options: Options, measure: Measure, notify: Callable[[str], None] = print) -> bool:
    """Executes the missing runs of a study, after those that it depends on.

    Args:
        study: Name of the study.
        options: Selection of runs, and paths.
        measure: Executes a job and returns the measured part of its line.
        notify: Called with the result of each run.

    Returns:
        Whether the study is complete, i.e. False if the time limit was reached.

    Raises:
        ValueError: If an option is invalid, a result file is damaged, or existing results are on other images.
    """
    _lookup("the study", study, studies.STUDIES)
    scale = options.resolve()
    if options.dry_run:
        for name, missing in _stages(study, scale, options.results):
            notify(f"{name}: {len(missing)} runs missing")
        return True
    dataset, digest = scale.base.data.name, measure.digest
    lines = [line for name in studies.STUDIES for line in _read(options.results, name).values()]
    if any(line["dataset"] == dataset and line["digest"] != digest for line in lines):
        raise ValueError(f"{options.results} contains results on other images called {dataset}")
    results.commit()  # cached, so that all lines have the commit at the start

    def open_jobs() -> list[OpenJob]:
        return next(([(name, job) for job in jobs] for name, jobs in _stages(study, scale, options.results)), [])

    def execute(open_job: OpenJob) -> None:
        name, job = open_job
        with lock(measure.folder(job), notify):
            if job.id in _read(options.results, name):
                return  # finished by another process since
            found = (lines[job.id] for other in studies.STUDIES if job.id in (lines := _read(options.results, other)))
            line = next(found, None) or {"id": job.id, **_execute(measure, job)}
            names = {"study": name, "scale": scale.name, "table": scale.table}
            names |= {"method": job.method, "setting": dict(job.setting), "seed": job.config.seed}
            results.append(_path(options.results, name), line | names)
            if job.target == "validation" or job.corrupted is not None:  # corrupted images need the others
                measure.folder(job).rmtree()
        left = sum(len(jobs) for other, jobs in _stages(study, scale, options.results) if other == name)
        notify(f"{name}, {left} left  {job}: {line['accuracy']:.2%}")

    is_complete = work(open_jobs, execute, max_minutes=options.max_minutes)
    if not is_complete:
        notify(f"stopped after {options.max_minutes:g} minutes; rerun the command to resume")
    return is_complete


def _stages(study: str, scale: Scale, folder: pathlib.Path) -> Iterator[tuple[str, list[Job]]]:
    """Yields the studies that have missing jobs, in the order of their execution, with these jobs.

    While choices are being made, those that follow are for the candidates in the lead.
    """
    chosen: Chosen = {}
    is_race = studies.STUDIES[study].seeds == "choice"
    for name in (*studies.STUDIES[study].after, *([study] if is_race else [])):
        accuracies = {id_: line["accuracy"] for id_, line in _read(folder, name).items()}
        missing, chosen = studies.choose(name, scale, chosen, accuracies)
        if missing:
            yield name, missing
    if is_race:
        return
    jobs = studies.jobs(study, scale, chosen)
    if not jobs:
        raise ValueError(f"{study} has no runs of the methods {', '.join(scale.methods)}")
    if networks := studies.STUDIES[study].networks:
        trained = {job.trained.id for job in jobs}
        needed = [job for job in studies.jobs(networks, scale, chosen) if job.id in trained]
        if missing := [job for job in needed if job.id not in _read(folder, networks)]:
            yield networks, missing
    if missing := [job for job in jobs if job.id not in _read(folder, study)]:
        yield study, missing


def _execute(measure: Measure, job: Job) -> Line:
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


def _path(folder: pathlib.Path, study: str) -> pathlib.Path:
    return folder / f"{study}.jsonl"


def _read(folder: pathlib.Path, study: str) -> dict[str, Line]:
    """Returns the lines of a study by id."""
    path = _path(folder, study)
    return _parse(path, path.stat().st_size) if path.exists() else {}


@functools.lru_cache(maxsize=2 * len(studies.STUDIES))
def _parse(path: pathlib.Path, size: int) -> dict[str, Line]:
    """Reads a file of a size. The ids are recomputed, because options may have been added since."""
    lines: dict[str, Line] = {}
    for line in results.read(path):
        config = TrainConfig.from_json(line["config"])
        job = Job(line["method"], line["setting"], config, line["corrupted"])
        lines.setdefault(job.id, {**line, "id": job.id})
    return lines


def _lookup(name: str, key: str, table: dict[str, Any]) -> Any:
    if key not in table:
        raise ValueError(f"{name} must be among {', '.join(table)}, got {key!r}")
    return table[key]


def main(
    study: Annotated[str, tyro.conf.Positional],
    options: tyro.conf.OmitArgPrefixes[Options] = Options(),
) -> None:
    """Executes the missing runs of a study.

    Args:
        study: The study: see experiments/README.md.
        options: Selection of runs, and paths.
    """
    with compilation_cache():
        try:
            execute_study(study, options, Measure(options.resolve().base.data, epath.Path(options.networks)))
        except (ValueError, TypeError, ImportError, FileNotFoundError) as error:
            _exit(2, f"error: {error}")
        except OSError as error:
            _exit(1, f"{error}; rerun the command to resume")
        except (KeyboardInterrupt, Stopped) as error:
            _exit(error.status if isinstance(error, Stopped) else 130, "stopped; rerun the command to resume")


def _exit(status: int, message: str) -> NoReturn:
    print(f"experiments.run: {message}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.run", description=__doc__)
