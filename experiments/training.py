"""Training of several runs in one compiled program, and what is measured of them.

Runs that differ only in seeds, rates and shares of the images are trained side by side by `jax.vmap`. All training
images lie on the device; each run takes its own share of them, in its own order. The library builds the network and
its steps, as for `dropcluster train`.
"""

import dataclasses
import functools
import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dropcluster_jax.data import CORRUPTIONS, ArrayExamples, Dataset, corrupted_test, stratified_subset
from dropcluster_jax.data.sampler import BatchSampler, evaluation_indices, probe_indices
from dropcluster_jax.linen import cluster_states
from dropcluster_jax.models import ResNet
from dropcluster_jax.runs.build import make_model, make_run_steps
from dropcluster_jax.runs.config import DataConfig, TrainConfig
from dropcluster_jax.runs.figures import first_clusters, place_of
from dropcluster_jax.training.loop import mean_adjusted_rand_index
from dropcluster_jax.training.schedules import every
from dropcluster_jax.training.steps import Steps, TrainState
from experiments.studies import Target, program_config

HELD_OUT = 0.1  # of each class of the training set: what hyper-parameters are chosen by, and never trained on
_EVALUATION = 500  # images in a batch
_AHEAD = 20  # steps that may wait for the device


class Images(NamedTuple):
    """A data set, divided for studies.

    Attributes:
        dataset: all of it.
        train: the training set without what is held out.
        validation: what is held out.
        test: the test images.
        digest: of all pixels and labels.
    """

    dataset: Dataset
    train: ArrayExamples
    validation: ArrayExamples
    test: ArrayExamples
    digest: str


def divide(dataset: Dataset) -> Images:
    """Hold out a tenth of each class of the training set, always the same.

    Raises:
        TypeError: the images are no arrays.
    """
    train, test = dataset.train, dataset.test
    if not (isinstance(train, ArrayExamples) and isinstance(test, ArrayExamples)):
        raise TypeError(f"the images of {dataset.name!r} must be arrays, got {type(train).__name__}")
    digest = hashlib.sha256()
    for array in (train.images, train.labels, test.images, test.labels):
        digest.update(array.tobytes())
    held = stratified_subset(train.labels, fraction=HELD_OUT)
    rest = np.setdiff1d(np.arange(len(train)), held)
    return Images(dataset, train.take(rest), train.take(held), test, digest.hexdigest()[:16])


def measured(images: Images, target: Target) -> ArrayExamples:
    """The images that runs with this target are measured on."""
    return images.validation if target == "validation" else images.test


class Trained(NamedTuple):
    """What is left of runs that were trained together.

    Attributes:
        state: theirs, each leaf with a leading axis for the runs.
        train_loss: of each, the mean over the last tenth of the steps.
        finite: of each, whether all losses and gradients were.
        seconds: of all together, without compilation.
        images_per_second: of all together.
        snapshots: of the first, for each place the labels at some steps; empty without shared, learned clusters.
    """

    state: TrainState
    train_loss: list[float]
    finite: list[bool]
    seconds: float
    images_per_second: float
    snapshots: dict[str, list[dict[str, Any]]]


def train(configs: Sequence[TrainConfig], images: Images, tell: Callable[[int], None] = lambda step: None) -> Trained:
    """Train runs that one program can train; see `Job.program`.

    Args:
        configs: of the runs; `steps` must be given, and `warmup_epochs` not, as an epoch is of no fixed length here.
        images: what they learn from.
        tell: called with the number of each step that was sent to the device.

    Raises:
        ValueError: the configurations differ in more than seeds, rates and shares of one size, or it is none of these.
    """
    first = configs[0]
    if len({program_config(config) for config in configs}) > 1:
        raise ValueError("configs must differ in seeds, rates and shares of the images alone")
    if first.steps is None or first.warmup_epochs is not None:
        raise ValueError("configs must have steps, and no warmup_epochs")
    drop = first.drop
    programs = _compile(program_config(first), images, len(configs))
    shares = [_share(images.train, config.data) for config in configs]
    probe_size = min(drop.probe_size, *map(len, shares))
    orders = [
        BatchSampler(len(share), first.batch_size, config.seed) for share, config in zip(shares, configs, strict=True)
    ]
    rates = jax.device_put(np.array([config.drop.rate for config in configs], np.float32))
    state = programs.init(jax.vmap(jax.random.key)(jnp.array([config.seed for config in configs], jnp.uint32)))

    due = every(drop.update_every if state.clusters else 0, round(drop.ramp_start * first.steps))
    cluster = programs.cluster(probe_size) if state.clusters else None
    keep = _some(list(filter(due, range(first.steps)))) if drop.clusterer != "grid" and not drop.per_channel else []
    snapshots: dict[str, list[dict[str, Any]]] = {}
    losses, finite, updates = [], [], 0
    jax.block_until_ready(state)
    begin = time.perf_counter()
    for step in range(first.steps):
        if cluster is not None and due(step):
            if step in keep[:1]:
                _add_snapshot(snapshots, 0, state)
            probes = [
                share[probe_indices(len(share), probe_size, config.seed, updates)]
                for share, config in zip(shares, configs, strict=True)
            ]
            state = cluster(state, *programs.pixels, jax.device_put(np.stack(probes)))
            updates += 1
            if step in keep:
                _add_snapshot(snapshots, step, state)
        batch = np.stack([share[order.indices(step)] for share, order in zip(shares, orders, strict=True)])
        state, metrics = programs.train(state, rates, *programs.pixels, jax.device_put(batch))
        losses.append(metrics["loss"])
        finite.append(metrics["finite"])
        if step >= _AHEAD:
            jax.block_until_ready(losses[step - _AHEAD])
        tell(step + 1)
    jax.block_until_ready(state)
    seconds = time.perf_counter() - begin
    last = max(1, first.steps // 10)
    return Trained(
        state,
        np.mean(jax.device_get(losses[-last:]), axis=0).tolist(),
        np.all(jax.device_get(finite), axis=0).tolist(),
        seconds,
        first.steps * first.batch_size * len(configs) / seconds,
        snapshots,
    )


def evaluate(config: TrainConfig, state: TrainState, images: Images, examples: ArrayExamples) -> list[dict[str, float]]:
    """The mean `accuracy` and `loss` of each run over the examples, and their `count`.

    Args:
        config: of the runs.
        state: theirs, each leaf with a leading axis.
        images: what they learned from.
        examples: what they are measured on.
    """
    program = _evaluation(dataclasses.replace(program_config(config), steps=1), images)
    size = min(_EVALUATION, len(examples))
    sums = []
    for indices, weight in evaluation_indices(len(examples), size):
        batch = {"image": examples.images[indices], "label": examples.labels[indices], "weight": weight}
        sums.append(program(state, jax.device_put(batch)))
    totals = jax.tree.map(lambda *parts: np.sum(parts, axis=0), *jax.device_get(sums))
    return [
        {"accuracy": float(correct / count), "loss": float(loss / count), "count": int(count)}
        for correct, loss, count in zip(totals["correct"], totals["loss"], totals["num_updates"], strict=True)
    ]


def under_corruptions(
    config: TrainConfig, state: TrainState, images: Images, number: int, data_dir: str | None = None
) -> list[dict[str, dict[str, Any]]]:
    """For each run and each corruption the `accuracy` at severities 1 to 5, and the `origin` of the images.

    Args:
        config: of the runs.
        state: theirs, each leaf with a leading axis.
        images: what they learned from.
        number: of test images, the first ones; 0 for all.
        data_dir: where TFDS may have the published set.
    """
    found: list[dict[str, dict[str, Any]]] = [{} for _ in range(len(state.step))]
    for name in CORRUPTIONS:
        for severity in range(1, 6):
            examples, origin = _corrupted(images, name, severity, number, data_dir)
            for run, result in zip(found, evaluate(config, state, images, examples), strict=True):
                run.setdefault(name, {"origin": origin, "accuracy": []})["accuracy"].append(result["accuracy"])
    return found


@functools.lru_cache(maxsize=len(CORRUPTIONS) * 5)
def _corrupted(
    images: Images, name: str, severity: int, number: int, data_dir: str | None
) -> tuple[ArrayExamples, str]:
    test = images.test.take(slice(number or None))
    dataset = dataclasses.replace(images.dataset, test=test)
    if number:
        dataset = dataclasses.replace(dataset, test_split=None)  # the published set is of all of them
    return corrupted_test(dataset, name, severity, data_dir=data_dir)


def clusters_of(config: TrainConfig, state: TrainState, images: Images) -> list[dict[str, dict[str, float]]]:
    """For each run and each place how its clusters ended: `explained`, `ari_with_grid`, `updates`."""
    model, states = _model(config, images), jax.device_get(state.clusters)

    def described(run: int) -> dict[str, dict[str, float]]:
        ends = cluster_states(jax.tree.map(lambda leaf: leaf[run], states))
        return {
            place_of(layer): {
                "explained_variance": float(np.mean(end.explained_variance)),
                "ari_with_grid": mean_adjusted_rand_index(
                    end, first_clusters(model, place_of(layer), end.labels.shape)
                ),
                "updates": int(end.num_updates),
            }
            for layer, end in ends.items()
        }

    return [described(run) for run in range(len(state.step))]


class _Programs(NamedTuple):
    """Compiled functions of stacked runs, that of clusters for a size of probe batches; and pixels and labels."""

    init: Callable[..., TrainState]
    train: Callable[..., tuple[TrainState, dict[str, Any]]]
    cluster: Callable[[int], Callable[..., TrainState]]
    pixels: tuple[jax.Array, jax.Array]


@functools.lru_cache(maxsize=16)
def _compile(config: TrainConfig, images: Images, number: int) -> _Programs:
    steps_at = functools.partial(_steps, config, images)
    pixels = _pixels(images)

    def gather(images: jax.Array, labels: jax.Array, indices: jax.Array) -> dict[str, jax.Array]:
        return {"image": images[indices], "label": labels[indices]}

    def init(key: jax.Array) -> TrainState:
        image = jnp.zeros((1, *images.train.shape), jnp.uint8)
        return steps_at().init(key, {"image": image, "label": jnp.zeros(1, jnp.int32)})

    def train(
        state: TrainState, rate: jax.Array, images: jax.Array, labels: jax.Array, indices: jax.Array
    ) -> tuple[TrainState, dict[str, Any]]:
        return steps_at(rate).train(state, gather(images, labels, indices))

    def cluster(state: TrainState, images: jax.Array, labels: jax.Array, indices: jax.Array) -> TrainState:
        return steps_at().cluster(state, gather(images, labels, indices))

    # Compiled before the clock starts.
    keys = jax.eval_shape(jax.vmap(jax.random.key), jax.ShapeDtypeStruct((number,), jnp.uint32))
    stacked_init = jax.jit(jax.vmap(init))
    state = jax.eval_shape(stacked_init, keys)
    rates = jax.ShapeDtypeStruct((number,), jnp.float32)

    def indices(size: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((number, size), jnp.int32)

    @functools.cache
    def compiled_cluster(size: int) -> Callable[..., TrainState]:
        return jax.jit(jax.vmap(cluster, in_axes=(0, None, None, 0))).lower(state, *pixels, indices(size)).compile()

    stacked_train = jax.jit(jax.vmap(train, in_axes=(0, 0, None, None, 0)), donate_argnums=0)
    compiled_train = stacked_train.lower(state, rates, *pixels, indices(config.batch_size)).compile()
    return _Programs(stacked_init, compiled_train, compiled_cluster, pixels)


@functools.lru_cache(maxsize=16)
def _evaluation(config: TrainConfig, images: Images) -> Callable[..., dict[str, jax.Array]]:
    return jax.jit(jax.vmap(_steps(config, images).evaluate, in_axes=(0, None)))


def _steps(config: TrainConfig, images: Images, rate: jax.Array | None = None) -> Steps:
    return make_run_steps(config, _model(config, images), images.dataset, config.steps or 1, rate=rate)


def _model(config: TrainConfig, images: Images) -> ResNet:
    return make_model(config, images.dataset.num_classes, images.dataset.shape)


@functools.lru_cache(maxsize=1)
def _pixels(images: Images) -> tuple[jax.Array, jax.Array]:
    return jax.device_put((images.train.images, images.train.labels))


def _share(train_set: ArrayExamples, data: DataConfig) -> np.ndarray:
    """The images that a run learns from, as numbers among all."""
    if data.fraction is None and data.examples_per_class is None:
        return np.arange(len(train_set), dtype=np.int32)
    chosen = stratified_subset(
        train_set.labels, fraction=data.fraction, examples_per_class=data.examples_per_class, seed=data.seed
    )
    return chosen.astype(np.int32)


def _some(steps: list[int], number: int = 5) -> list[int]:
    """The first, the last, and a few between."""
    return [steps[i] for i in sorted({round(i) for i in np.linspace(0, len(steps) - 1, number)})] if steps else []


def _add_snapshot(snapshots: dict[str, list[dict[str, Any]]], step: int, state: TrainState) -> None:
    for layer, clusters in cluster_states(jax.device_get(state.clusters)).items():
        labels = np.asarray(clusters.labels)[0, ..., 0]
        snapshots.setdefault(place_of(layer), []).append({"step": step, "labels": encode(labels)})


def encode(labels: np.ndarray) -> list[str]:
    """A map of labels as text: a row each, a character for each position, from "0" on in the order of Unicode.

    Not as a run's history has them: result files are to be read by eye, and those that are published are so.
    """
    return ["".join(chr(ord("0") + label) for label in row) for row in labels.tolist()]


def decode(rows: Sequence[str]) -> np.ndarray:
    """What `encode` was given."""
    return np.array([[ord(character) - ord("0") for character in row] for row in rows], np.int32)
