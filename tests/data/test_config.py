import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dropcluster_jax.data import DATASETS, GrainLoader, InMemoryLoader, load
from dropcluster_jax.data.config import DataConfig, open_data


def test_options_reach_the_dataset_and_the_loader():
    config = DataConfig(examples_per_class=5, seed=3, loader="grain", test_split="test[:20]")
    dataset, loader = open_data(config, batch_size=10, seed=1)
    expected = load("digits", examples_per_class=5, seed=3, test_split="test[:20]")
    np.testing.assert_array_equal(dataset.train.images, expected.train.images)
    assert len(dataset.test) == 20 and isinstance(loader, GrainLoader)
    labels, other_labels = (
        np.asarray(next(open_data(dataclasses.replace(config, loader="memory"), 10, seed)[1].train())["label"])
        for seed in (1, 2)
    )
    batches = loader.train()
    assert (np.asarray(next(batches)["label"]) == labels).all() and (labels != other_labels).any()
    batches.close()


def test_held_out_images_are_evaluated_on_if_selected():
    config = DataConfig(validation_fraction=0.2, evaluate_on="validation")
    dataset, _ = open_data(config, 32)
    whole = load("digits")
    assert len(dataset.train) + len(dataset.test) == len(whole.train)


def test_batches_have_the_given_sharding():
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    sharding = NamedSharding(mesh, PartitionSpec("batch"))
    _, loader = open_data(DataConfig(), 32, sharding=sharding)
    assert isinstance(loader, InMemoryLoader) and next(loader.train())["image"].sharding == sharding


def test_fake_data_has_the_shape_of_the_dataset():
    dataset, _ = open_data(DataConfig(name="imagenet2012", image_size=16), 8, fake=True)
    assert dataset.spec.image_shape == (16, 16, 3) and dataset.spec.classes == DATASETS["imagenet2012"].classes
    assert len(dataset.train) == 1024 and len(open_data(DataConfig(), 2000, fake=True)[0].train) == 2000
    with pytest.raises(ValueError, match=r"fake data needs one of the datasets digits, .*, got 'photos'"):
        open_data(DataConfig(name="photos"), 8, fake=True)
