"""A run from its configuration to a folder with results: what `dropcluster train` does.

The folder holds `config.json`, `metrics.jsonl` (a record a line, as `fit` reports them), `summary.json` and
`clusters.png`.
"""

import contextlib
import datetime
import functools
import importlib.util
import json
import pathlib
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dropcluster_jax import __version__
from dropcluster_jax.clustering import Clusterer, Grid, KMeans, ReNA
from dropcluster_jax.data import (
    Dataset,
    Road,
    cutmix,
    load,
    mixup,
    normalize,
    open_road,
    random_cutout,
    random_flip,
    random_resized_crop,
    random_shift,
)
from dropcluster_jax.linen import DropBlock, DropCluster, Dropout, SpatialDropout, cluster_states
from dropcluster_jax.models import MODELS, ResNet
from dropcluster_jax.training.config import AugmentConfig, DropConfig, TrainConfig
from dropcluster_jax.training.loop import Record, agreement_of, fit
from dropcluster_jax.training.schedules import every, ramp
from dropcluster_jax.training.steps import Batch, Steps, TrainState, make_steps

_LARGE = 100  # pixels; smaller images take the stem without strides


class Run(NamedTuple):
    """All that a run is made of, checked; nothing is written yet but the folder's `config.json`.

    Attributes:
        config: the configuration.
        folder: where results go.
        num_steps: the number of the last optimiser step.
        dataset: the images.
        road: how they get to the device.
        model: the network.
        steps: the pure steps.
    """

    config: TrainConfig
    folder: pathlib.Path
    num_steps: int
    dataset: Dataset
    road: Road
    model: ResNet
    steps: Steps


def prepare(config: TrainConfig) -> Run:
    """Make all that a run needs, so that whatever is wrong with its configuration shows before it begins.

    Raises:
        ValueError, TypeError: a value that cannot be, with its name.
        FileNotFoundError: the data set is not there.
        FileExistsError: the output folder holds something else.
        ImportError: an extra is not installed.
    """
    folder = config.out or new_folder(config)
    finished_run(folder, config)
    dataset, road = open_data(config)
    per_epoch = len(dataset.train) // config.batch_size
    num_steps = config.steps or max(1, round(config.epochs * per_epoch))
    model = make_model(config, dataset.num_classes, dataset.shape)
    steps = make_steps(
        model,
        optimizer(config, num_steps),
        rate=ramp(config.drop.rate, round(config.drop.begin * num_steps), round(config.drop.full * num_steps)),
        augment=augmentation(config.augment, dataset),
        preprocess=lambda images: normalize(images, dataset.mean, dataset.std),
        mix=mixing(config.augment, dataset.num_classes),
    )
    example = {
        "image": jax.ShapeDtypeStruct((2, *dataset.shape), jnp.uint8),
        "label": jax.ShapeDtypeStruct((2,), jnp.int32),
    }
    state = jax.eval_shape(steps.init, jax.random.key(0), example)
    # Only now do the layers meet their maps: a block larger than one shows here.
    jax.eval_shape(steps.train, state, example)
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", {"version": __version__, **config.to_json()})
    return Run(config, folder, num_steps, dataset, road, model, steps)


def open_data(config: TrainConfig) -> tuple[Dataset, Road]:
    """The images, and the road by which they get to the device."""
    data, augment = config.data, config.augment
    dataset = load(
        data.name,
        data.dir,
        train_split=data.train_split,
        test_split=data.test_split,
        test_share=data.test_share,
        size=data.size,
        fraction=data.fraction,
        per_class=data.per_class,
        seed=data.seed,
        skip_bad=data.skip_bad,
        download=data.download,
    )
    road = open_road(
        dataset,
        config.batch_size,
        config.seed,
        road=data.road,
        random_crop=augment.resized_crop,
        flip=augment.flip,
        workers=data.workers,
        skip_bad=data.skip_bad,
    )
    return dataset, road


def execute(run: Run, show: Callable[[Record], None] = lambda record: None) -> dict[str, Any]:
    """Train, and write the results.

    Args:
        run: what `prepare` gave.
        show: called with each record after it was written.

    Returns:
        The summary, as in `summary.json`.
    """
    config, dataset = run.config, run.dataset
    begin = time.perf_counter()
    probe = functools.partial(run.road.probe, config.drop.probe_size)
    state = jax.jit(run.steps.init)(jax.random.key(config.seed), probe(0))
    grid = jax.device_get(state.clusters)
    last: dict[str, Record] = {}

    with (run.folder / "metrics.jsonl").open("w") as metrics, contextlib.closing(run.road.train()) as batches:

        def report(record: Record) -> None:
            metrics.write(json.dumps(record) + "\n")
            metrics.flush()
            last[record["event"]] = record
            show(record)

        state = fit(
            run.steps,
            state,
            batches,
            num_steps=run.num_steps,
            probe=probe,
            cluster_when=every(
                config.drop.update_every if state.clusters else 0, round(config.drop.begin * run.num_steps)
            ),
            test=run.road.test,
            evaluate_every=max(1, len(dataset.train) // config.batch_size),
            report=report,
        )

    summary = {
        "test_accuracy": last["test"]["accuracy"],
        "test_loss": last["test"]["loss"],
        "steps": run.num_steps,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "seconds": round(time.perf_counter() - begin, 1),
        "skipped": [*dataset.skipped, *run.road.skipped],
        "clusters": _summarise_clusters(run, grid, state),
    }
    if state.clusters and importlib.util.find_spec("matplotlib"):
        _draw_clusters(run, state, probe(0))
    _write_json(run.folder / "summary.json", summary)
    return summary


def make_model(config: TrainConfig, num_classes: int, image_shape: tuple[int, ...]) -> ResNet:
    """The network, with its drop layers, for images `(height, width, channels)`."""
    options: dict[str, Any] = {"drop": drop_layers(config.drop), "dtype": jnp.dtype(config.dtype)}
    model = MODELS[config.model](num_classes, **options)
    if min(image_shape[:2]) < _LARGE and model.stem == "imagenet":
        model = MODELS[config.model](num_classes, stem="cifar", **options)
    return model


def drop_layers(drop: DropConfig) -> dict[str, nn.Module]:
    """The drop layer of each place."""
    clusterers: dict[str, Callable[..., Clusterer]] = {"kmeans": KMeans, "rena": ReNA, "grid": Grid}
    makers: dict[str, Callable[[], nn.Module]] = {
        "dropout": Dropout,
        "spatial": SpatialDropout,
        "block": lambda: DropBlock(block_size=drop.block_size, per_channel=drop.per_channel),
        "cluster": lambda: DropCluster(
            clusterers[drop.clusterer](cluster_size=drop.cluster_size, per_channel=drop.per_channel),
            min_explained=drop.min_explained,
        ),
    }
    return {} if drop.method == "none" else {place: makers[drop.method]() for place in drop.places}


def optimizer(config: TrainConfig, num_steps: int) -> optax.GradientTransformation:
    """Nesterov momentum with weight decay on kernels; a short warm-up, then a cosine to 0."""
    warmup = max(1, num_steps // 20)
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, max(num_steps, warmup + 1))
    decay = optax.add_decayed_weights(
        config.weight_decay, mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)
    )
    return optax.chain(decay, optax.sgd(schedule, momentum=0.9, nesterov=True))


def augmentation(augment: AugmentConfig, dataset: Dataset) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Crops or shifts, flips and cutout; crops and flips not where the host does them while decoding."""
    on_host = dataset.size is not None
    grey = np.rint(255 * dataset.mean).astype(np.uint8)

    def vary(key: jax.Array, images: jax.Array) -> jax.Array:
        place_key, flip_key, cutout_key = jax.random.split(key, 3)
        if not augment.resized_crop:
            images = random_shift(place_key, images, augment.shift)
        elif not on_host:
            images = random_resized_crop(place_key, images)
        if augment.flip and not on_host:
            images = random_flip(flip_key, images)
        return random_cutout(cutout_key, images, augment.cutout, grey)

    return vary


def mixing(
    augment: AugmentConfig, num_classes: int
) -> Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]] | None:
    """Mixup, cutmix, one of the two for each batch at even odds, or None."""
    ways = [
        functools.partial(function, alpha=alpha)
        for function, alpha in ((mixup, augment.mixup), (cutmix, augment.cutmix))
        if alpha
    ]
    if not ways:
        return None

    def mix(key: jax.Array, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        way_key, mix_key = jax.random.split(key)
        way = jax.random.randint(way_key, (), 0, len(ways))
        return jax.lax.switch(way, ways, mix_key, images, jax.nn.one_hot(labels, num_classes))

    return mix


def new_folder(config: TrainConfig) -> pathlib.Path:
    """A folder under `runs/` that does not exist yet, named by what is run and when."""
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    name = f"{slug(config.data.name)}-{config.model}-{config.drop.method}-{now}"
    candidates = [pathlib.Path("runs", name), *(pathlib.Path("runs", f"{name}-{i}") for i in range(2, 100))]
    return next(folder for folder in candidates if not folder.exists())


def slug(name: str) -> str:
    """A data set's name as part of a folder's."""
    return re.sub(r"[^0-9A-Za-z_.-]+", "-", name)


def finished_run(folder: pathlib.Path, config: TrainConfig) -> dict[str, Any] | None:
    """The summary of this very run, if the folder holds it finished; None if it is new, empty or holds it unfinished.

    Raises:
        FileExistsError: the folder holds anything else; where it is another configuration the differences are named.
    """
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise FileExistsError(f"out must be a folder, got the file {folder}")
    if not any(folder.iterdir()):
        return None
    written = folder / "config.json"
    if not written.is_file():
        raise FileExistsError(f"out must be a new or empty folder or one with this run, but {folder} holds other files")
    there, here = json.loads(written.read_text()), config.to_json()
    there.pop("version", None)
    for each in (there, here):
        for option in ("dir", "download", "road", "workers"):  # the same images may lie elsewhere, and come otherwise
            each["data"].pop(option, None)
    differences = [
        f"{name} is {there_value!r} there and {here_value!r} here"
        for name, there_value, here_value in _compare(there, here)
    ]
    if differences:
        raise FileExistsError(
            f"out holds a run of another configuration, {folder}: {'; '.join(differences)}. Give another folder"
        )
    summary = folder / "summary.json"
    return json.loads(summary.read_text()) if summary.is_file() else None


def _compare(there: Any, here: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        names = list(dict.fromkeys([*there, *here]))
        dotted = [(key, f"{name}.{key}" if name else key) for key in names]
        return [row for key, path in dotted for row in _compare(there.get(key), here.get(key), path)]
    return [] if there == here else [(name, there, here)]


def _write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def _summarise_clusters(run: Run, grid: Any, state: TrainState) -> dict[str, dict[str, Any]]:
    first, last = cluster_states(grid), cluster_states(jax.device_get(state.clusters))
    return {
        layer.removeprefix("drop_"): {
            "updates": int(np.max(clusters.count)),
            "skipped": int(np.max(clusters.skipped)),
            "explained": float(np.mean(clusters.explained)),
            "agreement_with_grid": agreement_of(clusters, first[layer]),
        }
        for layer, clusters in _in_order(run, last)
    }


def _in_order(run: Run, states: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Layers from the input to the output."""
    return sorted(states.items(), key=lambda item: run.model.places.index(item[0].removeprefix("drop_")))


def _draw_clusters(run: Run, state: TrainState, batch: Batch) -> None:
    """Write `clusters.png`: the learned clusters of each layer over the mean activation of a few channels."""
    from dropcluster_jax.viz import cluster_figure

    def activations(state: TrainState, images: jax.Array) -> Any:
        _, captured = run.model.apply(
            state.variables(),
            normalize(images, run.dataset.mean, run.dataset.std),
            train=False,
            capture_intermediates=lambda module, name: isinstance(module, DropCluster) and name == "__call__",
            mutable=["intermediates"],
        )
        return {layer: calls["__call__"][0] for layer, calls in captured["intermediates"].items()}

    maps = jax.device_get(jax.jit(activations)(state, batch["image"]))
    clusters = cluster_states(jax.device_get(state.clusters))
    layers = {layer.removeprefix("drop_"): (clustering, maps[layer]) for layer, clustering in _in_order(run, clusters)}
    steps = f"{run.config.model} on {run.config.data.name}, step {run.num_steps}"
    cluster_figure(layers, title=f"Learned clusters: {steps}").savefig(run.folder / "clusters.png", dpi=130)
