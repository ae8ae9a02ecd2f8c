"""Jobs are executed by the trainer, and lines contain what was measured."""

import dataclasses
import shutil
import signal

import jax
import numpy as np
import optax
import pytest
from fake_runs import FakeMeasure
from tfds_folders import prepare

from dropcluster_jax.clustering import Grid
from dropcluster_jax.data import load, normalize
from dropcluster_jax.linen import cluster_states
from dropcluster_jax.runs import AugmentConfig, load_run, trainer
from dropcluster_jax.runs.config import as_path
from dropcluster_jax.runs.trainer import Stopped
from experiments import measure as measure_module
from experiments import studies
from experiments.measure import Measure
from experiments.results import decode_bits, decode_counts, decode_labels, read
from experiments.run import Options, execute_study
from experiments.studies import METHODS, SCALES, Job, override

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("experiments.measure")]

STEPS = 8


def job(method="drop_cluster", target="validation", name="digits", seed=0, **options):
    scale = studies.for_dataset(SCALES["small"], name)
    changes = {"places": ("stage1",), "ramp_start": 0.25, "ramp_end": 0.5, "update_interval": 3, "probe_size": 64}
    config = override(
        scale.base, steps=STEPS, batch_size=32, seed=seed, **METHODS[method].options, **changes, **options
    )
    data = dataclasses.replace(config.data, evaluate_on=target, examples_per_class=20)
    return Job(method, {}, dataclasses.replace(config, data=data))


def new_measure(folder, data=None):
    return Measure(data or job().config.data, as_path(folder), lambda message: None)


def run_folder(measure, job):
    return measure.folder(job) / "run"


@pytest.fixture(scope="module")
def measure(tmp_path_factory):
    return new_measure(tmp_path_factory.mktemp("networks"))


@pytest.fixture(scope="module")
def line(measure):
    return measure(job())


@pytest.fixture
def no_training(monkeypatch):
    def fail(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(trainer, "fit", fail)


def test_a_line_contains_the_evaluation_of_its_network(measure, line):
    held_out = load("digits", validation_fraction=0.1, evaluate_on="validation").test
    logits = load_run(run_folder(measure, job())).logits(held_out.images)
    assert line["count"] == len(held_out)
    assert line["accuracy"] == pytest.approx(np.mean(np.argmax(logits, -1) == held_out.labels))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, held_out.labels)
    assert line["loss"] == pytest.approx(float(losses.mean()), rel=1e-5)
    assert line["finite"] and 0 < line["train_loss"] < 10 and line["digest"] == measure.digest
    assert line["clusters"]["stage1"]["num_updates"] == 2


def test_reestimated_statistics_are_those_of_batches_without_dropping(measure, line):
    run = load_run(run_folder(measure, job()))
    images = load("digits").train.images[:250]
    statistics = measure_module._reestimate(run, images).variables["batch_stats"]
    x = normalize(images[:200], run.spec.mean, run.spec.std)  # two full batches
    kernel = run.variables["params"]["stem_conv"]["kernel"]
    y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    batches = np.asarray(y, np.float64).reshape(2, -1, y.shape[-1])
    np.testing.assert_allclose(statistics["stem_norm"]["mean"], batches.mean((0, 1)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(statistics["stem_norm"]["var"], batches.var(1).mean(0), rtol=1e-4)


def test_finished_jobs_are_not_trained_again(measure, line, no_training):
    assert measure(job()) == line


def test_an_interrupted_job_resumes(line, tmp_path, monkeypatch):
    measure, interrupted = new_measure(tmp_path), job()
    config = dataclasses.replace(
        interrupted.config, checkpoint=dataclasses.replace(interrupted.config.checkpoint, every=1)
    )
    interrupted = dataclasses.replace(interrupted, config=config)
    assert interrupted.id == job().id

    interrupt(measure, interrupted, monkeypatch)
    assert measure(interrupted) == line


def interrupt(measure, interrupted, monkeypatch):
    """Stops a job after its first step."""
    execute = trainer.execute

    def stop_early(run, folder, **options):
        return execute(run, folder, **{**options, "log": lambda entry: signal.raise_signal(signal.SIGTERM)})

    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(trainer, "execute", stop_early)
        measure(interrupted)


def test_label_maps_lead_from_the_grid_to_the_final_clusters(measure, line):
    maps = line["snapshots"]["stage1"]
    labels = [decode_labels(entry["labels"]) for entry in maps]
    assert [entry["step"] for entry in maps] == [0, 2, 5]
    assert np.array_equal(labels[0], Grid(cluster_size=4.0).init((8, 8, 16)).labels[..., 0])
    states = cluster_states(load_run(run_folder(measure, job())).variables["clusters"])
    assert np.array_equal(labels[-1], states["drop_stage1"].labels[..., 0])


def test_corrupted_images_are_evaluated_on_the_trained_network(tmp_path, monkeypatch):
    monkeypatch.setattr(measure_module, "CORRUPTIONS", ("brightness",))
    measure, trained = new_measure(tmp_path), job(method="none", target="test")
    clean = measure(trained)
    assert clean["count"] == len(load("digits").test) and "clusters" not in clean
    corrupted = dataclasses.replace(trained, corrupted=50)
    line = measure(corrupted)
    assert list(line["corruptions"]) == ["brightness"] and line["count"] == 50
    assert line["accuracy"] == pytest.approx(np.mean(line["corruptions"]["brightness"]["accuracy"]))
    counts = decode_counts(line["correct_counts"])
    assert len(counts) == 50 and np.mean(counts / 5) == pytest.approx(line["accuracy"])
    shutil.rmtree(measure.folder(trained))
    assert measure(corrupted) == line  # after training again


def test_a_nonfinite_loss_counts_as_chance(tmp_path):
    measure, failing = new_measure(tmp_path), job(method="none", learning_rate=1e30)
    line = measure(failing)
    assert line["accuracy"] == 0.1 and not line["finite"] and line["train_loss"] is None
    corrupted = measure(dataclasses.replace(failing, corrupted=0))
    assert corrupted["accuracy"] == 0.1 and set(corrupted["corruptions"]["snow"]["accuracy"]) == {0.1}


def test_the_digest_depends_on_the_images(measure, tmp_path):
    digits = load("digits")
    arrays = {"train_labels": digits.train.labels, "test_images": digits.test.images, "test_labels": digits.test.labels}
    digests = {measure.digest}
    for name, images in (("same", digits.train.images), ("other", 255 - digits.train.images)):
        np.savez(tmp_path / f"{name}.npz", train_images=images, **arrays)
        data = dataclasses.replace(job().config.data, name=f"npz:{tmp_path / name}.npz")
        digests.add(new_measure(tmp_path, data).digest)
    assert len(digests) == 2


def test_encoded_images(tmp_path):
    """As for ImageNet, images are decoded and cropped each time they are read."""
    data_dir = prepare(tmp_path / "tfds", sizes=[(9, 9, 3)] * 30)
    config = job().config
    data = dataclasses.replace(config.data, name="tiny", dir=data_dir, image_size=8, examples_per_class=None)
    config = override(config, batch_size=8, data=data, augment=AugmentConfig(), probe_size=8, cluster_size=4.0)
    line = new_measure(tmp_path / "networks", data)(Job("drop_cluster", {}, config))
    assert line["count"] == 4 and line["finite"] and line["digest"].startswith("labels ")


def test_gpu_scale_runs_at_tiny_size(tmp_path, monkeypatch):
    gpu = SCALES["gpu"]
    tiny = dataclasses.replace(gpu, base=override(gpu.base, model="resnet8"))
    monkeypatch.setitem(SCALES, "gpu", tiny)
    options = Options(
        scale="gpu",
        dataset="digits",
        steps=2,
        methods=("drop_cluster",),
        seeds=1,
        results=tmp_path / "results",
        networks=tmp_path / "networks",
    )
    measure, tuning = new_measure(options.networks), FakeMeasure()
    tuning.digest = measure.digest
    for study in studies.TUNING:  # without training, as each of their runs would be compiled separately
        execute_study(study, options, tuning, lambda message: None)
    execute_study("headline", options, measure, lambda message: None)
    numbers = [len(read(options.results / f"{study}.jsonl")) for study in ("baseline", "choices", "headline")]
    assert numbers == [3, 6, 1]
    (line,) = read(options.results / "headline.jsonl")
    assert line["count"] == len(load("digits").test) and line["config"]["dtype"] == "bfloat16"
    assert np.mean(decode_bits(line["correct"], line["count"])) == pytest.approx(line["accuracy"])
    assert [path.name for path in options.networks.iterdir()] == [line["id"]]


def test_folders_of_jobs_on_held_out_images_are_removed(tmp_path):
    options = Options(
        scale="small", dataset="digits", steps=4, networks=tmp_path / "networks", results=tmp_path / "results"
    )
    execute_study("baseline", options, new_measure(options.networks), lambda message: None)
    assert not list(options.networks.iterdir())
    assert len(read(options.results / "baseline.jsonl")) == 3
