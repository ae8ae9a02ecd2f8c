"""Measures the throughput of the loaders, and its effect on training.

    python benchmarks/data.py --data-dir ~/tensorflow_datasets
    python benchmarks/data.py --data-dir ~/tensorflow_datasets --training resnet20

Loaders deliver CIFAR-10, shifted, flipped and normalized by a compiled step, and random crops of 224 pixels from
synthetic JPEG files of ImageNet's size. All corruptions are timed on 10,000 images. `--training MODEL` alternates
between training steps fed by the in-memory loader and steps on one fixed batch; `--data npz:PATH` does so without TFDS.
"""

import argparse
import itertools
import os
import pathlib
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dropcluster_jax import KMeans
from dropcluster_jax.data import (
    CORRUPTIONS,
    ArrayExamples,
    BatchIterator,
    Dataset,
    GrainLoader,
    InMemoryLoader,
    Loader,
    corrupt,
    load,
    normalize,
    random_flip,
    random_shift,
)
from dropcluster_jax.linen import DropCluster
from dropcluster_jax.models import MODELS
from dropcluster_jax.training import make_steps

PHOTO_HEIGHT, PHOTO_WIDTH = 375, 500  # The most common size in ImageNet.


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="dataset for --training: cifar10 or npz:PATH")
    parser.add_argument("--data-dir", help="TFDS data directory that contains cifar10")
    parser.add_argument("--batch", type=int, default=128, help="examples per batch")
    parser.add_argument("--seconds", type=float, default=5.0, help="duration of each measurement")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes of the Grain loader")
    parser.add_argument("--no-corruptions", action="store_true", help="skip the corruptions")
    parser.add_argument("--training", metavar="MODEL", help="measure training steps of this model, e.g. resnet50")
    options = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} CPU cores, {jax.devices()[0].device_kind}; jax {version('jax')}")
    if options.training:
        measure_training(load(options.data, dir=options.data_dir), options.training, options.batch, options.seconds)
        return
    print(", ".join(f"{name} {version(name)}" for name in ("grain", "pillow")), end="\n\n")
    cifar10 = load("cifar10", dir=options.data_dir)
    measure_loaders(cifar10, load("cifar10", dir=options.data_dir, image_size=32), options)
    if not options.no_corruptions:
        assert isinstance(cifar10.test, ArrayExamples)
        measure_corruptions(cifar10.test.images[:10_000])


def measure_loaders(arrays: Dataset, encoded: Dataset, options: argparse.Namespace) -> None:
    """Prints the images per second of each loader, for CIFAR-10 and synthetic photos."""
    spec, batch, workers = arrays.spec, options.batch, options.workers
    preprocess = jax.jit(lambda key, images: normalize(augment(key, images), spec.mean, spec.std))
    loaders: dict[str, tuple[Loader, Callable[..., Any] | None]] = {
        "CIFAR-10, in memory": (InMemoryLoader(arrays, batch), preprocess),
        "CIFAR-10, Grain": (GrainLoader(arrays, batch), preprocess),
        "CIFAR-10, Grain, encoded": (GrainLoader(encoded, batch, flip=True), None),
        f"CIFAR-10, Grain, encoded, {workers} workers": (
            GrainLoader(encoded, batch, flip=True, workers=workers),
            None,
        ),
    }
    with tempfile.TemporaryDirectory() as folder:
        size = write_photos(pathlib.Path(folder))
        photos = load(f"folder:{folder}", image_size=224)
        name = f"JPEG of {size / 1000:.0f} kB to 224"
        loaders[name] = GrainLoader(photos, 32, random_crop=True, flip=True), None
        loaders[f"{name}, {workers} workers"] = (
            GrainLoader(photos, 32, random_crop=True, flip=True, workers=workers),
            None,
        )
        print(f"{'':40}{'images/s':>10}")
        for name, (loader, step) in loaders.items():
            print(f"{name:40}{throughput(loader.train(), step, options.seconds):10,.0f}")


def throughput(batches: BatchIterator, step: Callable[..., Any] | None, duration: float) -> float:
    """Returns the images per second over at least `duration` seconds, after 16 batches of warm-up."""

    def process(num_batches: int) -> int:
        results = []
        for seed in range(num_batches):
            images = next(batches)["image"]
            results.append(images if step is None else step(jax.random.key(seed), images))
        return sum(len(images) for images in jax.block_until_ready(results))

    process(16)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < duration:
        count += process(8)
    elapsed = time.perf_counter() - start
    batches.close()
    return count / elapsed


def write_photos(root: pathlib.Path) -> float:
    """Writes JPEG files with structure at all scales and some grain; returns their mean size in bytes."""
    from PIL import Image

    rng = np.random.default_rng(0)
    sizes = []
    for split, index in itertools.product(("train", "test"), range(128)):
        folder = root / split / f"class{index % 4}"
        folder.mkdir(parents=True, exist_ok=True)
        photo = rng.normal(size=(PHOTO_HEIGHT, PHOTO_WIDTH, 3)) * 12 + 120
        for scale in (4, 16, 64):
            coarse = rng.normal(size=(3, PHOTO_HEIGHT // scale, PHOTO_WIDTH // scale)).astype(np.float32)
            size = (PHOTO_WIDTH, PHOTO_HEIGHT)
            channels = [Image.fromarray(channel).resize(size, Image.Resampling.BICUBIC) for channel in coarse]
            photo += np.stack([np.asarray(channel) for channel in channels], -1) * 8 * scale**0.35
        path = folder / f"{index}.jpg"
        Image.fromarray(np.clip(photo, 0, 255).astype(np.uint8)).save(path, quality=92)
        sizes.append(path.stat().st_size)
    return statistics.mean(sizes)


def measure_corruptions(images: np.ndarray) -> None:
    """Prints the seconds of each corruption, without and with compilation."""
    print(f"\n{f'{len(images):,} images, severity 5':40}{'s':>10}{'with compilation':>18}")
    for name in CORRUPTIONS:
        times = []
        for _ in range(2):
            start = time.perf_counter()
            corrupt(name, 5, jax.random.key(0), images)
            times.append(time.perf_counter() - start)
        print(f"{name:40}{times[1]:10.2f}{times[0]:18.2f}")


def measure_training(dataset: Dataset, model_name: str, batch_size: int, duration: float) -> None:
    """Prints the throughput of training steps fed by the in-memory loader, and of steps on one fixed batch."""
    spec = dataset.spec
    drop = {"stage3": DropCluster(KMeans(cluster_size=16.0))}
    model = MODELS[model_name](num_classes=spec.num_classes, drop=drop, dtype=jnp.bfloat16, stem="cifar")
    steps = make_steps(
        model,
        optax.sgd(0.1, momentum=0.9),
        rate=0.1,
        augment=augment,
        preprocess=lambda images: normalize(images, spec.mean, spec.std),
    )
    batches = InMemoryLoader(dataset, batch_size).train()
    batch = next(batches)
    state = jax.jit(steps.init)(jax.random.key(0), batch)
    train = jax.jit(steps.train)
    sources: dict[str, Iterator[Any]] = {"one fixed batch": itertools.repeat(batch), "in-memory loader": batches}
    rates: dict[str, list[float]] = {name: [] for name in sources}
    for _ in range(6):
        for name, source in sources.items():
            count, start = 0, time.perf_counter()
            while count == 0 or time.perf_counter() - start < duration:
                for _ in range(10):
                    state, _ = train(state, next(source))
                jax.block_until_ready(state)
                count += 10
            rates[name].append(batch_size * count / (time.perf_counter() - start))
    print(f"{model_name}, bfloat16, batch {batch_size}, images/s, median of 5 turns")
    medians = {name: statistics.median(turns[1:]) for name, turns in rates.items()}
    for name, median in medians.items():
        print(f"{name:40}{median:10,.0f}")
    print(f"{'ratio':40}{medians['in-memory loader'] / medians['one fixed batch']:10.4f}")


def augment(key: jax.Array, images: jax.Array) -> jax.Array:
    """Augments CIFAR-10's training images."""
    shift_key, flip_key = jax.random.split(key)
    return random_flip(flip_key, random_shift(shift_key, images, 4))


if __name__ == "__main__":
    main()
