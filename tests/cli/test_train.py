"""The command `dropcluster train`: the run folder, messages and errors."""

import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest
from commands import SHORT, command, edited, entries, one_run, run_command
from training.helpers import equal

from dropcluster_jax.cli.errors import name_options
from dropcluster_jax.data import load
from dropcluster_jax.runs import Checkpointer, TrainConfig, load_run
from dropcluster_jax.runs.config import as_path
from dropcluster_jax.runs.folder import lock


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@one_run
def test_run_folder_contents(finished):
    folder, _ = finished
    names = {"config.json", "metrics.jsonl", "clusters.jsonl", "summary.json", "clusters.png", "checkpoints"}
    assert {path.name for path in folder.iterdir()} == names | {".lock", "tensorboard"}
    config = json.loads((folder / "config.json").read_text())
    assert config["steps"] == 24 and config["drop"]["method"] == "drop_cluster" and config["version"]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["eval_accuracy"] == entries(folder, "eval")[-1]["accuracy"] and summary["steps"] == 24
    for layer in summary["clusters"].values():
        assert layer["num_updates"] == 6 and layer["num_skipped"] == 0 and layer["ari_with_grid"] < 0.9
    assert [entry["step"] for entry in entries(folder, "clusters")] == [2, 6, 10, 14, 18, 22]
    rates = [entry["rate"] for entry in entries(folder, "train")]
    assert rates[0] == 0 and rates[-1] == pytest.approx(0.1) and sorted(rates) == rates
    assert (folder / "clusters.png").read_bytes().startswith(b"\x89PNG")


@one_run
def test_output_is_one_line_per_event_and_a_summary(finished):
    folder, process = finished
    lines = process.stdout.splitlines()
    lines = [line for line in lines if not re.match(r"step \d+/24  loss", line)]  # one per minute, on a busy machine
    updates, lines = lines[:6], lines[6:]
    assert [line.split("  ")[0] for line in updates] == [f"step {step}/24" for step in range(2, 24, 4)]
    assert all(re.search(r"clusters: stage1 explained variance \d+%, ARI [01]\.\d\d; stage2", line) for line in updates)
    assert "step 24/24  eval loss" in lines[0]
    assert "eval accuracy" in lines[1] and "6 cluster updates" in lines[2] and str(folder) in lines[-1]
    assert process.stderr == ""


@one_run
def test_finished_run_is_not_repeated_and_another_run_in_its_folder_is_an_error(finished, capsys):
    folder, _ = finished
    before = contents(folder)
    assert command(*SHORT, "--out", str(folder)) == 0
    assert "already contains this run, finished" in capsys.readouterr().out
    assert command(*SHORT, "--out", str(folder), "--seed", "3", "--drop.rate", "0.2") == 2
    error = capsys.readouterr().err
    assert "seed is 0 there and 3 here" in error and "drop.rate is 0.1 there and 0.2 here" in error
    assert contents(folder) == before


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("digts", "Available subcommands: digits"),
        ("digits --drop.method drop_block2", "'none', 'dropout'"),
        ("svhn_cropped --drop.rte 0.1", "train svhn-cropped --help"),
        ("digits --drop.rate 1.5", "error: --drop.rate must be at least 0 and at most 1, got 1.5"),
        ("digits --drop.places stage5", "places in drop must be among stem, stage1.*, got 'stage5'"),
        ("digits --drop.cluster-size 0.5", "error: --drop.cluster-size, .* must be at least 1, got 0.5"),
        ("digits --drop.method drop_block --drop.block-size 9", r"--drop.block-size .* \(8, 8\), got 9"),
        ("digits --drop.threshold-range 0.6 0.3", r"drop.threshold.range\[1\] must be at least 0.6"),
        ("digits --batch-size 5000", "error: --batch-size must be at most 1437, .*, got 5000"),
        ("digits --batch-size 60", "error: --batch-size must be a multiple of the 8 devices"),
        ("digits --data.image-size 8", "error: --data.image-size does not apply to 'digits', got 8"),
        ("digits --out az://bucket/run", "paths must be local or gs://..., got az://bucket/run"),
        ("cifar10 --data.dir nowhere", "nowhere"),
        ("digits --process-id 1", "require --coordinator HOST:PORT"),
        ("digits --coordinator host", "--coordinator must be HOST:PORT, got 'host'"),
        ("digits --coordinator host:1 --num-processes 2 --process-id 2", "--process-id must be at least 0 and below"),
        ("imagenet --data.name photos --fake-data", "fake data needs one of the datasets digits"),
    ],
)
def test_invalid_input_exits_with_status_2_and_a_short_message(arguments, message, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    assert command("train", *arguments.split()) == 2
    output = capfd.readouterr()
    assert re.search(message, output.err + output.out)
    assert "Traceback" not in output.err and len(output.err.splitlines()) < 12
    assert not list(tmp_path.iterdir())


def test_errors_of_training_itself_are_not_reported_as_invalid_input(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError("a bug")

    monkeypatch.setattr("dropcluster_jax.runs.trainer.fit", fail)
    with pytest.raises(ValueError, match="a bug"):
        command(*SHORT, "--out", str(tmp_path / "run"))


@one_run
def test_load_run_returns_the_trained_network(finished):
    folder, _ = finished
    loaded, digits = load_run(folder), load("digits")
    assert loaded.step == 24 and loaded.spec == digits.spec and loaded.config.steps == 24
    logits = np.concatenate([loaded.logits(digits.test.images[i : i + 40]) for i in range(0, 360, 40)])
    accuracy = np.mean(np.argmax(logits, -1) == digits.test.labels)
    assert accuracy == pytest.approx(entries(folder, "eval")[-1]["accuracy"])
    assert loaded.variables["clusters"]["drop_stage1"]["num_updates"] == 6


@pytest.mark.slow
@one_run
def test_results_do_not_depend_on_the_log(unfinished, finished, capsys):
    summary = json.loads((finished[0] / "summary.json").read_text())
    (unfinished / "metrics.jsonl").write_bytes(b"\xff\n" * 3000)
    assert command(*SHORT, "--out", str(unfinished)) == 2
    assert "metrics.jsonl is damaged: " in capsys.readouterr().err
    (unfinished / "metrics.jsonl").unlink()
    assert command(*SHORT, "--out", str(unfinished)) == 0
    assert json.loads((unfinished / "summary.json").read_text())["eval_accuracy"] == summary["eval_accuracy"]


@one_run
def test_folder_instead_of_a_file_is_an_error(unfinished, capsys):
    (unfinished / "metrics.jsonl").unlink()
    (unfinished / "metrics.jsonl").mkdir()
    assert command(*SHORT, "--out", str(unfinished)) == 1
    assert str(unfinished / "metrics.jsonl") in capsys.readouterr().err


@pytest.mark.slow
@one_run
def test_restart_removes_only_the_run(unfinished, capsys):
    (unfinished / "notes.txt").write_text("mine")
    assert command(*SHORT, "--out", str(unfinished), "--steps", "8", "--drop.method", "none", "--restart") == 0
    assert json.loads((unfinished / "config.json").read_text())["steps"] == 8 and (unfinished / "notes.txt").exists()
    assert [entry["step"] for entry in entries(unfinished, "train")] == [1, 8]
    assert not (unfinished / "clusters.png").exists()


@pytest.mark.bad_input
def test_folders_with_other_files_are_errors_and_unchanged(tmp_path, capsys):
    """A config.json of another program does not make a folder a run."""
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "pictures").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for out, options, message in (
        (tmp_path, [], "contains other files"),
        (tmp_path, ["--restart"], "contains other files"),
        (tmp_path / "config.json", [], f"out must be a folder, but {tmp_path / 'config.json'} exists"),
        (tmp_path / "config.json" / "run", [], "out cannot be written to: Not a directory"),
        (tmp_path / "link", [], f"out must be a folder, but {tmp_path / 'link'} exists"),
    ):
        assert command(*SHORT, "--out", str(out), *options) == 2
        assert message in capsys.readouterr().err
    assert (tmp_path / "config.json").read_text() == '{"model_type": "bert"}' and (tmp_path / "pictures").is_dir()


@one_run
def test_damaged_configurations_and_missing_checkpoints_are_errors(unfinished, capsys):
    shutil.rmtree(unfinished / "checkpoints")
    assert command("evaluate", str(unfinished)) == 2 and "has no checkpoint yet" in capsys.readouterr().err
    (unfinished / "config.json").write_text('{"seed"')
    for arguments in (["evaluate", str(unfinished)], [*SHORT, "--out", str(unfinished)]):
        assert command(*arguments) == 2 and "config.json is damaged" in capsys.readouterr().err


@one_run
def test_resuming_with_another_dataset_is_an_error(unfinished, capsys):
    with edited(unfinished / "config.json") as config:
        config["dataset"]["num_train_examples"] += 1
    before = contents(unfinished)
    assert command(*SHORT, "--out", str(unfinished)) == 2
    error = capsys.readouterr().err
    assert "contains a run with a different dataset" in error and "num_train_examples is 1438 there" in error
    assert contents(unfinished) == before


@one_run
def test_run_without_its_last_checkpoint_is_unfinished(unfinished, capsys, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(Checkpointer, "wait", lambda self: [])
        assert command(*SHORT, "--out", str(unfinished)) == 1
    error = capsys.readouterr().err
    assert "the checkpoint of the last step, 24, could not be written" in error and "Repeat the command" in error
    assert not (unfinished / "summary.json").exists()
    assert command(*SHORT, "--out", str(unfinished)) == 0 and (unfinished / "summary.json").exists()


@one_run
def test_run_without_an_intact_checkpoint_is_an_error_and_unchanged(unfinished, capsys):
    for manifest in unfinished.rglob("manifest.ocdbt"):
        manifest.write_bytes(b"")
    before = contents(unfinished / "checkpoints")
    assert command(*SHORT, "--out", str(unfinished)) == 2
    assert "has no intact checkpoint (step 24: " in capsys.readouterr().err
    assert contents(unfinished / "checkpoints") == before


def test_second_process_in_the_same_folder_is_an_error(tmp_path, capsys):
    folder = tmp_path / "run"
    with lock(as_path(folder), print):
        for options in ([], ["--restart"]):
            assert command(*SHORT, "--steps", "1", "--drop.method", "none", "--out", str(folder), *options) == 2
            error = capsys.readouterr().err
            assert f"another process is writing to the run folder {folder}" in error and error.count("\n") == 1
    assert [path.name for path in folder.iterdir()] == [".lock"]


@pytest.mark.slow
def test_figure_that_cannot_be_drawn_is_a_note(tmp_path, capsys, monkeypatch):
    def fail(*arguments):
        raise ValueError("no ink")

    monkeypatch.setattr("dropcluster_jax.runs.figures.save_figure", fail)
    assert command(*SHORT, "--steps", "2", "--out", str(tmp_path / "run")) == 0
    assert "clusters.png was not drawn: no ink; `dropcluster clusters" in capsys.readouterr().out
    assert (tmp_path / "run" / "summary.json").is_file() and not (tmp_path / "run" / "clusters.png").exists()


@pytest.mark.slow
def test_run_keeps_its_prng_implementation(tmp_path):
    options = [*SHORT, "--steps", "4", "--drop.method", "none", "--checkpoint.every", "2"]
    options += ["--out", str(tmp_path / "run")]

    def train(**environment):
        """On a single device, because XLA does not run rbg on several devices of a CPU."""
        process = run_command(*options, XLA_FLAGS="", **environment)
        assert process.returncode == 0, process.stderr
        return process.stdout

    train(JAX_DEFAULT_PRNG_IMPL="unsafe_rbg")
    assert command("evaluate", str(tmp_path / "run")) == 0
    state = load_run(tmp_path / "run").state
    assert state.key.dtype == jax.random.key(0, impl="unsafe_rbg").dtype
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    (tmp_path / "run" / "summary.json").unlink()
    assert "the run keeps its PRNG implementation, unsafe_rbg; JAX's default is now threefry2x32" in train()
    assert equal(load_run(tmp_path / "run").state, state)


@pytest.mark.slow
def test_nonfinite_loss_aborts_with_advice_and_keeps_the_last_checkpoint(tmp_path, capsys):
    options = [*SHORT, "--learning-rate", "1e30", "--checkpoint.every", "1", "--drop.method", "none"]
    assert command(*options, "--out", str(tmp_path / "run")) == 1
    error = capsys.readouterr().err
    step = int(re.search(r"not finite at step (\d+): try a lower learning rate.*--max-nonfinite-steps", error)[1])
    assert len(error.splitlines()) == 1
    assert load_run(tmp_path / "run").step == step - 1
    # With that option the command resumes, and aborts again as all further steps are not finite.
    assert command(*options, "--out", str(tmp_path / "run"), "--max-nonfinite-steps", "2") == 1
    again = capsys.readouterr()
    assert f"resuming from the checkpoint of step {step - 1}" in again.out and f"step {step + 2}" in again.err
    leaves = jax.tree.leaves(load_run(tmp_path / "run").variables)
    assert all(np.isfinite(leaf).all() for leaf in leaves)


@pytest.mark.slow
def test_profile_is_written_to_the_run_folder(tmp_path):
    assert command(*SHORT, "--steps", "8", "--profile", "--drop.method", "none", "--out", str(tmp_path / "run")) == 0
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))


@pytest.mark.slow
def test_run_on_fake_data_is_evaluated_only_at_the_end(tmp_path):
    options = ["--steps", "3", "--evaluate-every-epochs", "0.05", "--drop.method", "none"]  # 44 steps per epoch
    assert command(*SHORT, *options, "--fake-data", "--out", str(tmp_path / "run")) == 0
    assert [entry["step"] for entry in entries(tmp_path / "run", "eval")] == [3]


def test_help_lists_every_option_as_its_errors_name_them(capsys):
    assert command("train", "digits", "--help") == 0
    output = capsys.readouterr().out
    for name, value in dataclasses.asdict(TrainConfig()).items():
        for option in [f"{name}.{nested}" for nested in value] if isinstance(value, dict) else [name]:
            flag = f"--{option.replace('_', '-')}"
            assert flag in output and name_options(f"{option} must be 1") == f"{flag} must be 1"
    assert command("--help") == 0 and "dropcluster train digits" in capsys.readouterr().out


def test_only_names_of_options_are_replaced_in_errors():
    assert name_options("image_size must be 8, got 9") == "--data.image-size must be 8, got 9"
    assert name_options("seed must be 1 if batch_size is 2") == "--seed must be 1 if --batch-size is 2"
    for message in ("the seed of a/batch_size, 'image_size' and drop.json", "out of memory"):
        assert name_options(message) == message


@pytest.mark.slow
def test_loss_falls_on_real_cifar10(tfds_dir, tmp_path):
    options = ["--model", "resnet8", "--steps", "30", "--batch-size", "32", "--data.dir", tfds_dir]
    options += ["--drop.update-interval", "10", "--drop.probe-size", "64", "--out", str(tmp_path / "run")]
    options += ["--data.train-split", "train[:512]", "--data.test-split", "test[:64]"]
    assert command("train", "cifar10", *options) == 0
    losses = [entry["loss"] for entry in entries(tmp_path / "run", "train")]
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_streamed_folder_with_a_corrupt_image_is_an_error_or_skips_it(photos, tmp_path, capsys):
    options = ["train", "digits", "--data.name", photos, "--data.image-size", "8", "--steps", "6", "--batch-size", "8"]
    options += ["--model", "resnet8"]
    options += ["--augment.resized-crop", "--augment.cutout", "3", "--augment.mixup", "0.2", "--augment.cutmix", "1"]
    options += ["--drop.probe-size", "8", "--data.fraction", "0.9", "--data.seed", "1"]
    assert command(*options, "--out", str(tmp_path / "stopped")) == 2
    error = capsys.readouterr().err
    assert "text.jpg cannot be read" in error and "--data.skip-corrupt" in error
    assert command(*options, "--data.skip-corrupt", "--out", str(tmp_path / "run")) == 0
    assert command(*options, "--out", str(tmp_path / "run")) == 2  # images were skipped, so it would differ
    assert capsys.readouterr().out.count("1 images were skipped") == 1
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert len(summary["skipped"]) == 1 and summary["eval_accuracy"] >= 0
    assert all(np.isfinite(entry["loss"]) for entry in entries(tmp_path / "run", "train"))
