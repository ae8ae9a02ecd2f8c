import pytest

import dropcluster_jax as dc
from dropcluster_jax.runs import DropConfig, TrainConfig, run_folder, trainer


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_run_that_another_process_started_in_the_meantime_is_not_changed(tmp_path):
    """Between the validation of the folder and its lock."""
    options = {"model": "resnet8", "steps": 1, "drop": DropConfig("none"), "out": tmp_path / "run"}
    first, second = (trainer.prepare(TrainConfig(**options, seed=seed)) for seed in (1, 2))
    run_folder.write_config(first.folder, first.config, first.dataset.spec, dc.__version__)
    before = contents(tmp_path / "run")
    with pytest.raises(FileExistsError, match="seed is 1 there and 2 here"):
        trainer.execute(second)
    assert contents(tmp_path / "run").items() - before.items() == {(tmp_path / "run" / ".lock", b"")}


def test_single_cluster_is_noted_before_training(tmp_path):
    notes = []
    drop = DropConfig(cluster_size=40)
    trainer.prepare(TrainConfig(model="resnet8", drop=drop, out=tmp_path), notify=notes.append)
    assert notes == ["stage2 has a single cluster, its whole map of 4x4: drop.cluster_size 40 is too large"]
