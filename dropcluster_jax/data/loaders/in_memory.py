"""The loader of data sets that fit: all images lie on the device, as uint8, and batches are gathered there."""

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Int, UInt8

from dropcluster_jax.data.dataset import Dataset
from dropcluster_jax.data.examples import ArrayExamples
from dropcluster_jax.data.loaders.loader import Batch, BatchIterator, check_divisible, divisible
from dropcluster_jax.data.sampler import BatchSampler, Indices, evaluation_indices, probe_indices
from dropcluster_jax.sharding import num_shards, shard_batch


class InMemoryLoader:
    """BatchIterator from arrays that lie on the device; see `Loader`.

    Only the numbers of a batch's examples are sent there. Where batches are divided over devices, each device holds
    all images, so that none is sent from one to another.

    Args:
        dataset: of arrays.
        batch_size: examples in a batch, of all processes together.
        seed: decides the order and the probe batches.
        sharding: how batches are divided over devices, along their first axis; None is one device.

    Raises:
        TypeError: the examples are no arrays, or a number is no integer.
        ValueError: a number is out of range, or `batch_size` no multiple of the devices.

    Example:
        >>> from dropcluster_jax.data import load
        >>> loader = InMemoryLoader(load("digits"), batch_size=32)
        >>> batches = loader.train()
        >>> first, second = next(batches), next(batches)
        >>> batches.set_state({**batches.get_state(), "batch": 1})  # before the second
        >>> bool((next(batches)["label"] == second["label"]).all())
        True
    """

    def __init__(
        self, dataset: Dataset, batch_size: int, seed: int = 0, *, sharding: NamedSharding | None = None
    ) -> None:
        train, test = dataset.train, dataset.test
        if not (isinstance(train, ArrayExamples) and isinstance(test, ArrayExamples)):
            raise TypeError(f"the examples of {dataset.name!r} must be arrays, got {type(dataset.train).__name__}")
        self._sampler = BatchSampler(len(train), batch_size, seed)
        check_divisible(batch_size, sharding)
        self._sharding = sharding
        self._train, self._test = _on_device(train, sharding), _on_device(test, sharding)
        self._gather = jax.jit(_take, out_shardings=sharding)
        self._divide = jax.jit(lambda weight: weight, out_shardings=sharding)
        self.skipped: list[str] = []

    def train(self) -> BatchIterator:
        """Shuffled training batches without end; see `Loader.train`."""

        def start(first: int) -> Iterator[Batch]:
            return (self._take(self._train, self._sampler.indices(number)) for number in itertools.count(first))

        return BatchIterator(self._sampler, start)

    def test(self, batch_size: int | None = None) -> Iterator[Batch]:
        """Every test example once; see `Loader.test`.

        Args:
            batch_size: examples in a batch, at least 1; the training batches', if not given.

        Raises:
            TypeError, ValueError: `batch_size` is no integer, or less than 1.
        """
        size = divisible(self._sampler.batch_size if batch_size is None else batch_size, num_shards(self._sharding))
        for indices, weight in evaluation_indices(len(self._test[1]), size):
            everywhere = shard_batch({"weight": weight}, _everywhere(self._sharding))
            yield {**self._take(self._test, indices), "weight": self._divide(everywhere["weight"])}

    def probe(self, size: int, update: int) -> Batch:
        """The training images of an update of the clusters; see `Loader.probe`.

        Args:
            size: how many, at least 1; all where there are fewer.
            update: the number of the update, from 0 on.

        Raises:
            TypeError, ValueError: a number is no integer, or out of range.
        """
        indices = probe_indices(len(self._train[1]), size, self._sampler.seed, update)
        parts = num_shards(self._sharding)
        return self._take(self._train, indices[: len(indices) // parts * parts])

    def _take(self, examples: Any, indices: Indices) -> Batch:
        everywhere = shard_batch({"indices": indices}, _everywhere(self._sharding))
        return self._gather(*examples, everywhere["indices"])


def _everywhere(sharding: NamedSharding | None) -> NamedSharding | None:
    return None if sharding is None else NamedSharding(sharding.mesh, PartitionSpec())


def _on_device(
    examples: ArrayExamples, sharding: NamedSharding | None
) -> tuple[UInt8[Array, "examples height width channels"], Int[Array, " examples"]]:
    placed = shard_batch({"images": examples.images, "labels": examples.labels}, _everywhere(sharding))
    return placed["images"], placed["labels"]


def _take(
    images: UInt8[Array, "examples height width channels"],
    labels: Int[Array, " examples"],
    indices: Int[Array | np.ndarray, " batch"],
) -> Batch:
    return {"image": images[indices], "label": labels[indices]}
