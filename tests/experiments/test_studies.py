"""Properties of a fair comparison."""

import dataclasses

import numpy as np
import pytest

from dropcluster_jax.data import load, stratified_subset
from experiments import studies
from experiments.studies import METHODS, SCALES, STUDIES, override

ON_TEST_SET = ("headline", "limited_data", "corruption", "fills", "fill_corruption")
CHOSEN = {name: studies.candidates(SCALES["gpu"], name)[0] for name in METHODS}


def jobs_of(study, scale="gpu"):
    return studies.jobs(study, SCALES[scale], CHOSEN)


def test_every_method_has_six_candidates():
    """Three for methods with blocks or clusters if these have a fixed size."""
    for name, scale in SCALES.items():
        numbers = {}
        for job in jobs_of("choices", name):
            numbers.setdefault(job.method, set()).add(job.id)
        expected = {method: 6 * len(scale.choice_seeds) for method in set(scale.methods) - {"none"}}
        if len(scale.candidate_sides) == 1:
            assert name == "cpu-augmented"
            sized = {"drop_block", "corr_drop", "grid", "drop_cluster", "rena", "per-channel"}
            expected |= {method: 3 * len(scale.choice_seeds) for method in sized}
        assert {method: len(ids) for method, ids in numbers.items()} == expected
        assert {job.method for job in jobs_of("baseline", name)} == {"none"}


def test_choices_use_other_seeds_and_never_the_test_set():
    for name, scale in SCALES.items():
        assert not set(scale.seeds) & set(scale.choice_seeds), name
        assert len(scale.seeds) >= 3, name
        for study in STUDIES:
            targets = {job.target for job in jobs_of(study, name)}
            assert targets == {"test" if study in ON_TEST_SET else "validation"}, (name, study)
            assert not targets & {"test"} or STUDIES[study].seeds == "all", (name, study)


@pytest.mark.parametrize("scale", SCALES)
def test_methods_differ_only_in_what_they_drop(scale):
    for study in STUDIES:
        check_options(study, scale)


def check_options(study, scale):
    jobs = jobs_of(study, scale)
    base = SCALES[scale].base
    tuned = {} if study != "baseline" else {"learning_rate": 1.0, "weight_decay": 0.0, "label_smoothing": 0.0}
    others = {}
    for job in jobs:
        same = tuple(job.setting.get(name) for name in ("fraction", "steps", "mixing"))
        config = override(job.config, **vars(base.drop), **tuned, seed=0, data=base.data)
        others.setdefault(same, set()).add(config)
    assert all(len(configs) == 1 for configs in others.values()), study
    if study != "baseline":
        assert {job.config.weight_decay for job in jobs} == {CHOSEN["none"]["weight_decay"]}, study


def test_every_setting_has_the_same_seeds():
    for study in STUDIES:
        seeds = {}
        for job in jobs_of(study):
            seeds.setdefault((job.method, str(job.setting)), []).append(job.config.seed)
            assert job.config.data.seed == job.config.seed, study
        assert len({tuple(values) for values in seeds.values()}) == 1, study


def test_ablations_have_fewer_seeds():
    scale = SCALES["cpu"]
    seeds = {"all": scale.seeds, "ablation": scale.seeds[:3], "choice": scale.choice_seeds}
    for name, study in STUDIES.items():
        assert {job.config.seed for job in jobs_of(name, "cpu")} == set(seeds[study.seeds]), name


def test_jobs_have_unique_ids():
    for study in STUDIES:
        jobs = jobs_of(study)
        assert len({job.id for job in jobs}) == len(jobs), study


def test_ids_do_not_depend_on_where_and_how_data_is_read(tmp_path):
    job = jobs_of("headline")[0]
    data = dataclasses.replace(job.config.data, dir=str(tmp_path), loader="grain")
    moved = dataclasses.replace(job, config=dataclasses.replace(job.config, data=data))
    assert moved.id == job.id and moved.config != job.config


def test_headline_jobs_are_those_of_limited_data_with_all_images():
    headline = {job.id for job in jobs_of("headline")}
    assert {job.id for job in jobs_of("limited_data") if job.setting["fraction"] == 1} == headline
    corrupted = [job for job in jobs_of("corruption") if job.setting["fraction"] == 1]
    assert {job.trained.id for job in corrupted} == headline
    assert not headline & {job.id for job in corrupted}


def test_duration_has_half_and_twice_the_steps():
    steps = SCALES["cpu"].base.steps
    for job in jobs_of("duration", "cpu"):
        assert job.config.steps == job.setting["steps"]
    assert {job.config.steps for job in jobs_of("duration", "cpu")} == {steps // 2, steps, 2 * steps}


def test_one_structure_is_drawn():
    structures = [job.setting["structure"] for job in jobs_of("clustering") if job.has_snapshots]
    assert structures == ["k-means, shared", "k-means, shared, learned once"]


def test_choices_maximize_the_mean_accuracy():
    scale = dataclasses.replace(SCALES["small"], choice_seeds=(100, 101))
    accuracies = {5e-4: 0.5, 1e-3: 0.7, 2e-3: 0.6, 0.1: 0.6, 0.2: 0.4, 0.3: 0.6}
    chosen = {}
    for study, name in (("baseline", "weight_decay"), ("choices", "rate")):
        by_id = {
            job.id: accuracies[job.setting[name]] + 0.01 * job.config.seed for job in studies.jobs(study, scale, chosen)
        }
        _, chosen = studies.choose(study, scale, chosen, by_id)
    first = {method: studies.candidates(scale, method)[0] for method in scale.methods if method != "none"}
    assert chosen == {"none": {"weight_decay": 1e-3}, **first}


def test_candidates_race():
    scale = dataclasses.replace(SCALES["small"], choice_seeds=(100, 101, 102))
    accuracies = {}
    rounds = []
    while jobs := studies.choose("choices", scale, CHOSEN, accuracies)[0]:
        accuracies |= {job.id: job.setting["rate"] + 0.001 * job.config.seed for job in jobs}
        rounds.append([job for job in jobs if job.method == "drop_block"])
    assert [len(jobs) for jobs in rounds] == [6, 3, 2]
    assert [{job.config.seed for job in jobs} for jobs in rounds] == [{100}, {101}, {102}]
    assert {job.setting["rate"] for job in rounds[-1]} == {0.3}
    assert studies.choose("choices", scale, CHOSEN, accuracies)[1]["drop_block"]["rate"] == 0.3


@pytest.mark.parametrize(("best", "rounds"), [(0.3, [3, 2]), (0.1, [3, 1, 2]), (0.6, [3, 1, 1, 3])])
def test_rates_of_fills_climb_to_the_best(best, rounds):
    scale = dataclasses.replace(SCALES["cpu"], fractions=(0.25,))
    accuracies, ran = {}, []
    while jobs := studies.choose("fill_choices", scale, CHOSEN, accuracies)[0]:
        accuracies |= {job.id: 0.5 - abs(job.setting["rate"] - best) for job in jobs}
        ran.append(len(jobs))
    num_races = len(studies.MASKS) * len(studies.FILLS)
    assert ran == [num_races * number for number in rounds]
    _, chosen = studies.choose("fill_choices", scale, CHOSEN, accuracies)
    assert chosen["blocks, swap, 0.25"] == {"rate": best}


def test_all_methods_share_the_tuned_baseline():
    tuned = {"learning_rate": 0.2, "weight_decay": 3e-3, "label_smoothing": 0.1}
    for study in set(STUDIES) - {"baseline"}:
        for job in studies.jobs(study, SCALES["cpu"], {**CHOSEN, "none": tuned}):
            assert {name: getattr(job.config, name) for name in tuned} == tuned


@pytest.mark.parametrize(("name", "fraction"), [("small", 0.1), ("cpu", 0.5)])
@pytest.mark.parametrize("study", ["choices", "limited_data"])
def test_a_part_of_each_class_is_held_out_and_never_trained_on(study, name, fraction):
    scale = studies.for_dataset(SCALES[name], "digits")
    whole = load("digits")
    held_out = stratified_subset(whole.train.labels, fraction=fraction)
    for job in studies.jobs(study, scale, CHOSEN):
        if job.method == "none" and job.config.seed in (0, 100):
            dataset = load(job.config.data)
            test = whole.test if study == "limited_data" else whole.train.take(held_out)
            assert np.array_equal(dataset.test.images, test.images)
            trained = {image.tobytes() for image in dataset.train.images}
            assert not trained & {image.tobytes() for image in whole.train.images[held_out]}
            if job.setting.get("fraction", 1) == 1:
                per_class = scale.examples_per_class
                assert len(dataset.train) == (10 * per_class if per_class else len(whole.train) - len(held_out))


def test_imagenet_uses_the_recipe_of_its_preset():
    scale = studies.for_dataset(SCALES["paper"], "imagenet2012")
    config = studies.jobs("headline", scale, CHOSEN)[0].config
    assert config.data.image_size == 224 and config.data.validation_fraction == 0.1
    assert config.batch_size == 1024 and config.steps == 90 * (1_153_050 // 1024)
    assert config.warmup_epochs == 5 and config.label_smoothing == 0.1
