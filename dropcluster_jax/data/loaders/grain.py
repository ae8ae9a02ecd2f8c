"""The loader of data sets that do not fit: read, decoded and cropped on the host ahead of time, by Grain."""

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
from dropcluster_jax.data.loaders.loader import Batch, BatchIterator, check_divisible, divisible
from dropcluster_jax.data.sampler import CROP_STREAM, BatchSampler, check_integer, evaluation_indices, probe_indices
from dropcluster_jax.sharding import num_shards, shard_batch

_AHEAD = 2  # batches that wait on the device, and at each worker


class GrainLoader:
    """Batches that Grain reads ahead; see `Loader`.

    A batch is read whole by one thread or worker, and put on the device while the one before it is used. Each process
    reads its part of every batch, and needs the same files.

    Args:
        dataset: encoded images with a size, or arrays.
        batch_size: examples in a batch, of all processes together.
        seed: decides the order, the crops and the probe batches.
        sharding: how batches are divided over devices, along their first axis; None is one device.
        random_crop: of encoded images: train on a random part of each, resized, instead of its middle.
        flip: of encoded images: mirror half of the training images.
        workers: processes that read; 0 reads by a thread for each processor.
        skip_corrupt: of encoded images: leave out those that cannot be trained on. In training the next sound one stands
            in, in evaluation its weight is 0; `skipped` says where each lies and why.
        process: the number of this process; JAX's own, if not given.
        processes: how many there are.

    Raises:
        ImportError: Grain is not installed.
        TypeError: a number is no integer.
        ValueError: a number is out of range, or `batch_size` no multiple of the processes and devices.

    Example:
        >>> from dropcluster_jax.data import InMemoryLoader, load
        >>> digits = load("digits")
        >>> batches = GrainLoader(digits, batch_size=32).train()
        >>> batch, other = next(batches), next(InMemoryLoader(digits, batch_size=32).train())  # the same by either loader
        >>> batch["image"].shape, bool((batch["image"] == other["image"]).all())
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
        process: int | None = None,
        processes: int | None = None,
    ) -> None:
        with optional_import("Grain"):
            import grain

        self._grain = grain
        process = jax.process_index() if process is None else process
        processes = jax.process_count() if processes is None else processes
        self._sampler = BatchSampler(len(dataset.train), batch_size, seed, process, processes)
        check_divisible(batch_size, sharding)
        check_integer("workers", workers, 0)
        self._parts = math.lcm(num_shards(sharding), processes)
        self._dataset, self._sharding, self._workers = dataset, sharding, workers
        reader = _Reader(dataset.train, dataset.image_size, len(dataset.classes), skip_corrupt)
        self._train = _TrainingBatches(reader, self._sampler, random_crop, flip)
        self._test = dataclasses.replace(reader, examples=dataset.test)
        self.skipped: list[str] = []

    def train(self) -> BatchIterator:
        """Shuffled training batches without end; see `Loader.train`."""
        return BatchIterator(self._sampler, lambda first: self._read(dataclasses.replace(self._train, first=first)))

    def test(self, batch_size: int | None = None) -> Iterator[Batch]:
        """Every test example once; see `Loader.test`.

        Args:
            batch_size: examples in a batch, at least 1; the training batches', if not given.

        Raises:
            TypeError, ValueError: `batch_size` is no integer, or less than 1.
            CorruptImageError: an image that cannot be tested on, or with `skip_corrupt` none that can; while batches are read.
        """
        sampler = self._sampler
        size = divisible(sampler.batch_size if batch_size is None else batch_size, self._parts)
        batches = list(evaluation_indices(len(self._test.examples), size, sampler.process, sampler.processes))
        return self._read(_TestBatches(self._test, batches), len(self._test.examples))

    def probe(self, size: int, update: int) -> Batch:
        """The training images of an update of the clusters; see `Loader.probe`.

        Args:
            size: how many, at least 1; all where there are fewer.
            update: the number of the update, from 0 on.

        Raises:
            TypeError, ValueError: a number is no integer, or out of range.
            CorruptImageError: an image that cannot be trained on, or with `skip_corrupt` none that can.
        """
        sampler = self._sampler
        indices = probe_indices(sampler.examples, size, sampler.seed, update)
        part = len(indices) // self._parts * self._parts // sampler.processes
        batch, skipped = self._train.reader.read(indices[sampler.process * part :][:part])
        self._note(skipped)
        return shard_batch(batch, self._sharding)

    def _read(self, source: Any, examples: int | None = None) -> Iterator[Batch]:
        """The batches of a source, read ahead and put on the device by Grain; not all of its `examples` are bad."""
        grain = self._grain
        threads = 1 if self._workers else os.cpu_count() or 1
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 1)
        batches = grain.MapDataset.source(source).to_iter_dataset(options)
        if self._workers:
            from absl import flags

            if not flags.FLAGS.is_parsed():  # Grain starts no worker before; none of its flags is wanted
                flags.FLAGS.mark_as_parsed()
            workers = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=_AHEAD)
            # Through pipes: of shared memory Grain leaves some behind when a stream is closed.
            pipes = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
            batches = grain.experimental.WithOptionsIterDataset(batches.mp_prefetch(workers), pipes)
        batches = batches.map(lambda read: (shard_batch(read[0], self._sharding), read[1]))
        ahead = iter(grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=_AHEAD))
        met: dict[str, None] = {}  # in order, each once
        try:
            for batch, skipped in ahead:
                self._note(skipped)
                met |= dict.fromkeys(skipped)
                if len(met) == examples:
                    raise CorruptImageError(f"no test image is left: all were skipped, the first: {next(iter(met))}")
                yield batch
        finally:
            ahead.close()

    def _note(self, skipped: list[str]) -> None:
        self.skipped += [message for message in skipped if message not in self.skipped]


# ---- What runs in threads and workers of Grain: no JAX


Read = tuple[dict[str, np.ndarray], list[str]]  # a batch, and what was skipped to make it


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads examples, and crops the encoded ones to the middle."""

    examples: Examples
    size: int | None
    num_classes: int
    skip_corrupt: bool

    def read(self, indices: Int[np.ndarray, " _"], crops: "_Crops | None" = None) -> Read:
        """These examples; where one is bad the next sound one stands in."""
        if isinstance(self.examples, ArrayExamples):
            taken = self.examples.take(indices)
            return {"image": taken.images, "label": taken.labels}, []
        images, labels, skipped = self._decode(indices, crops)
        for place in np.flatnonzero(labels < 0):
            for step in range(1, len(self.examples)):
                stand_in = np.array([(indices[place] + step) % len(self.examples)])
                image, label, more = self._decode(stand_in, crops)
                skipped += more
                if label[0] >= 0:
                    images[place], labels[place] = image[0], label[0]
                    break
            else:
                raise CorruptImageError(f"no image is left: all were skipped, the first: {skipped[0]}")
        return {"image": images, "label": labels}, skipped

    def read_weighted(self, indices: Int[np.ndarray, " _"], weight: np.ndarray) -> Read:
        """These examples; a bad one has the weight 0."""
        if isinstance(self.examples, ArrayExamples):
            batch, skipped = self.read(indices)
            return {**batch, "weight": weight}, skipped
        images, labels, skipped = self._decode(indices, None)
        weight = np.where(labels < 0, 0, weight).astype(np.float32)
        return {"image": images, "label": np.maximum(labels, 0), "weight": weight}, skipped

    def _decode(
        self, indices: Int[np.ndarray, " batch"], crops: "_Crops | None"
    ) -> tuple[UInt8[np.ndarray, "batch size size 3"], Int32[np.ndarray, " batch"], list[str]]:
        """Images and labels, -1 for a bad one."""
        assert not isinstance(self.examples, ArrayExamples) and self.size
        size = self.size

        def decode_one(index: int, encoded: bytes, where: str) -> Pixels:
            if crops is None:
                return decode_center(encoded, where, size)
            return crops.decode(index, encoded, where, size)

        images, labels = np.zeros((len(indices), size, size, 3), np.uint8), np.full(len(indices), -1, np.int32)
        skipped = []
        for place, one in enumerate(decode_block(self.examples, indices.tolist(), self.num_classes, decode_one)):
            if not isinstance(one, CorruptImageError):
                images[place], labels[place] = one
            elif self.skip_corrupt:
                skipped.append(str(one))
            else:
                raise one
        return images, labels, skipped


@dataclasses.dataclass(frozen=True)
class _Crops:
    """How training images are cropped in one epoch: a function of the seed, the epoch and the example."""

    seed: int
    epoch: int
    random: bool
    flip: bool

    def decode(self, index: int, encoded: bytes, where: str, size: int) -> Pixels:
        """A random part of an image, or its middle, mirrored or not."""
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, self.epoch, index], spawn_key=CROP_STREAM))
        mirrored = self.flip and bool(rng.integers(2))
        pixels = decode_random_crop(encoded, where, size, rng) if self.random else decode_center(encoded, where, size)
        return pixels[:, ::-1] if mirrored else pixels


@dataclasses.dataclass(frozen=True)
class _TrainingBatches:
    """Batches by their number: what Grain reads from."""

    reader: _Reader
    sampler: BatchSampler
    random_crop: bool
    flip: bool
    first: int = 0

    def __len__(self) -> int:
        return sys.maxsize - self.first

    def __getitem__(self, number: int) -> Read:
        number += self.first
        epoch = number // self.sampler.batches_per_epoch
        return self.reader.read(self.sampler.indices(number), _Crops(self.sampler.seed, epoch, self.random_crop, self.flip))


@dataclasses.dataclass(frozen=True)
class _TestBatches:
    reader: _Reader
    batches: list[tuple[np.ndarray, np.ndarray]]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> Read:
        return self.reader.read_weighted(*self.batches[number])
