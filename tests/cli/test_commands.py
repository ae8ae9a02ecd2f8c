"""The commands that look at runs, data sets and presets."""

import io
import json
import re
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from commands import command, one_run, records
from PIL import Image

import dropcluster_jax as dc
from dropcluster_jax.cli import look
from dropcluster_jax.runs.config import PRESETS
from dropcluster_jax.training import load_run, read_history


@one_run
def test_a_finished_run_is_measured_again_by_its_checkpoint(finished, capsys):
    folder, _ = finished
    assert command("evaluate", str(folder), "--json") == 0
    results = json.loads(capsys.readouterr().out)
    test = records(folder, "test")[-1]
    assert results["step"] == 24 and results["test"]["num_updates"] == 360 and results["corrupted"] == []
    assert results["test"]["accuracy"] == pytest.approx(test["accuracy"])
    assert results["test"]["loss"] == pytest.approx(test["loss"], rel=1e-5)
    assert json.loads((folder / "evaluation.json").read_text()) == results
    (folder / "evaluation.json").unlink()


@one_run
def test_corruptions_of_a_run_are_measured_each_at_five_severities(finished, capsys, monkeypatch):
    monkeypatch.setattr("dropcluster_jax.data.CORRUPTIONS", ("contrast",))
    folder, _ = finished
    assert command("evaluate", str(folder), "--corruptions", "--best") == 0
    said = capsys.readouterr().out
    assert [len(re.findall(rf"contrast {i} +accuracy", said)) for i in range(1, 6)] == [1] * 5
    results = json.loads((folder / "evaluation.json").read_text())
    accuracies = [record["accuracy"] for record in results["corrupted"]]
    assert results["mean_corrupted_accuracy"] == pytest.approx(np.mean(accuracies)) and len(accuracies) == 5
    (folder / "evaluation.json").unlink()


def test_check_says_what_a_data_set_holds_and_draws_it(tmp_path, capsys, photos, monkeypatch):
    """Of a few corruptions: each is compiled five times."""
    from dropcluster_jax.training import check

    monkeypatch.setattr(check, "CORRUPTIONS", ("contrast", "jpeg_compression"))
    monkeypatch.setattr(check, "EXTRA_CORRUPTIONS", ("saturate",))
    monkeypatch.setattr(check, "_SECONDS", 0.05)
    out = tmp_path / "out"
    options = ["--data.image_size", "24", "--batch-size", "8", "--out", str(out)]
    assert command("data", "check", photos, *options) == 2
    error = capsys.readouterr().err
    assert "text.jpg cannot be read as a JPEG" in error and "--data.skip-corrupt leaves such images out" in error
    assert command("data", "check", photos, *options, "--data.skip-corrupt") == 0
    said = capsys.readouterr().out
    assert "33 training and 8 test images, 24x24x3, 2 classes" in said
    assert re.search(r"cat +17 +4\n +dog +16 +4", said) and "loader: stream; first batch of 8 after" in said
    assert "1 images were skipped, the first: " in said and "text.jpg cannot be read" in said
    found = json.loads((out / "check.json").read_text())
    assert found["classes"]["dog"] == {"train": 16, "test": 4} and found["images_per_second"] > 0
    for picture in ("images.png", "corruptions.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")
    assert command("data", "check", "digits", "--out", str(out)) == 0
    said = capsys.readouterr().out
    assert "1,437 training and 360 test images, 8x8x1, 10 classes" in said and "loader: device" in said
    assert command("data", "check", "digits", "--out", str(out), "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads((out / "check.json").read_text())


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["folder:nowhere"], "'folder:nowhere' is not there: nowhere is no folder"),
        (["npz:nowhere.npz"], r"'npz:nowhere\.npz' is not there"),
        (["cifar10", "--data.dir", "."], r"`tfds build cifar10 --data_dir \. --file_format array_record`"),
        (["digits", "--data.fraction", "2"], "fraction must be above 0 and at most 1, got 2"),
        (
            ["digits", "--data.examples-per-class", "5", "--data.fraction", "0.1"],
            "one of fraction and examples_per_class",
        ),
        (["digits", "--data.name", "cifar10"], "data.name must not be given beside NAME"),
        (["digits", "--data.loader", "rail"], "'auto', 'device'"),
    ],
)
def test_check_refuses_in_one_short_message(arguments, message, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    assert command("data", "check", *arguments) == 2
    said = capfd.readouterr()
    assert re.search(message, said.err) and "Traceback" not in said.err and len(said.err.splitlines()) < 12
    assert not list(tmp_path.iterdir())


@one_run
def test_the_clusters_of_a_run_are_drawn(finished, tmp_path, capsys):
    folder, _ = finished
    out = tmp_path / "pictures"
    assert command("clusters", str(folder), "--out", str(out), "--rate", "0.5") == 0
    said = capsys.readouterr()
    names = ["clusters.png", "history.gif", "history.png", "masks-stage1.png", "masks-stage2.png", "quality.png"]
    assert said.out.splitlines() == [str(out / name) for name in names] and said.err == ""
    for name in names:
        with Image.open(out / name) as image:
            # The grid before the first of six updates.
            assert getattr(image, "n_frames", 1) == (7 if name == "history.gif" else 1)
            image.load()


@one_run
def test_the_history_of_a_run_begins_with_the_grid_and_ends_with_its_clusters(finished):
    folder, _ = finished
    loaded, labels = load_run(folder), read_history(folder)
    assert list(labels) == ["stage1", "stage2"]
    for place, updates in labels.items():
        assert [step for step, _ in updates] == [0, *(record["step"] for record in records(folder, "clusters"))]
        clusterer = loaded.model.drop[place].clusterer
        np.testing.assert_array_equal(updates[0][1], clusterer.init(updates[0][1].shape).labels)
        np.testing.assert_array_equal(updates[-1][1], loaded.variables["clusters"][f"drop_{place}"]["labels"])
        agreement = dc.clustering.adjusted_rand_index(jnp.array(updates[-2][1]), jnp.array(updates[-1][1]))
        assert records(folder, "clusters")[-1]["layers"][f"drop_{place}"]["adjusted_rand_index"] == pytest.approx(
            float(agreement[0])
        )


@one_run
def test_a_run_without_clusters_or_history_says_so_or_is_drawn_without(finished, tmp_path, capsys):
    folder = tmp_path / "older"
    shutil.copytree(finished[0], folder)
    (folder / "clusters.jsonl").unlink()
    assert command("clusters", str(folder)) == 0
    drawn = capsys.readouterr().out.split()
    assert str(folder / "pictures" / "clusters.png") in drawn and not any("history" in name for name in drawn)
    config = json.loads((folder / "config.json").read_text())
    config["drop"]["method"] = "block"
    (folder / "config.json").write_text(json.dumps(config))
    assert command("clusters", str(folder)) == 2
    assert "has no clusters: it was trained with drop.method block" in capsys.readouterr().err


@one_run
def test_curves_of_several_runs_are_one_picture(finished, tmp_path, capsys):
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
def test_runs_are_listed_with_what_they_are_and_how_they_went(finished, tmp_path, capsys):
    shutil.copytree(finished[0], tmp_path / "a" / "deep")
    shutil.copytree(finished[0], tmp_path / "b")
    (tmp_path / "b" / "summary.json").unlink()
    (tmp_path / "c" / "checkpoints").mkdir(parents=True)
    (tmp_path / "c" / "config.json").write_text("{")
    assert command("runs", str(tmp_path), "--json") == 0
    deep, unfinished, damaged = json.loads(capsys.readouterr().out)
    summary = json.loads((finished[0] / "summary.json").read_text())
    assert deep == {
        "run": str(tmp_path / "a" / "deep"),
        "method": "cluster",
        "rate": 0.1,
        "model": "resnet8",
        "data": "digits",
        "seed": 0,
        "step": 24,
        "finished": True,
        "test_accuracy": summary["test_accuracy"],
        "seconds": summary["seconds"],
    }
    assert not unfinished["finished"] and unfinished["seconds"] is None
    assert "config.json is damaged" in damaged["error"]
    assert command("runs", str(tmp_path)) == 0
    said = capsys.readouterr()
    assert said.err.startswith(f"{tmp_path / 'c'} cannot be read: ")
    lines = said.out.splitlines()
    assert lines[0].split() == ["run", "method", "rate", "data", "model", "seed", "step", "accuracy", "time"]
    assert f"{100 * summary['test_accuracy']:.2f} %" in lines[1] and "not finished" in lines[2]


@one_run
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", '{"drop": 3}'),
        ("config.json", '{"drop": {}, "seed": "x"}'),
        ("summary.json", "{}"),
        ("summary.json", "[]"),
        ("metrics.jsonl", "null\n"),
        ("metrics.jsonl", '{"step": 1}\n'),
    ],
)
def test_a_run_that_cannot_be_read_is_listed_with_the_reason(name, content, finished, tmp_path, capsys):
    shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "run" / name).write_text(content)
    assert command("runs", str(tmp_path), "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert set(found) == {"run", "error"} and "damaged" in found["error"]


@one_run
def test_a_clean_evaluation_keeps_what_was_measured_under_corruptions(finished, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("dropcluster_jax.data.CORRUPTIONS", ("contrast",))
    shutil.copytree(finished[0], tmp_path / "run")
    assert command("evaluate", str(tmp_path / "run"), "--corruptions") == 0
    corrupted = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert len(corrupted["corrupted"]) == 5
    assert command("evaluate", str(tmp_path / "run")) == 0
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text()) == corrupted
    # Of another checkpoint it says nothing.
    (tmp_path / "run" / "evaluation.json").write_text(json.dumps({**corrupted, "step": 1}))
    assert command("evaluate", str(tmp_path / "run")) == 0
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["corrupted"] == []


def test_what_reads_the_output_may_have_enough(tmp_path):
    """As `head` has."""
    code = "import sys; from dropcluster_jax.cli import main; main(['presets'])"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() in (0, 1)
    process.stderr.close()


def test_it_tells_its_version(capsys):
    assert command("--version") == 0
    assert capsys.readouterr().out == f"dropcluster-jax {dc.__version__}\n"


def test_presets_are_listed_with_every_value_on_demand(capsys):
    assert command("presets", "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert list(content) == list(PRESETS)
    for name, (about, config) in PRESETS.items():
        assert content[name] == {"description": about, **config.to_json()}
    assert command("presets") == 0
    said = capsys.readouterr().out
    assert all(re.search(rf"^{name} +{config.model} ", said, re.MULTILINE) for name, (_, config) in PRESETS.items())


@pytest.mark.parametrize("words", ["train digits", "evaluate", "clusters", "plot", "runs", "presets", "data check"])
def test_every_command_helps_with_an_example(words, capsys):
    assert command(*words.split(), "--help") == 0
    assert f"Example:\n  dropcluster {words}" in capsys.readouterr().out


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cluster", "runs/digits"], "no command is called 'cluster'; did you mean clusters?"),
        (["data", "chek", "digits"], "no command is called 'chek'; did you mean check?"),
        (["train", "digit"], "no preset is called 'digit'; did you mean digits?"),
        (
            ["clusters", "runs/digts"],
            "runs/digts holds no run: there is no config.json of one; did you mean runs/digits?",
        ),
        (["evaluate", "runs"], "runs holds no run: there is no config.json of one; did you mean runs/digits?"),
        (["plot", "elsewhere"], "elsewhere holds no run: .*; `dropcluster runs DIR` lists runs"),
        (["plot", "runs/digits"], "runs/digits has nothing to draw yet: there is no metrics.jsonl"),
        (["evaluate", "bert"], "bert holds no run: there is no config.json of one"),
        (["plot"], r"plot needs a run: dropcluster plot RUN \[RUN ...\]"),
        (["runs", "elsewhere"], "there is no folder elsewhere"),
        (["runs", "empty"], "empty holds no run; `dropcluster train digits --out empty/digits` makes one"),
        (["clusters", "runs/digits", "--rate", "2"], "rate must be at least 0 and at most 1, got 2"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_ends_in_a_line_that_says_what_to_type(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "runs" / "digits").mkdir(parents=True)
    (tmp_path / "runs" / "digits" / "config.json").write_text('{"drop": {}}')
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    assert command(*arguments) == 2
    said = capsys.readouterr()
    assert re.search(message, said.err) and len(said.err.splitlines()) == 1 and said.out == ""


@pytest.mark.parametrize(
    ("package", "extra", "arguments"),
    [
        ("tyro", "train", ["train", "digits"]),
        ("matplotlib", "plot", ["plot", "run"]),
        ("matplotlib", "plot", ["clusters", "run"]),
        ("matplotlib", "tensorboard", ["train", "digits", "--steps", "1", "--tensorboard", "--out", "new"]),
        ("tensorboardX", "tensorboard", ["train", "digits", "--steps", "1", "--tensorboard", "--out", "new"]),
        ("sklearn", "train", ["train", "digits", "--steps", "1", "--out", "new"]),
    ],
)
@one_run
def test_an_extra_that_is_not_installed_is_named(package, extra, arguments, finished, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").symlink_to(finished[0])
    # As if it were not there: an import of it fails.
    for name in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    assert command(*arguments) == 2
    said = capsys.readouterr().err
    assert f'pip install "dropcluster-jax[{extra}]"' in said and len(said.splitlines()) == 1
    assert not (tmp_path / "new").exists()


def test_a_table_is_cut_on_no_line_that_a_program_reads(capsys):
    look._table(["run", "seed"], [["x" * 1000, "1"], [":smile:[red]", "22"]], right=("seed",))
    assert capsys.readouterr().out.splitlines()[1:] == ["x" * 1000 + "     1", ":smile:[red]" + " " * 992 + "22"]


def test_parts_are_shown_on_a_terminal_alone(monkeypatch, capsys):
    from rich import console

    from dropcluster_jax.runs.logging import parts

    with parts(2) as begin:
        begin("opening")
    assert capsys.readouterr().err == ""
    terminal = io.StringIO()
    monkeypatch.setattr(
        console, "Console", lambda stderr, make=console.Console: make(file=terminal, force_terminal=True)
    )
    with parts(2) as begin:
        begin("opening")
        begin("drawing")
    assert "drawing" in terminal.getvalue()
