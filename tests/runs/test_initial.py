"""Runs that start from pretrained weights."""

import dataclasses

import jax
import numpy as np
import pytest

from dropcluster_jax.clustering import Grid
from dropcluster_jax.models import save_pretrained
from dropcluster_jax.runs import DropConfig, TrainConfig, load_run, read_history, train

DROP = DropConfig(places=("stage1", "stage2"), ramp_start=0.5, ramp_end=0.8, probe_size=64)
BASE = TrainConfig(model="resnet8", steps=6, batch_size=32, drop=DROP)


def run(config):
    train(config, notify=lambda message: None)
    return load_run(config.out)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "pretrained"


@pytest.fixture(scope="module")
def pretrained(folder):
    """A run with another seed and moving averages."""
    return run(dataclasses.replace(BASE, seed=1, ema_decay=0.9, out=folder))


@pytest.fixture(params=["run", "file"])
def source(request, folder, pretrained, tmp_path):
    if request.param == "run":
        return str(folder)
    save_pretrained(tmp_path / "weights.safetensors", pretrained.variables)
    return str(tmp_path / "weights.safetensors")


def differences(first, second, part):
    """Returns the largest difference of each parameter and statistic of a part."""
    trees = [
        {name: {key: value for key, value in run.variables[name].items() if key.startswith(part)} for name in STATE}
        for run in (first, second)
    ]
    return [float(np.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, trees), strict=True)]


STATE = ("params", "batch_stats")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["jit", "pmap"])
def test_frozen_parts_stay_and_the_others_and_the_head_are_trained(pretrained, source, strategy, tmp_path):
    config = dataclasses.replace(
        BASE, init_from=source, freeze=("stem", "stage1"), backbone_lr=0.01, strategy=strategy, out=tmp_path / "run"
    )
    tuned = run(config)
    for part in ("stem", "stage1"):
        assert max(differences(pretrained, tuned, part)) < (1e-6 if strategy == "pmap" else 1e-30)  # means of replicas
    stage3 = differences(pretrained, tuned, "stage3")
    assert all(stage3)
    fresh = run(dataclasses.replace(BASE, steps=1, learning_rate=1e-9, out=tmp_path / "fresh"))
    head = np.abs(tuned.variables["params"]["head"]["kernel"] - fresh.variables["params"]["head"]["kernel"]).max()
    assert 0 < head < 0.5  # trained, from the same initialization as without pretrained weights
    assert tuned.config.init_from == source and tuned.spec.mean == pretrained.spec.mean


@pytest.mark.slow
def test_backbone_rate_scales_the_first_update(folder, pretrained, tmp_path):
    steps = {}
    for scale in (1.0, 0.1):
        config = dataclasses.replace(BASE, steps=1, weight_decay=0.0, init_from=str(folder), out=tmp_path / str(scale))
        tuned = run(dataclasses.replace(config, backbone_lr=scale))
        steps[scale] = tuned.variables["params"]
    start = pretrained.variables["params"]
    for module, kernel in (("stem_conv", "kernel"), ("stage3_block1", "conv1")):
        full, scaled = (jax.tree.leaves(steps[scale][module][kernel])[0] for scale in (1.0, 0.1))
        before = jax.tree.leaves(start[module][kernel])[0]
        np.testing.assert_allclose(scaled - before, 0.1 * (full - before), rtol=1e-2, atol=1e-6)
    np.testing.assert_array_equal(steps[1.0]["head"]["kernel"], steps[0.1]["head"]["kernel"])


@pytest.mark.slow
def test_clusters_are_learned_from_the_pretrained_features(folder, pretrained, tmp_path):
    run(dataclasses.replace(BASE, init_from=str(folder), out=tmp_path / "run"))
    (step, labels), *_ = read_history(tmp_path / "run")["stage1"]
    grid = Grid(cluster_size=DROP.cluster_size).init((8, 8, 16)).labels
    assert step == 0 and not np.array_equal(labels, grid)


@pytest.mark.bad_input
def test_invalid_weights_and_options(folder, pretrained, tmp_path):
    with pytest.raises(ValueError, match="freeze and backbone_lr require init_from"):
        TrainConfig(freeze=("stem",))
    config = dataclasses.replace(BASE, init_from=str(folder), out=tmp_path / "run")
    for changes, message in (
        ({"model": "resnet20"}, "init_from must be the weights of the same network, but stage1_block2.* is missing in"),
        ({"freeze": ("stage9",)}, "places in frozen must be among stem, stage1, stage2, stage3, got 'stage9'"),
        ({"init_from": str(tmp_path / "none")}, "No such file or directory"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            train(dataclasses.replace(config, **changes))
    assert not (tmp_path / "run").exists()
