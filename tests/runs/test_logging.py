import io

import pytest

import dropcluster_jax as dc
from dropcluster_jax.runs import logging, read_history, run_folder
from dropcluster_jax.runs.logging import NullWriter, ProgressBar, RunWriter, format_summary

CLUSTERS = {"stage1": dc.Grid(num_clusters=4).init((4, 4, 3))}
TRAIN = {"event": "train", "step": 1, "loss": 2.0, "accuracy": 0.25, "rate": 0.1, "images_per_second": 1500.0}
TEST = {"event": "test", "step": 2, "loss": 0.5, "accuracy": 0.75, "count": 4.0}


def test_entries_and_clusters_are_written(tmp_path):
    with RunWriter(tmp_path, {}) as writer:
        writer.log(TRAIN)
        writer.log_clusters(0, CLUSTERS)
        writer.log({**TEST, "loss": float("nan")})
        assert writer.last == {"train": TRAIN, "test": {**TEST, "loss": pytest.approx(float("nan"), nan_ok=True)}}
    assert run_folder.read_json_lines(tmp_path / "metrics.jsonl") == [TRAIN, {**TEST, "loss": None}]
    ((step, labels),) = read_history(tmp_path)["stage1"]
    assert step == 0 and (labels == CLUSTERS["stage1"].labels).all()


def test_entries_after_the_restored_checkpoint_are_removed(tmp_path):
    with RunWriter(tmp_path, {}) as writer:
        writer.log(TRAIN)
        writer.log_clusters(0, CLUSTERS)
        sizes = writer.sizes()
        writer.log(TEST)
        writer.log_clusters(2, CLUSTERS)
    with RunWriter(tmp_path, sizes) as writer:
        assert writer.sizes() == sizes and writer.last == {"train": TRAIN}
    assert run_folder.read_json_lines(tmp_path / "metrics.jsonl") == [TRAIN]
    assert [step for step, _ in read_history(tmp_path)["stage1"]] == [0]
    with RunWriter(tmp_path, {}, clusters=False):  # without a checkpoint
        assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_runs_without_clusters_have_no_history(tmp_path):
    with RunWriter(tmp_path, {}, clusters=False) as writer:
        assert list(writer.sizes()) == ["metrics.jsonl"]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_null_writer_writes_nothing():
    with NullWriter() as writer:
        writer.log(TRAIN)
        writer.log_clusters(0, CLUSTERS)
        assert writer.sizes() == writer.last == {}


def test_lines_of_events(capsys):
    layer = {"explained_variance": 0.45, "adjusted_rand_index": 0.257, "num_updates": 1, "num_skipped": 0}
    with ProgressBar(10) as progress:
        progress(TRAIN)  # on terminals, and after a minute
        progress({"event": "clusters", "step": 2, "layers": {"stage1": layer, "stage2": layer}})
        progress({"event": "nonfinite", "step": 3, "nonfinite_steps": 2})
        progress({**TEST, "accuracy_top5": 0.9})
        progress.notify("[red]note[/red]")
    assert capsys.readouterr().out.splitlines() == [
        "step 2/10  clusters: stage1 explained variance 45%, ARI 0.26; stage2 explained variance 45%, ARI 0.26",
        "step 3/10  non-finite loss or gradients; 2 non-finite steps so far",
        "step 2/10  test loss 0.500  test accuracy 75.00%  top-5 90.00%",
        "[red]note[/red]",
    ]


def test_training_metrics_without_a_terminal(capsys, monkeypatch):
    with ProgressBar(10) as progress:
        progress(TRAIN)
        assert capsys.readouterr().out == ""
        monkeypatch.setattr(logging, "_SECONDS_PER_LINE", 0)
        progress(TRAIN)
    assert capsys.readouterr().out.startswith("step 1/10  loss 2.000  accuracy 25.0%")


def test_metrics_on_terminals():
    progress = ProgressBar(10, flops=2e9)
    assert progress._train_metrics(TRAIN) == "loss 2.000  accuracy 25.0%  rate 0.100  1,500 images/s  3 TFLOP/s"
    entry = {**TRAIN, "rate": {"stage1": 0.1}, "images_per_second": None}
    assert progress._train_metrics(entry) == "loss 2.000  accuracy 25.0%"


def test_summary_lists_what_happened(tmp_path):
    (tmp_path / "summary.json").touch()
    layer = {"num_updates": 6, "num_skipped": 1, "explained_variance": 0.436, "ari_with_grid": 0.1}
    summary = {"test_accuracy": 0.5, "test_accuracy_top5": 0.875, "steps": 24, "seconds": 3.4, "parameters": 75_002}
    summary |= {"clusters": {"stage1": layer}, "nonfinite_steps": 2, "skipped": ["a.png", "b.png"]}
    assert format_summary(summary, tmp_path).splitlines() == [
        "test accuracy 50.00%, top-5 87.50% after 24 steps in 3 s (75,002 parameters)",
        "stage1: 6 cluster updates (1 skipped); clusters explain 44% of the variance",
        "2 non-finite steps were skipped",
        "2 images were skipped, the first: a.png",
        f"results: {tmp_path / 'summary.json'}",
    ]


def test_task_progress_is_shown_on_terminals_only(monkeypatch, capsys):
    from rich import console

    from dropcluster_jax.runs.logging import task_progress

    with task_progress(2) as start:
        start("opening")
    assert capsys.readouterr().err == ""
    terminal = io.StringIO()
    monkeypatch.setattr(
        console, "Console", lambda stderr, make=console.Console: make(file=terminal, force_terminal=True)
    )
    with task_progress(2) as start:
        start("opening")
        start("drawing")
    assert "drawing" in terminal.getvalue()
