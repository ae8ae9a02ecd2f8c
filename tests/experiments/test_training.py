"""Real training: runs side by side are the runs that the library's own loop makes one by one."""

import dataclasses
import io

import jax
import numpy as np
import optax
import pytest
from rich.console import Console

from dropcluster_jax.data import InMemoryLoader, load, stratified_subset
from dropcluster_jax.linen import cluster_states
from dropcluster_jax.runs.build import make_model, make_run_steps
from dropcluster_jax.training.loop import evaluate, fit
from dropcluster_jax.training.schedules import every
from experiments import studies, training
from experiments.measure import Measure

pytestmark = pytest.mark.xdist_group("experiments.training")

STEPS = 8
SCALE = studies.for_dataset(studies.SCALES["small"], "digits")
BASE = dataclasses.replace(
    studies.with_drop(SCALE.base, places=("stage1",), ramp_start=0.25, ramp_end=0.5, update_every=3, probe_size=64),
    steps=STEPS,
    batch_size=32,
    data=dataclasses.replace(SCALE.base.data, examples_per_class=20),
)
CONFIGS = [studies.seeded(studies.with_drop(BASE, rate=rate), seed) for seed, rate in ((0, 0.2), (3, 0.4))]


@pytest.fixture(scope="module")
def images():
    return training.divide(load("digits"))


@pytest.fixture(scope="module")
def trained(images):
    return training.train(CONFIGS, images)


@pytest.mark.parametrize("number", [0, 1])
def test_runs_side_by_side_are_those_of_the_loop(images, trained, number):
    """Same start, order, masks, clusters and share of the images, up to rounding."""
    config = CONFIGS[number]
    share = stratified_subset(images.train.labels, examples_per_class=20, seed=config.data.seed)
    dataset = dataclasses.replace(images.dataset, train=images.train.take(share), test=images.test)
    loader = InMemoryLoader(dataset, config.batch_size, config.seed)
    steps = make_run_steps(config, make_model(config, 10, dataset.shape), dataset, STEPS)
    losses = []
    state = fit(
        steps,
        jax.jit(steps.init)(jax.random.key(config.seed), loader.probe(8, 0)),
        loader.train(),
        num_steps=STEPS,
        probe=lambda update: loader.probe(64, update),
        update_clusters_when=every(3, start=2),
        log=lambda record: losses.append(record.get("loss")),
        log_every=1,
    )
    ours = jax.tree.map(lambda leaf: np.asarray(leaf[number]), trained.state._replace(key=()))
    apart = optax.tree.norm(jax.tree.map(lambda here, there: here - there, ours.params, state.params))
    assert float(apart / optax.tree.norm(state.params)) < 1e-3  # with other masks a hundred times as much
    for place, clusters in cluster_states(state.clusters).items():
        mine = cluster_states(ours.clusters)[place]
        assert int(mine.num_updates) == int(clusters.num_updates) == 2
        assert np.mean(mine.labels == clusters.labels) > 0.98
    assert trained.train_loss[number] == pytest.approx(losses[-1], rel=2e-3)
    results = evaluate(jax.jit(steps.evaluate), state, loader.test())
    found = training.evaluate(config, trained.state, images, images.test)[number]
    assert found["num_updates"] == results["count"] == len(images.test)
    assert found["loss"] == pytest.approx(results["loss"], rel=5e-3)


def test_one_program_serves_all_rates_and_seeds(images, trained):
    before = training._compile.cache_info().misses
    again = training.train([studies.with_drop(config, rate=0.1) for config in CONFIGS], images)
    assert training._compile.cache_info().misses == before
    assert not np.array_equal(jax.tree.leaves(again.state.params)[0], jax.tree.leaves(trained.state.params)[0])


def test_runs_that_need_programs_of_their_own_are_refused(images):
    for other in (studies.with_drop(BASE, block_size=5), dataclasses.replace(BASE, weight_decay=0.1)):
        with pytest.raises(ValueError, match="differ in seeds, rates and shares"):
            training.train([BASE, other], images)
    for change in ({"steps": None}, {"warmup_epochs": 1.0}):
        with pytest.raises(ValueError, match="must have steps, and no warmup_epochs"):
            training.train([dataclasses.replace(BASE, **change)], images)


def test_what_is_measured_of_a_run_and_of_its_network_under_corruptions(tmp_path, monkeypatch, images, trained):
    """The network that was kept is the one that was measured: of images as they are it says the same."""
    measure = Measure("digits", Console(file=io.StringIO()), networks=tmp_path)
    jobs = [studies.Job("cluster", {}, config, "test") for config in CONFIGS]
    lines = measure(jobs)
    assert [line["accuracy"] for line in lines] == [
        one["accuracy"] for one in training.evaluate(BASE, trained.state, images, images.test)
    ]
    assert all(line["finite"] and line["clusters"]["stage1"]["updates"] == 2 for line in lines)

    monkeypatch.setattr(training, "CORRUPTIONS", ("brightness",))
    monkeypatch.setattr(training, "corrupted_test", lambda dataset, *_, **__: (dataset.test, "as they are"))
    corrupted = measure([dataclasses.replace(job, corrupted=0) for job in jobs])
    for line, clean in zip(corrupted, lines, strict=True):
        assert line["corruptions"] == {"brightness": {"origin": "as they are", "accuracy": [clean["accuracy"]] * 5}}
        assert line["accuracy"] == pytest.approx(clean["accuracy"])
    training._corrupted.cache_clear()


def test_how_clusters_came_about_is_kept_from_the_grid_to_the_end(images, trained):
    maps = [training.decode(one["labels"]) for one in trained.snapshots["stage1"]]
    grid = make_model(BASE, 10, images.dataset.shape).init(jax.random.key(0), images.test.images[:1] / 255.0)
    assert np.array_equal(maps[0], cluster_states(grid["clusters"])["drop_stage1"].labels[..., 0])
    assert np.array_equal(maps[-1], cluster_states(trained.state.clusters)["drop_stage1"].labels[0, ..., 0])
    assert [one["step"] for one in trained.snapshots["stage1"]] == [0, 2, 5]


def test_a_loss_that_is_not_finite_is_measured_and_told(tmp_path):
    config = dataclasses.replace(CONFIGS[0], learning_rate=1e30)
    (line,) = Measure("digits", Console(file=io.StringIO()), networks=tmp_path)(
        [studies.Job("none", {}, config, "test")]
    )
    assert not line["finite"] and line["train_loss"] is None and 0 <= line["accuracy"] <= 0.2
