"""How examples get to the device: from arrays that lie there, or streamed by Grain. Two roads, one face."""

from typing import Literal

import jax
from jax.sharding import NamedSharding

from dropcluster_jax.data.dataset import Dataset
from dropcluster_jax.data.examples import ArrayExamples
from dropcluster_jax.data.roads.device import DeviceRoad
from dropcluster_jax.data.roads.road import Batch, Batches, Road
from dropcluster_jax.data.roads.stream import StreamRoad

__all__ = ["Batch", "Batches", "DeviceRoad", "Road", "StreamRoad", "open_road"]

RoadName = Literal["auto", "device", "stream"]

_SHARE = 4  # all images may take a quarter of a device's memory
_UNKNOWN = 2**31  # bytes, where a device does not say how much memory it has


def open_road(
    dataset: Dataset,
    batch_size: int,
    seed: int = 0,
    *,
    road: RoadName = "auto",
    sharding: NamedSharding | None = None,
    random_crop: bool = False,
    flip: bool = False,
    workers: int = 0,
    skip_bad: bool = False,
) -> Road:
    """The road by which a data set's examples get to the device.

    Args:
        dataset: what `load` gave.
        batch_size: examples in a batch, of all processes together.
        seed: decides the order, the crops and the probe batches.
        road: `"device"`, `"stream"`, or `"auto"`: the device's for arrays that take at most a quarter of its memory.
        sharding: how batches are divided over devices, along their first axis; None is one device.
        random_crop: of encoded images: train on a random part of each, resized, instead of its middle.
        flip: of encoded images: mirror half of the training images.
        workers: processes that read for the stream; 0 reads by threads.
        skip_bad: of encoded images: leave out and count those that cannot be trained on.

    Returns:
        A `DeviceRoad` or a `StreamRoad`.

    Raises:
        ImportError: Grain, which the stream needs, is not installed.
        TypeError, ValueError: an argument that the road cannot take, with its name.

    Example:
        >>> from dropcluster_jax.data import load
        >>> road = open_road(load("digits"), batch_size=32)
        >>> batches = road.train()
        >>> next(batches)["image"].shape, batches.state()["batch"]
        ((32, 8, 8, 1), 1)
    """
    if road not in ("auto", "device", "stream"):
        raise ValueError(f"road must be auto, device or stream, got {road!r}")
    arrays = isinstance(dataset.train, ArrayExamples) and isinstance(dataset.test, ArrayExamples)
    if road == "device" and not arrays:
        raise ValueError(f"road must be stream or auto for {dataset.name!r}, whose images are encoded, got 'device'")
    if road == "device" or (road == "auto" and arrays and _fits(dataset)):
        return DeviceRoad(dataset, batch_size, seed, sharding=sharding)
    return StreamRoad(
        dataset,
        batch_size,
        seed,
        sharding=sharding,
        random_crop=random_crop,
        flip=flip,
        workers=workers,
        skip_bad=skip_bad,
    )


def _fits(dataset: Dataset) -> bool:
    size = sum(part.images.nbytes for part in (dataset.train, dataset.test) if isinstance(part, ArrayExamples))
    memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return size <= (memory / _SHARE if memory else _UNKNOWN)
