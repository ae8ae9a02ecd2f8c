import json
import re
import shlex
import subprocess
import sys
import threading

import jax
import pytest
import tyro
from fake_runs import FakeMeasure, accuracy, work

from experiments import report, results, run, studies


def ids(folder, study):
    path = folder / f"{study}.jsonl"
    return [json.loads(line)["id"] for line in path.read_text().splitlines()] if path.exists() else []


def chosen(folder):
    options = {}
    for study in studies.TUNING:
        accuracies = {line["id"]: line["accuracy"] for line in results.read(folder / f"{study}.jsonl")}
        left, options = studies.choose(study, studies.SCALES["small"], options, accuracies)
        assert not left
    return options


def test_a_study_is_executed_once(tmp_path):
    printed = work("limited_data", tmp_path)
    assert "baseline, 0 left" in printed and "choices, 17 left" in printed and "limited_data, 59 left" in printed
    options = chosen(tmp_path)
    assert options["none"] == {"weight_decay": 5e-4}
    assert all(options[method]["rate"] == 0.2 for method in ("drop_block", "grid", "drop_cluster"))
    jobs = studies.jobs("limited_data", studies.SCALES["small"], options)
    assert ids(tmp_path, "limited_data") == [job.id for job in jobs]
    before = (tmp_path / "limited_data.jsonl").read_bytes()
    assert work("limited_data", tmp_path) == ""
    assert (tmp_path / "limited_data.jsonl").read_bytes() == before


def test_an_interrupted_study_resumes(tmp_path):
    work("headline", tmp_path)
    path = tmp_path / "headline.jsonl"
    expected = ids(tmp_path, "headline")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:5]) + '{"id": "incompl')
    measure = FakeMeasure()
    work("headline", tmp_path, measure)
    assert len(measure.jobs) == 7
    assert ids(tmp_path, "headline") == expected


def test_processes_share_a_study(tmp_path):
    """Here threads, which differ in no way that matters to the locks."""
    work("choices", tmp_path)
    first, second = FakeMeasure(), FakeMeasure()
    second.root = first.root
    threads = [threading.Thread(target=work, args=("headline", tmp_path, measure)) for measure in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    executed = [job.id for measure in (first, second) for job in measure.jobs]
    assert len(executed) == 12 and sorted(executed) == sorted(ids(tmp_path, "headline"))


def test_runs_of_other_studies_are_reused(tmp_path):
    measure = FakeMeasure()
    work("limited_data", tmp_path, measure)
    num_jobs = len(measure.jobs)
    work("headline", tmp_path, measure)
    assert len(measure.jobs) == num_jobs
    assert len(ids(tmp_path, "headline")) == 12
    line = results.read(tmp_path / "headline.jsonl")[0]
    assert line["study"] == "headline" and line["setting"] == {}


def test_corruption_trains_its_networks_first(tmp_path):
    work("corruption", tmp_path, fractions=(0.1,))
    lines = results.read(tmp_path / "limited_data.jsonl")
    assert {line["setting"]["fraction"] for line in lines} == {0.1} and len(lines) == 12
    assert len(ids(tmp_path, "corruption")) == 12
    work("limited_data", tmp_path)
    assert len(ids(tmp_path, "limited_data")) == 60


def test_fills_race_over_rates_then_run_on_test_images_and_corrupted_ones(tmp_path):
    measure = FakeMeasure()
    options = {"fractions": (0.25,), "methods": ("none", "drop_block"), "seeds": 2}
    work("fill_corruption", tmp_path, measure, **options)
    raced = results.read(tmp_path / "fill_choices.jsonl")
    masks = [mask for mask, (method, _) in studies.MASKS.items() if method == "drop_block"]
    assert len(raced) == len(masks) * len(studies.FILLS) * 3  # rates 0.1, 0.2 and 0.3; one seed for choices
    fills = results.read(tmp_path / "fills.jsonl")
    assert {line["setting"]["rate"] for line in fills if line["method"] == "drop_block"} == {0.2}
    assert len(fills) == 2 * (3 + len(masks) * len(studies.FILLS))  # with no drop layer, mixup and CutMix
    assert {line["target"] for line in fills} == {"test"} and {line["target"] for line in raced} == {"validation"}
    corrupted = results.read(tmp_path / "fill_corruption.jsonl")
    assert len(corrupted) == len(fills) and all(line["corrupted"] is not None for line in corrupted)
    report.write(tmp_path, tmp_path / "docs", None)
    text = (tmp_path / "docs" / "results.md").read_text()
    assert re.search(r"^\| [\d,]+ \| blocks, swap \| 0\.2 \| [\d.]+ \| [\d.]+ ± [\d.]+ \| \S.*\|$", text, re.MULTILINE)
    assert re.search(r"^\| positions, noise, [\d,]+ images \|.* \*\*[\d.]+\*\* \|", text, re.MULTILINE)


def test_results_of_a_version_with_fewer_options_are_recognized(tmp_path):
    work("headline", tmp_path)
    for path in tmp_path.iterdir():
        lines = results.read(path)
        for line in lines:
            del line["config"]["ema_decay"]
        path.write_text("".join(json.dumps({**line, "id": f"old {i}"}) + "\n" for i, line in enumerate(lines)))
    assert work("headline", tmp_path) == ""


def test_results_on_other_images_are_not_mixed(tmp_path):
    work("choices", tmp_path)
    measure = FakeMeasure()
    measure.digest = "1"
    with pytest.raises(ValueError, match="contains results on other images called cifar10"):
        work("headline", tmp_path, measure)
    assert measure.jobs == []


def test_dry_run_and_time_limit(tmp_path):
    assert work("headline", tmp_path, dry_run=True).splitlines() == [
        "baseline: 3 runs missing",
        "choices: 18 runs missing",
        "headline: 12 runs missing",
    ]
    assert not list(tmp_path.iterdir())
    work("choices", tmp_path)
    assert work("headline", tmp_path, max_minutes=0.0) == "stopped after 0 minutes; rerun the command to resume"
    assert not ids(tmp_path, "headline")


def test_lines_contain_their_provenance(tmp_path):
    work("headline", tmp_path)
    line = results.read(tmp_path / "headline.jsonl")[0]
    assert {"commit", "versions", "device", "time", "digest", "config"} <= set(line)
    assert line["versions"]["jax"] == jax.__version__ and line["time"].endswith("+00:00")
    assert line["commit"] == results.commit() and line["device"] == results.device()
    job = studies.jobs("headline", studies.SCALES["small"], chosen(tmp_path))[0]
    assert line["config"] == job.config.to_json()
    assert (line["target"], line["accuracy"]) == ("test", accuracy(job))
    assert str(tmp_path) not in json.dumps(line)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"seeds": 0}, "seeds and fractions must not be empty"),
        ({"fractions": (0.5, 2.0)}, "fractions must be above 0 and at most 1, got 0.5, 2.0"),
        ({"methods": ("none",)}, "no runs of the methods none"),
        ({"methods": ("block",)}, r"methods must be among none, dropout, .*, got 'block'"),
        ({"scale": "tiny"}, r"scale must be among cpu, .*, got 'tiny'"),
    ],
)
def test_invalid_options(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        work("clustering", tmp_path, **options)
    with pytest.raises(ValueError, match=r"the study must be among baseline, .*, got 'x'"):
        work("x", tmp_path)


@pytest.mark.slow
def test_errors_are_printed_without_traceback(tmp_path):
    command = [sys.executable, "-m", "experiments.run", "headline", "--results", str(tmp_path), "--dataset", "cifra10"]
    root = results.FOLDER.parents[1]
    process = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert process.returncode == 2 and "Traceback" not in process.stderr
    assert process.stderr.startswith("experiments.run: error: ") and "cifra10" in process.stderr


README = (results.FOLDER.parent / "README.md").read_text()


def test_commands_in_the_readme(tmp_path, capsys):
    lines = re.findall(r"^python -m experiments.run (.*)$", README, re.MULTILINE)
    assert lines
    for line in lines:
        words = [*shlex.split(line, comments=True), "--dry-run", "--results", str(tmp_path)]
        tyro.cli(run.main, args=words)
        assert "runs missing" in capsys.readouterr().out, line
