import dataclasses
import json
import os
import pathlib
import re

import pytest

from dropcluster_jax.runs import PRESETS, AugmentConfig, CheckpointConfig, DataConfig, DropConfig, TrainConfig
from dropcluster_jax.runs.config import RUNTIME_FIELDS, as_path, without_runtime_fields


def through_json(config):
    return TrainConfig.from_json(json.loads(json.dumps(config.to_json())))


def test_configurations_survive_json():
    for name, (_, config) in PRESETS.items():
        changed = dataclasses.replace(config, data=dataclasses.replace(config.data, dir="there"), seed=7)
        assert through_json(changed) == changed, name


def test_run_folder_is_not_part_of_the_json():
    config = TrainConfig(out=pathlib.Path("somewhere"))
    assert "out" not in config.to_json() and through_json(config) == TrainConfig()


def test_missing_options_take_their_defaults():
    assert TrainConfig.from_json({}) == TrainConfig()
    assert TrainConfig.from_json({"seed": 3, "drop": {"rate": 0.2}}) == TrainConfig(seed=3, drop=DropConfig(rate=0.2))


def test_invalid_json_names_the_option():
    with pytest.raises(ValueError, match=r"drop\.clusterer must be one of kmeans, rena, .*, got 'kmeens'"):
        TrainConfig.from_json({"drop": {"clusterer": "kmeens"}})
    with pytest.raises(ValueError, match=r"unknown option drop\.color"):
        TrainConfig.from_json({"drop": {"color": "red"}})
    with pytest.raises(ValueError, match="unknown option color"):
        TrainConfig.from_json({"color": "red"})


def test_options_that_do_not_change_the_results_are_ignored():
    config = TrainConfig()
    changed = TrainConfig(
        remat=True,
        profile=True,
        max_nonfinite_steps=2,
        checkpoint=CheckpointConfig(every=5, keep=1),
        data=DataConfig(workers=2, dir="there"),
    )
    assert without_runtime_fields(changed) == without_runtime_fields(config)
    other = dataclasses.replace(changed, data=dataclasses.replace(changed.data, fraction=0.5))
    assert without_runtime_fields(other) != without_runtime_fields(config)
    assert without_runtime_fields(TrainConfig(seed=1)) != without_runtime_fields(config)
    sections = {"": TrainConfig, "data": DataConfig, "checkpoint": CheckpointConfig}
    for section, names in RUNTIME_FIELDS.items():
        assert set(names) <= {field.name for field in dataclasses.fields(sections[section])}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "resnet51"}, r"model must be one of .*, got 'resnet51'"),
        ({"strategy": "xmap"}, "strategy must be one of jit, shard_map, pmap, got 'xmap'"),
        ({"epochs": -1.0}, r"epochs must be above 0, got -1\.0"),
        ({"epochs": 0.0}, r"epochs must be above 0, got 0\.0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"learning_rate": float("inf")}, "learning_rate must be above 0, got inf"),
        ({"weight_decay": -1e-4}, "weight_decay must be at least 0, got -0.0001"),
        ({"base_batch_size": 0}, "base_batch_size must be at least 1, got 0"),
        ({"warmup_epochs": -1.0}, "warmup_epochs must be at least 0, got -1.0"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be at least 0 and below 1, got 1\.0"),
        ({"ema_decay": 1.0}, r"ema_decay must be at least 0 and below 1, got 1\.0"),
        ({"grad_accum_steps": 0}, "grad_accum_steps must be at least 1, got 0"),
        ({"grad_accum_steps": 3}, "grad_accum_steps must divide batch_size, 64, got 3"),
        ({"max_nonfinite_steps": -1}, "max_nonfinite_steps must be at least 0, got -1"),
        ({"sync_batch_norm": True}, "sync_batch_norm requires strategy shard_map or pmap"),
        ({"strategy": "pmap", "shard_optimizer": True}, "shard_optimizer requires strategy jit, got pmap"),
        ({"evaluate_every_epochs": -1.0}, "evaluate_every_epochs must be at least 0, got -1.0"),
        ({"seed": -1}, "seed must be at least 0 and at most 4294967295, got -1"),
        ({"seed": 2**32}, "seed must be at least 0 and at most 4294967295, got 4294967296"),
        ({"checkpoint": CheckpointConfig(every=-1)}, r"checkpoint\.every must be at least 0, got -1"),
        ({"checkpoint": CheckpointConfig(keep=0)}, r"checkpoint\.keep must be at least 1, got 0"),
        ({"drop": DropConfig(rate=1.5)}, r"drop\.rate must be at least 0 and at most 1, got 1\.5"),
        ({"drop": DropConfig(rate=float("nan"))}, r"drop\.rate must be at least 0 and at most 1, got nan"),
        (
            {"drop": DropConfig(min_explained_variance=2.0)},
            r"drop\.min_explained_variance must be at least 0 and at most 1, got 2",
        ),
        (
            {"drop": DropConfig(threshold_range=(-0.1, 0.3))},
            r"drop\.threshold_range\[0\] must be at least 0 and at most 1, got -0\.1",
        ),
        (
            {"drop": DropConfig(threshold_range=(0.6, 0.3))},
            r"drop\.threshold_range\[1\] must be at least 0\.6 and at most 1, got 0\.3",
        ),
        ({"drop": DropConfig(ramp_start=-0.1)}, r"drop\.ramp_start must be at least 0 and at most 1, got -0\.1"),
        (
            {"drop": DropConfig(ramp_start=0.6, ramp_end=0.5)},
            r"drop\.ramp_end must be at least 0\.6 and at most 1, got 0\.5",
        ),
        ({"drop": DropConfig(update_interval=0)}, r"drop\.update_interval must be at least 1, got 0"),
        ({"drop": DropConfig(probe_size=0)}, r"drop\.probe_size must be at least 1, got 0"),
        ({"augment": AugmentConfig(cutout=-1)}, r"augment\.cutout must be at least 0, got -1"),
        ({"augment": AugmentConfig(flip=True)}, r"augment\.flip must be False for digits"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)
def test_invalid_values_raise(options, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**options)


@pytest.mark.bad_input
def test_invalid_choices_of_the_data_raise():
    with pytest.raises(ValueError, match=r"data\.evaluate_on must be one of test, validation, got 'train'"):
        TrainConfig(data=DataConfig(evaluate_on="train"))


def test_bounds_are_valid_values():
    TrainConfig(label_smoothing=0.0, weight_decay=0.0, seed=2**32 - 1, evaluate_every_epochs=0.0)
    TrainConfig(
        drop=DropConfig(rate=1.0, min_explained_variance=1.0, ramp_start=0.5, ramp_end=0.5, threshold_range=(0.3, 0.3))
    )


def test_local_paths_are_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert as_path("~/x") == pathlib.Path("/home/me/x") and as_path("a/b") == pathlib.Path("a/b")
    assert TrainConfig(out=pathlib.Path("~/x")).out == pathlib.Path("/home/me/x")
    assert str(as_path("gs://bucket/x") / "y") == "gs://bucket/x/y"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("s3://bucket/run", "paths must be local or gs://..., got s3://bucket/run"),
        (pathlib.Path("hdfs://host/run"), "paths must be local or gs://..., got hdfs:/host/run"),
        (pathlib.Path("gs://bucket"), "paths must be local or gs://..., got gs:/bucket"),  # pathlib removes a slash
        (os.fsdecode(b"runs/\xff"), r"paths must be valid in the locale's encoding, got b'runs/\xff'"),
    ],
)
def test_invalid_paths_are_errors(path, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        as_path(path)
