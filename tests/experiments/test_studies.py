"""The laws of a fair comparison."""

import dataclasses
from typing import get_args

import numpy as np
import pytest

from dropcluster_jax.data import load
from experiments import report, run, studies, training
from experiments.studies import CHOICES, METHODS, SCALES, STUDIES

CHOSEN = {method: choices[0] for method, choices in CHOICES.items()}
TESTED = {"headline", "limited_data", "corruption"}


def jobs_of(study, scale="gpu"):
    return STUDIES[study](SCALES[scale], CHOSEN)


def test_the_command_knows_all_studies_and_methods():
    assert get_args(run.StudyName) == tuple(STUDIES) and get_args(run.MethodName) == tuple(METHODS)
    assert set(METHODS) == set(report.NAMES)


def test_every_method_has_as_many_choices():
    assert len({len(choices) for choices in CHOICES.values()}) == 1 and set(CHOICES) == set(METHODS)
    for scale in SCALES.values():
        numbers = [sum(job.method == method for job in studies.choices(scale, {})) for method in scale.methods]
        assert len(set(numbers)) == 1


def test_choices_are_made_with_other_seeds_and_never_on_the_test_set():
    for name, scale in SCALES.items():
        assert not set(scale.seeds) & set(scale.choice_seeds) and len(scale.seeds) >= 3
        for study in STUDIES:
            assert {job.target for job in jobs_of(study, name)} == {"test" if study in TESTED else "validation"}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("study", STUDIES)
def test_methods_differ_in_what_is_dropped_alone(study, scale):
    """Same schedule, augmentation, images and seeds; of the baseline the weight decay is what is chosen."""
    jobs = jobs_of(study, scale)
    for setting in {str(job.setting.get("share")) for job in jobs}:
        rest = set()
        for job in jobs:
            if str(job.setting.get("share")) == setting:
                config = studies.with_drop(job.config, **SCALES[scale].base.drop.__dict__)
                rest.add(dataclasses.replace(config, weight_decay=0.0, seed=0, data=studies.seeded(config, 0).data))
        assert len(rest) == 1
    assert {job.config.weight_decay for job in jobs if job.method != "none"} <= {SCALES[scale].base.weight_decay}
    settings = {}
    for job in jobs:
        settings.setdefault((job.method, str(job.setting)), []).append(job.config.seed)
    assert len({tuple(seeds) for seeds in settings.values()}) == 1
    assert all(job.config.data.seed == job.config.seed for job in jobs)


@pytest.mark.parametrize("study", STUDIES)
def test_every_run_is_there_once_and_has_its_own_id(study):
    jobs = jobs_of(study)
    assert len({job.id for job in jobs}) == len(jobs)


def test_how_clusters_came_about_is_told_once_in_the_study_of_clustering():
    drawn = [job for job in jobs_of("clustering") if job.drawn]
    assert [job.setting["structure"] for job in drawn] == ["k-means, shared", "k-means, shared, learned once"]


def test_where_data_lies_and_how_it_is_read_is_no_part_of_an_id(tmp_path):
    job = jobs_of("headline")[0]
    data = dataclasses.replace(job.config.data, dir=tmp_path, loader="stream")
    moved = dataclasses.replace(job, config=dataclasses.replace(job.config, data=data))
    assert moved.id == job.id and moved.config != job.config


def test_networks_with_all_images_are_those_of_the_headline():
    headline = {job.id for job in jobs_of("headline")}
    assert {job.id for job in jobs_of("limited_data") if job.setting["share"] == 1} == headline
    corrupted = [job for job in jobs_of("corruption") if job.setting["share"] == 1]
    assert {job.model for job in corrupted} == {job.model for job in jobs_of("headline")}
    assert not headline & {job.id for job in corrupted}


def test_what_is_held_out_is_a_tenth_of_each_class_and_never_trained_on():
    digits = load("digits")
    images = training.divide(digits)
    whole = {image.tobytes() for image in digits.train.images}
    trained, held = ({image.tobytes() for image in part.images} for part in (images.train, images.validation))
    assert not trained & held and trained | held == whole
    for label in range(10):
        number = np.sum(digits.train.labels == label)
        assert np.sum(images.validation.labels == label) == round(0.1 * number)
    assert images.digest == training.divide(load("digits")).digest
    assert images.digest != training.divide(load("digits", examples_per_class=20)).digest


def test_maps_of_labels_come_back_from_text():
    labels = np.random.default_rng(0).integers(0, 200, (7, 5))
    assert np.array_equal(training.decode(training.encode(labels)), labels)
