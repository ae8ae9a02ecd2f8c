"""The loader for datasets that do not fit into memory; Grain reads, decodes and crops batches ahead on the host."""

import dataclasses
import math
import os
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Shaped

from dropcluster_jax._optional import optional_import
from dropcluster_jax.data.dataset import Dataset
from dropcluster_jax.data.decoding import Pixels, decode_center, decode_random_crop
from dropcluster_jax.data.examples import ArrayExamples, Examples
from dropcluster_jax.data.loaders.loader import Batch, BatchIterator, check_divisible, round_up
from dropcluster_jax.data.reading import DecodeImage, read_block
from dropcluster_jax.data.sampling import (
    CROP_STREAM,
    BatchOrder,
    Indices,
    check_integer,
    evaluation_indices,
    probe_indices,
)
from dropcluster_jax.sharding import num_shards, shard_batch

_PREFETCH = 2  # Batches buffered on the device, and in each worker.


class GrainLoader:
    """Streams batches that Grain reads ahead. See `Loader` for the methods and `make_loader` for the options.

    Each batch is read by one thread or worker, and transferred to the device while the previous one is in use. With
    multiple processes, each reads its part of every batch and needs access to all files. Corrupt images raise
    `CorruptImageError`. `process_index` and `process_count` are by default JAX's.

    Example:
        >>> from dropcluster_jax.data import InMemoryLoader, load
        >>> digits = load("digits")
        >>> batches = GrainLoader(digits, batch_size=32).train()
        >>> batch = next(batches)
        >>> expected = next(InMemoryLoader(digits, batch_size=32).train())
        >>> batch["image"].shape, bool((batch["image"] == expected["image"]).all())
        ((32, 8, 8, 1), True)
        >>> batches.close()
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int = 0,
        *,
        sharding: NamedSharding | None = None,
        random_crop: bool = False,
        flip: bool = False,
        workers: int = 0,
        process_index: int | None = None,
        process_count: int | None = None,
    ) -> None:
        with optional_import("Grain"):
            import grain

        self._grain, self._sharding, self._workers = grain, sharding, workers
        self._order = BatchOrder(len(dataset.train), batch_size, seed)
        process = _Process(
            jax.process_index() if process_index is None else process_index,
            jax.process_count() if process_count is None else process_count,
        )
        check_integer("workers", workers, 0)
        check_divisible(batch_size, sharding, process.count)
        self._divisor = math.lcm(num_shards(sharding), process.count)
        self._reader = _TrainingReader(dataset.train, dataset.image_size, process, self._order, random_crop, flip)
        self._test = _TestReader(dataset.test, dataset.image_size, process)

    def train(self) -> BatchIterator:
        """See `Loader.train`."""
        return BatchIterator(
            self._order, lambda first: self._stream(self._grain.MapDataset.range(first, sys.maxsize).map(self._reader))
        )

    def test(self, batch_size: int | None = None) -> Iterator[Batch]:
        """See `Loader.test`."""
        size = round_up(self._order.batch_size if batch_size is None else batch_size, self._divisor)
        batches = list(evaluation_indices(len(self._test.examples), size))
        return self._stream(self._grain.MapDataset.source(batches).map(self._test))

    def probe(self, size: int, update: int) -> Batch:
        """See `Loader.probe`."""
        indices = probe_indices(self._order.num_examples, size, self._order.seed, update)
        indices = indices[: len(indices) // self._divisor * self._divisor]
        return shard_batch(self._reader.read(indices, self._reader.decode_center), self._sharding)

    def _stream(self, host_batches: Any) -> Iterator[Batch]:
        """Yields host batches on the device, read ahead by threads or workers."""
        grain = self._grain
        threads = 1 if self._workers else _num_cores()
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 1)
        batches = host_batches.to_iter_dataset(options)
        if self._workers:
            batches = self._in_workers(batches)
        batches = batches.map(lambda batch: shard_batch(batch, self._sharding))
        prefetched = iter(grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=_PREFETCH))
        try:
            yield from prefetched
        finally:
            prefetched.close()

    def _in_workers(self, batches: Any) -> Any:
        """Makes a Grain dataset read in worker processes."""
        from absl import flags

        grain = self._grain
        # Grain reads one of its flags even if none were parsed: https://github.com/google/grain/issues/1355
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=_PREFETCH)
        batches = batches.mp_prefetch(options)
        # Shared memory leaks if a stream is closed early, pipes do not: https://github.com/google/grain/issues/398
        pipes = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
        return grain.experimental.WithOptionsIterDataset(batches, pipes)


def _num_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# The classes below run in Grain's threads and workers and must not use JAX.


@dataclasses.dataclass(frozen=True)
class _Process:
    """This process among those that share every batch."""

    index: int
    count: int

    def part(self, batch: Shaped[np.ndarray, " batch"]) -> Shaped[np.ndarray, " part"]:
        return np.split(batch, self.count)[self.index]


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads this process's part of a batch of examples; encoded images are cropped to `size`."""

    examples: Examples
    size: int | None
    process: _Process

    def read(self, indices: Indices, decode_image: DecodeImage) -> dict[str, np.ndarray]:
        indices = self.process.part(indices)
        if isinstance(self.examples, ArrayExamples):
            return {"image": self.examples.images[indices], "label": self.examples.labels[indices]}
        images, labels = zip(*read_block(self.examples, indices.tolist(), decode_image), strict=True)
        return {"image": np.stack(images), "label": np.array(labels, np.int32)}

    def decode_center(self, encoded: bytes, location: str, index: int) -> Pixels:
        assert self.size is not None
        return decode_center(encoded, location, self.size)


@dataclasses.dataclass(frozen=True)
class _TrainingReader(_Reader):
    """Reads training batches; crops are a function of the seed, the epoch and the example's index."""

    order: BatchOrder
    random_crop: bool
    flip: bool

    def __call__(self, batch: int) -> dict[str, np.ndarray]:
        epoch = batch // self.order.batches_per_epoch

        def decode(encoded: bytes, location: str, index: int) -> Pixels:
            sequence = np.random.SeedSequence([self.order.seed, epoch, index], spawn_key=CROP_STREAM)
            rng = np.random.default_rng(sequence)
            mirrored = self.flip and bool(rng.integers(2))
            if self.random_crop and self.size is not None:
                pixels = decode_random_crop(encoded, location, self.size, rng)
            else:
                pixels = self.decode_center(encoded, location, index)
            return pixels[:, ::-1] if mirrored else pixels

        return self.read(self.order.indices(batch), decode)


@dataclasses.dataclass(frozen=True)
class _TestReader(_Reader):
    """Reads test batches, given their indices and weights."""

    def __call__(self, batch: tuple[Indices, np.ndarray]) -> dict[str, np.ndarray]:
        indices, weight = batch
        return {**self.read(indices, self.decode_center), "weight": self.process.part(weight)}
