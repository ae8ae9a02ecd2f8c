"""A look at a data set before training: what it holds, what it looks like, and how fast it gets to the device.

That is what `dropcluster data check` does. The folder holds `check.json` and, where Matplotlib is installed,
`images.png` and `corruptions.png`.
"""

import contextlib
import importlib.util
import json
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from dropcluster_jax.data import CORRUPTIONS, EXTRA_CORRUPTIONS, Dataset, Loader, corrupt, normalize
from dropcluster_jax.runs.build import augmentation
from dropcluster_jax.runs.config import TrainConfig
from dropcluster_jax.runs.trainer import open_data

_SHEET = 48  # images to look at
_SECONDS = 2.0  # how long the speed is measured
_WARM_UP = 8  # batches before that: what was read ahead does not count


def check(config: TrainConfig, folder: pathlib.Path, say: Callable[[str], None] = lambda what: None) -> dict[str, Any]:
    """Look at the data of a run.

    Args:
        config: of the run.
        folder: where `check.json` and the pictures go.
        say: called with what is going on, before each part that takes long.

    Returns:
        What `check.json` holds: `name`; `train` and `test`, the numbers of examples; `classes`, the numbers of each;
        `shape` of an image; `mean` and `std`; `loader`; `batch_size`; `first_batch_seconds` and `images_per_second`,
        augmented and normalized; and `skipped`, for each image that was left out where it lies and why. Of
        encoded images, which are decoded when they are met, only those that were met.

    Raises:
        ValueError, OSError, ImportError: as of `run.prepare`.
    """
    say("opening")
    begin = time.perf_counter()
    dataset, loader = open_data(config)
    say("measuring the speed")
    speed = _measure(config, dataset, loader, begin)
    say("looking at labels")
    counts = {
        part: np.bincount(examples.labels[_is_class(examples.labels, dataset)], minlength=dataset.num_classes)
        for part, examples in (("train", dataset.train), ("test", dataset.test))
    }
    found = {
        "name": dataset.name,
        "train": len(dataset.train),
        "test": len(dataset.test),
        "classes": {
            name: {part: int(counts[part][label]) for part in counts} for label, name in enumerate(dataset.classes)
        },
        "shape": list(dataset.shape),
        "mean": [round(float(value), 4) for value in dataset.mean],
        "std": [round(float(value), 4) for value in dataset.std],
        "loader": type(loader).__name__.removesuffix("Loader").lower(),
        "batch_size": config.batch_size,
        **speed,
    }
    folder.mkdir(parents=True, exist_ok=True)
    if importlib.util.find_spec("matplotlib"):
        say("drawing, every corruption at every severity")
        _draw(dataset, jax.device_get(loader.probe(_SHEET, 0)), folder)
    found["skipped"] = [*dataset.skipped, *loader.skipped]
    (folder / "check.json").write_text(json.dumps(found, indent=2) + "\n")
    return found


def describe(found: Mapping[str, Any], folder: pathlib.Path, classes: int = 10) -> str:
    """What `check` found, in lines.

    Args:
        found: what `check` returned.
        folder: where it wrote; the last line names the files there.
        classes: so many are listed, then how many more there are.

    Returns:
        Lines of text, without a line's end at the end.

    Example:
        >>> found = {"name": "two", "train": 9000, "test": 10, "classes": {"cat": {"train": 4000, "test": 5}}}
        >>> found |= {"shape": [8, 8, 1], "mean": [0.5], "std": [0.25], "loader": "device", "batch_size": 32}
        >>> found |= {"first_batch_seconds": 0.25, "images_per_second": 100000, "skipped": ["cat/7.jpg is damaged"]}
        >>> print(describe(found, pathlib.Path("nowhere")).removesuffix("results: "))
        two: 9,000 training and 10 test images, 8x8x1, 1 classes
          cat    4,000        5
        mean 0.5000, deviation 0.2500, of values in [0, 1]
        loader: device; first batch of 32 after 0.2 s, then 100,000 images/s, augmented and normalized
        1 images were skipped, the first: cat/7.jpg is damaged
        <BLANKLINE>
    """
    shape = "x".join(map(str, found["shape"]))
    names = list(found["classes"])
    width = max(map(len, names[:classes]))
    lines = [
        f"{found['name']}: {found['train']:,} training and {found['test']:,} test images, {shape}, "
        f"{len(names)} classes",
        *(
            f"  {name:{width}} {found['classes'][name]['train']:8,} {found['classes'][name]['test']:8,}"
            for name in names[:classes]
        ),
    ]
    if len(names) > classes:
        lines.append(f"  and {len(names) - classes} more")
    lines += [
        f"mean {_numbers(found['mean'])}, deviation {_numbers(found['std'])}, of values in [0, 1]",
        f"loader: {found['loader']}; first batch of {found['batch_size']} after {found['first_batch_seconds']:.1f} s, then "
        f"{found['images_per_second']:,} images/s, augmented and normalized",
    ]
    if found["loader"] == "stream":
        lines.append("encoded images are decoded as they are met: not every one was looked at")
    if found["skipped"]:
        lines.append(f"{len(found['skipped'])} images were skipped, the first: {found['skipped'][0]}")
    lines.append(f"results: {', '.join(str(path) for path in sorted(folder.glob('*')))}")
    return "\n".join(lines)


def _measure(config: TrainConfig, dataset: Dataset, loader: Loader, begin: float) -> dict[str, float]:
    """How long the first batch took since `begin`, and how many images a second come then, ready for the network."""
    augment = augmentation(config.augment, dataset)

    @jax.jit
    def ready(key: jax.Array, images: jax.Array) -> jax.Array:
        return normalize(augment(key, images), dataset.mean, dataset.std)

    with contextlib.closing(loader.train()) as batches:
        jax.block_until_ready(next(batches))
        first = time.perf_counter() - begin
        for step in range(_WARM_UP):
            jax.block_until_ready(ready(jax.random.key(step), next(batches)["image"]))
        count, since = 0, time.perf_counter()
        while time.perf_counter() - since < _SECONDS or not count:
            # As in training: the host runs ahead, by a few batches here.
            images = [ready(jax.random.key(count + step), next(batches)["image"]) for step in range(8)]
            jax.block_until_ready(images)
            count += len(images)
        seconds = time.perf_counter() - since
    return {
        "first_batch_seconds": round(first, 2),
        "images_per_second": round(count * config.batch_size / seconds),
    }


def _is_class(labels: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Encoded examples may have labels that are none; they are skipped, or refused, when they are met."""
    return (labels >= 0) & (labels < dataset.num_classes)


def _draw(dataset: Dataset, batch: Mapping[str, np.ndarray], folder: pathlib.Path) -> None:
    from dropcluster_jax.viz import corruption_figure, image_figure

    images = np.asarray(batch["image"])
    titles = [dataset.classes[label] for label in batch["label"]]
    image_figure(images, titles, title=f"{dataset.name}: training images").savefig(folder / "images.png", dpi=110)
    names = [name for name in (*CORRUPTIONS, *EXTRA_CORRUPTIONS) if name != "saturate" or images.shape[-1] == 3]
    corrupted = {
        name: [corrupt(name, severity, jax.random.key(0), images[:1])[0] for severity in range(1, 6)] for name in names
    }
    figure = corruption_figure(images[0], corrupted, title=f"{dataset.name}: corruptions; frost is a stand-in")
    figure.savefig(folder / "corruptions.png", dpi=110)


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)
