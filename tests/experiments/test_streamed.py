"""Images that are streamed, as ImageNet's: the run is the library's own, and what was held out is not trained on."""

import dataclasses
import json

import pytest
from tfds_folders import prepare

from dropcluster_jax.runs.config import AugmentConfig, DataConfig
from experiments import streamed, studies

pytestmark = pytest.mark.xdist_group("experiments.streamed")

CONFIG = dataclasses.replace(
    studies.with_drop(studies.SCALES["small"].base, places=("stage1",), cluster_size=4.0, update_every=2, probe_size=8),
    steps=4,
    batch_size=8,
    data=DataConfig(name="tiny", image_size=8),
    augment=AugmentConfig(),
)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("tfds"), sizes=[(9, 9, 3)] * 30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("networks")


def measured(job, folder, data_dir):
    return streamed.measure(job, folder, data_dir, lambda message: None)


@pytest.mark.parametrize(("target", "count"), [("validation", 3), ("test", 30)])
def test_it_is_measured_on_what_it_says(target, count, data_dir, folder, monkeypatch):
    job = studies.Job("cluster", {}, CONFIG, target)
    found = measured(job, folder, data_dir)
    assert found["count"] == count and found["finite"] and found["clusters"]["stage1"]["updates"] == 2
    assert json.loads((folder / job.id / "config.json").read_text())["dataset"]["train_examples"] == 27

    def never(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(streamed.run, "execute", never)
    assert measured(job, folder, data_dir) == found
    monkeypatch.setattr(streamed, "CORRUPTIONS", ("brightness",))
    corrupted = measured(dataclasses.replace(job, corrupted=5), folder, data_dir)
    assert [len(one["accuracy"]) for one in corrupted["corruptions"].values()] == [5] and corrupted["count"] == count


def test_a_loss_that_is_not_finite_counts_as_chance(data_dir, folder):
    job = studies.Job("none", {}, dataclasses.replace(CONFIG, learning_rate=1e30), "test")
    found = measured(job, folder, data_dir)
    assert not found["finite"] and found["accuracy"] == 0.5


def test_imagenet_takes_its_own_recipe():
    scale = studies.for_dataset(studies.SCALES["paper"], "imagenet2012")
    jobs = studies.headline(scale, {method: choices[0] for method, choices in studies.CHOICES.items()})
    config = jobs[0].config
    assert config.data.image_size == 224 and config.batch_size == 1024 and config.steps == 90 * (1_153_050 // 1024)
    assert config.warmup_epochs == 5 and config.label_smoothing == 0.1
