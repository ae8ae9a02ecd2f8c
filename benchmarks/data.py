"""How fast images get to the device, by either loader, and what that costs a training.

    python benchmarks/data.py --data-dir ~/tensorflow_datasets

On CIFAR-10, augmented (shift, flip) and normalized by a compiled step; from made JPEG files of ImageNet's size, random
crops of 224 pixels, mirrored; all corruptions of 10,000 images. `--training MODEL` compares that network's training
step on the device loader with the same on one batch that stays: turn by turn, in one run; `--data npz:PATH` takes it
where TFDS is not.
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
import numpy as np
import optax

from dropcluster_jax import KMeans
from dropcluster_jax.data import (
    CORRUPTIONS,
    EXTRA_CORRUPTIONS,
    Dataset,
    GrainLoader,
    InMemoryLoader,
    corrupt,
    load,
    normalize,
    random_flip,
    random_shift,
)
from dropcluster_jax.linen import DropCluster
from dropcluster_jax.models import MODELS
from dropcluster_jax.training import make_steps

PIXELS = (375, 500)  # of a JPEG: ImageNet's usual


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="what --training trains on: cifar10, or npz:PATH")
    parser.add_argument("--data-dir", help="where TFDS has prepared cifar10")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each speed is measured")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--no-corruptions", action="store_true")
    parser.add_argument("--training", metavar="MODEL", help="such as resnet50")
    options = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} CPU cores, {jax.devices()[0].device_kind}; jax {version('jax')}")
    if options.training:
        training(load(options.data, options.data_dir), options)
        return
    print(", ".join(f"{name} {version(name)}" for name in ("grain", "pillow")), end="\n\n")
    cifar10 = load("cifar10", options.data_dir)
    ready = jax.jit(lambda key, images: normalize(vary(key, images), cifar10.mean, cifar10.std))
    encoded = load("cifar10", options.data_dir, size=32)
    loaders: dict[str, Any] = {
        "CIFAR-10, device": (InMemoryLoader(cifar10, options.batch), ready),
        "CIFAR-10, stream": (GrainLoader(cifar10, options.batch), ready),
        "CIFAR-10, stream, encoded": (GrainLoader(encoded, options.batch, flip=True), None),
        f"CIFAR-10, stream, encoded, {options.workers} workers": (
            GrainLoader(encoded, options.batch, flip=True, workers=options.workers),
            None,
        ),
    }
    with tempfile.TemporaryDirectory() as folder:
        size = make_photos(pathlib.Path(folder))
        photos = load(f"folder:{folder}", size=224)
        crops = {"random_crop": True, "flip": True}
        loaders[f"JPEG of {size / 1000:.0f} kB to 224"] = GrainLoader(photos, 32, **crops), None
        loaders[f"the same, {options.workers} workers"] = (
            GrainLoader(photos, 32, workers=options.workers, **crops),
            None,
        )
        print(f"{'':40}{'images/s':>10}")
        for name, (loader, step) in loaders.items():
            print(f"{name:40}{speed(loader.train(), step, options.seconds):10,.0f}")
    if not options.no_corruptions:
        print(f"\n{'10,000 images, severity 5':40}{'s':>10}{'with compilation':>18}")
        images = cifar10.test.images[:10_000]
        for name in (*CORRUPTIONS, *EXTRA_CORRUPTIONS):
            first, second = (seconds(lambda name=name: corrupt(name, 5, jax.random.key(0), images)) for _ in range(2))
            print(f"{name:40}{second:10.2f}{first:18.2f}")


def vary(key: jax.Array, images: jax.Array) -> jax.Array:
    """What training on CIFAR-10 does to its images."""
    shift_key, flip_key = jax.random.split(key)
    return random_flip(flip_key, random_shift(shift_key, images, 4))


def speed(batches: Any, step: Callable[..., Any] | None, least: float) -> float:
    """Images a second, over at least so many seconds, what was read ahead left out."""
    for _ in range(16):
        jax.block_until_ready(next(batches))
    count, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < least:
        for number in range(8):
            images = next(batches)["image"]
            count += len(images)
            out = images if step is None else step(jax.random.key(number), images)
        jax.block_until_ready(out)
    elapsed = time.perf_counter() - begin
    batches.close()
    return count / elapsed


def make_photos(root: pathlib.Path) -> float:
    """JPEG files with structure at all scales and some grain; their mean size in bytes."""
    from PIL import Image

    rng = np.random.default_rng(0)
    sizes = []
    for part, number in itertools.product(("train", "test"), range(128)):
        folder = root / part / f"class{number % 4}"
        folder.mkdir(parents=True, exist_ok=True)
        photo = rng.normal(size=(*PIXELS, 3)) * 12 + 120
        for scale in (4, 16, 64):
            small = rng.normal(size=(3, PIXELS[0] // scale, PIXELS[1] // scale)).astype(np.float32)
            channels = [Image.fromarray(c).resize(PIXELS[::-1], Image.Resampling.BICUBIC) for c in small]
            photo += np.stack([np.asarray(channel) for channel in channels], -1) * 8 * scale**0.35
        path = folder / f"{number}.jpg"
        Image.fromarray(np.clip(photo, 0, 255).astype(np.uint8)).save(path, quality=92)
        sizes.append(path.stat().st_size)
    return statistics.mean(sizes)


def seconds(call: Callable[[], Any]) -> float:
    """How long a call takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def training(dataset: Dataset, options: argparse.Namespace) -> None:
    """A training step fed by the device loader, against the same on one batch that stays."""
    drop = {"stage3": DropCluster(KMeans(cluster_size=16.0))}
    model = MODELS[options.training](dataset.num_classes, drop=drop, dtype=jax.numpy.bfloat16).clone(stem="cifar")
    steps = make_steps(
        model,
        optax.sgd(0.1, momentum=0.9),
        rate=0.1,
        augment=vary,
        preprocess=lambda images: normalize(images, dataset.mean, dataset.std),
    )
    loader = InMemoryLoader(dataset, options.batch)
    batches = loader.train()
    batch = next(batches)
    state = jax.jit(steps.init)(jax.random.key(0), batch)
    train = jax.jit(steps.train)
    times: dict[str, list[float]] = {"one batch that stays": [], "device loader": []}
    sources: dict[str, Iterator[Any]] = {"one batch that stays": itertools.repeat(batch), "device loader": batches}

    def turn(source: Iterator[Any], number: int) -> int:
        nonlocal state
        done, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < options.seconds or done < number:
            for _ in range(number):
                state, metrics = train(state, next(source))
            jax.block_until_ready(metrics)
            done += number
        return done

    for _ in range(6):
        for name, source in sources.items():
            begin = time.perf_counter()
            done = turn(source, 10)
            times[name].append(options.batch * done / (time.perf_counter() - begin))
    print(f"{options.training}, bfloat16, batch {options.batch}, images/s, median of 5 turns")
    medians = {name: statistics.median(found[1:]) for name, found in times.items()}
    for name, median in medians.items():
        print(f"{name:40}{median:10,.0f}")
    print(f"{'ratio':40}{medians['device loader'] / medians['one batch that stays']:10.4f}")


if __name__ == "__main__":
    main()
