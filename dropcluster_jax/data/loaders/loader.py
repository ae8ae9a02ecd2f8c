"""The face that both loaders show: training batches that know where they are, test batches, probe batches."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

from jax.sharding import NamedSharding

from dropcluster_jax.data.sampler import BatchSampler, check_integer
from dropcluster_jax.sharding import check_automatic, num_shards

Batch = dict[str, Any]


class BatchIterator:
    """Training batches without end; an iterator that says where it is, and goes there.

    Each batch is a dict of `"image"`, uint8 `(batch_size, height, width, channels)`, and `"label"`, int32
    `(batch_size,)`.

    Args:
        sampler: which examples are in which batch.
        start: gives an iterator that begins at a batch of this number.

    Example:
        >>> sampler = BatchSampler(examples=10, batch_size=5, seed=0)
        >>> batches = BatchIterator(sampler, lambda first: iter({"number": i} for i in range(first, 100)))
        >>> [next(batches)["number"] for _ in range(3)]
        [0, 1, 2]
        >>> state = batches.get_state()
        >>> state
        {'epoch': 1, 'batch': 1, 'examples': 10, 'batch_size': 5, 'seed': 0}
        >>> _ = next(batches), batches.set_state(state)
        >>> next(batches)["number"]
        3
    """

    def __init__(self, sampler: BatchSampler, start: Callable[[int], Iterator[Batch]]) -> None:
        self._sampler, self._start = sampler, start
        self._number = 0
        self._iterator: Iterator[Batch] | None = None

    def __iter__(self) -> "BatchIterator":
        return self

    def __next__(self) -> Batch:
        if self._iterator is None:
            self._iterator = self._start(self._number)
        batch = next(self._iterator)
        self._number += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """Where it is, as JSON takes it: how many epochs are over, how many batches of this one were given.

        Returns:
            `epoch` and `batch`, from 0 on; and whose place it is: `examples`, `batch_size`, `seed`.
        """
        epoch, batch = divmod(self._number, self._sampler.batches_per_epoch)
        return {"epoch": epoch, "batch": batch, **self._identity()}

    def set_state(self, state: dict[str, int]) -> None:
        """Go where `state` says.

        Args:
            state: what `get_state()` gave, of batches of the same examples, size and seed.

        Raises:
            ValueError: it is the state of another number of examples, batch size or seed, or is none.
        """
        here = self._identity()
        if set(state) != {"epoch", "batch", *here}:
            raise ValueError(f"state must hold epoch, batch, {', '.join(here)}, got {state}")
        for name, value in here.items():
            if state[name] != value:
                raise ValueError(f"state is of batches of another {name}: {state[name]} there and {value} here")
        self.close()
        self._number = state["epoch"] * self._sampler.batches_per_epoch + state["batch"]

    def close(self) -> None:
        """End what reads ahead; the next batch begins it anew."""
        close = getattr(self._iterator, "close", None)
        if close is not None:
            close()
        self._iterator = None

    def _identity(self) -> dict[str, int]:
        return {
            "examples": int(self._sampler.examples),
            "batch_size": int(self._sampler.batch_size),
            "seed": int(self._sampler.seed),
        }


@runtime_checkable
class Loader(Protocol):
    """How the examples of a data set get to the device.

    Attributes:
        skipped: for each image that was left out on the way, where it lies and why.

    Example:
        >>> from dropcluster_jax.data import load, make_loader
        >>> loader = make_loader(load("digits"), batch_size=32)
        >>> isinstance(loader, Loader), next(loader.train())["image"].shape, loader.probe(64, update=0)["image"].shape
        (True, (32, 8, 8, 1), (64, 8, 8, 1))
        >>> [int(batch["weight"].sum()) for batch in loader.test(100)]  # 360 examples; 40 only fill the last batch
        [100, 100, 100, 60]
    """

    skipped: list[str]

    def train(self) -> BatchIterator:
        """Shuffled training batches without end, from the first on.

        Returns:
            An iterator that says where it is. Its batches hold `"image"`, uint8
            `(batch_size, height, width, channels)`, and `"label"`, int32 `(batch_size,)`.
        """
        ...

    def test(self, batch_size: int | None = None) -> Iterator[Batch]:
        """Every test example once, in order, in batches of one size.

        Args:
            batch_size: examples in a batch, at least 1; the training batches', if not given. Where they are divided
                over devices, the next larger number that can be.

        Returns:
            BatchIterator as of `train`, which also hold `"weight"`, float32 `(batch_size,)`: 1 for an example, 0 for what
            only fills the last batch.

        Raises:
            TypeError, ValueError: `batch_size` is no integer, or less than 1.
        """
        ...

    def probe(self, size: int, update: int) -> Batch:
        """The training images that one update of the clusters learns from.

        Args:
            size: how many, at least 1; all where there are fewer. Where they are divided over devices, the next smaller
                number that can be.
            update: the number of the update, from 0 on; another update, other images.

        Returns:
            A batch as of `train`.

        Raises:
            TypeError, ValueError: a number is no integer, or out of range.
        """
        ...


def check_divisible(batch_size: int, sharding: NamedSharding | None) -> None:
    """Refuse a batch that cannot be divided over the devices.

    Raises:
        ValueError: with the number of devices; or the mesh's axes are not automatic.
    """
    if sharding is not None:
        check_automatic(sharding.mesh)
    if batch_size % num_shards(sharding):
        raise ValueError(
            f"batch_size must be a multiple of the {num_shards(sharding)} devices that a batch is divided over, "
            f"got {batch_size}"
        )


def divisible(batch_size: int, parts: int) -> int:
    """The least multiple of `parts` that is at least `batch_size`.

    Raises:
        TypeError, ValueError: `batch_size` is no integer, or less than 1.
    """
    check_integer("batch_size", batch_size, 1)
    return -(-batch_size // parts) * parts
