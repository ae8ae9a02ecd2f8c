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
from jaxtyping import Int, Int32, UInt8

from dropcluster_jax._optional import optional_import
from dropcluster_jax.data.dataset import Dataset
from dropcluster_jax.data.decoding import CorruptImageError, Pixels, decode_center, decode_random_crop
from dropcluster_jax.data.examples import ArrayExamples, Examples, decode_block
from dropcluster_jax.data.loaders.loader import Batch, BatchIterator, check_divisible, round_up
from dropcluster_jax.data.sampler import CROP_STREAM, BatchSampler, check_integer, evaluation_indices, probe_indices
from dropcluster_jax.sharding import num_shards, shard_batch

_PREFETCH = 2  # Batches buffered on the device, and in each worker.


class GrainLoader:
    """Streams batches that Grain reads ahead. See `Loader` for the methods and `make_loader` for the options.

    Each batch is read by one thread or worker, and transferred to the device while the previous one is in use. With
    multiple processes, each reads its part of every batch and needs access to all files.

    A corrupt training image that is skipped is replaced by the next valid one, and a skipped test image has the weight
    0; both are listed in `skipped`. `process_index` and `process_count` are by default JAX's.

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
        skip_corrupt: bool = False,
        process_index: int | None = None,
        process_count: int | None = None,
    ) -> None:
        with optional_import("Grain"):
            import grain

        self._grain = grain
        process_index = jax.process_index() if process_index is None else process_index
        process_count = jax.process_count() if process_count is None else process_count
        self._sampler = BatchSampler(len(dataset.train), batch_size, seed, process_index, process_count)
        check_divisible(batch_size, sharding)
        check_integer("workers", workers, 0)
        self._sharding, self._workers = sharding, workers
        self._divisor = math.lcm(num_shards(sharding), process_count)
        reader = _Reader(dataset.train, dataset.image_size, len(dataset.classes), skip_corrupt)
        self._train = _TrainingSource(reader, self._sampler, random_crop, flip)
        self._test = dataclasses.replace(reader, examples=dataset.test)
        self.skipped: list[str] = []

    def train(self) -> BatchIterator:
        """See `Loader.train`."""
        return BatchIterator(self._sampler, lambda first: self._stream(dataclasses.replace(self._train, first=first)))

    def test(self, batch_size: int | None = None) -> Iterator[Batch]:
        """See `Loader.test`. Corrupt images raise `CorruptImageError`, with `skip_corrupt` only if all are."""
        sampler, num_examples = self._sampler, len(self._test.examples)
        size = round_up(sampler.batch_size if batch_size is None else batch_size, self._divisor)
        batches = list(evaluation_indices(num_examples, size, sampler.process_index, sampler.process_count))
        return self._stream(_TestSource(self._test, batches), num_examples)

    def probe(self, size: int, update: int) -> Batch:
        """See `Loader.probe`. Corrupt images raise `CorruptImageError`, with `skip_corrupt` only if all are."""
        sampler = self._sampler
        indices = probe_indices(sampler.num_examples, size, sampler.seed, update)
        part = len(indices) // self._divisor * self._divisor // sampler.process_count
        batch, skipped = self._train.reader.read(indices[sampler.process_index * part :][:part])
        self._record_skipped(skipped)
        return shard_batch(batch, self._sharding)

    def _stream(self, source: Any, num_examples: int | None = None) -> Iterator[Batch]:
        """Yields the batches of a source, read ahead by Grain; an error if all `num_examples` are corrupt."""
        grain = self._grain
        threads = 1 if self._workers else _num_cores()
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 1)
        batches = grain.MapDataset.source(source).to_iter_dataset(options)
        if self._workers:
            batches = self._in_workers(batches)
        batches = batches.map(lambda item: (shard_batch(item[0], self._sharding), item[1]))
        prefetched = iter(grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=_PREFETCH))
        all_skipped: dict[str, None] = {}  # An ordered set.
        try:
            for batch, skipped in prefetched:
                self._record_skipped(skipped)
                all_skipped |= dict.fromkeys(skipped)
                if len(all_skipped) == num_examples:
                    raise CorruptImageError(f"all test images were skipped, the first: {next(iter(all_skipped))}")
                yield batch
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

    def _record_skipped(self, skipped: list[str]) -> None:
        self.skipped += [message for message in skipped if message not in self.skipped]


def _num_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ---- The code below runs in Grain's threads and workers and must not use JAX.


HostBatch = tuple[dict[str, np.ndarray], list[str]]  # A batch, and the reasons for images skipped while reading it.


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads batches of examples; encoded ones are cropped."""

    examples: Examples
    size: int | None
    num_classes: int
    skip_corrupt: bool

    def read(self, indices: Int[np.ndarray, " _"], crops: "_Crops | None" = None) -> HostBatch:
        """Reads examples; a corrupt one is replaced by the next valid one."""
        if isinstance(self.examples, ArrayExamples):
            examples = self.examples.take(indices)
            return {"image": examples.images, "label": examples.labels}, []
        images, labels, skipped = self._decode(indices, crops)
        for position in np.flatnonzero(labels < 0):
            for offset in range(1, len(self.examples)):
                substitute = np.array([(indices[position] + offset) % len(self.examples)])
                image, label, more_skipped = self._decode(substitute, crops)
                skipped += more_skipped
                if label[0] >= 0:
                    images[position], labels[position] = image[0], label[0]
                    break
            else:
                raise CorruptImageError(f"all images were skipped, the first: {skipped[0]}")
        return {"image": images, "label": labels}, skipped

    def read_weighted(self, indices: Int[np.ndarray, " _"], weight: np.ndarray) -> HostBatch:
        """Reads weighted examples; the weight of a corrupt one is set to 0."""
        if isinstance(self.examples, ArrayExamples):
            batch, skipped = self.read(indices)
            return {**batch, "weight": weight}, skipped
        images, labels, skipped = self._decode(indices, None)
        weight = np.where(labels < 0, 0, weight).astype(np.float32)
        return {"image": images, "label": np.maximum(labels, 0), "weight": weight}, skipped

    def _decode(
        self, indices: Int[np.ndarray, " batch"], crops: "_Crops | None"
    ) -> tuple[UInt8[np.ndarray, "batch size size 3"], Int32[np.ndarray, " batch"], list[str]]:
        """Returns images, labels, and the reasons for skipped images, whose label is -1."""
        assert not isinstance(self.examples, ArrayExamples) and self.size
        size = self.size

        def decode_image(index: int, encoded: bytes, location: str) -> Pixels:
            if crops is None:
                return decode_center(encoded, location, size)
            return crops.decode(index, encoded, location, size)

        images, labels = np.zeros((len(indices), size, size, 3), np.uint8), np.full(len(indices), -1, np.int32)
        skipped = []
        decoded = decode_block(self.examples, indices.tolist(), self.num_classes, decode_image)
        for position, result in enumerate(decoded):
            if not isinstance(result, CorruptImageError):
                images[position], labels[position] = result
            elif self.skip_corrupt:
                skipped.append(str(result))
            else:
                raise result
        return images, labels, skipped


@dataclasses.dataclass(frozen=True)
class _Crops:
    """The crops of an epoch's training images, a function of the seed, the epoch and the example's index."""

    seed: int
    epoch: int
    random: bool
    flip: bool

    def decode(self, index: int, encoded: bytes, location: str, size: int) -> Pixels:
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, self.epoch, index], spawn_key=CROP_STREAM))
        mirrored = self.flip and bool(rng.integers(2))
        if self.random:
            pixels = decode_random_crop(encoded, location, size, rng)
        else:
            pixels = decode_center(encoded, location, size)
        return pixels[:, ::-1] if mirrored else pixels


@dataclasses.dataclass(frozen=True)
class _TrainingSource:
    """A Grain data source of training batches, starting at the batch `first`."""

    reader: _Reader
    sampler: BatchSampler
    random_crop: bool
    flip: bool
    first: int = 0

    def __len__(self) -> int:
        return sys.maxsize - self.first

    def __getitem__(self, index: int) -> HostBatch:
        batch = self.first + index
        crops = _Crops(self.sampler.seed, batch // self.sampler.batches_per_epoch, self.random_crop, self.flip)
        return self.reader.read(self.sampler.indices(batch), crops)


@dataclasses.dataclass(frozen=True)
class _TestSource:
    """A Grain data source of test batches: indices and weights."""

    reader: _Reader
    batches: list[tuple[np.ndarray, np.ndarray]]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> HostBatch:
        return self.reader.read_weighted(*self.batches[index])
