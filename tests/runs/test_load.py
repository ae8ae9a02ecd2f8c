"""Reading runs back: their list, the trained network, and its evaluation."""

import dataclasses
import types

import flax.linen as nn
import numpy as np
import pytest
from runs.test_folder import CONFIG, OTHER_SPEC, SPEC, write_run

from dropcluster_jax.runs import (
    DataConfig,
    DropConfig,
    LoadedRun,
    evaluate_run,
    list_runs,
    load_run,
    read_history,
)
from dropcluster_jax.runs import folder as run_folder
from dropcluster_jax.runs import load as load_module
from dropcluster_jax.runs.config import as_path
from dropcluster_jax.runs.evaluation import merge_evaluation, read_evaluation
from dropcluster_jax.runs.figures import draw_run_clusters, draw_run_curves
from dropcluster_jax.runs.load import open_run_data


@pytest.mark.parametrize(
    "read",
    [load_run, evaluate_run, list_runs, read_history, draw_run_clusters, lambda folder: draw_run_curves([folder])],
)
def test_home_is_expanded(read, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "runs" / "digits")):
        read("~/runs/digits")


def test_runs_are_listed_with_their_results(tmp_path):
    write_run(tmp_path / "b" / "deep", finished=True)
    write_run(tmp_path / "a", dataclasses.replace(CONFIG, seed=3, drop=DropConfig("none", rate=0.3)), accuracy=0.5)
    run_folder.write_config(as_path(tmp_path / "c"), CONFIG, SPEC, "1.0")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "config.json").write_text("{")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "link").symlink_to(tmp_path / "b")
    unfinished, deep, new, damaged = list_runs(tmp_path)
    common = {"model": "resnet8", "data": "digits"}
    assert deep == {
        **{"run": str(tmp_path / "b" / "deep"), "method": "drop_cluster", "rate": 0.1, "seed": 0, **common},
        **{"size": 4.0, "fill": "zero", "places": ["stage1", "stage2"]},
        **{"step": 4, "finished": True, "eval_accuracy": 0.75, "seconds": 3.5},
    }
    assert unfinished == {
        **{"run": str(tmp_path / "a"), "method": "none", "rate": 0.0, "seed": 3, **common},
        **{"size": None, "fill": None, "places": []},
        **{"step": 4, "finished": False, "eval_accuracy": 0.5, "seconds": None},
    }
    assert (new["step"], new["eval_accuracy"], new["finished"]) == (0, None, False)
    assert set(damaged) == {"run", "error"} and "config.json is damaged" in damaged["error"]


def test_damaged_runs_are_listed_with_the_reason(tmp_path):
    """Whichever file is damaged."""
    cases = [
        ("config.json", '{"drop": 3}'),
        ("config.json", '{"drop": {}, "seed": "x"}'),
        ("summary.json", "{}"),
        ("summary.json", "[]"),
        ("metrics.jsonl", "null\n"),
        ("metrics.jsonl", '{"step": 1}\n'),
    ]
    for name, content in cases:
        (write_run(tmp_path / "run", finished=True) / name).write_text(content)
        (entry,) = list_runs(tmp_path)
        assert set(entry) == {"run", "error"} and "damaged" in entry["error"], (name, content)


def test_folders_without_runs_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no folder {tmp_path / 'missing'}"):
        list_runs(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match=r"contains no runs; `dropcluster train digits --out .*` creates one"):
        list_runs(tmp_path)


def test_logits_are_those_of_normalized_images():
    class Mean(nn.Module):
        def __call__(self, x):
            return x.mean((1, 2))

    loaded = LoadedRun(Mean(), {}, CONFIG, SPEC, step=0, state=None)
    images = np.stack([np.zeros((2, 2, 1), np.uint8), np.full((2, 2, 1), 255, np.uint8)])
    np.testing.assert_allclose(loaded.logits(images), [[-1], [1]], atol=1e-6)
    message = r"images must have shape \(batch, 2, 2, 1\), got \(2, 2, 1\); add a batch axis .* images\[None\]"
    with pytest.raises(ValueError, match=message):
        loaded.logits(images[0])
    with pytest.raises(ValueError, match=r"shape \(batch, 2, 2, 1\), got \(2, 4, 6, 1\); resize or crop"):
        loaded.logits(np.zeros((2, 4, 6, 1), np.uint8))
    with pytest.raises(ValueError, match=r"must have shape \(batch, 2, 2, 1\), got \(2, 2, 2, 3\)"):
        loaded.logits(np.zeros((2, 2, 2, 3), np.uint8))


def test_run_without_checkpoints_cannot_be_loaded(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no checkpoint yet"):
        load_run(write_run(tmp_path))


def test_best_needs_validation_images(tmp_path):
    with pytest.raises(ValueError, match=r"best requires .* validation images.*train with --data\.validation-fraction"):
        load_run(write_run(tmp_path / "test"), best=True)
    data = DataConfig(validation_fraction=0.2, evaluate_on="validation")
    with pytest.raises(FileNotFoundError, match="has no evaluated checkpoint yet"):
        load_run(write_run(tmp_path / "validation", dataclasses.replace(CONFIG, data=data)), best=True)


def test_changed_data_must_be_allowed(monkeypatch):
    notes = []
    opened = types.SimpleNamespace(spec=OTHER_SPEC)
    monkeypatch.setattr(load_module, "open_data", lambda *_, **__: (opened, "loader"))
    difference = ["the test examples are different"]
    assert open_run_data(CONFIG, OTHER_SPEC, False, notes.append) == (opened, "loader", []) and not notes
    with pytest.raises(ValueError, match=r"not those the run was trained on: the test .*; --allow-changed-data uses"):
        open_run_data(CONFIG, SPEC, False, notes.append)
    assert open_run_data(CONFIG, SPEC, True, notes.append)[2] == difference
    assert notes == ["the data are not those the run was trained on: the test examples are different"]
    opened.spec = dataclasses.replace(SPEC, image_shape=(2, 2, 3))
    with pytest.raises(ValueError, match="the network needs the same number of classes and image shape"):
        open_run_data(CONFIG, SPEC, True, notes.append)


def test_earlier_results_on_corrupted_images_are_kept():
    previous = {"step": 4, "changed_data": [], "corrupted": [1, 2], "mean_corrupted_accuracy": 0.5}
    evaluation = {"step": 4, "changed_data": [], "corrupted": [], "mean_corrupted_accuracy": None, "test": {}}
    merged = merge_evaluation(previous, evaluation)
    assert merged == {**evaluation, "corrupted": [1, 2], "mean_corrupted_accuracy": 0.5}
    for changes in ({"step": 3}, {"changed_data": ["classes"]}):  # of another checkpoint, or on other data
        assert merge_evaluation({**previous, **changes}, evaluation) == evaluation
    new = {**evaluation, "corrupted": [3]}
    assert merge_evaluation(previous, new) == new and merge_evaluation({}, evaluation) == evaluation


def test_missing_evaluation_is_empty_and_a_damaged_one_an_error(tmp_path):
    assert read_evaluation(as_path(tmp_path)) == {}
    (tmp_path / "evaluation.json").write_text("[]")
    with pytest.raises(ValueError, match=r"evaluation\.json is damaged"):
        read_evaluation(as_path(tmp_path))
