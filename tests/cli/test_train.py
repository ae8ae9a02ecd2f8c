"""The command as a person meets it: what it writes, what it says, and how it refuses."""

import dataclasses
import gc
import json
import pathlib
import re
import shutil
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import SHORT, command, one_run, records

import dropcluster_jax as dc
from dropcluster_jax.data import DATASETS, load
from dropcluster_jax.models import MODELS, ModelName
from dropcluster_jax.runs.checkpoints import Checkpointer
from dropcluster_jax.runs.config import (
    PRESETS,
    AugmentConfig,
    CheckpointConfig,
    DataConfig,
    DropConfig,
    Method,
    TrainConfig,
)
from dropcluster_jax.training import build, load_run, run


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@one_run
def test_a_run_folder_holds_what_is_promised(finished):
    folder, _ = finished
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "clusters.jsonl",
        "summary.json",
        "clusters.png",
        "checkpoints",
        "tensorboard",
    }
    config = json.loads((folder / "config.json").read_text())
    assert config["steps"] == 24 and config["drop"]["method"] == "cluster" and config["version"]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["test_accuracy"] == records(folder, "test")[-1]["accuracy"] and summary["steps"] == 24
    assert (folder / "clusters.png").read_bytes().startswith(b"\x89PNG")


@one_run
def test_clusters_were_updated_and_left_the_grid(finished):
    folder, _ = finished
    updates = records(folder, "clusters")
    assert [record["step"] for record in updates] == [2, 6, 10, 14, 18, 22]
    for layer in json.loads((folder / "summary.json").read_text())["clusters"].values():
        assert layer["updates"] == 6 and layer["skipped"] == 0 and layer["ari_with_grid"] < 0.9


@one_run
def test_the_rate_ramps_up_to_what_was_asked_for(finished):
    folder, _ = finished
    rates = [record["rate"] for record in records(folder, "train")]
    assert rates[0] == 0 and rates[-1] == pytest.approx(0.1) and sorted(rates) == rates


@one_run
def test_it_ends_with_a_summary_and_no_noise(finished):
    folder, printed = finished
    lines = printed.stdout.splitlines()
    updates, lines = lines[:6], lines[6:]
    assert [line.split("  ")[0] for line in updates] == [f"step {step}/24" for step in range(2, 24, 4)]
    assert all(re.search(r"clusters: stage1 explain \d+%, agree [01]\.\d\d; stage2", line) for line in updates)
    assert "step 24/24  test loss" in lines[0]
    assert "test accuracy" in lines[1] and "clusters updated 6 times" in lines[2] and str(folder) in lines[-1]
    assert printed.stderr == ""


@one_run
def test_the_same_run_again_only_says_so(finished, capsys):
    folder, _ = finished
    before = contents(folder)
    assert command(*SHORT, "--out", str(folder)) == 0
    assert "holds this run already, finished" in capsys.readouterr().out
    assert contents(folder) == before


@one_run
def test_a_folder_with_another_configurations_run_is_refused_and_kept(finished, capsys):
    folder, _ = finished
    before = contents(folder)
    assert command(*SHORT, "--out", str(folder), "--seed", "3", "--drop.rate", "0.2") == 2
    error = capsys.readouterr().err
    assert "seed is 0 there and 3 here" in error and "drop.rate is 0.1 there and 0.2 here" in error
    assert contents(folder) == before


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "digts"], "did you mean digits"),
        (["trian", "digits"], "trian"),
        (["train", "digits", "--model", "resnet51"], "'resnet50'"),
        (["train", "digits", "--drop.method", "block2"], "'none', 'dropout'"),
        (["train", "digits", "--drop.rte", "0.1"], "--drop.rte"),
        (["train", "digits", "--drop.rate", "1.5"], "drop.rate must be at least 0 and at most 1, got 1.5"),
        (["train", "digits", "--drop.rate", "nan"], "drop.rate must be at least 0 and at most 1, got nan"),
        (["train", "digits", "--drop.places", "stage5"], "unknown place 'stage5'; places are stem, stage1"),
        (["train", "digits", "--drop.cluster-size", "0.5"], "cluster_size, .* must be at least 1, got 0.5"),
        (
            ["train", "digits", "--drop.method", "block", "--drop.block-size", "9"],
            r"block_size .* \(8, 8\), got 9",
        ),
        (["train", "digits", "--batch-size", "5000"], "batch_size must be from 1 to 1437.*, got 5000"),
        (["train", "digits", "--steps", "0"], "steps must be at least 1, got 0"),
        (["train", "digits", "--epochs", "-1"], "epochs must be above 0, got -1.0"),
        (["train", "digits", "--learning-rate", "inf"], "learning_rate must be above 0, got inf"),
        (["train", "digits", "--augment.flip"], "augment.flip must be False for digits"),
        (["train", "digits", "--data.name", "svhn_croped", "--data.dir", "."], "svhn_croped"),
        (["train", "cifar10", "--data.dir", "nowhere"], "nowhere"),
        (["train", "digits", "--grad_accum_steps", "3"], "grad_accum_steps must divide batch_size, 64, got 3"),
        (["train", "digits", "--label-smoothing", "1"], "label_smoothing must be at least 0 and below 1, got 1.0"),
        (["train", "digits", "--checkpoint.keep", "0"], "checkpoint.keep must be at least 1, got 0"),
        (["train", "digits", "--sync-batch-norm"], "sync_batch_norm is for shard_map and pmap"),
        (
            ["train", "digits", "--strategy", "pmap", "--shard-optimizer"],
            "shard_optimizer needs parallel jit, got pmap",
        ),
        (["train", "digits", "--batch-size", "60"], "batch_size must be a multiple of the 8 devices"),
        (["train", "digits", "--process-id", "1"], "need --coordinator HOST:PORT"),
        (["train", "imagenet", "--data.name", "photos", "--fake-data"], "fake data needs one of digits, cifar10"),
        (["train", "svhn_cropped", "--drop.rte", "0.1"], r"train svhn-cropped --help"),
        (["train", "svhn-cropped", "--drop.rte", "0.1"], r"train svhn-cropped --help"),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, list) else "",
)
def test_wrong_input_ends_with_status_2_and_a_short_message(arguments, message, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    assert command(*arguments) == 2
    said = capfd.readouterr()
    assert re.search(message, said.err + said.out)
    assert "Traceback" not in said.err and len(said.err.splitlines()) < 12
    assert not list(tmp_path.iterdir())


@one_run
def test_the_network_of_a_run_is_there_for_other_programs(finished):
    folder, _ = finished
    loaded, digits = load_run(folder), load("digits")
    assert loaded.step == 24 and loaded.classes == digits.classes and loaded.config.steps == 24
    logits = np.concatenate([loaded.logits(digits.test.images[i : i + 40]) for i in range(0, 360, 40)])
    accuracy = np.mean(np.argmax(logits, -1) == digits.test.labels)
    assert accuracy == pytest.approx(records(folder, "test")[-1]["accuracy"])
    assert loaded.variables["clusters"]["drop_stage1"]["num_updates"] == 6


@one_run
def test_a_run_starts_over_only_when_told(finished, tmp_path, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder)
    (folder / "notes.txt").write_text("mine")
    assert command(*SHORT, "--out", str(folder), "--steps", "8", "--drop.method", "none", "--restart") == 0
    assert json.loads((folder / "config.json").read_text())["steps"] == 8 and (folder / "notes.txt").exists()
    assert [record["step"] for record in records(folder, "train")] == [1, 8]
    assert not (folder / "clusters.png").exists()
    capsys.readouterr()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    assert command(*SHORT, "--out", str(tmp_path / "other"), "--restart") == 2
    assert "holds other files" in capsys.readouterr().err and (tmp_path / "other" / "thesis.tex").exists()
    # Nor is a folder a run for having a config.json, if it is another program's.
    (tmp_path / "bert" / "pictures").mkdir(parents=True)
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    assert command(*SHORT, "--out", str(tmp_path / "bert"), "--restart") == 2
    assert "holds other files" in capsys.readouterr().err and (tmp_path / "bert" / "pictures").is_dir()


@one_run
def test_a_run_of_an_older_version_is_known_again_and_has_no_checkpoint(finished, tmp_path, capsys):
    """Options that it did not have are as they were then."""
    folder = tmp_path / "old"
    folder.mkdir()
    config = json.loads((finished[0] / "config.json").read_text())
    for option in ("dataset", "checkpoint", "grad_accum_steps", "parallel"):
        del config[option]
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(finished[0] / "summary.json", folder)
    assert command(*SHORT, "--out", str(folder)) == 0 and "holds this run already" in capsys.readouterr().out
    assert command("evaluate", str(folder)) == 2 and "which kept no checkpoint" in capsys.readouterr().err
    (folder / "config.json").write_text('{"seed"')
    for arguments in (["evaluate", str(folder)], [*SHORT, "--out", str(folder)]):
        assert command(*arguments) == 2 and "config.json is damaged" in capsys.readouterr().err


@one_run
def test_a_run_whose_images_have_changed_is_refused_and_left_as_it_is(finished, tmp_path, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder)
    (folder / "summary.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    config["dataset"]["train_examples"] += 1
    (folder / "config.json").write_text(json.dumps(config))
    before = contents(folder)
    assert command(*SHORT, "--out", str(folder)) == 2
    assert (
        "holds a run on other images" in (error := capsys.readouterr().err) and "train_examples is 1438 there" in error
    )
    assert contents(folder) == before


@one_run
def test_a_run_whose_last_checkpoint_is_not_there_is_not_finished(finished, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder)
    (folder / "summary.json").unlink()
    with monkeypatch.context() as patched:
        patched.setattr(Checkpointer, "wait", lambda self: [])
        assert command(*SHORT, "--out", str(folder)) == 1
    assert "the checkpoint of the last step, 24, could not be written" in capsys.readouterr().err
    assert not (folder / "summary.json").exists()
    assert command(*SHORT, "--out", str(folder)) == 0 and (folder / "summary.json").exists()


@one_run
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of what Orbax leaves behind
def test_a_run_without_a_sound_checkpoint_is_refused_and_nothing_is_removed(finished, tmp_path, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder)
    (folder / "summary.json").unlink()
    for manifest in folder.rglob("manifest.ocdbt"):
        manifest.write_bytes(b"")
    before = contents(folder / "checkpoints")
    assert command(*SHORT, "--out", str(folder)) == 2
    assert "holds no sound checkpoint (step 24: " in capsys.readouterr().err
    assert contents(folder / "checkpoints") == before
    gc.collect()


def test_a_dry_run_shows_what_it_would_take_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["--model", "resnet8", "--data.image_size", "32", "--batch-size", "16"]
    assert command("train", "imagenet", "--fake-data", "--dry-run", *arguments, "--drop.places", "stage1") == 0
    said = capsys.readouterr().out
    assert "139,640 parameters; 5,760 steps of 16 images, on 8 cpu devices: 2 images on each" in said
    assert re.search(r"model: [\d.]+ MFLOP an image in training, [\d.]+ GFLOP a step", said)
    assert re.search(r"compiled step, .*: [\d.]+ [MG]FLOP a device", said)
    assert re.search(r"memory a device: state and batch [\d.]+ MB, temporaries [\d.]+ MB, together [\d.]+ MB", said)
    assert re.search(r"drop_stage1 +32x32x16 +64\n", said) and re.search(r"head +1000 +65,000\n", said)
    assert not list(tmp_path.iterdir())


def test_a_single_cluster_is_told_of_before_the_training(tmp_path):
    notes = []
    drop = DropConfig(cluster_size=40)
    run.prepare(TrainConfig(model="resnet8", drop=drop, out=tmp_path), say=notes.append)
    assert notes == ["stage2 has a single cluster, its whole map of 4x4: drop.cluster_size, 40, is large for it"]


def test_a_loss_that_is_not_finite_ends_the_run_with_advice_and_its_last_checkpoint_stays(tmp_path, capsys):
    options = [*SHORT, "--learning-rate", "1e30", "--checkpoint.every", "1", "--drop.method", "none"]
    assert command(*options, "--out", str(tmp_path / "run")) == 1
    error = capsys.readouterr().err
    step = int(re.search(r"not finite at step (\d+): try a lower learning rate.*--max-nonfinite-steps", error)[1])
    assert len(error.splitlines()) == 1
    assert load_run(tmp_path / "run").step == step - 1
    # As it says, the same command with that option goes on from there, to the same end as there is no end to it.
    assert command(*options, "--out", str(tmp_path / "run"), "--max-nonfinite-steps", "2") == 1
    again = capsys.readouterr()
    assert f"going on from the checkpoint of step {step - 1}" in again.out and f"step {step + 2}" in again.err
    leaves = jax.tree.leaves(load_run(tmp_path / "run").variables)
    assert all(np.isfinite(leaf).all() for leaf in leaves)


def test_the_profiler_writes_what_it_saw_into_the_run_folder(tmp_path):
    assert command(*SHORT, "--steps", "8", "--profile", "--drop.method", "none", "--out", str(tmp_path / "run")) == 0
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))


def test_random_images_are_for_benchmarks_so_a_run_on_them_is_evaluated_at_its_end_alone(tmp_path):
    arguments = [*SHORT, "--steps", "3", "--batch-size", "512", "--fake-data", "--drop.method", "none"]
    assert command(*arguments, "--out", str(tmp_path / "run")) == 0
    assert [record["step"] for record in records(tmp_path / "run", "test")] == [3]


@pytest.mark.parametrize("name", PRESETS)
def test_a_configuration_comes_back_from_its_file(name):
    _, config = PRESETS[name]
    changed = dataclasses.replace(config, data=dataclasses.replace(config.data, dir=pathlib.Path("there")), seed=7)
    assert TrainConfig.from_json(json.loads(json.dumps(changed.to_json()))) == changed
    with pytest.raises(ValueError, match=r"unknown option drop\.color"):
        TrainConfig.from_json({"drop": {"color": "red"}})


def test_the_learning_rate_is_scaled_by_the_batch_and_warms_up_by_epochs():
    _, config = PRESETS["imagenet"]
    tx = build.optimizer(config, num_steps=90 * 1251, steps_per_epoch=1251)
    params = {"kernel": jnp.zeros((1, 1)), "bias": jnp.zeros(1)}
    state, rates = tx.init(params), []
    for step in (0, 2502, 5 * 1251, 45 * 1251 + 5 * 1251 // 2, 90 * 1251):
        count = jax.tree.map(
            lambda leaf, step=step: jnp.asarray(step, jnp.int32) if leaf.dtype == jnp.int32 else leaf, state
        )
        updates, _ = tx.update({"kernel": jnp.zeros((1, 1)), "bias": jnp.ones(1)}, count, params)
        rates.append(-float(updates["bias"][0]) / 1.9)  # of Nesterov's first step
    assert rates == pytest.approx([0, 0.16, 0.4, 0.2, 0], abs=1e-5)
    decayed, _ = tx.update(
        jax.tree.map(jnp.zeros_like, params), count, {"kernel": jnp.ones((1, 1)), "bias": jnp.ones(1)}
    )
    assert float(decayed["bias"][0]) == 0


@pytest.mark.bad_input
def test_a_folder_of_other_files_and_a_file_are_refused(capsys, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert command("train", "digits", "--out", str(tmp_path)) == 2
    assert "holds other files" in capsys.readouterr().err
    assert command("train", "digits", "--out", str(tmp_path / "thesis.tex")) == 2
    assert "out must be a folder, got the file" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_help_names_every_option(capsys):
    assert command("train", "digits", "--help") == 0
    said = capsys.readouterr().out
    for config, prefix in (
        (TrainConfig, ""),
        (DropConfig, "drop."),
        (DataConfig, "data."),
        (AugmentConfig, "augment."),
        (CheckpointConfig, "checkpoint."),
    ):
        for field in dataclasses.fields(config):
            if field.name not in ("drop", "data", "augment", "checkpoint"):
                assert f"--{prefix}{field.name.replace('_', '-')}" in said
    assert command("--help") == 0 and "dropcluster train digits" in capsys.readouterr().out


def test_every_model_has_its_name_and_every_method_its_layer():
    assert set(get_args(ModelName)) == set(MODELS)
    for method in get_args(Method):
        layers = build.drop_layers(DropConfig(method=method, places=("stage1", "stage2")))
        assert set(layers) == (set() if method == "none" else {"stage1", "stage2"})


def test_every_way_to_cluster_and_structure_on_demand_reach_the_layer():
    for name, kind in {"kmeans": dc.KMeans, "rena": dc.ReNA, "grid": dc.Grid}.items():
        config = DropConfig(clusterer=name, cluster_size=9.0, per_channel=True, min_explained=0.3)
        for layer in build.drop_layers(config).values():
            assert layer.clusterer == kind(cluster_size=9.0, per_channel=True) and layer.min_explained == 0.3


def test_presets_train_on_real_maps_with_room_for_their_clusters():
    assert set(PRESETS) == {"digits", "imagenet", *DATASETS} - {"imagenet2012"}
    for _, config in PRESETS.values():
        known = DATASETS.get(config.data.name)
        side = 8 if known is None else known.size or 32
        for model in (model for model in MODELS if set(config.drop.places) <= set(MODELS[model](10).places)):
            made = build.make_model(dataclasses.replace(config, model=model), 10, (side, side, 3))
            assert made.stem == ("cifar" if side < 100 else MODELS[model](10).stem)
            assert set(made.drop) == set(config.drop.places)


def test_a_run_on_real_cifar10_learns(tfds_dir, tmp_path):
    """A small share of the images; the loss falls."""
    out = str(tmp_path / "cifar10")
    options = ["--model", "resnet8", "--steps", "30", "--batch-size", "32"]
    options += ["--data.dir", tfds_dir, "--drop.update-every", "10"]
    options += ["--data.train-split", "train[:512]", "--data.test-split", "test[:64]"]
    assert command("train", "cifar10", *options, "--drop.probe-size", "64", "--out", out) == 0
    losses = [record["loss"] for record in records(tmp_path / "cifar10", "train")]
    assert losses[-1] < losses[0]


def test_a_run_streams_a_folder_and_stops_at_what_is_no_image_or_counts_it(photos, tmp_path, capsys):
    options = ["train", "digits", "--data.name", photos, "--data.image_size", "8", "--steps", "6", "--batch-size", "8"]
    options += ["--model", "resnet8"]
    options += ["--augment.resized-crop", "--augment.cutout", "3", "--augment.mixup", "0.2", "--augment.cutmix", "1"]
    options += ["--drop.probe-size", "8", "--data.fraction", "0.9", "--data.seed", "1"]
    assert command(*options, "--out", str(tmp_path / "stopped")) == 2
    assert "text.jpg cannot be read" in capsys.readouterr().err
    assert command(*options, "--data.skip-corrupt", "--out", str(tmp_path / "run")) == 0
    assert "1 images were skipped" in capsys.readouterr().out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert len(summary["skipped"]) == 1 and summary["test_accuracy"] >= 0
    assert all(np.isfinite(record["loss"]) for record in records(tmp_path / "run", "train"))
