import json
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import pytest
import tyro
from fake_runs import accuracy, measure, work

from experiments import results, run, studies


def ids(folder, study):
    path = folder / f"{study}.jsonl"
    return [json.loads(line)["id"] for line in path.read_text().splitlines()] if path.exists() else []


def test_a_study_is_worked_through_and_again_does_nothing(tmp_path):
    printed = work("limited_data", tmp_path)
    assert "choices 12/12" in printed and "limited_data 60/60" in printed
    scale = studies.SCALES["small"]
    chosen = run.choose(scale, {line["id"]: line for line in results.read(tmp_path / "choices.jsonl")})
    assert [choice.value for choice in chosen.values()] == [5e-4, 0.2, 0.2, 0.2]  # the fakes are best at 0.2
    assert ids(tmp_path, "limited_data") == [job.id for job in studies.limited_data(scale, chosen)]
    before = (tmp_path / "limited_data.jsonl").read_bytes()
    assert work("limited_data", tmp_path) == "" and (tmp_path / "limited_data.jsonl").read_bytes() == before


@pytest.mark.parametrize("cut", [1, 40])
def test_what_a_kill_has_left_of_a_line_is_written_again(tmp_path, cut):
    work("headline", tmp_path)
    path = tmp_path / "headline.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-cut])
    assert len(results.read(path)) == 11
    work("headline", tmp_path)
    assert ids(tmp_path, "headline") == [json.loads(line)["id"] for line in whole.splitlines()]


def test_a_damaged_line_is_told_with_its_number(tmp_path):
    work("headline", tmp_path)
    path = tmp_path / "headline.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], "{", *lines[3:], ""]))
    with pytest.raises(ValueError, match=r"headline.jsonl, line 4 is no result"):
        work("headline", tmp_path)


@pytest.mark.parametrize("parts", [2, 5])
def test_parts_of_a_study_together_are_the_whole_whenever_each_is_stopped(tmp_path, parts):
    """On whatever machines: as many runs side by side as each has the memory for."""
    work("limited_data", tmp_path / "whole", together=2)
    merged = []
    for part in range(parts):
        folder = tmp_path / str(part)
        folder.mkdir()
        (folder / "choices.jsonl").write_bytes((tmp_path / "whole" / "choices.jsonl").read_bytes())
        work("limited_data", folder, together=part + 1, shard=f"{part + 1}/{parts}")
        path = folder / "limited_data.jsonl"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))  # stopped, and started again
        work("limited_data", folder, together=3, shard=f"{part + 1}/{parts}")
        merged += ids(folder, "limited_data")
    assert len(set(merged)) == len(merged) and set(merged) == set(ids(tmp_path / "whole", "limited_data"))


def test_a_part_needs_the_choices_of_all(tmp_path):
    with pytest.raises(ValueError, match=r"experiments\.run choices first"):
        work("headline", tmp_path, shard="1/2")


def test_runs_that_another_study_has_made_are_not_made_again(tmp_path):
    measured = []

    def counting(group):
        measured.extend(job.id for job in group)
        return measure(group)

    work("limited_data", tmp_path, counting)
    number = len(measured)
    work("headline", tmp_path, counting)
    assert len(measured) == number and len(ids(tmp_path, "headline")) == 12
    line = results.read(tmp_path / "headline.jsonl")[0]
    assert line["study"] == "headline" and line["setting"] == {}


def test_networks_that_are_corrupted_are_those_of_limited_data_which_come_first(tmp_path):
    work("corruption", tmp_path, shares=(0.1,))
    lines = results.read(tmp_path / "limited_data.jsonl")
    assert {line["setting"]["share"] for line in lines} == {0.1} and len(lines) == 12
    assert len(ids(tmp_path, "corruption")) == 12
    work("limited_data", tmp_path)
    assert len(ids(tmp_path, "limited_data")) == 60


def test_results_of_a_version_that_lacked_an_option_are_known_again(tmp_path):
    work("headline", tmp_path)
    for path in tmp_path.iterdir():
        lines = results.read(path)
        for line in lines:
            del line["config"]["ema_decay"]
        path.write_text("".join(json.dumps({**line, "id": f"old {i}"}) + "\n" for i, line in enumerate(lines)))
    assert work("headline", tmp_path) == ""


def test_results_on_other_images_of_the_same_name_are_not_mixed(tmp_path):
    work("choices", tmp_path)
    with pytest.raises(ValueError, match="holds results on other images called cifar10"):
        work("headline", tmp_path, lambda group: [{**line, "digest": "1"} for line in measure(group)])


def test_lines_are_written_by_several_at_once(tmp_path):
    path = tmp_path / "lines.jsonl"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: results.append(path, {"id": number, "more": "x" * 5000}), range(200)))
    assert {line["id"] for line in results.read(path)} == set(range(200))


def test_a_dry_run_says_how_much_is_missing_and_how_long_it_takes(tmp_path):
    assert work("headline", tmp_path, dry_run=True).splitlines() == [
        "choices: 12 runs are missing, of which none was measured here yet",
        "headline: 12 runs are missing, of which none was measured here yet",
    ]
    assert not list(tmp_path.iterdir())
    work("choices", tmp_path)
    path = tmp_path / "choices.jsonl"
    lines = [json.loads(line) | {"wall_seconds": 60.0} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    printed = work("headline", tmp_path, dry_run=True)
    assert printed == "choices: 0 runs are missing\nheadline: 12 runs are missing, about 12 minutes left\n"
    # As long as was measured, by the steps: 5.5 roots of a half run of each of 12.
    assert "60 runs are missing, about 33 minutes left" in work("limited_data", tmp_path, dry_run=True)
    # What would not end in time is not begun.
    assert "stopped before 0.5 minutes; 12 runs are left" in work("headline", tmp_path, max_minutes=0.5)
    assert not ids(tmp_path, "headline")


def test_where_memory_does_not_allow_as_many_fewer_are_trained_together(tmp_path):
    sizes = []

    def small(group):
        sizes.append(len(group))
        if len(group) > 1:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return measure(group)

    work("headline", tmp_path, small, together=3)
    assert set(sizes) == {1, 2, 3} and len(ids(tmp_path, "headline")) == 12

    def broken(group):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        work("clustering", tmp_path, broken, together=3)


def test_a_line_says_where_its_numbers_come_from(tmp_path):
    work("headline", tmp_path)
    line = results.read(tmp_path / "headline.jsonl")[0]
    assert {"commit", "versions", "device", "time", "digest", "config", "images_per_second"} <= set(line)
    assert line["versions"]["jax"] == jax.__version__ and line["time"].endswith("+00:00")
    assert line["commit"] == results.commit() and line["device"] == results.device()
    chosen = run.choose(
        studies.SCALES["small"], {each["id"]: each for each in results.read(tmp_path / "choices.jsonl")}
    )
    job = studies.headline(studies.SCALES["small"], chosen)[0]
    assert line["config"] == job.config.to_json() and (line["target"], line["accuracy"]) == ("test", accuracy(job))
    assert str(tmp_path) not in json.dumps(line)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard": "0/2"}, "shard must be i/n"),
        ({"shard": "3/2"}, "shard must be i/n"),
        ({"shard": "one"}, "shard must be i/n"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"seeds": 0}, "a method, a seed and a share"),
        ({"shares": (0.5, 2.0)}, "shares must be above 0 and at most 1, got 0.5, 2.0"),
        ({"dataset": "imagenet2012", "npz": "x.npz"}, "npz is not for imagenet2012"),
        ({"methods": ("none",)}, "methods must hold cluster"),
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        work("clustering", tmp_path, **options)


def test_a_mistake_at_the_command_line_ends_in_a_line_without_traceback(tmp_path):
    command = [sys.executable, "-m", "experiments.run", "headline", "--results", str(tmp_path), "--dataset", "cifra10"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=studies.__file__.rsplit("/", 2)[0])
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert ended.stderr.startswith("experiments.run: error: 'cifra10' is not")


README = (results.FOLDER.parent / "README.md").read_text()


@pytest.mark.parametrize("line", re.findall(r"^python -m experiments.run (.*)$", README, re.MULTILINE))
def test_commands_of_the_readme_are_understood(tmp_path, line, capsys):
    words = [*shlex.split(line, comments=True), "--dry-run", "--results", str(tmp_path)]
    tyro.cli(run.main, args=words)
    assert "runs are missing" in capsys.readouterr().out
