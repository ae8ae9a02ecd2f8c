"""The loader for datasets that fit into device memory; batches are gathered on the device."""

import itertools
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from dropcluster_jax.data.dataset import Dataset
from dropcluster_jax.data.examples import ArrayExamples
from dropcluster_jax.data.loaders.loader import Batch, Loader
from dropcluster_jax.data.sampling import Indices, WeightedIndices
from dropcluster_jax.sharding import shard_batch


class InMemoryLoader(Loader):
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
            raise ValueError(f"loader must be 'grain' or 'auto' for {dataset.name!r}, whose images are encoded")
        super().__init__(dataset, batch_size, seed, sharding)
        self._replicated = None if sharding is None else NamedSharding(sharding.mesh, PartitionSpec())
        self._train, self._test = (
            shard_batch((examples.images, examples.labels), self._replicated) for examples in (train, test)
        )
        self._gather = jax.jit(
            lambda images, labels, indices: {"image": images[indices], "label": labels[indices]}, out_shardings=sharding
        )
        self._shard = jax.jit(lambda weight: weight, out_shardings=sharding)

    def _train_from(self, first: int) -> Generator[Batch]:
        return (self._take(self._train, self._order.indices(index)) for index in itertools.count(first))

    def _test_batches(self, batches: Iterable[WeightedIndices]) -> Iterator[Batch]:
        for indices, weight in batches:
            yield {**self._take(self._test, indices), "weight": self._shard(shard_batch(weight, self._replicated))}

    def _probe_batch(self, indices: Indices) -> Batch:
        return self._take(self._train, indices)

    def _take(self, examples: Any, indices: Indices) -> Batch:
        return self._gather(*examples, shard_batch(indices, self._replicated))
