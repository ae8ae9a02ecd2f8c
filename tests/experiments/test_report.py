import json
import re

import numpy as np
import pytest
from fake_runs import FakeMeasure, accuracy, work
from scipy import stats

from experiments import report, results, studies
from experiments.intervals import crossed_interval

pytestmark = pytest.mark.xdist_group("experiments.report")

STUDIES = (
    "limited_data",
    "corruption",
    "clustering",
    "clustering_by_fraction",
    "placement",
    "headline",
    "rate_and_size",
    "rate_by_fraction",
    "update_interval",
    "warm_up",
    "duration",
    "features",
)
LABELS = {name: method.label for name, method in studies.METHODS.items()}
MINUS = "\N{MINUS SIGN}"


def noisy_accuracy(job):
    return accuracy(job) + np.random.default_rng(int(job.id, 16)).normal(0, 0.003)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    for study in STUDIES:
        work(study, folder, FakeMeasure(noisy_accuracy))
    return folder


def write(folder, docs, readme=None):
    """Writes the report and returns its files."""
    report.write(folder, docs, readme)
    return {str(path.relative_to(docs)): path.read_bytes() for path in docs.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def files(folder, tmp_path_factory):
    return write(folder, tmp_path_factory.mktemp("docs"))


@pytest.mark.slow
def test_the_report_does_not_depend_on_the_order_of_runs(folder, files, tmp_path):
    shuffled = tmp_path / "shuffled"
    shuffled.mkdir()
    for path in folder.iterdir():
        lines = path.read_text().splitlines(keepends=True)
        np.random.default_rng(0).shuffle(lines)
        (shuffled / path.name).write_text("".join(lines + lines[:3]))  # merged files may contain duplicates
    assert write(shuffled, tmp_path / "docs") == files
    assert len([name for name in files if name.endswith(".png")]) == 5


def test_numbers_equal_scipy(folder, files):
    text = files["results.md"].decode()
    lines = sorted(results.read(folder / "limited_data.jsonl"), key=lambda line: line["seed"])
    for fraction in studies.FRACTIONS:
        accuracies = {
            method: [
                100 * line["accuracy"]
                for line in lines
                if line["method"] == method and line["setting"]["fraction"] == fraction
            ]
            for method in ("none", "drop_block", "grid", "drop_cluster")
        }
        for method, values in accuracies.items():
            half_width = stats.ttest_1samp(values, 0).confidence_interval().high - np.mean(values)
            assert f"| {LABELS[method]} |" in text and f"{np.mean(values):.1f} ± {half_width:.1f}" in text
        bounds = stats.ttest_rel(accuracies["drop_cluster"], accuracies["drop_block"]).confidence_interval()
        mean = np.mean(accuracies["drop_cluster"]) - np.mean(accuracies["drop_block"])
        assert f"{mean:+.1f} ({bounds.low:+.1f} to {bounds.high:+.1f})".replace("-", MINUS) in text


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (lambda job: accuracy(job), r"\*\*\+.*\*\*"),
        pytest.param(lambda job: 1 - accuracy(job), rf"\*\*{MINUS}.*\*\*", marks=pytest.mark.slow),
        (lambda job: 0.5 + 0.05 * (-1) ** job.config.seed * (job.method == "drop_cluster"), r"[^*]+"),
    ],
    ids=["better", "worse", "inconsistent over seeds"],
)
def test_differences_are_bold_if_their_interval_excludes_zero(tmp_path, change, pattern):
    work("limited_data", tmp_path / "results", FakeMeasure(change))
    text = write(tmp_path / "results", tmp_path / "docs")["results.md"].decode()
    row = next(line for line in text.splitlines() if line.startswith(f"| DropCluster {MINUS} DropBlock |"))
    cells = row.strip("| ").split(" | ")[1:]
    assert len(cells) == 6  # five fractions and their mean
    assert all(re.fullmatch(pattern, cell) for cell in cells)


def test_runs_of_another_size_have_their_own_section(tmp_path):
    work("headline", tmp_path / "results")
    work("headline", tmp_path / "results", steps=20)
    text = write(tmp_path / "results", tmp_path / "docs")["results.md"].decode()
    assert text.count("\n## ResNet-8 on CIFAR-10") == 2 and "20 steps of 64" in text and "900 steps of 64" in text
    assert text.count("### Headline") == 2 and "### Limited data" not in text


def test_candidates_by_rate(folder, files):
    lines = [line for line in results.read(folder / "choices.jsonl") if line["method"] == "drop_block"]
    best = max(line["accuracy"] for line in lines)
    assert len(lines) == 6
    for side in (4, 7):
        own = [line for line in lines if line["setting"]["block_size"] == side]
        values = {line["setting"]["rate"]: line["accuracy"] for line in own}
        cells = (f"**{100 * x:.1f}**" if x == best else f"{100 * x:.1f}" for _, x in sorted(values.items()))
        assert f"| DropBlock | block size {side} | {' | '.join(cells)} |" in files["results.md"].decode()


def test_ways_to_form_clusters_by_fraction(folder, files):
    lines = sorted(results.read(folder / "clustering_by_fraction.jsonl"), key=lambda line: line["seed"])
    accuracies = {}
    for line in lines:
        setting = line["setting"]
        accuracies.setdefault((setting["fraction"], setting["structure"]), []).append(100 * line["accuracy"])
    assert {fraction for fraction, _ in accuracies} == set(studies.FRACTIONS) - {1.0}
    for (fraction, structure), values in accuracies.items():
        row = rf"^\| {100 * fraction:g}% \| {structure} \| {np.mean(values):.1f} ± [\d.]+ \| (.*?) \| "
        (difference,) = re.findall(row, files["results.md"].decode(), re.MULTILINE)
        if structure == "grid, shared":
            assert not difference
        else:
            mean = np.mean(values) - np.mean(accuracies[fraction, "grid, shared"])
            assert f"{mean:+z.1f} (".replace("-", MINUS) in difference


def test_explained_variance_by_place_and_step(files):
    text = files["results.md"].decode()
    cells = {"31 (20)"}  # 30, 31 and 32% with k-means
    rows = re.findall(r"^\| stage1 \| (\d+) \| (.*) \| (.*) \| (.*) \|$", text, re.MULTILINE)
    assert [row[0] for row in rows] == ["90", "180", "270"] and all(set(row[1:]) == cells for row in rows)


def test_fractions_of_dropped_units(tmp_path):
    work("headline", tmp_path / "results", methods=("none", "corr_drop", "drop_cluster"))
    text = write(tmp_path / "results", tmp_path / "docs")["results.md"].decode()
    assert re.search(r"^\| CorrDrop \| 0.2 \| 21 \| 30 \|$", text, re.MULTILINE)  # 20, 21 and 22% at stage 1


def test_two_results_for_the_same_run(tmp_path):
    work("headline", tmp_path)
    path = tmp_path / "headline.jsonl"
    line = json.loads(path.read_text().splitlines()[0])
    results.append(path, {**line, "id": "another"})
    with pytest.raises(ValueError, match="two results for the same run"):
        write(tmp_path, tmp_path / "docs")


def test_hyperparameters_of_a_mean_do_not_differ_between_seeds(tmp_path):
    work("headline", tmp_path)
    path = tmp_path / "headline.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[1]["config"]["drop"]["rate"] = 0.4
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match="different hyperparameters"):
        write(tmp_path, tmp_path / "docs")


def test_fewer_seeds_are_shown(tmp_path):
    """A difference is over the common seeds, unlike the means next to it."""
    folder = tmp_path / "results"
    work("limited_data", folder, fractions=(0.1, 1.0), methods=("none", "drop_cluster"))
    path = folder / "limited_data.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [line for line in lines if (line["method"], line["setting"]["fraction"], line["seed"]) != ("none", 0.1, 2)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = write(folder, tmp_path / "docs")["results.md"].decode()
    own = [line for line in lines if line["setting"]["fraction"] == 0.1]
    none, cluster = (
        [100 * line["accuracy"] for line in own if line["method"] == method] for method in ("none", "drop_cluster")
    )
    difference = np.mean(np.subtract(cluster[:2], none))
    assert abs(difference - (np.mean(cluster) - np.mean(none))) > 0.4
    for row in (
        rf"no drop layer \| {np.mean(none):.1f} ± [\d.]+ \[2\] \| [^[|]* \| [^[|]* \[2\]",
        rf"DropCluster \| {np.mean(cluster):.1f} ± [\d.]+ \| [^[|]* \| [^[|]*",
        rf"DropCluster {MINUS} no drop layer \| \*\*\+{difference:.1f} \(.*\)\*\* \[2\] \| [^[|]* \| [^[|]* \[2\]",
    ):
        assert re.search(rf"^\| {row} \|$", text, re.MULTILINE), row


@pytest.mark.parametrize(
    ("study", "name", "frequencies"),
    [
        ("headline", "all images", lambda line: results.decode_bits(line["correct"], line["count"])),
        ("corruption", "corrupted test images", lambda line: results.decode_counts(line["correct_counts"]) / 75),
    ],
)
def test_intervals_over_seeds_and_test_images(folder, files, study, name, frequencies):
    lines = [line for line in results.read(folder / f"{study}.jsonl") if line["setting"].get("fraction", 1) == 1]
    correct = [
        [frequencies(line) for line in lines if line["method"] == method] for method in ("drop_cluster", "drop_block")
    ]
    mean, low, high, _ = crossed_interval(100 * np.subtract(*np.array(correct, float)))
    row = rf"^\| {name} \| DropCluster {MINUS} DropBlock \| (\d) \| .* \| (.*) \|$"
    found = re.search(row, files["results.md"].decode(), re.MULTILINE)
    assert int(found[1]) == len(correct[0])
    assert found[2].strip("*") == f"{mean:+.1f} ({low:+.1f} to {high:+.1f})".replace("-", MINUS)


def test_the_readme_is_changed_only_between_the_marks(tmp_path):
    folder, readme = tmp_path / "results", tmp_path / "README.md"
    work("headline", folder, scale="cpu", methods=("none", "drop_block", "drop_cluster"))
    readme.write_text("# A title\n<!-- made by python -m experiments.report -->\nprevious\n<!-- end -->\nafter\n")
    write(folder, tmp_path / "docs", readme)
    text = readme.read_text()
    assert (
        text.startswith("# A title\n<!-- made by") and text.endswith("<!-- end -->\nafter\n") and "previous" not in text
    )
    row = r"^\| %s \| \d\d\.\d ± \d\.\d \| \*{0,2}[+\u2212]\d+\.\d \(.* to .*\)\*{0,2} \|$"
    assert re.search(row % "no drop layer", text, re.MULTILINE) and re.search(row % "DropBlock", text, re.MULTILINE)
    assert re.search(r"^\| DropCluster \| \d\d\.\d ± \d\.\d \|  \|$", text, re.MULTILINE)
    write(folder, tmp_path / "docs", readme)
    assert readme.read_text() == text
    readme.write_text("# A title\n")
    with pytest.raises(ValueError, match="must contain"):
        write(folder, tmp_path / "docs", readme)


def test_the_readme_has_held_out_accuracies_until_there_are_results_on_test_images(tmp_path):
    folder, readme = tmp_path / "results", tmp_path / "README.md"
    work("choices", folder, scale="cpu", methods=("none", "drop_block", "drop_cluster"))
    readme.write_text("<!-- made by python -m experiments.report --><!-- end -->")
    write(folder, tmp_path / "docs", readme)
    text = readme.read_text()
    best = max(results.read(folder / "choices.jsonl"), key=lambda line: line["accuracy"])["setting"]
    assert "The test set has not been used yet." in text
    assert f"| DropCluster | rate {best['rate']:g}, cluster size {best['cluster_size']:g} |" in text


def test_no_results(tmp_path):
    with pytest.raises(ValueError, match="contains no results"):
        write(tmp_path, tmp_path)


def test_failed_runs_are_counted(tmp_path):
    class Failing(FakeMeasure):
        def __call__(self, job):
            return {**super().__call__(job), "finite": job.config.seed != 0}

    work("headline", tmp_path / "results", Failing())
    text = write(tmp_path / "results", tmp_path / "docs")["results.md"].decode()
    assert re.search(rf"^\| all images \| DropCluster {MINUS} DropBlock \| 3 \|", text, re.MULTILINE)
    assert re.search(r"^\| headline \| 12 \| 4 \|", text, re.MULTILINE)


def test_the_committed_report_is_up_to_date(tmp_path):
    root = results.FOLDER.parents[1]
    readme = tmp_path / "README.md"
    readme.write_text((root / "README.md").read_text())
    files = write(results.FOLDER, tmp_path / "docs", readme)
    assert files["results.md"].decode() == (root / "docs" / "results.md").read_text()
    assert readme.read_text() == (root / "README.md").read_text()
    figures = {f"figures/{path.name}" for path in (root / "docs" / "figures").iterdir() if path.is_file()}
    assert {name for name in files if name.startswith("figures")} == figures
