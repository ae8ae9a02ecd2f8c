import io

from dropcluster_jax.runs import console
from dropcluster_jax.runs.config import as_path
from dropcluster_jax.runs.console import ProgressBar, format_summary, task_progress

TRAIN = {"event": "train", "step": 1, "loss": 2.0, "accuracy": 0.25, "rate": 0.1, "images_per_second": 1500.0}
EVAL = {"event": "eval", "step": 2, "loss": 0.5, "accuracy": 0.75, "count": 4.0}


def test_lines_of_events(capsys):
    layer = {"explained_variance": 0.45, "adjusted_rand_index": 0.257, "num_updates": 1, "num_skipped": 0}
    with ProgressBar(10) as progress:
        progress(TRAIN)  # on terminals, and after a minute
        progress({"event": "clusters", "step": 2, "layers": {"stage1": layer, "stage2": layer}})
        progress({"event": "nonfinite", "step": 3, "nonfinite_steps": 2})
        progress({**EVAL, "accuracy_top5": 0.9})
        progress.notify("[red]note[/red]")
    assert capsys.readouterr().out.splitlines() == [
        "step 2/10  clusters: stage1 explained variance 45%, ARI 0.26; stage2 explained variance 45%, ARI 0.26",
        "step 3/10  non-finite loss or gradients; 2 non-finite steps so far",
        "step 2/10  eval loss 0.500  eval accuracy 75.00%  top-5 90.00%",
        "[red]note[/red]",
    ]


def test_training_metrics_without_a_terminal(capsys, monkeypatch):
    with ProgressBar(10) as progress:
        progress(TRAIN)
        assert capsys.readouterr().out == ""
        monkeypatch.setattr(console, "_SECONDS_PER_LINE", 0)
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
    summary = {"eval_accuracy": 0.5, "eval_accuracy_top5": 0.875, "steps": 24, "seconds": 3.4, "parameters": 75_002}
    summary |= {"clusters": {"stage1": layer}, "nonfinite_steps": 2, "skipped": ["a.png", "b.png"]}
    assert format_summary(summary, as_path(tmp_path)).splitlines() == [
        "eval accuracy 50.00%, top-5 87.50% after 24 steps in 3 s (75,002 parameters)",
        "stage1: 6 cluster updates (1 skipped); clusters explain 44% of the variance",
        "2 non-finite steps were skipped",
        "2 images were skipped, the first: a.png",
        f"results: {tmp_path / 'summary.json'}",
    ]


def test_task_progress_is_shown_on_terminals_only(monkeypatch, capsys):
    import rich.console

    with task_progress(2) as start:
        start("opening")
    assert capsys.readouterr().err == ""
    terminal = io.StringIO()
    monkeypatch.setattr(
        rich.console, "Console", lambda stderr, make=rich.console.Console: make(file=terminal, force_terminal=True)
    )
    with task_progress(2) as start:
        start("opening")
        start("drawing")
    assert "drawing" in terminal.getvalue()
