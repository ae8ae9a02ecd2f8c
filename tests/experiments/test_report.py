import re

import numpy as np
import pytest
from fake_runs import accuracy, measure, work
from scipy import stats

from experiments import report, results, run, studies
from experiments.report import Options

pytestmark = pytest.mark.xdist_group("experiments.report")

STUDIES = ("limited_data", "corruption", "clustering", "placement", "headline", "rate_and_size", "cadence", "warm_up")


def noisy(group):
    """As the fakes, with something of each run's own."""
    found = measure(group)
    for line, job in zip(found, group, strict=True):
        line["accuracy"] += np.random.default_rng(int(job.id, 16)).normal(0, 0.003)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    for study in STUDIES:
        work(study, folder, noisy)
    return folder


def written(folder, docs, readme=None):
    report.write(Options(results=folder, docs=docs, readme=readme))
    return {str(path.relative_to(docs)): path.read_bytes() for path in docs.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def files(folder, tmp_path_factory):
    return written(folder, tmp_path_factory.mktemp("docs"))


def test_made_again_no_byte_changes_in_whatever_order_runs_ended(folder, files, tmp_path):
    shuffled = tmp_path / "shuffled"
    shuffled.mkdir()
    for path in folder.iterdir():
        lines = path.read_text().splitlines(keepends=True)
        np.random.default_rng(0).shuffle(lines)
        (shuffled / path.name).write_text("".join(lines + lines[:3]))  # merged files may hold a run twice
    assert written(shuffled, tmp_path / "docs") == files
    assert len([name for name in files if name.endswith(".png")]) == 3


def test_every_number_is_that_of_the_runs(folder, files):
    text = files["results.md"].decode()
    lines = results.read(folder / "limited_data.jsonl")
    for share in studies.SHARES:
        by = {
            method: [
                line["accuracy"]
                for line in sorted(lines, key=lambda line: line["seed"])
                if line["method"] == method and line["setting"]["share"] == share
            ]
            for method in ("none", "block", "grid", "cluster")
        }
        for method, found in by.items():
            half = stats.ttest_1samp(found, 0).confidence_interval().high - np.mean(found)
            assert f"| {report.NAMES[method]} |" in text and f"{100 * np.mean(found):.1f} ± {100 * half:.1f}" in text
        difference = stats.ttest_rel(by["cluster"], by["block"]).confidence_interval()
        mean = np.mean(by["cluster"]) - np.mean(by["block"])
        bounds = f"{100 * mean:+.1f} ({100 * difference.low:+.1f} to {100 * difference.high:+.1f})"
        assert bounds.replace("-", "\N{MINUS SIGN}") in text


def test_claims_say_what_the_intervals_allow(tmp_path):
    """With the fakes DropCluster is ahead of all; turned round it is behind; where seeds disagree nothing is told."""

    def says(change):
        def changed(group):
            found = measure(group)
            for line, job in zip(found, group, strict=True):
                line["accuracy"] = change(job, line["accuracy"])
            return found

        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        work("limited_data", folder, changed)
        text = written(folder, tmp_path / f"docs{folder.name}")["results.md"].decode()
        rows = re.findall(r"^\| (?:DropCluster|learned clusters) do.*\| (\S+) \|$", text, re.M)
        assert len(rows) == 6  # all images and the mean over shares twice, few images, the grid
        return set(rows)

    assert says(lambda job, found: found) == {"**supported**"}
    assert says(lambda job, found: 1 - found) == {"**contradicted**"}
    assert says(lambda job, found: 0.5 + 0.05 * (-1) ** job.config.seed * (job.method == "cluster")) == {"open"}


def test_only_what_was_run_is_told_and_runs_of_another_size_stand_apart(tmp_path):
    work("headline", tmp_path / "results")
    work("headline", tmp_path / "results", steps=20)
    text = written(tmp_path / "results", tmp_path / "docs")["results.md"].decode()
    assert text.count("\n## ResNet-8 on cifar10") == 2 and "20 steps of 64" in text and "900 steps of 64" in text
    assert text.count("### Headline") == 2 and "### Limited data" not in text


def test_readme_quotes_between_its_marks_alone(folder, tmp_path):
    readme = tmp_path / "README.md"
    before = "# A title\n<!-- made by python -m experiments.report -->\nold\n<!-- end -->\nrest\n"
    readme.write_text(before)
    written(folder, tmp_path / "docs", readme)
    text = readme.read_text()
    assert text.startswith("# A title\n<!-- made by") and text.endswith("<!-- end -->\nrest\n") and "old" not in text
    assert "| DropCluster does better than DropBlock, all images |" in text
    written(folder, tmp_path / "docs", readme)
    assert readme.read_text() == text
    readme.write_text("# A title\n")
    with pytest.raises(ValueError, match="must hold"):
        written(folder, tmp_path / "docs", readme)


def test_without_results_there_is_no_report(tmp_path):
    with pytest.raises(ValueError, match="holds no result"):
        report.write(Options(results=tmp_path, docs=tmp_path, readme=None))


def test_failed_runs_are_counted(tmp_path):
    def failing(group):
        return [{**line, "finite": job.config.seed != 0} for line, job in zip(measure(group), group, strict=True)]

    work("headline", tmp_path / "results", failing)
    text = written(tmp_path / "results", tmp_path / "docs")["results.md"].decode()
    assert re.search(r"^\| headline \| 12 \| 4 \|", text, re.M)
    everyone = [accuracy(job) for job in studies.headline(studies.SCALES["small"], _chosen(tmp_path / "results"))]
    assert f"| no drop layer | {100 * np.mean(everyone[:3]):.1f} ±" in text


def _chosen(folder):
    return run.choose(studies.SCALES["small"], {line["id"]: line for line in results.read(folder / "choices.jsonl")})


def test_what_the_repository_shows_is_made_from_its_results(tmp_path):
    """docs/results.md and what README quotes are the report of the files that are committed."""
    root = results.FOLDER.parents[1]
    readme = tmp_path / "README.md"
    readme.write_text((root / "README.md").read_text())
    made = written(results.FOLDER, tmp_path / "docs", readme)
    assert made["results.md"].decode() == (root / "docs" / "results.md").read_text()
    assert readme.read_text() == (root / "README.md").read_text()
    assert {name for name in made if name.startswith("figures")} == {
        f"figures/{path.name}" for path in (root / "docs" / "figures").iterdir() if path.is_file()
    }
