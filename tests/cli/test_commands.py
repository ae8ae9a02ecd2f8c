"""The commands `evaluate`, `clusters`, `plot`, `runs`, `presets` and `data check`."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import command, edited, entries, one_run, run_command
from PIL import Image

import dropcluster_jax as dc
from dropcluster_jax._optional import install_command
from dropcluster_jax.cli import commands
from dropcluster_jax.data import load
from dropcluster_jax.runs import PRESETS, data_check, load_run, read_history
from dropcluster_jax.runs import folder as run_folder


@one_run
def test_evaluate_reproduces_the_logged_accuracy(finished, capsys):
    folder, _ = finished
    assert command("evaluate", str(folder), "--json") == 0
    results = json.loads(capsys.readouterr().out)
    test = entries(folder, "eval")[-1]
    assert results["step"] == 24 and results["test"]["count"] == 360 and results["corrupted"] == []
    assert results["test"]["accuracy"] == pytest.approx(test["accuracy"])
    assert results["test"]["loss"] == pytest.approx(test["loss"], rel=1e-5)
    assert json.loads((folder / "evaluation.json").read_text()) == results
    predictions = results["predictions"]
    wrong = 360 - round(360 * test["accuracy"])
    assert sum(row["count"] for row in predictions["confusions"]) == wrong and len(predictions["mistakes"]) == 24
    assert list(predictions["accuracy_by_class"]) == list("0123456789") and 0 < predictions["calibration"]["error"] < 1
    assert {path.name for path in (folder / "pictures").iterdir()} >= {"mistakes.png", "predictions.png"}
    (folder / "evaluation.json").unlink()
    shutil.rmtree(folder / "pictures")


@one_run
def test_evaluate_corruptions_at_five_severities_and_keep_the_results(unfinished, capsys, monkeypatch):
    monkeypatch.setattr("dropcluster_jax.data.CORRUPTIONS", ("contrast",))
    evaluation = unfinished / "evaluation.json"
    assert command("evaluate", str(unfinished), "--corruptions") == 0
    output = capsys.readouterr().out
    assert [len(re.findall(rf"contrast {i} +accuracy", output)) for i in range(1, 6)] == [1] * 5
    results = json.loads(evaluation.read_text())
    accuracies = [entry["accuracy"] for entry in results["corrupted"]]
    assert results["mean_corrupted_accuracy"] == pytest.approx(np.mean(accuracies)) and len(accuracies) == 5
    assert command("evaluate", str(unfinished)) == 0
    assert json.loads(evaluation.read_text())["corrupted"] == results["corrupted"]
    evaluation.write_text(json.dumps({**results, "step": 1}))  # those of another checkpoint are dropped
    assert command("evaluate", str(unfinished)) == 0
    assert json.loads(evaluation.read_text())["corrupted"] == []


@one_run
def test_best_needs_validation_images(finished, capsys):
    for name in ("evaluate", "clusters"):
        assert command(name, str(finished[0]), "--best") == 2
        assert "best requires a run that was evaluated on validation images" in capsys.readouterr().err


@pytest.mark.slow
def test_best_is_chosen_on_validation_images_and_evaluated_on_test_images(tmp_path, capsys):
    folder = tmp_path / "run"
    options = ["--data.validation-fraction", "0.2", "--data.evaluate-on", "validation", "--checkpoint.keep", "1"]
    options += ["--evaluate-every-epochs", "0.3", "--learning-rate", "0.4", "--steps", "60"]
    assert command(*SMALL, *options, "--out", str(folder)) == 0
    accuracies = {entry["step"]: entry["accuracy"] for entry in entries(folder, "eval")}
    capsys.readouterr()
    assert command("evaluate", str(folder), "--best", "--json") == 0
    results = json.loads(capsys.readouterr().out)
    assert results["test"]["count"] == 360 and accuracies[results["step"]] == max(accuracies.values())


SMALL = ["train", "digits", "--model", "resnet8", "--steps", "2", "--batch-size", "32", "--drop.method", "none"]
CLASSES = ("cat", "dog", "eel", "owl")


def write_archive(path, count=200, classes=CLASSES, channels=1, seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, channels), np.uint8)
    np.savez(path, images=images, labels=np.arange(count)[:, None] % len(classes), classes=np.array(classes))


@pytest.fixture(scope="module")
def run_on_archive(tmp_path_factory):
    """The folder of a run on `npz:data/f.npz`, a relative path, which lies in the same folder as the run."""
    root = tmp_path_factory.mktemp("archive")
    (root / "data").mkdir()
    write_archive(root / "data" / "f.npz")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert command(*SMALL, "--data.name", "npz:data/f.npz", "--out", "run") == 0
    return root / "run"


@pytest.fixture
def archive(run_on_archive, tmp_path, monkeypatch):
    """A copy of `run_on_archive` and its data in the working directory."""
    shutil.copytree(run_on_archive.parent, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data" / "f.npz"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message", "allowed"),
    [
        ({"classes": ("ant", *CLASSES)}, r"the classes .*differ: only there \[\], only here \['ant'\]", False),
        (
            {"classes": ("zebra", *CLASSES[1:])},
            r"the classes .*differ: only there \['cat'\], only here \['zebra'\]",
            True,
        ),
        ({"count": 240}, "num_train_examples is 160 there and 192 here; the test examples are different", True),
        ({"seed": 1}, "trained on: the test examples are different; --allow-changed-data uses them anyway", True),
        ({"channels": 3}, r"image_shape is \(8, 8, 1\) there and \(8, 8, 3\) here", False),
    ],
    ids=["class added", "class renamed", "images added", "other images", "channels"],
)
def test_evaluate_and_training_notice_changed_data(change, message, allowed, archive, capsys):
    write_archive(archive, **change)
    assert command("evaluate", "run") == 2
    output = capsys.readouterr()
    assert re.search(message, output.err) and len(output.err.splitlines()) == 1 and output.out == ""
    assert command("evaluate", "run", "--allow-changed-data") == (0 if allowed else 2)
    error = capsys.readouterr().err
    assert "the data are not those the run was trained on" in error and len(error.splitlines()) == 1
    if allowed:
        evaluation = json.loads(pathlib.Path("run/evaluation.json").read_text())
        assert evaluation["changed_data"] and "; ".join(evaluation["changed_data"]) in error
    else:
        assert "the network needs the same number of classes and image shape" in error
        assert not pathlib.Path("run/evaluation.json").exists()
    pathlib.Path("run/summary.json").unlink()
    assert command(*SMALL, "--data.name", "npz:data/f.npz", "--out", "run") == 2
    assert "out contains a run with a different dataset" in capsys.readouterr().err


@one_run
@pytest.mark.parametrize("name", ["evaluate", pytest.param("clusters", marks=pytest.mark.slow)])
def test_changed_data_must_be_allowed(name, unfinished, capsys):
    with edited(unfinished / "config.json") as config:
        config["dataset"]["test_fingerprint"] = "0" * 16
    assert command(name, str(unfinished)) == 2
    error = capsys.readouterr().err
    assert "trained on: the test examples are different; --allow-changed-data uses them anyway" in error
    assert not (unfinished / "pictures").exists() and not (unfinished / "evaluation.json").exists()
    assert command(name, str(unfinished), "--allow-changed-data") == 0
    assert "the test examples are different" in capsys.readouterr().err


@pytest.mark.slow
def test_evaluate_finds_moved_data(archive, capsys, monkeypatch):
    pathlib.Path("sub").mkdir()
    monkeypatch.chdir("sub")
    assert command("evaluate", "../run") == 2
    error = capsys.readouterr().err
    assert "data/f.npz is not a file" in error and "--data-dir is the folder that it is in now" in error
    for data_dir in ("..", "../data", str(archive.parent)):
        assert command("evaluate", "../run", "--data-dir", data_dir) == 0
    write_archive("f.npz", seed=1)
    assert command("evaluate", "../run", "--data-dir", ".") == 2
    assert "the test examples are different" in capsys.readouterr().err


@pytest.mark.slow
def test_training_resumes_on_moved_data(archive, capsys):
    archive.rename("moved.npz")
    write_archive("other.npz", seed=1)
    moved, other = ([*SMALL, "--data.name", f"npz:{name}.npz", "--out", "run"] for name in ("moved", "other"))
    assert command(*moved) == 0
    assert "already contains this run, finished" in capsys.readouterr().out
    for finished in (True, False):
        pathlib.Path("run/summary.json").unlink(missing_ok=not finished)
        assert command(*other) == 2
        assert "a run with a different dataset, run: the test examples are different" in capsys.readouterr().err
    assert command(*moved) == 0
    assert "eval accuracy" in capsys.readouterr().out
    assert json.loads(pathlib.Path("run/config.json").read_text())["data"]["name"] == "npz:moved.npz"


@pytest.fixture
def few_corruptions(monkeypatch):
    """Each corruption is compiled five times."""
    monkeypatch.setattr(data_check, "CORRUPTIONS", ("contrast",))
    monkeypatch.setattr(data_check, "_MEASURE_SECONDS", 0.05)


def test_data_check_takes_all_images_of_a_small_dataset(few_corruptions, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_archive("f.npz", count=40)
    assert command("data", "check", "npz:f.npz") == 0
    assert "first batch of 32 after" in capsys.readouterr().out and list(tmp_path.glob("runs/check-*/check.json"))


@pytest.mark.parametrize("options", [(), ("--data.image-size", "8")], ids=["arrays", "encoded"])
def test_data_check_counts_test_images_that_are_trained_on(few_corruptions, tmp_path, capsys, options):
    for index, path in enumerate(("train/a/0", "train/a/1", "train/b/0", "test/a/0", "test/b/0", "test/b/1")):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(min(index, 3)).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{path}.png")
    shutil.copy(tmp_path / "train/a/1.png", tmp_path / "test/b/1.png")
    shutil.copy(tmp_path / "train/b/0.png", tmp_path / "test/a/0.png")
    arguments = ("data", "check", f"folder:{tmp_path}", *options, "--out", str(tmp_path / "out"))
    assert command(*arguments) == 0
    assert "2 test images are also training images" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "check.json").read_text())["duplicates"] == 2


@pytest.mark.slow
def test_data_check_reports_and_draws_a_dataset(few_corruptions, tmp_path, capsys, photos):
    out = tmp_path / "out"
    options = ["--data.image-size", "24", "--batch-size", "8", "--out", str(out)]
    assert command("data", "check", photos, *options) == 2
    error = capsys.readouterr().err
    assert "text.jpg cannot be read as a JPEG" in error and "skip such images with --data.skip-corrupt" in error
    assert command("data", "check", photos, *options, "--data.skip-corrupt") == 0
    output = capsys.readouterr().out
    assert "32 training and 8 test images, 24x24x3, 2 classes" in output
    assert re.search(r"cat +16 +4\n +dog +16 +4", output) and "loader: grain; first batch of 8 after" in output
    assert "1 images were skipped, the first: " in output and "text.jpg cannot be read" in output
    report = json.loads((out / "check.json").read_text())
    assert report["classes"]["dog"] == {"train": 16, "test": 4} and report["images_per_second"] > 0
    for figure in ("images.png", "corruptions.png"):
        assert (out / figure).read_bytes().startswith(b"\x89PNG")
    assert command("data", "check", "digits", "--out", str(out)) == 0
    output = capsys.readouterr().out
    assert "1,437 training and 360 test images, 8x8x1, 10 classes" in output and "loader: memory" in output
    assert command("data", "check", "digits", "--out", str(out), "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads((out / "check.json").read_text())


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("folder:nowhere", "'folder:nowhere' was not found: nowhere is not a folder"),
        ("cifar10 --data.dir .", r"`tfds build cifar10 --data_dir \. --file_format array_record`"),
        ("imagenet --data.dir .", "imagenet2012"),
        ("CIFAR10 --data.dir .", "or choose one of digits, cifar10, "),
        ("digits --data.fraction 2", r"--data.fraction must be in \(0, 1\], got 2"),
        ("digits --data.examples-per-class 5 --data.fraction 0.1", "one of fraction and --data.examples-per-class"),
        ("digits --batch-size 2000", "--batch-size must be at most 1437"),
        ("digits --out /dev/null", "out must be a folder, got the file /dev/null"),
        ("digits --data.name cifar10", "--data.name must not be given in addition to NAME"),
    ],
)
def test_data_check_errors_are_short(arguments, message, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    assert command("data", "check", *arguments.split()) == 2
    output = capfd.readouterr()
    assert re.search(message, output.err) and "Traceback" not in output.err and len(output.err.splitlines()) < 12
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@one_run
def test_clusters_draws_all_figures(finished, tmp_path, capsys):
    folder, _ = finished
    out = tmp_path / "pictures"
    assert command("clusters", str(folder), "--out", str(out), "--rate", "0.5") == 0
    output = capsys.readouterr()
    names = ["clusters.png", "history.gif", "history.png", "masks-stage1.png", "masks-stage2.png", "quality.png"]
    assert output.out.splitlines() == [str(out / name) for name in names] and output.err == ""
    for name in names:
        with Image.open(out / name) as image:
            # The initial grid and six updates.
            assert getattr(image, "n_frames", 1) == (7 if name == "history.gif" else 1)
            image.load()


@one_run
def test_history_starts_with_the_grid_and_ends_with_the_final_clusters(finished):
    folder, _ = finished
    loaded, labels = load_run(folder), read_history(folder)
    assert list(labels) == ["stage1", "stage2"]
    for place, updates in labels.items():
        assert [step for step, _ in updates] == [0, *(entry["step"] for entry in entries(folder, "clusters"))]
        clusterer = loaded.model.drop[place].clusterer
        np.testing.assert_array_equal(updates[0][1], clusterer.init(updates[0][1].shape).labels)
        np.testing.assert_array_equal(updates[-1][1], loaded.variables["clusters"][f"drop_{place}"]["labels"])
        expected = dc.clustering.adjusted_rand_index(jnp.array(updates[-2][1]), jnp.array(updates[-1][1]))
        logged = entries(folder, "clusters")[-1]["layers"][place]["adjusted_rand_index"]
        assert logged == pytest.approx(float(expected[0]))


@one_run
def test_clusters_of_runs_without_history_or_clusters(unfinished, capsys):
    (unfinished / "clusters.jsonl").unlink()
    assert command("clusters", str(unfinished)) == 0
    drawn = capsys.readouterr().out.split()
    assert str(unfinished / "pictures" / "clusters.png") in drawn and not any("history" in name for name in drawn)
    with edited(unfinished / "config.json") as config:
        config["drop"]["method"] = "drop_block"
    assert command("clusters", str(unfinished)) == 2
    assert "has no clusters: it was trained with --drop.method drop_block" in capsys.readouterr().err


@one_run
def test_plot_draws_several_runs(finished, tmp_path, capsys):
    shutil.copytree(finished[0], tmp_path / "other")
    out = tmp_path / "curves.svg"
    assert command("plot", str(finished[0]), str(tmp_path / "other"), "--out", str(out)) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert "<svg" in out.read_text()
    assert command("plot", str(finished[0]), "--out", str(tmp_path / "bare")) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'bare.png'}\n" and (tmp_path / "bare.png").exists()
    assert command("plot", str(finished[0]), "--out", str(tmp_path / "curves.xyz")) == 2
    assert "Format 'xyz' is not supported" in capsys.readouterr().err


@one_run
def test_runs_lists_configuration_and_results(finished, unfinished, tmp_path, capsys):
    shutil.copytree(finished[0], tmp_path / "a" / "deep")
    (tmp_path / "damaged" / "checkpoints").mkdir(parents=True)
    (tmp_path / "damaged" / "config.json").write_text("{")
    assert command("runs", str(tmp_path), "--json") == 0
    deep, copy, damaged = json.loads(capsys.readouterr().out)
    summary = json.loads((finished[0] / "summary.json").read_text())
    results = {"step": 24, "finished": True, **{name: summary[name] for name in ("eval_accuracy", "seconds")}}
    drop = {"method": "drop_cluster", "rate": 0.1, "size": 4.0, "fill": "zero", "places": ["stage1", "stage2"]}
    config = {**drop, "model": "resnet8", "data": "digits", "seed": 0}
    assert deep == {"run": str(tmp_path / "a" / "deep"), **config, **results}
    assert not copy["finished"] and copy["seconds"] is None and "config.json is damaged" in damaged["error"]
    assert command("runs", str(tmp_path)) == 0
    output = capsys.readouterr()
    assert output.err.startswith(f"{tmp_path / 'damaged'} cannot be read: ")
    lines = output.out.splitlines()
    options = ["method", "rate", "size", "fill", "places", "data", "model"]
    assert lines[0].split() == ["run", *options, "seed", "step", "accuracy", "time"]
    assert f"{100 * summary['eval_accuracy']:.2f}%" in lines[1] and "unfinished" in lines[2]


@one_run
def test_predict_classifies_image_files(finished, tmp_path, capsys):
    images = load("digits").test.images[:3]
    files = [str(tmp_path / f"{index}.png") for index in range(3)]
    for file, image in zip(files, images, strict=True):
        Image.fromarray(image[..., 0]).save(file)
    assert command("predict", str(finished[0]), *files, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    expected = jax.nn.softmax(load_run(finished[0]).logits(images))
    np.testing.assert_allclose([list(row["probabilities"].values()) for row in rows], expected, rtol=1e-5)
    assert [(row["file"], row["class"]) for row in rows] == list(zip(files, map(str, expected.argmax(1)), strict=True))
    assert command("predict", str(finished[0]), files[0]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == [files[0], rows[0]["class"], f"{expected[0].max():.1%}"]
    Image.new("L", (9, 8)).save(files[0])
    for arguments, message in ((files, "images must have shape (batch, 8, 8, 1), got (1, 8, 9, 1)"), ((), "needs an")):
        assert command("predict", str(finished[0]), *arguments) == 2
        assert message in capsys.readouterr().err


@one_run
def test_runs_averages_runs_that_differ_in_their_seeds(finished, unfinished, tmp_path, capsys):
    accuracies = [0.5, 0.6, 0.9]
    for seed, accuracy in enumerate(accuracies):
        run = shutil.copytree(finished[0], tmp_path / str(seed))
        values = {"seed": seed, "weight_decay": 1e-3 * (seed > 1)}
        (run / "config.json").write_text(json.dumps(json.loads((run / "config.json").read_text()) | values))
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        lines = [line | {"accuracy": accuracy} if line["event"] == "eval" else line for line in lines]
        (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert command("runs", str(tmp_path), "--aggregate", "--json") == 0
    both, other = json.loads(capsys.readouterr().out)
    assert both["eval_accuracy"] == pytest.approx(0.55) and both["runs"] == [str(tmp_path / seed) for seed in "01"]
    assert both["high"] - both["eval_accuracy"] == pytest.approx(
        12.706 * 0.05, rel=1e-3
    )  # t with one degree of freedom
    assert other["eval_accuracy"] == 0.9 and other["low"] is None and len(other["runs"]) == 1
    assert command("runs", str(tmp_path), "--aggregate") == 0
    assert capsys.readouterr().out.splitlines()[1].split()[-5:] == ["55.00%", "-8.53", "to", "118.53%", "2"]


@pytest.mark.parametrize(
    "words", ["presets", *(pytest.param(words, marks=pytest.mark.slow) for words in ("--help", "train digits --help"))]
)
def test_closed_pipe_is_not_an_error(words):
    """As in `dropcluster presets | head`."""
    code = "import sys; from dropcluster_jax.cli import main; sys.stdin.read(); main(sys.argv[1:])"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", code, *words.split()], text=True, **pipes)
    process.stdout.close()
    process.stdin.close()
    assert process.stderr.read() == "" and process.wait() in (0, 1)  # Rich exits with status 1
    process.stderr.close()


@pytest.mark.slow
def test_output_may_be_closed():
    """As in `dropcluster presets >&-`."""
    words = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "dropcluster_jax", "presets"]
    process = subprocess.run(words, stderr=subprocess.PIPE, text=True, check=False)
    assert process.returncode == 0 and process.stderr == ""


@pytest.mark.slow
def test_warnings_are_one_line_and_damaged_exif_data_are_ignored(tmp_path):
    damaged = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01"
    for i in range(4):
        (tmp_path / "photos" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.effect_noise((16, 16), 50).save(tmp_path / "photos" / "ab"[i % 2] / f"{i}.jpg", exif=damaged)
    (tmp_path / "file").write_text("")
    options = ("--data.test-fraction", "0.5", "--out", str(tmp_path / "out"))
    process = run_command(
        "data", "check", f"folder:{tmp_path / 'photos'}", *options, XDG_CACHE_HOME=str(tmp_path / "file")
    )
    assert process.returncode == 0, process.stderr
    note = f"dropcluster: note: the cache {tmp_path / 'file' / 'dropcluster-jax'} cannot be written: Not a directory"
    assert (
        process.stderr.splitlines()[0] == note and process.stderr.count("note") == 1
    )  # then Matplotlib's of its cache
    assert "EXIF" not in process.stderr


@pytest.mark.slow
@one_run
def test_output_may_have_a_narrow_encoding(unfinished, tmp_path):
    unfinished.rename(tmp_path / "猫")
    process = run_command("runs", str(tmp_path), PYTHONIOENCODING="cp1252")
    assert process.returncode == 0 and r"\u732b" in process.stdout and process.stderr == ""


@one_run
@pytest.mark.parametrize(
    "words", ["train digits --out new", pytest.param("data check digits", marks=pytest.mark.slow), "evaluate run"]
)
def test_missing_platform_is_one_line(words, finished, tmp_path):
    paths = {"run": str(finished[0]), "new": str(tmp_path / "new")}
    process = run_command(*(paths.get(word, word) for word in words.split()), JAX_PLATFORMS="cuda")
    assert process.returncode == 2 and process.stderr.count("\n") == 1
    assert "JAX has no devices of the platform 'cuda', which JAX_PLATFORMS selects" in process.stderr


@one_run
def test_results_that_cannot_be_written_are_printed(finished, capsys, monkeypatch):
    def fail(*arguments):
        raise OSError(28, "No space left on device", "evaluation.json")

    monkeypatch.setattr(run_folder, "write_json", fail)
    assert command("evaluate", str(finished[0]), "--json") == 1
    output = capsys.readouterr()
    assert json.loads(output.out)["step"] == 24
    assert output.err == "dropcluster: No space left on device: evaluation.json\n"


def test_version_and_presets_are_printed(capsys):
    assert command("--version") == 0
    assert capsys.readouterr().out == f"dropcluster-jax {dc.__version__}\n"
    assert command("presets", "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert content == {name: {"description": text, **config.to_json()} for name, (text, config) in PRESETS.items()}
    assert command("presets") == 0
    output = capsys.readouterr().out
    assert all(re.search(rf"^{name} +{config.model} ", output, re.MULTILINE) for name, (_, config) in PRESETS.items())


def test_help_has_an_example(capsys):
    for words in ("train digits", "evaluate", "clusters", "plot", "runs", "presets", "data check"):
        assert command(*words.split(), "--help") == 0
        assert f"Example:\n  dropcluster {words}" in capsys.readouterr().out


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("clusters runs/digts", "runs/digts is not a run folder: .*; did you mean runs/digits?"),
        ("evaluate runs", "runs is not a run folder: it has no config.json of a run; did you mean runs/digits?"),
        ("evaluate bert", "bert is not a run folder"),
        ("plot elsewhere", "elsewhere is not a run folder: .*; `dropcluster runs DIR` lists runs"),
        ("plot runs/digits", "runs/digits has nothing to draw yet: no metrics.jsonl"),
        ("plot", r"plot needs a run: dropcluster plot RUN \[RUN ...\]"),
        ("runs elsewhere", "no folder elsewhere"),
        ("runs empty", "empty contains no runs; `dropcluster train digits --out empty/digits` creates one"),
        ("clusters runs/digits --rate 2", "--rate must be at least 0 and at most 1, got 2"),
    ],
)
def test_errors_are_one_line_with_a_hint(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "runs" / "digits").mkdir(parents=True)
    (tmp_path / "runs" / "digits" / "config.json").write_text('{"drop": {}}')
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    assert command(*arguments.split()) == 2
    output = capsys.readouterr()
    assert re.search(message, output.err) and len(output.err.splitlines()) == 1 and output.out == ""


@pytest.mark.parametrize(
    ("package", "extra", "arguments"),
    [
        ("tyro", "train", "train digits"),
        ("sklearn", "train", "train digits --steps 1 --out new"),
        ("matplotlib", "plot", "plot run"),
        ("matplotlib", "plot", "clusters run"),
        ("tensorboardX", "tensorboard", "train digits --steps 1 --tensorboard --out new"),
    ],
)
@one_run
def test_missing_extra_is_named(package, extra, arguments, finished, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").symlink_to(finished[0])
    # None in sys.modules makes the import fail.
    for name in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("parser", "commands", "train"):
        monkeypatch.delitem(sys.modules, f"dropcluster_jax.cli.{name}", raising=False)
    assert command(*arguments.split()) == 2
    error = capsys.readouterr().err
    assert f": {install_command(extra)}" in error and len(error.splitlines()) == 1
    assert not (tmp_path / "new").exists()


def test_tables_are_not_wrapped_in_pipes(capsys):
    commands.print_table(["run", "seed"], [["x" * 1000, "1"], [":smile:[red]", "22"]], right=("seed",))
    assert capsys.readouterr().out.splitlines()[1:] == ["x" * 1000 + "     1", ":smile:[red]" + " " * 992 + "22"]
