"""Inspection of a dataset before training: contents, sample images, and loading speed."""

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from dropcluster_jax.data import (
    CORRUPTIONS,
    Dataset,
    InMemoryLoader,
    Loader,
    corrupt,
    load,
    make_loader,
    normalize,
)
from dropcluster_jax.data.examples import image_digests
from dropcluster_jax.runs.build import make_augmentation
from dropcluster_jax.runs.config import TrainConfig
from dropcluster_jax.runs.figures import save_figure
from dropcluster_jax.runs.folder import visible_files, write_json
from dropcluster_jax.viz import image_figure

_BATCH_SIZE = 128
_NUM_SAMPLES = 48
_MEASURE_SECONDS = 2.0
_WARM_UP_BATCHES = 8  # so that prefetched batches do not count
_DPI = 110
_MAX_COMPARED = 100_000  # training images to compare with the test images, which reads them all
_SEVERITIES = range(1, 6)


def check(
    config: TrainConfig,
    folder: epath.Path,
    batch_size: int | None = None,
    on_progress: Callable[[str], None] = lambda task: None,
    notify: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Inspects the data of a run and writes `check.json`, `images.png` and `corruptions.png`.

    Batches have 128 images by default, or all training images if there are fewer. Returns the content of `check.json`.
    The figures require Matplotlib. `on_progress` is called before each long task, `notify` if the figures cannot be
    drawn.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"out must be a folder, got the file {folder}")
    on_progress("opening the dataset")
    start = time.perf_counter()
    dataset = load(config.data)
    if batch_size is None:
        batch_size = min(_BATCH_SIZE, len(dataset.train))
    crop, flip = config.augment.resized_crop, config.augment.flip
    loader = make_loader(
        dataset,
        batch_size,
        config.seed,
        loader=config.data.loader,
        workers=config.data.workers,
        random_crop=crop,
        flip=flip,
    )
    on_progress("measuring the loading speed")
    speed = _measure_speed(config, dataset, loader, batch_size, start)
    on_progress("counting labels")
    spec = dataset.spec
    counts = {
        "train": np.bincount(dataset.train.labels, minlength=spec.num_classes),
        "test": np.bincount(dataset.test.labels, minlength=spec.num_classes),
    }
    duplicates = None
    if len(dataset.train) <= _MAX_COMPARED:
        on_progress("comparing training and test images")
        duplicates = np.isin(image_digests(dataset.test), image_digests(dataset.train)).sum().item()
    report = {
        "name": dataset.name,
        "train": len(dataset.train),
        "test": len(dataset.test),
        "classes": {
            name: {split: int(counts[split][label]) for split in counts} for label, name in enumerate(spec.classes)
        },
        "image_shape": list(spec.image_shape),
        "mean": [round(value, 4) for value in spec.mean],
        "std": [round(value, 4) for value in spec.std],
        "loader": "memory" if isinstance(loader, InMemoryLoader) else "grain",
        "batch_size": batch_size,
        **speed,
        "duplicates": duplicates,
    }
    samples = jax.device_get(loader.probe(_NUM_SAMPLES, 0))
    report["skipped"] = list(dataset.skipped)
    write_json(folder / "check.json", report)
    on_progress("drawing every corruption at every severity")
    try:
        _draw(dataset, samples, folder)
    except (ImportError, OSError, ValueError, RuntimeError) as error:  # the report is complete without the figures
        notify(f"the figures were not drawn: {error}")
    return report


def describe(report: Mapping[str, Any], folder: epath.Path, max_classes: int = 10) -> str:
    """Formats the result of `check`, with at most `max_classes` classes."""
    shape = "x".join(map(str, report["image_shape"]))
    names = list(report["classes"])
    width = max(map(len, names[:max_classes]))
    lines = [
        f"{report['name']}: {report['train']:,} training and {report['test']:,} test images, {shape}, "
        f"{len(names)} classes"
    ]
    for name in names[:max_classes]:
        counts = report["classes"][name]
        lines.append(f"  {name:{width}} {counts['train']:8,} {counts['test']:8,}")
    if len(names) > max_classes:
        lines.append(f"  and {len(names) - max_classes} more")
    lines += [
        f"mean {_format(report['mean'])}, standard deviation {_format(report['std'])}, of values in [0, 1]",
        f"loader: {report['loader']}; first batch of {report['batch_size']} after "
        f"{report['first_batch_seconds']:.1f} s, then {report['images_per_second']:,} images/s, augmented and "
        "normalized",
    ]
    if report["loader"] == "grain" and not report["skipped"]:
        lines.append("encoded images are decoded when they are read; not all of them were checked")
    if report["duplicates"]:
        lines.append(f"{report['duplicates']} test images are also training images")
    if report["skipped"]:
        lines.append(f"{len(report['skipped'])} images were skipped, the first: {report['skipped'][0]}")
    lines.append(f"results: {', '.join(map(str, visible_files(folder)))}")
    return "\n".join(lines)


def _measure_speed(
    config: TrainConfig, dataset: Dataset, loader: Loader, batch_size: int, start: float
) -> dict[str, float]:
    """Returns the seconds from `start` to the first batch, and the images per second after that."""
    spec = dataset.spec
    augment = make_augmentation(config.augment, spec)

    @jax.jit
    def prepare(key: jax.Array, images: jax.Array) -> jax.Array:
        return normalize(augment(key, images), spec.mean, spec.std)

    with contextlib.closing(loader.train()) as batches:
        jax.block_until_ready(next(batches))
        first = time.perf_counter() - start
        for step in range(_WARM_UP_BATCHES):
            jax.block_until_ready(prepare(jax.random.key(step), next(batches)["image"]))
        count, since = 0, time.perf_counter()
        while time.perf_counter() - since < _MEASURE_SECONDS or not count:
            # As in training, the host runs a few batches ahead of the device.
            images = [prepare(jax.random.key(count + step), next(batches)["image"]) for step in range(8)]
            jax.block_until_ready(images)
            count += len(images)
        seconds = time.perf_counter() - since
    return {
        "first_batch_seconds": round(first, 2),
        "images_per_second": round(count * batch_size / seconds),
    }


def _draw(dataset: Dataset, batch: Mapping[str, np.ndarray], folder: epath.Path) -> None:
    images = np.asarray(batch["image"])
    titles = [dataset.classes[label] for label in batch["label"]]
    samples = image_figure(images, titles, title=f"{dataset.name}: training images")
    save_figure(samples, folder / "images.png", _DPI)
    sheet, titles = [], []
    for name in CORRUPTIONS:
        corrupted = [corrupt(name, severity, jax.random.key(0), images[:1])[0] for severity in _SEVERITIES]
        sheet += [images[0], *corrupted]
        titles += [name, *(f"severity {severity}" for severity in _SEVERITIES)]
    title = f"{dataset.name}: corruptions, each after the original; frost is a stand-in"
    figure = image_figure(np.stack(sheet), titles, columns=2 * (1 + len(_SEVERITIES)), title=title)
    save_figure(figure, folder / "corruptions.png", _DPI)


def _format(values: list[float]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)
