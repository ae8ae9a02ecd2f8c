"""Comparison of drop layers on a dataset, by a race between candidates on held-out training images.

Each job of a comparison is a run folder. They are the only record: any number of processes can share the work, and a
comparison that was stopped resumes.
"""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dropcluster_jax import viz
from dropcluster_jax.data import DataConfig, DatasetSpec, load
from dropcluster_jax.linen import cluster_states
from dropcluster_jax.masking.fill import Fill
from dropcluster_jax.runs import build, figures
from dropcluster_jax.runs import folder as run_folder
from dropcluster_jax.runs.config import DropConfig, Method, TrainConfig
from dropcluster_jax.runs.engine import race, work
from dropcluster_jax.runs.intervals import interval, required_seeds
from dropcluster_jax.runs.trainer import train
from dropcluster_jax.training import NonFiniteError
from dropcluster_jax.training.loop import LogEntry

NUM_ROUNDS = 3  # of the race, each with another seed
_REDUCTION = 3  # factor by which the number of candidates falls in each round
FINAL_SEED = 1000  # of the first final run
_HAS_SIZE = {"drop_block": "block_size", "corr_drop": "block_size", "drop_cluster": "cluster_size"}
_HAS_FILL = ("spatial_dropout", "corr_drop", "drop_block", "drop_cluster")
_DEFAULT_SIDE = 4  # positions; half of smaller maps
_VALIDATION_FRACTION = 0.2


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    """The candidates and the budget of a comparison.

    Each method has all combinations of the rates, fills and sizes that apply to it.
    """

    methods: tuple[Method, ...] = ("none", "dropout", "drop_block", "drop_cluster")
    """Drop methods. The network without drop layers, none, is always included."""
    rates: tuple[float, ...] = (0.1, 0.2, 0.3)
    """Rates to try for each method."""
    fills: tuple[Fill, ...] = ("zero", "swap")
    """Replacements of dropped units to try for each method that drops whole regions or channels."""
    sides: tuple[int, ...] = ()
    """Sides in positions of blocks, and of squares as large as the clusters. Default: 4, or half of smaller maps."""
    places: tuple[str, ...] = ()
    """Places of the drop layers to try, joined by +, e.g. stage2 stage1+stage2. Default: those of the run."""
    seeds: int = 5
    """Seeds of the final comparison. Each has another initialization, order of the images, and held-out images."""
    max_runs: int | None = None
    """Stop after this number of runs; repeat the command to continue."""
    budget_minutes: float | None = None
    """Do not start further runs after this time; repeat the command to continue."""
    test: bool = False
    """At the end, train the recommended network on all training images and evaluate it on the test images."""

    def __post_init__(self) -> None:
        if self.seeds < 2:
            raise ValueError(f"seeds must be at least 2, got {self.seeds}")
        for name, minimum in (("max_runs", 1), ("budget_minutes", 0)):
            value = getattr(self, name)
            if value is not None and not value >= minimum:
                raise ValueError(f"{name} must be at least {minimum}, got {value}")
        for rate in self.rates:
            if not 0 < rate <= 1:
                raise ValueError(f"rates must be above 0 and at most 1, got {rate}")
        for name in ("methods", "rates", "fills"):
            if not getattr(self, name):
                raise ValueError(f"{name} must not be empty")


class Candidate(NamedTuple):
    """A method with values of its options.

    Attributes:
        method: The method.
        options: Names and values of other fields of `DropConfig`.
    """

    method: str
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        if self.method == "none":
            return "no drop layer"
        settings = [
            f"{name.replace('_', ' ')} {_text(value)}"
            for name, value in self.options
            if (name, value) != ("fill", "zero")
        ]
        return f"{self.method} ({', '.join(settings)})"

    @property
    def folder(self) -> str:
        """The name of the folder of its runs."""
        return "-".join([self.method, *(f"{name}-{_text(value)}" for name, value in self.options)])


def _text(value: Any) -> str:
    return "+".join(value) if isinstance(value, tuple) else str(value)


Job = tuple[Candidate, int]  # with a seed


def candidates(comparison: CompareConfig, map_side: int) -> list[Candidate]:
    """Returns the candidates of each method; blocks and clusters fit maps with this shortest side.

    Raises:
        ValueError: If a side is not between 1 and `map_side`.
    """
    sides = comparison.sides or (min(_DEFAULT_SIDE, max(1, map_side // 2)),)
    if invalid := [side for side in sides if not 1 <= side <= map_side]:
        raise ValueError(f"sides must be from 1 to {map_side}, the side of the smallest map, got {invalid[0]}")
    result = [Candidate("none")]
    for method in comparison.methods:
        values: dict[str, Sequence[Any]] = {"rate": comparison.rates}
        if size := _HAS_SIZE.get(method):
            values[size] = sides if size == "block_size" else [float(side * side) for side in sides]
        if method in _HAS_FILL:
            values["fill"] = comparison.fills
        if comparison.places:
            values["places"] = [tuple(names.split("+")) for names in comparison.places]
        if method != "none":
            product = itertools.product(*values.values())
            result += [Candidate(method, tuple(zip(values, each, strict=True))) for each in product]
    return list(dict.fromkeys(result))


def remaining(entered: Sequence[Candidate], accuracies: Mapping[Job, float], num_seeds: int) -> list[Job]:
    """Returns the jobs that can be done next: empty if the comparison is complete.

    The candidates of each method race. The best one of each method is then measured with fresh seeds.
    """
    jobs, finalists = _races(entered, accuracies)
    final = itertools.product(range(FINAL_SEED, FINAL_SEED + num_seeds), finalists)
    return jobs or [(candidate, seed) for seed, candidate in final if (candidate, seed) not in accuracies]


def winners(entered: Sequence[Candidate], accuracies: Mapping[Job, float]) -> list[Candidate]:
    """Returns the candidate of each method that leads in the race."""
    return _races(entered, accuracies)[1]


def _races(entered: Sequence[Candidate], accuracies: Mapping[Job, float]) -> tuple[list[Job], list[Candidate]]:
    groups = [[*group] for _, group in itertools.groupby(entered, lambda candidate: candidate.method)]
    results = [race(group, accuracies, range(NUM_ROUNDS), _REDUCTION) for group in groups]
    return [job for jobs, _ in results for job in jobs], [winner for _, winner in results]


def summarize(accuracies: Mapping[Job, float], finalists: Sequence[Candidate], test_ratio: float) -> dict[str, Any]:
    """Returns the result of the final runs.

    Args:
        accuracies: Accuracies in [0, 1] by candidate and seed; only those with final seeds count.
        finalists: The winners of the race, at first the network without drop layers.
        test_ratio: Number of held-out images divided by the number of training images.

    Returns:
        `best`, the index of the finalist with the best mean; `recommended`, the same if it is significantly better than
        no drop layer, otherwise 0; `finalists`, and for each `accuracy`, its mean, and `from_none` and `from_best`: the
        mean of the paired differences, their 95% interval, in points, and the number of seeds at which the interval
        would exclude 0, None if no number would.
    """
    seeds = sorted({seed for candidate, seed in accuracies if seed >= FINAL_SEED and candidate in finalists})
    seeds = [seed for seed in seeds if all((candidate, seed) in accuracies for candidate in finalists)]
    points = np.array([[100 * accuracies[candidate, seed] for seed in seeds] for candidate in finalists])
    best = int(np.argmax(points.mean(axis=1)))

    def difference(index: int, reference: int) -> dict[str, Any] | None:
        if index == reference:
            return None
        values = (points[index] - points[reference]).tolist()
        return {**interval(values, test_ratio)._asdict(), "required_seeds": required_seeds(values, test_ratio)}

    rows = [
        {
            "name": str(candidate),
            "method": candidate.method,
            "options": dict(candidate.options),
            "accuracy": float(points[index].mean() / 100),
            "from_none": difference(index, 0),
            "from_best": difference(index, best),
        }
        for index, candidate in enumerate(finalists)
    ]
    is_better = best > 0 and rows[best]["from_none"]["low"] > 0
    return {"seeds": seeds, "best": best, "recommended": best if is_better else 0, "finalists": rows}


def verdict(summary: Mapping[str, Any], num_images: int) -> str:
    """Returns the result of `summarize` in two sentences; `num_images` is the number of held-out images."""
    rows, best = summary["finalists"], summary["best"]
    scope = f"with {len(summary['seeds'])} seeds and {num_images:,} held-out images each"
    if len(rows) == 1:
        return f"no drop layer: {rows[0]['accuracy']:.1%} {scope}."
    if not summary["recommended"]:
        row = max(rows[1:], key=lambda row: row["from_none"]["mean"])
        difference = _describe(row, "from_none")
        return f"No method is significantly ahead of no drop layer {scope}. Closest to it: {difference}."
    text = f"{rows[best]['name']} is ahead of no drop layer by {_points(rows[best]['from_none'])} {scope}."
    others = [row for row in rows[1:] if row["from_best"] is not None and row["from_best"]["high"] > 0]
    return text + (
        f" Not significantly behind it: {'; '.join(_describe(row, 'from_best') for row in others)}." if others else ""
    )


def _describe(row: Mapping[str, Any], reference: str) -> str:
    seeds = row[reference]["required_seeds"]
    needed = "more held-out images" if seeds is None else f"about {seeds} seeds"
    return f"{row['name']}, {_points(row[reference])}; to decide, {needed} would be needed"


def _points(difference: Mapping[str, Any]) -> str:
    return "{mean:+.1f} points ({low:+.1f} to {high:+.1f})".format(**difference)


class BudgetError(Exception):
    """The budget ended before each finalist had run with two seeds."""


def compare(
    config: TrainConfig,
    comparison: CompareConfig = CompareConfig(),
    *,
    command: str = "dropcluster train PRESET",
    log: Callable[[str, LogEntry], None] = lambda job, entry: None,
    notify: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Compares drop layers on a dataset, and writes `comparison.json`, `report.md` and `differences.png`.

    Candidates are chosen and compared on images held out from the training images, a fifth of each class by default,
    which vary with the seed. Each job is a run folder in `config.out`, named after its candidate and seed. Other
    processes may call the function with the same arguments at the same time to share the work.

    Args:
        config: The run, except for the method, its options, the seeds and the evaluation. Requires `out`.
        comparison: The candidates and the budget.
        command: Beginning of the command that trains the recommended network.
        log: Called with a description of the job and each of its log entries.
        notify: Called with the plan, the result of each job, and warnings.

    Returns:
        The content of `comparison.json`: the result of `summarize`; `race`, the accuracies of all candidates;
        `verdict`; `command`; and `test_accuracy`, None unless requested.

    Raises:
        BudgetError: If the budget ended before the final comparison.
        ValueError: If an option is invalid, or a class has too few images to hold any out.
        FileExistsError: If `out` contains a comparison with another configuration.
        Exception: As in `train`.
    """
    if config.out is None:
        raise ValueError("out must be the folder of the comparison")
    base = _without_test_images(config)
    dataset = load(base.data)
    places = tuple({name: None for names in comparison.places for name in names.split("+")}) or base.drop.places
    entered = candidates(comparison, _shortest_side(base, dataset.spec, places))
    # Of all images, although a subset of the others is trained on: the overlap of the splits counts.
    test_ratio = base.data.validation_fraction / (1 - base.data.validation_fraction)
    spec_of = functools.cache(lambda data: load(data).spec)  # by seed
    total = _num_runs(entered, comparison.seeds)
    notify(
        f"{len(entered)} candidates, up to {total} runs of {build.num_steps(base, dataset.spec):,} steps on "
        f"{len(dataset.train):,} images, evaluated on {len(dataset.test):,} held-out images"
    )
    accuracies: dict[Job, float] = {}
    start, num_trained = time.monotonic(), 0

    def execute(job: Job) -> None:
        nonlocal num_trained
        name = f"{job[0]}, seed {job[1]}"
        try:
            summary = train(_job_config(base, job), log=functools.partial(log, name), notify=lambda message: None)
            accuracies[job] = summary["eval_accuracy"]
        except NonFiniteError:
            accuracies[job] = 1 / dataset.spec.num_classes
            notify(f"{name}: the loss became non-finite, which counts as the accuracy of chance")
        num_trained += 1
        left = (time.monotonic() - start) / num_trained * (total - len(accuracies)) / 60
        notify(f"{len(accuracies)}/{total}  {name}: {accuracies[job]:.2%}, up to {left:.0f} minutes left")

    open_jobs = functools.partial(_open_jobs, base, entered, accuracies, comparison.seeds, spec_of)
    is_complete = work(open_jobs, execute, max_jobs=comparison.max_runs, max_minutes=comparison.budget_minutes)
    budget_ended = f"the budget ended after {len(accuracies)} of up to {total} runs"
    finalists = winners(entered, accuracies)
    seeds = range(FINAL_SEED, FINAL_SEED + comparison.seeds)
    if sum(all((candidate, seed) in accuracies for candidate in finalists) for seed in seeds) < 2:
        raise BudgetError(f"{budget_ended}, before the final comparison")
    if not is_complete:
        notify(f"{budget_ended}; repeat the command to continue")
    summary = summarize(accuracies, finalists, test_ratio)
    recommended = finalists[summary["recommended"]]
    result = {
        **summary,
        "race": [
            {"name": str(candidate), "accuracies": raced}
            for candidate in entered
            if (raced := [accuracies[job] for seed in range(NUM_ROUNDS) if (job := (candidate, seed)) in accuracies])
        ],
        "verdict": verdict(summary, len(dataset.test)),
        "command": " ".join([command, f"--drop.method {recommended.method}", *map(_flag, recommended.options)]),
        "test_accuracy": _test_accuracy(config, recommended, notify) if comparison.test else None,
    }
    run_folder.write_json(config.out / "comparison.json", result)
    run_folder.write_file(config.out / "report.md", report(result).encode())
    if len(finalists) > 1:
        figures.save_figure(viz.difference_figure(result["finalists"]), config.out / "differences.png")
    return result


def report(result: Mapping[str, Any]) -> str:
    """Returns the result of `compare` as Markdown."""

    def cell(difference: Mapping[str, Any] | None) -> str:
        return "" if difference is None else _points(difference)

    rows = [
        f"| {row['name']} | {row['accuracy']:.1%} | {cell(row['from_none'])} | {cell(row['from_best'])} |"
        for row in result["finalists"]
    ]
    race = [
        f"| {row['name']} | {np.mean(row['accuracies']):.1%} | {len(row['accuracies'])} |" for row in result["race"]
    ]
    test = result["test_accuracy"]
    lines = [
        "# Comparison of drop layers",
        result["verdict"],
        *([] if test is None else [f"Trained on all training images: {test:.1%} on the test images, with one seed."]),
        f"```\n{result['command']}\n```",
        "Mean accuracy on held-out images, and differences with 95% intervals:",
        "\n".join(["| method | accuracy | from no drop layer | from the best |", "|---|---|---|---|", *rows]),
        "The race between candidates, on other seeds:",
        "\n".join(["| candidate | mean accuracy | runs |", "|---|---|---|", *race]),
    ]
    return "\n\n".join(lines) + "\n"


def _without_test_images(config: TrainConfig) -> TrainConfig:
    data = dataclasses.replace(
        config.data,
        validation_fraction=config.data.validation_fraction or _VALIDATION_FRACTION,
        evaluate_on="validation",
    )
    checkpoint = dataclasses.replace(config.checkpoint, keep=1)
    return dataclasses.replace(config, data=data, checkpoint=checkpoint, evaluate_every_epochs=0)


def _with_candidate(config: TrainConfig, candidate: Candidate) -> TrainConfig:
    drop = dataclasses.replace(config.drop, method=candidate.method, **dict(candidate.options))
    return dataclasses.replace(config, drop=drop)


def _job_config(base: TrainConfig, job: Job) -> TrainConfig:
    candidate, seed = job
    assert base.out is not None
    data = dataclasses.replace(base.data, seed=seed, validation_seed=seed)
    out = base.out / candidate.folder / f"seed-{seed}"
    return dataclasses.replace(_with_candidate(base, candidate), seed=seed, data=data, out=out)


def _open_jobs(
    base: TrainConfig,
    entered: Sequence[Candidate],
    accuracies: dict[Job, float],
    num_seeds: int,
    spec_of: Callable[[DataConfig], DatasetSpec],
) -> list[Job]:
    """Returns `remaining` jobs, after adding the accuracies of jobs that are finished."""
    while jobs := remaining(entered, accuracies, num_seeds):
        finished = {job: summary for job in jobs if (summary := _finished(_job_config(base, job), spec_of)) is not None}
        if not finished:
            break
        accuracies.update({job: summary["eval_accuracy"] for job, summary in finished.items()})
    return jobs


def _finished(config: TrainConfig, spec_of: Callable[[DataConfig], DatasetSpec]) -> dict[str, Any] | None:
    """Returns the summary of a finished run; raises FileExistsError if the folder contains another one."""
    assert config.out is not None
    if not run_folder.is_run(config.out):
        return None
    return run_folder.check_out(config.out, config, spec_of(config.data))


def _num_runs(entered: Sequence[Candidate], num_seeds: int) -> int:
    accuracies: dict[Job, float] = {}
    while jobs := remaining(entered, accuracies, num_seeds):
        accuracies.update(dict.fromkeys(jobs, 0.0))
    return len(accuracies)


def _shortest_side(config: TrainConfig, spec: DatasetSpec, places: tuple[str, ...]) -> int:
    """Returns the shortest side of the maps at these places."""
    grid = DropConfig("drop_cluster", places=places, clusterer="grid", cluster_size=1.0)
    model = build.make_model(dataclasses.replace(config, drop=grid), spec)
    image = jax.ShapeDtypeStruct((1, *spec.image_shape), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    return min(min(state.labels.shape[:-1]) for state in cluster_states(variables["clusters"]).values())


def _flag(option: tuple[str, Any]) -> str:
    name, value = option
    return f"--drop.{name.replace('_', '-')} {' '.join(value) if isinstance(value, tuple) else value}"


def _test_accuracy(config: TrainConfig, recommended: Candidate, notify: Callable[[str], None]) -> float:
    """Trains the recommended network on all training images, and returns its accuracy on the test images."""
    assert config.out is not None
    data = dataclasses.replace(config.data, validation_fraction=0.0, evaluate_on="test")
    final = dataclasses.replace(_with_candidate(config, recommended), data=data, out=config.out / "test")
    result: list[float] = []
    work(lambda: [] if result else [final], lambda job: result.append(train(job, notify=notify)["eval_accuracy"]))
    return result[0]
