"""Comparisons choose good candidates, state honest intervals, and resume."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from commands import command

from dropcluster_jax.runs import BudgetError, CompareConfig, DataConfig, TrainConfig, compare
from dropcluster_jax.runs import comparison as module
from dropcluster_jax.runs.comparison import FINAL_SEED, Candidate, candidates, remaining, summarize, verdict, winners
from experiments.results import FOLDER, read

METHODS = ("none", "dropout", "drop_block", "drop_cluster")
ENTERED = candidates(CompareConfig(METHODS), map_side=16)
REPETITIONS = 400
NUM_SEEDS = 5
TEST_RATIO = 0.25


def simulate(rng, true, noise, correlation):
    """Returns the accuracies of a comparison, given the true ones.

    Seeds differ by two points, equally for all candidates, and each run by `noise`, which the runs of a candidate share
    in part, because their splits overlap.
    """
    seeds, accuracies = {}, {}
    shared = {candidate: rng.normal(0, noise * correlation**0.5) for candidate in true}
    while jobs := remaining(list(true), accuracies, NUM_SEEDS):
        for candidate, seed in jobs:
            effect = seeds.setdefault(seed, rng.normal(0, 0.02))
            own = rng.normal(0, noise * (1 - correlation) ** 0.5)
            accuracies[candidate, seed] = true[candidate] + effect + shared[candidate] + own
    return accuracies


def results(spread, lead, noise=0.005, correlation=0.0):
    """Yields, for random true accuracies, these and the accuracies and summary of a simulated comparison.

    Candidates of a method differ by `spread`. A random method is `lead` better than the others. By default, runs have
    the noise of recorded runs, half a point.
    """
    rng = np.random.default_rng(0)
    for _ in range(REPETITIONS):
        best = rng.choice(METHODS[1:])
        true = {candidate: 0.6 + spread * rng.normal() + lead * (candidate.method == best) for candidate in ENTERED}
        accuracies = simulate(rng, true, noise, correlation)
        yield true, accuracies, summarize(accuracies, winners(ENTERED, accuracies), TEST_RATIO)


def recorded_results():
    """Yields the same for the candidates and the noise of recorded runs of ResNet-20 on CIFAR-10."""
    points = {}
    for line in [*read(FOLDER / "choices.jsonl"), *read(FOLDER / "baseline.jsonl")]:
        if line["scale"] == "cpu" and line["dataset"] == "cifar10":
            candidate = Candidate(line["method"], tuple((name, str(value)) for name, value in line["setting"].items()))
            points.setdefault(candidate, {})[line["seed"]] = line["accuracy"]
    baselines = [candidate for candidate in points if candidate.method == "none"]
    tuned = max(baselines, key=lambda candidate: sum(points[candidate].values()))
    entered = [tuned, *(candidate for candidate in points if candidate.method != "none")]
    values = np.array([[points[candidate][seed] for seed in (100, 101)] for candidate in entered])
    residuals = values - values.mean(0) - values.mean(1, keepdims=True) + values.mean()
    noise = np.sqrt((residuals**2).sum() / (len(entered) - 1))
    rng, true = np.random.default_rng(0), dict(zip(entered, values.mean(1), strict=True))
    for _ in range(REPETITIONS):
        accuracies = simulate(rng, true, noise, correlation=0.0)
        yield true, accuracies, summarize(accuracies, winners(entered, accuracies), TEST_RATIO)


def coverage(simulated):
    """Returns how often intervals cover the true differences."""
    covered = []
    for true, accuracies, summary in simulated:
        finalists = winners(list(true), accuracies)
        for name, reference in (("from_none", 0), ("from_best", summary["best"])):
            for index, row in enumerate(summary["finalists"]):
                if (interval := row[name]) is not None:
                    difference = 100 * (true[finalists[index]] - true[finalists[reference]])
                    covered.append(interval["low"] <= difference <= interval["high"])
    assert len(covered) > 5 * REPETITIONS
    return np.mean(covered)


@pytest.mark.parametrize("correlation", [0.0, 0.2])
def test_intervals_cover_the_true_differences(correlation):
    assert coverage(results(spread=0.01, lead=0.02, correlation=correlation)) >= 0.9


@pytest.mark.parametrize("correlation", [0.0, 0.2])
def test_no_difference_is_claimed_if_there_is_none(correlation):
    claimed = [summary["recommended"] > 0 for *_, summary in results(spread=0, lead=0, correlation=correlation)]
    assert np.mean(claimed) <= 0.1, np.mean(claimed)


def check_choices(simulated, max_cost):
    """Checks that the best candidate is found, by a fraction of the cost of all seeds of all candidates."""
    claimed, regrets, costs = [], [], []
    for true, accuracies, summary in simulated:
        chosen = winners(list(true), accuracies)[summary["best"]]
        claimed.append(summary["recommended"] == summary["best"] > 0)
        regrets.append(max(true.values()) - true[chosen])
        costs.append(len(accuracies) / (len(true) * (module.NUM_ROUNDS + NUM_SEEDS)))
    assert np.mean(np.array(regrets) <= 0.005) >= 0.9, np.mean(np.array(regrets) <= 0.005)
    assert max(costs) <= max_cost, max(costs)
    assert np.mean(claimed) >= 0.8, np.mean(claimed)


def test_a_lead_is_found_by_a_fraction_of_the_grid():
    check_choices(results(spread=0.005, lead=0.02), max_cost=0.31)


@pytest.mark.slow
def test_statistics_hold_for_recorded_runs():
    simulated = list(recorded_results())
    assert coverage(simulated) >= 0.9
    check_choices(simulated, max_cost=0.35)


def test_candidates_have_the_options_of_their_method_and_fit_the_maps():
    comparison = CompareConfig(("drop_cluster", "drop_block", "dropout"), rates=(0.2,), fills=("zero",))
    assert [(candidate.method, dict(candidate.options)) for candidate in candidates(comparison, map_side=4)] == [
        ("none", {}),
        ("drop_cluster", {"rate": 0.2, "cluster_size": 4.0, "fill": "zero"}),
        ("drop_block", {"rate": 0.2, "block_size": 2, "fill": "zero"}),
        ("dropout", {"rate": 0.2}),
    ]
    placed = candidates(CompareConfig(("dropout",), rates=(0.2, 0.2), places=("stem", "stage1+stage2")), map_side=4)
    assert [str(candidate) for candidate in placed] == [
        "no drop layer",
        "dropout (rate 0.2, places stem)",
        "dropout (rate 0.2, places stage1+stage2)",
    ]
    assert len(ENTERED) == 1 + 3 + 6 + 6 and len({candidate.folder for candidate in ENTERED}) == 16
    with pytest.raises(ValueError, match=r"sides must be from 1 to 4, .* got 5"):
        candidates(dataclasses.replace(comparison, sides=(2, 5)), map_side=4)


def test_race_keeps_the_best_third_and_the_finalists_share_seeds():
    jobs, accuracies = [], {}
    while batch := remaining(ENTERED, accuracies, num_seeds=2):
        accuracies |= {job: 0.5 + dict(job[0].options).get("rate", 0) for job in batch}
        jobs.append(batch)
    assert [len(batch) for batch in jobs] == [15, 4, 8]
    assert {seed for _, seed in jobs[2]} == {FINAL_SEED, FINAL_SEED + 1}
    assert [dict(candidate.options).get("rate") for candidate in winners(ENTERED, accuracies)] == [None, 0.3, 0.3, 0.3]


@pytest.mark.parametrize(
    ("accuracies", "text"),
    [
        ((0.60, 0.63, 0.5), "drop_block (rate 0.2) is ahead of no drop layer by +3.0 points"),
        ((0.60, 0.601, 0.5), "No method is significantly ahead of no drop layer with 4 seeds and 100 held-out images"),
        ((0.60, 0.63, 0.6295), "Not significantly behind it: dropout (rate 0.1), -0."),
        ((0.60,), "no drop layer: 60.0% with 4 seeds"),
    ],
)
def test_verdict(accuracies, text):
    finalists = [Candidate("none"), Candidate("drop_block", (("rate", 0.2),)), Candidate("dropout", (("rate", 0.1),))]
    noise = np.random.default_rng(0).normal(0, 0.001, (4, 3))
    noise -= noise.mean(axis=0)
    accuracies_by_job = {
        (candidate, FINAL_SEED + seed): accuracy + noise[seed, index]
        for index, (candidate, accuracy) in enumerate(zip(finalists, accuracies, strict=False))
        for seed in range(4)
    }
    assert text in verdict(summarize(accuracies_by_job, finalists[: len(accuracies)], TEST_RATIO), 100)


COMPARISON = CompareConfig(("none", "drop_block"), rates=(0.2,), fills=("zero",), seeds=2)
OPTIONS = ("--model", "resnet8", "--steps", "4", "--methods", "none", "drop_block", "--rates", "0.2")
OPTIONS = (*OPTIONS, "--fills", "zero", "--seeds", "2")


def config(out, **data):
    return TrainConfig(model="resnet8", steps=4, data=DataConfig(**data), out=out)


@pytest.mark.slow
def test_command_resumes_shares_work_and_reports(tmp_path, capsys):
    out = tmp_path / "comparison"
    assert command("compare", "digits", *OPTIONS, "--max-runs", "1", "--out", str(out)) == 1
    assert "the budget ended after 1 of up to 4 runs, before the final comparison. Repeat" in capsys.readouterr().err
    words = ["compare", "digits", *OPTIONS, "--out", str(out)]
    other = subprocess.Popen([sys.executable, "-m", "dropcluster_jax", *words], stdout=subprocess.DEVNULL)
    assert command(*words) == 0
    assert other.wait(timeout=300) == 0
    assert command("compare", "digits", *OPTIONS, "--test", "--out", str(out)) == 0
    output = capsys.readouterr().out
    result = json.loads((out / "comparison.json").read_text())
    assert result["verdict"] in output and result["command"] in output and (out / "differences.png").is_file()
    assert result["command"].startswith("dropcluster train digits --model resnet8 --steps 4 --drop.method ")
    assert result["verdict"] in (out / "report.md").read_text() and 0 <= result["test_accuracy"] <= 1
    runs = sorted(path.parent.relative_to(out).as_posix() for path in out.rglob("summary.json"))
    blocks = "drop_block-rate-0.2-block_size-2-fill-zero"
    assert runs == [*(f"{name}/seed-{seed}" for name in (blocks, "none") for seed in (1000, 1001)), "test"]
    accuracies = [json.loads((out / name / "summary.json").read_text())["eval_accuracy"] for name in runs[:4]]
    means = [np.mean(accuracies[2:]), np.mean(accuracies[:2])]
    assert [row["accuracy"] for row in result["finalists"]] == pytest.approx(means)
    assert command("compare", "digits", *OPTIONS, "--drop.rate", "0.3", "--out", str(out)) == 2
    assert "--drop.rate is set for each run, got 0.3; use --rates" in capsys.readouterr().err
    assert command("compare", "digits", *OPTIONS, "--weight-decay", "0.1", "--out", str(out)) == 2
    assert "weight-decay" in capsys.readouterr().err


@pytest.mark.slow
def test_diverging_runs_count_as_chance(tmp_path):
    diverging = dataclasses.replace(config(tmp_path), learning_rate=1e30, steps=8)
    messages = []
    result = compare(diverging, COMPARISON, notify=messages.append)
    assert [row["accuracy"] for row in result["finalists"]] == [0.1, 0.1]
    assert sum("non-finite" in message for message in messages) == 4


@pytest.mark.slow
def test_runs_on_other_data_are_not_reused(tmp_path):
    for seed, name in enumerate("ab"):
        images = np.random.default_rng(seed).integers(0, 256, (40, 8, 8, 1), np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=images, labels=np.arange(40) % 2)
    options = {"comparison": dataclasses.replace(COMPARISON, max_runs=1), "notify": lambda message: None}
    options["config"] = dataclasses.replace(config(tmp_path / "out", name=f"npz:{tmp_path / 'a.npz'}"), batch_size=8)
    with pytest.raises(BudgetError):
        compare(**options)
    data = DataConfig(name=f"npz:{tmp_path / 'b.npz'}")
    with pytest.raises(FileExistsError, match="a different dataset"):
        compare(**{**options, "config": dataclasses.replace(options["config"], data=data)})


def test_invalid_comparisons_are_errors(tmp_path):
    for options, message in (
        ({"seeds": 1}, "seeds must be at least 2"),
        ({"max_runs": 0}, "max_runs must be at least 1"),
        ({"budget_minutes": -1.0}, "budget_minutes must be at least 0"),
        ({"rates": (0.2, 1.5)}, "rates must be above 0 and at most 1, got 1.5"),
        ({"rates": (0.0,)}, "rates must be above 0 and at most 1, got 0.0"),
        ({"methods": ()}, "methods must not be empty"),
        ({"fills": ()}, "fills must not be empty"),
    ):
        with pytest.raises(ValueError, match=message):
            CompareConfig(**options)
    with pytest.raises(ValueError, match="out must be the folder of the comparison"):
        compare(TrainConfig())
    images = np.zeros((5, 8, 8, 1), np.uint8)
    images[0] = 255
    np.savez(tmp_path / "few.npz", x_train=images, y_train=[0, 0, 0, 0, 1], x_test=images, y_test=[0, 0, 0, 0, 1])
    with pytest.raises(ValueError, match="leaves class '1' without training examples"):
        compare(config(tmp_path / "out", name=f"npz:{tmp_path / 'few.npz'}"))
    with pytest.raises(BudgetError, match="the budget ended after 0 of"):
        compare(config(tmp_path / "out"), CompareConfig(budget_minutes=0.0), notify=lambda message: None)
    assert not (tmp_path / "out").exists()
