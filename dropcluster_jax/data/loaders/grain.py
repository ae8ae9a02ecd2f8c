"""The loader for datasets that do not fit into memory; Grain reads, decodes and crops batches ahead on the host."""

import dataclasses
import functools
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Shaped

from dropcluster_jax._optional import optional_import
from dropcluster_jax.data.dataset import Dataset
from dropcluster_jax.data.decoding import Pixels, decode_center, decode_random_crop
from dropcluster_jax.data.examples import ArrayExamples, Examples
from dropcluster_jax.data.loaders.loader import Batch, Loader
from dropcluster_jax.data.reading import read_block
from dropcluster_jax.data.sampling import CROP_STREAM, BatchOrder, Indices, WeightedIndices, check_integer
from dropcluster_jax.sharding import shard_batch

_PREFETCH = 2  # Batches buffered on the device, and in each worker.


class GrainLoader(Loader):
    """Streams batches that Grain reads ahead. See `Loader` for the methods and `make_loader` for the options.

    Each batch is read by one thread or worker, and transferred to the device while the previous one is in use. With
    multiple processes, each reads its part of every batch and needs access to all files. Corrupt images raise
    `CorruptImageError`.

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
    ) -> None:
        with optional_import("Grain"):
            import grain

        check_integer("workers", workers, 0)
        process = (jax.process_index(), jax.process_count())
        super().__init__(dataset, batch_size, seed, sharding, process[1])
        self._grain, self._workers = grain, workers
        self._train = _Reader(dataset.train, dataset.image_size, self._order, process, random_crop, flip)
        self._test = dataclasses.replace(self._train, examples=dataset.test)

    def _train_from(self, first: int) -> Generator[Batch]:
        return self._stream(self._grain.MapDataset.range(first, sys.maxsize).map(self._train.training_batch))

    def _test_batches(self, batches: Iterable[WeightedIndices]) -> Iterator[Batch]:
        return self._stream(self._grain.MapDataset.source(list(batches)).map(self._test.test_batch))

    def _probe_batch(self, indices: Indices) -> Batch:
        return shard_batch(self._train.read(indices), self._sharding)

    def _stream(self, host_batches: Any) -> Generator[Batch]:
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
        batches = batches.mp_prefetch(options, _initialize_worker)
        # Shared memory leaks if a stream is closed early, pipes do not: https://github.com/google/grain/issues/398
        pipes = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
        return grain.experimental.WithOptionsIterDataset(batches, pipes)


def _initialize_worker(index: int, count: int) -> None:
    """Leaves signals and warnings to the main process, which needs batches until it stops, and ends with it."""
    warnings.filterwarnings("ignore", module="PIL")
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _num_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads this process's part of a batch of examples; runs in Grain's threads and workers and must not use JAX."""

    examples: Examples
    size: int | None  # The side to which encoded images are cropped.
    order: BatchOrder
    process: tuple[int, int]  # Its index and the number of processes.
    random_crop: bool
    flip: bool

    def training_batch(self, batch: int) -> dict[str, np.ndarray]:
        return self.read(self.order.indices(batch), batch // self.order.batches_per_epoch)

    def test_batch(self, batch: WeightedIndices) -> dict[str, np.ndarray]:
        indices, weight = batch
        return {**self.read(indices), "weight": self._part(weight)}

    def read(self, indices: Indices, epoch: int | None = None) -> dict[str, np.ndarray]:
        """Returns examples, cropped as in an epoch of training, or at the center."""
        indices = self._part(indices)
        if isinstance(self.examples, ArrayExamples):
            return {"image": self.examples.images[indices], "label": self.examples.labels[indices]}
        decoded = read_block(self.examples, indices.tolist(), functools.partial(self._decode, epoch))
        images, labels = zip(*decoded, strict=True)
        return {"image": np.stack(images), "label": np.array(labels, np.int32)}

    def _decode(self, epoch: int | None, encoded: bytes, location: str, index: int) -> Pixels:
        """Crops an image at random if asked to, as a function of the seed, the epoch and the example's index."""
        assert self.size is not None
        if epoch is None:
            return decode_center(encoded, location, self.size)
        sequence = np.random.SeedSequence([self.order.seed, epoch, index], spawn_key=CROP_STREAM)
        rng = np.random.default_rng(sequence)
        mirrored = self.flip and bool(rng.integers(2))
        if self.random_crop:
            pixels = decode_random_crop(encoded, location, self.size, rng)
        else:
            pixels = decode_center(encoded, location, self.size)
        return pixels[:, ::-1] if mirrored else pixels

    def _part(self, batch: Shaped[np.ndarray, " batch"]) -> Shaped[np.ndarray, " part"]:
        index, count = self.process
        return np.split(batch, count)[index]
