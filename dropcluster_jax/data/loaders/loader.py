"""The interface of loaders: training, test and probe batches."""

import abc
import math
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

from jax.sharding import NamedSharding

from dropcluster_jax.data.dataset import Dataset
from dropcluster_jax.data.sampling import (
    BatchOrder,
    Indices,
    WeightedIndices,
    check_integer,
    evaluation_indices,
    probe_indices,
)
from dropcluster_jax.sharding import check_automatic, num_shards

Batch = dict[str, Any]


class BatchIterator:
    """Infinite iterator over training batches with a checkpointable position.

    Follows the protocol of Grain's `DatasetIterator`. Batches are dicts of `"image"`, uint8
    `(batch_size, height, width, channels)`, and `"label"`, int32 `(batch_size,)`.

    Args:
        order: Assigns examples to batches.
        start: Function that takes the index of a batch and returns a generator that starts there.

    Example:
        >>> order = BatchOrder(num_examples=10, batch_size=5, seed=0)
        >>> batches = BatchIterator(order, lambda first: ({"index": i} for i in range(first, 100)))
        >>> [next(batches)["index"] for _ in range(3)]
        [0, 1, 2]
        >>> state = batches.get_state()
        >>> state
        {'epoch': 1, 'batch': 1, 'num_examples': 10, 'batch_size': 5, 'seed': 0}
        >>> _ = next(batches), batches.set_state(state)
        >>> next(batches)["index"]
        3
    """

    def __init__(self, order: BatchOrder, start: Callable[[int], Generator[Batch]]) -> None:
        self._order, self._start = order, start
        self._index = 0  # Of the next batch.
        self._iterator: Generator[Batch] | None = None

    def __iter__(self) -> "BatchIterator":
        return self

    def __next__(self) -> Batch:
        if self._iterator is None:
            self._iterator = self._start(self._index)
        batch = next(self._iterator)
        self._index += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """Returns the position of the next batch, from 0, and the settings that it is valid for; JSON-serializable."""
        epoch, batch = divmod(self._index, self._order.batches_per_epoch)
        return {"epoch": epoch, "batch": batch, **self._settings()}

    def set_state(self, state: dict[str, int]) -> None:
        """Moves to a position.

        Args:
            state: Result of `get_state` of an iterator with the same number of examples, batch size and seed.

        Raises:
            ValueError: If `state` is malformed, or belongs to an iterator with different settings.
        """
        settings = self._settings()
        if set(state) != {"epoch", "batch", *settings} or not settings.items() <= state.items():
            raise ValueError(f"state must contain epoch, batch, and {settings}, got {state}")
        self.close()
        self._index = state["epoch"] * self._order.batches_per_epoch + state["batch"]

    def close(self) -> None:
        """Stops reading ahead; the next batch starts it again."""
        if self._iterator is not None:
            self._iterator.close()
        self._iterator = None

    def _settings(self) -> dict[str, int]:
        return {name: int(value) for name, value in vars(self._order).items()}


class Loader(abc.ABC):
    """Delivers the examples of a dataset to the devices. See `make_loader` for the arguments.

    Example:
        >>> from dropcluster_jax.data import load, make_loader
        >>> loader = make_loader(load("digits"), batch_size=32)
        >>> isinstance(loader, Loader), next(loader.train())["image"].shape, loader.probe(64, update=0)["image"].shape
        (True, (32, 8, 8, 1), (64, 8, 8, 1))
        >>> [int(batch["weight"].sum()) for batch in loader.test(100)]  # The last of 4 batches is padded.
        [100, 100, 100, 60]
    """

    def __init__(
        self, dataset: Dataset, batch_size: int, seed: int, sharding: NamedSharding | None, process_count: int = 1
    ) -> None:
        self._order = BatchOrder(len(dataset.train), batch_size, seed)
        check_divisible(batch_size, sharding, process_count)
        self._num_test, self._sharding = len(dataset.test), sharding
        self._divisor = math.lcm(num_shards(sharding), process_count)

    def train(self) -> BatchIterator:
        """Returns an infinite iterator over shuffled training batches, starting at the first.

        Returns:
            Batches of `"image"`, uint8 `(batch_size, height, width, channels)`, and `"label"`, int32 `(batch_size,)`.
        """
        return BatchIterator(self._order, self._train_from)

    def test(self, batch_size: int | None = None) -> Iterator[Batch]:
        """Yields every test example once, in order, in batches of equal size.

        Args:
            batch_size: Examples per batch, at least 1; by default that of the training batches. Rounded up to a
                multiple of the number of shards.

        Returns:
            Batches that also contain `"weight"`, float32 `(batch_size,)`: 1 for examples and 0 for the padding of the
            last batch.

        Raises:
            TypeError: If `batch_size` is not an integer.
            ValueError: If `batch_size` is less than 1.
        """
        size = self._order.batch_size if batch_size is None else batch_size
        check_integer("batch_size", size, 1)
        rounded = -(-size // self._divisor) * self._divisor
        return self._test_batches(evaluation_indices(self._num_test, rounded))

    def probe(self, size: int, update: int) -> Batch:
        """Returns the probe batch of a cluster update: training images drawn without replacement.

        Args:
            size: Number of examples, at least 1, and at most all of them. Rounded down to a multiple of the number of
                shards.
            update: Index of the update, from 0. Each update has its own probe batch.

        Returns:
            A batch like those of `train`.

        Raises:
            TypeError: If an argument is not an integer.
            ValueError: If an argument is out of range.
        """
        indices = probe_indices(self._order.num_examples, size, self._order.seed, update)
        return self._probe_batch(indices[: len(indices) // self._divisor * self._divisor])

    @abc.abstractmethod
    def _train_from(self, first: int) -> Generator[Batch]:
        """Yields the training batches from the one with the index `first`."""

    @abc.abstractmethod
    def _test_batches(self, batches: Iterable[WeightedIndices]) -> Iterator[Batch]:
        """Yields test batches, given the indices and weights of their examples."""

    @abc.abstractmethod
    def _probe_batch(self, indices: Indices) -> Batch:
        """Returns a batch of training images."""


def check_divisible(batch_size: int, sharding: NamedSharding | None, process_count: int = 1) -> None:
    """Checks that a batch can be split evenly over devices, on automatic mesh axes, and over processes."""
    if sharding is not None:
        check_automatic(sharding.mesh)
    for name, count in (("devices", num_shards(sharding)), ("processes", process_count)):
        if batch_size % count:
            raise ValueError(
                f"batch_size must be a multiple of the {count} {name} that batches are sharded over, got {batch_size}"
            )
