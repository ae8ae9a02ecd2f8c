"""How examples get to the device: from arrays that lie there, or streamed by Grain. Two loaders, one face."""

from typing import Literal

import jax
from jax.sharding import NamedSharding

from dropcluster_jax.data.dataset import Dataset
from dropcluster_jax.data.examples import ArrayExamples
from dropcluster_jax.data.loaders.grain import GrainLoader
from dropcluster_jax.data.loaders.in_memory import InMemoryLoader
from dropcluster_jax.data.loaders.loader import Loader

LoaderName = Literal["auto", "memory", "grain"]

_SHARE = 4  # all images may take a quarter of a device's memory
_UNKNOWN = 2**31  # bytes, where a device does not say how much memory it has


def make_loader(
    dataset: Dataset,
    batch_size: int,
    seed: int = 0,
    *,
    loader: LoaderName = "auto",
    sharding: NamedSharding | None = None,
    random_crop: bool = False,
    flip: bool = False,
    workers: int = 0,
    skip_corrupt: bool = False,
) -> Loader:
    """The loader by which a data set's examples get to the device.

    Args:
        dataset: what `load` gave.
        batch_size: examples in a batch, of all processes together.
        seed: decides the order, the crops and the probe batches.
        loader: `"memory"`, `"grain"`, or `"auto"`: the device's for arrays that take at most a quarter of its memory.
        sharding: how batches are divided over devices, along their first axis; None is one device.
        random_crop: of encoded images: train on a random part of each, resized, instead of its middle.
        flip: of encoded images: mirror half of the training images.
        workers: processes that read for the stream; 0 reads by threads.
        skip_corrupt: of encoded images: leave out and count those that cannot be trained on.

    Returns:
        A `InMemoryLoader` or a `GrainLoader`.

    Raises:
        ImportError: Grain, which the stream needs, is not installed.
        TypeError, ValueError: an argument that the loader cannot take, with its name.

    Example:
        >>> from dropcluster_jax.data import load
        >>> loader = make_loader(load("digits"), batch_size=32)
        >>> batches = loader.train()
        >>> next(batches)["image"].shape, batches.get_state()["batch"]
        ((32, 8, 8, 1), 1)
    """
    if loader not in ("auto", "memory", "grain"):
        raise ValueError(f"loader must be auto, memory or grain, got {loader!r}")
    arrays = isinstance(dataset.train, ArrayExamples) and isinstance(dataset.test, ArrayExamples)
    if loader == "memory" and not arrays:
        raise ValueError(f"loader must be grain or auto for {dataset.name!r}, whose images are encoded, got 'memory'")
    if loader == "memory" or (loader == "auto" and arrays and _fits(dataset)):
        return InMemoryLoader(dataset, batch_size, seed, sharding=sharding)
    return GrainLoader(
        dataset,
        batch_size,
        seed,
        sharding=sharding,
        random_crop=random_crop,
        flip=flip,
        workers=workers,
        skip_corrupt=skip_corrupt,
    )


def _fits(dataset: Dataset) -> bool:
    size = sum(part.images.nbytes for part in (dataset.train, dataset.test) if isinstance(part, ArrayExamples))
    memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return size <= (memory / _SHARE if memory else _UNKNOWN)
