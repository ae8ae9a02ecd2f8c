import contextlib
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

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
        options = studies.choose(study, studies.SCALES["small"], options, accuracies)
    return options


def test_a_study_is_executed_once(tmp_path):
    printed = work("limited_data", tmp_path)
    assert "baseline 3/3" in printed and "choices 18/18" in printed and "limited_data 60/60" in printed
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


@pytest.mark.parametrize("num_shards", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_shards_partition_a_study(tmp_path, num_shards):
    work("limited_data", tmp_path / "whole")
    merged = []
    for index in range(num_shards):
        folder = tmp_path / str(index)
        folder.mkdir()
        for study in studies.TUNING:
            (folder / f"{study}.jsonl").write_bytes((tmp_path / "whole" / f"{study}.jsonl").read_bytes())
        shard = f"{index + 1}/{num_shards}"
        work("limited_data", folder, shard=shard)
        path = folder / "limited_data.jsonl"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))  # an interrupted shard
        work("limited_data", folder, shard=shard)
        merged += ids(folder, "limited_data")
    assert len(set(merged)) == len(merged)
    assert set(merged) == set(ids(tmp_path / "whole", "limited_data"))


def test_shards_require_the_choices(tmp_path):
    for study in studies.TUNING:
        with pytest.raises(ValueError, match=rf"experiments\.run {study} first"):
            work("headline", tmp_path, shard="1/2")
        work(study, tmp_path)


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
    assert len(raced) == len(masks) * len(studies.FILLS) * 4  # rates 0.3, 0.2, 0.4 and 0.1; one seed for choices
    fills = results.read(tmp_path / "fills.jsonl")
    assert {line["setting"]["rate"] for line in fills if line["method"] == "drop_block"} == {0.2}
    assert len(fills) == 2 * (3 + len(masks) * len(studies.FILLS))  # with no drop layer, mixup and CutMix
    assert {line["target"] for line in fills} == {"test"} and {line["target"] for line in raced} == {"validation"}
    corrupted = results.read(tmp_path / "fill_corruption.jsonl")
    assert len(corrupted) == len(fills) and all(line["corrupted"] is not None for line in corrupted)
    report.write(tmp_path, tmp_path / "docs", None)
    text = (tmp_path / "docs" / "results.md").read_text()
    assert re.search(r"^\| 25% \| blocks, swap \| 0\.2 \| [\d.]+ ± [\d.]+ \| [\d.]+ \| \S.*\|$", text, re.MULTILINE)
    assert re.search(r"^\| 25% \| positions, noise \|.* \*\*[\d.]+ \[1\]\*\* \|", text, re.MULTILINE)


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
        "baseline: 3 runs missing, duration unknown",
        "choices: 18 runs missing, duration unknown",
        "headline: 12 runs missing, duration unknown",
    ]
    assert not list(tmp_path.iterdir())
    work("choices", tmp_path)
    path = tmp_path / "choices.jsonl"
    lines = [json.loads(line) | {"wall_seconds": 60.0} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    printed = work("headline", tmp_path, dry_run=True)
    assert printed == "headline: 12 runs missing, about 12 minutes\n"
    # Steps are proportional to the square root of the fraction.
    assert "60 runs missing, about 33 minutes" in work("limited_data", tmp_path, dry_run=True)
    assert "stopped before 0.5 minutes; 12 runs left" in work("headline", tmp_path, max_minutes=0.5)
    assert not ids(tmp_path, "headline")


def test_lines_contain_their_provenance(tmp_path):
    work("headline", tmp_path)
    line = results.read(tmp_path / "headline.jsonl")[0]
    assert {"commit", "versions", "device", "time", "digest", "config", "images_per_second"} <= set(line)
    assert line["versions"]["jax"] == jax.__version__ and line["time"].endswith("+00:00")
    assert line["commit"] == results.commit() and line["device"] == results.device()
    job = studies.jobs("headline", studies.SCALES["small"], chosen(tmp_path))[0]
    assert line["config"] == job.config.to_json()
    assert (line["target"], line["accuracy"]) == ("test", accuracy(job))
    assert str(tmp_path) not in json.dumps(line)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard": "0/2"}, "shard must be i/n"),
        ({"shard": "3/2"}, "shard must be i/n"),
        ({"shard": "one"}, "shard must be i/n"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"seeds": 0}, "seeds and fractions must not be empty"),
        ({"fractions": (0.5, 2.0)}, "fractions must be above 0 and at most 1, got 0.5, 2.0"),
        ({"dataset": "imagenet2012", "npz": "x.npz"}, "npz is not available for imagenet2012"),
        ({"methods": ("none",)}, "methods must include cluster"),
    ],
)
def test_invalid_options(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        work("clustering", tmp_path, **options)


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


def test_workers_divide_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 4, 5, 6}, raising=False)
    assert run._core_shares(1) == [[0, 1, 4, 5, 6]]
    assert run._core_shares(2) == [[0, 4, 6], [1, 5]]
    assert run._core_shares(6) == [[0, 1, 4, 5, 6]] * 6
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert run._core_shares(2) == [[0, 1, 4, 5, 6]] * 2


def test_workers_use_the_compilation_cache_and_the_commit_of_their_parent(tmp_path, monkeypatch):
    class Recording(FakeMeasure):
        def __call__(self, job):
            directories.append(jax.config.values["jax_compilation_cache_dir"])
            return super().__call__(job)

    directories = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(run, "_measure", Recording(), raising=False)
    monkeypatch.setattr(run, "_commit", "of the parent", raising=False)
    job = studies.jobs("baseline", studies.SCALES["small"], {})[0]
    previous = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        (line,) = run._execute_in_worker([job])
    finally:
        jax.config.update("jax_compilation_cache_dir", previous)
    assert directories == [str(tmp_path / "dropcluster-jax" / "compiled")]
    assert line["commit"] == "of the parent" and line["images_per_second"] is None


@pytest.mark.slow
def test_workers_stop_with_the_process_that_started_them(tmp_path):
    options = {"--scale": "small", "--dataset": "digits", "--steps": "1000000", "--workers": "2"}
    options |= {"--networks": str(tmp_path / "networks"), "--results": str(tmp_path / "results")}
    command = [sys.executable, "-m", "experiments.run", "baseline", *itertools.chain(*options.items())]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    try:
        while sum(path.stat().st_size > 0 for path in tmp_path.glob("networks/*/metrics.jsonl")) < 2:
            assert process.poll() is None
            time.sleep(0.1)
        process.kill()
        process.communicate(timeout=120)  # until the workers, which have the same output, end
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert len(list(tmp_path.glob("networks/*/checkpoints/*"))) >= 2
