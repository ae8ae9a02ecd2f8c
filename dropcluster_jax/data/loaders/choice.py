"""The choice between the loaders."""

import math

import jax
from jax.sharding import NamedSharding

from dropcluster_jax.data.config import LoaderName
from dropcluster_jax.data.dataset import Dataset
from dropcluster_jax.data.examples import ArrayExamples
from dropcluster_jax.data.loaders.grain import GrainLoader
from dropcluster_jax.data.loaders.in_memory import InMemoryLoader
from dropcluster_jax.data.loaders.loader import Loader

_MEMORY_FRACTION = 1 / 4  # Fraction of a device's memory that all images may take.
_DEFAULT_LIMIT = 2**31  # Bytes that they may take on devices that do not report their memory.


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
) -> Loader:
    """Makes the loader of a dataset.

    Args:
        dataset: Dataset, e.g. from `load`.
        batch_size: Examples per batch, over all processes.
        seed: Determines the order of the examples, the crops and the probe batches.
        loader: `"memory"`, `"grain"`, or `"auto"`: memory for arrays that take at most a quarter of a device's memory.
        sharding: Sharding of batches over devices, along their first axis; None for a single device.
        random_crop: Whether encoded training images are cropped at random, instead of at the center.
        flip: Whether encoded training images are mirrored with probability 1/2.
        workers: Number of processes in which the Grain loader reads; 0 for threads.

    Returns:
        An `InMemoryLoader` or a `GrainLoader`.

    Raises:
        ImportError: If Grain is needed and not installed.
        TypeError: If a number is not an integer.
        ValueError: If `loader` is invalid or does not support encoded images, or a number is out of range.

    Example:
        >>> from dropcluster_jax.data import load
        >>> loader = make_loader(load("digits"), batch_size=32)
        >>> batches = loader.train()
        >>> next(batches)["image"].shape, batches.get_state()["batch"]
        ((32, 8, 8, 1), 1)
    """
    if loader not in ("auto", "memory", "grain"):
        raise ValueError(f"loader must be 'auto', 'memory' or 'grain', got {loader!r}")
    if loader == "memory" or (loader == "auto" and _fits_in_memory(dataset)):
        return InMemoryLoader(dataset, batch_size, seed, sharding=sharding)
    return GrainLoader(
        dataset, batch_size, seed, sharding=sharding, random_crop=random_crop, flip=flip, workers=workers
    )


def _fits_in_memory(dataset: Dataset) -> bool:
    memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    limit = memory * _MEMORY_FRACTION if memory else _DEFAULT_LIMIT
    splits = (dataset.train, dataset.test)
    return sum(split.images.nbytes if isinstance(split, ArrayExamples) else math.inf for split in splits) <= limit
