"""The loader for datasets that fit into device memory; batches are gathered on the device."""

import itertools
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Int, UInt8

from dropcluster_jax.data.dataset import Dataset
from dropcluster_jax.data.examples import ArrayExamples
from dropcluster_jax.data.loaders.loader import Batch, BatchIterator, check_divisible, round_up
from dropcluster_jax.data.sampling import BatchOrder, Indices, evaluation_indices, probe_indices
from dropcluster_jax.sharding import num_shards, shard_batch


class InMemoryLoader:
    """Gathers batches from arrays in device memory. See `Loader` for the methods and `make_loader` for the options.

    Only the indices of a batch are transferred. If batches are sharded, every device holds all images, so that none are
    exchanged between devices.

    Example:
        >>> from dropcluster_jax.data import load
        >>> loader = InMemoryLoader(load("digits"), batch_size=32)
        >>> batches = loader.train()
        >>> first, second = next(batches), next(batches)
        >>> batches.set_state({**batches.get_state(), "batch": 1})  # Back to the second batch.
        >>> bool((next(batches)["label"] == second["label"]).all())
        True
    """

    def __init__(
        self, dataset: Dataset, batch_size: int, seed: int = 0, *, sharding: NamedSharding | None = None
    ) -> None:
        train, test = dataset.train, dataset.test
        if not (isinstance(train, ArrayExamples) and isinstance(test, ArrayExamples)):
            raise TypeError(f"the examples of {dataset.name!r} must be arrays, got {type(dataset.train).__name__}")
        self._order = BatchOrder(len(train), batch_size, seed)
        check_divisible(batch_size, sharding)
        self._sharding = sharding
        self._replicated = None if sharding is None else NamedSharding(sharding.mesh, PartitionSpec())
        self._train, self._test = self._replicate(train), self._replicate(test)
        self._gather = jax.jit(
            lambda images, labels, indices: {"image": images[indices], "label": labels[indices]}, out_shardings=sharding
        )
        self._shard = jax.jit(lambda weight: weight, out_shardings=sharding)

    def train(self) -> BatchIterator:
        """See `Loader.train`."""

        def start(first: int) -> Iterator[Batch]:
            return (self._take(self._train, self._order.indices(index)) for index in itertools.count(first))

        return BatchIterator(self._order, start)

    def test(self, batch_size: int | None = None) -> Iterator[Batch]:
        """See `Loader.test`."""
        size = round_up(self._order.batch_size if batch_size is None else batch_size, num_shards(self._sharding))
        for indices, weight in evaluation_indices(len(self._test[1]), size):
            weight = shard_batch({"weight": weight}, self._replicated)["weight"]
            yield {**self._take(self._test, indices), "weight": self._shard(weight)}

    def probe(self, size: int, update: int) -> Batch:
        """See `Loader.probe`."""
        indices = probe_indices(len(self._train[1]), size, self._order.seed, update)
        shards = num_shards(self._sharding)
        return self._take(self._train, indices[: len(indices) // shards * shards])

    def _replicate(
        self, examples: ArrayExamples
    ) -> tuple[UInt8[Array, "examples height width channels"], Int[Array, " examples"]]:
        arrays = shard_batch({"images": examples.images, "labels": examples.labels}, self._replicated)
        return arrays["images"], arrays["labels"]

    def _take(self, examples: Any, indices: Indices) -> Batch:
        return self._gather(*examples, shard_batch({"indices": indices}, self._replicated)["indices"])
