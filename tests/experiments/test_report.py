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
    assert len([name for name in files if name.endswith(".png")]) == 2


def cells(text, row, heading=""):
    """The cells of the first row with this name, below a heading."""
    (found,) = re.findall(rf"^\| {re.escape(row)} \| (.*) \|$", text[text.index(heading) :], re.MULTILINE)[:1]
    return found.split(" | ")


def half_width(values):
    return stats.ttest_1samp(values, 0).confidence_interval().high - np.mean(values)


def test_numbers_equal_scipy(folder, files):
    text = files["results.md"].decode()
    means = {name: cells(text, LABELS[name], "### Methods") for name in ("none", "drop_block", "grid", "drop_cluster")}
    lines = results.read(folder / "limited_data.jsonl")
    for index, fraction in enumerate(sorted(studies.FRACTIONS, reverse=True)):
        for method, row in means.items():
            own = [line for line in lines if line["method"] == method and line["setting"]["fraction"] == fraction]
            values = [100 * line["accuracy"] for line in own]
            assert row[index] == f"{np.mean(values):.1f} ± {half_width(values):.1f}"

    lines = sorted(results.read(folder / "placement.jsonl"), key=lambda line: line["seed"])
    lines = [line for line in lines if line["setting"]["places"] == "stem"]
    cluster, block = (
        np.array([100 * line["accuracy"] for line in lines if line["method"] == method])
        for method in ("drop_cluster", "drop_block")
    )
    expected = f"{np.mean(cluster - block):+.1f} ± {half_width(cluster - block):.1f}".replace("-", MINUS)
    assert expected in [cell.strip("*") for cell in cells(text, "places stem")]


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
    work("limited_data", tmp_path / "results", FakeMeasure(change), methods=("none", "drop_block", "drop_cluster"))
    text = write(tmp_path / "results", tmp_path / "docs")["results.md"].decode()
    differences = cells(text, "DropBlock", f"DropCluster {MINUS} method")
    assert len(differences) == len(studies.FRACTIONS)
    assert all(re.fullmatch(pattern, cell) for cell in differences)


def test_runs_of_another_size_have_their_own_section(tmp_path):
    work("headline", tmp_path / "results")
    work("headline", tmp_path / "results", steps=20)
    text = write(tmp_path / "results", tmp_path / "docs")["results.md"].decode()
    assert text.count("\n## ResNet-8 on CIFAR-10") == text.count("### Methods") == 2
    assert " 20 steps of 64" in text and " 900 steps of 64" in text


def test_candidates_by_rate(folder, files):
    lines = [line for line in results.read(folder / "choices.jsonl") if line["method"] == "drop_block"]
    best = max(line["accuracy"] for line in lines)
    assert len(lines) == 6
    for side in (4, 7):
        own = [line for line in lines if line["setting"]["block_size"] == side]
        values = {line["setting"]["rate"]: line["accuracy"] for line in own}
        expected = [f"**{100 * x:.1f}**" if x == best else f"{100 * x:.1f}" for _, x in sorted(values.items())]
        assert cells(files["results.md"].decode(), f"DropBlock, block size {side}") == expected


def test_ways_to_form_clusters(folder, files):
    text, accuracies = files["results.md"].decode(), {}
    lines = [
        line for name in ("clustering", "clustering_by_fraction") for line in results.read(folder / f"{name}.jsonl")
    ]
    for line in sorted(lines, key=lambda line: line["seed"]):
        images = f"{10 * line['config']['data']['examples_per_class']:,}"
        accuracies.setdefault((images, line["setting"]["structure"]), []).append(100 * line["accuracy"])
    assert {images for images, _ in accuracies} == {"2,000", "1,000", "500", "200", "100"}
    for (images, structure), values in accuracies.items():
        *_, mean, difference = cells(text, f"{images} | {structure}")
        assert mean == f"{np.mean(values):.1f} ± {half_width(values):.1f}"
        paired = np.subtract(values, accuracies[images, "k-means, shared"])
        expected = f"{np.mean(paired):+z.1f} ± ".replace("-", MINUS) if structure != "k-means, shared" else ""
        assert difference.strip("*").startswith(expected) and bool(difference) == bool(expected)


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
    """A difference is over the common seeds, unlike the means."""
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
    (all_images, few_images), differences = cells(text, "no drop layer"), cells(text, "no drop layer", MINUS)
    assert few_images.startswith(f"{np.mean(none):.1f} ± ") and few_images.endswith(" [2]") and "[" not in all_images
    assert cells(text, "DropCluster")[1] == f"{np.mean(cluster):.1f} ± {half_width(cluster):.1f}"
    assert differences[1].startswith(f"**+{difference:.1f} ± ") and differences[1].endswith(" [2]**")


@pytest.mark.parametrize(
    ("study", "column", "frequencies"),
    [
        ("headline", 0, lambda line: results.decode_bits(line["correct"], line["count"])),
        ("corruption", 5, lambda line: results.decode_counts(line["correct_counts"]) / 75),
    ],
)
def test_intervals_over_seeds_and_test_images(folder, files, study, column, frequencies):
    lines = [line for line in results.read(folder / f"{study}.jsonl") if line["setting"].get("fraction", 1) == 1]
    correct = [
        [frequencies(line) for line in lines if line["method"] == method] for method in ("drop_cluster", "drop_block")
    ]
    expected = crossed_interval(100 * np.subtract(*np.array(correct, float)))
    cell = cells(files["results.md"].decode(), "DropBlock", f"DropCluster {MINUS} method")[column]
    assert cell.strip("*") == f"{expected.mean:+.1f} ± {expected.half_width:.1f}".replace("-", MINUS)


def test_the_readme_is_changed_only_between_the_marks(tmp_path):
    folder, readme = tmp_path / "results", tmp_path / "README.md"
    work("headline", folder, scale="cpu", methods=("none", "drop_block", "drop_cluster"))
    readme.write_text("# A title\n<!-- made by python -m experiments.report -->\nprevious\n<!-- end -->\nafter\n")
    write(folder, tmp_path / "docs", readme)
    text = readme.read_text()
    assert (
        text.startswith("# A title\n<!-- made by") and text.endswith("<!-- end -->\nafter\n") and "previous" not in text
    )
    assert re.search(r"^\| DropBlock \| \d\d\.\d ± \d\.\d \|$", text, re.MULTILINE)
    write(folder, tmp_path / "docs", readme)
    assert readme.read_text() == text
    readme.write_text("# A title\n")
    with pytest.raises(ValueError, match="must contain"):
        write(folder, tmp_path / "docs", readme)


def test_no_results(tmp_path):
    with pytest.raises(ValueError, match="contains no results"):
        write(tmp_path, tmp_path)


def test_failed_runs_are_counted(tmp_path):
    class Failing(FakeMeasure):
        def __call__(self, job):
            return {**super().__call__(job), "finite": job.config.seed != 0}

    work("headline", tmp_path / "results", Failing(), methods=("none", "drop_block"))
    text = write(tmp_path / "results", tmp_path / "docs")["results.md"].decode()
    assert "Accuracy on test images; 3 seeds." in text
    assert re.search(r"^\| headline \| 6 \| 2 \|", text, re.MULTILINE)


def test_the_committed_report_is_up_to_date(tmp_path):
    root = results.FOLDER.parents[1]
    readme = tmp_path / "README.md"
    readme.write_text((root / "README.md").read_text())
    files = write(results.FOLDER, tmp_path / "docs", readme)
    assert files["results.md"].decode() == (root / "docs" / "results.md").read_text()
    assert readme.read_text() == (root / "README.md").read_text()
    figures = {f"figures/{path.name}" for path in (root / "docs" / "figures").iterdir() if path.is_file()}
    assert {name for name in files if name.startswith("figures")} == figures
