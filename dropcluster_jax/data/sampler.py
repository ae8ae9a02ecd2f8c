"""Which examples are in which batch: pure NumPy, the same on every loader, machine and number of processes.

What a batch holds depends on the seed and its number, on nothing that came before: a run that starts again in the
middle meets the batches it would have met.
"""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float32, Int

Indices = Int[np.ndarray, " _"]

# What sets random streams of one seed apart; the epochs' own has none.
PROBE_STREAM, CROP_STREAM = (1,), (2,)


@dataclasses.dataclass(frozen=True)
class BatchSampler:
    """The order of shuffled training batches, without end, each example at most once an epoch.

    Epoch e takes the examples in the order `np.random.default_rng([seed, e]).permutation(examples)`; those at its end
    that do not fill a batch are left out. Of several processes each takes its part of every batch, in their order.

    Attributes:
        examples: how many there are.
        batch_size: examples in a batch, of all processes together; at most all examples.
        seed: at least 0.
        process: the number of this process.
        processes: how many there are; `batch_size` is a multiple of it.

    Raises:
        TypeError: one of them is no integer.
        ValueError: one of them is out of range.

    Example:
        >>> order = BatchSampler(examples=5, batch_size=2, seed=0)
        >>> order.batches_per_epoch, len({int(i) for batch in (0, 1) for i in order.indices(batch)})
        (2, 4)
    """

    examples: int
    batch_size: int
    seed: int
    process: int = 0
    processes: int = 1

    def __post_init__(self) -> None:
        if self.examples == 0:
            raise ValueError("a training set must hold an example, got none")
        check_integer("batch_size", self.batch_size, 1, self.examples)
        check_integer("seed", self.seed, 0)
        check_integer("processes", self.processes, 1)
        check_integer("process", self.process, 0)
        if self.process >= self.processes:
            raise ValueError(f"process must be below the {self.processes} processes, got {self.process}")
        if self.batch_size % self.processes:
            raise ValueError(f"batch_size must be a multiple of the {self.processes} processes, got {self.batch_size}")

    @property
    def batches_per_epoch(self) -> int:
        """How many batches an epoch has."""
        return self.examples // self.batch_size

    def indices(self, batch: int) -> Indices:
        """The examples of this process in batch number `batch`, counted over all epochs from 0."""
        epoch, place = divmod(batch, self.batches_per_epoch)
        part = self.batch_size // self.processes
        start = place * self.batch_size + self.process * part
        return _permutation(self.examples, self.seed, epoch)[start : start + part]


@functools.lru_cache(maxsize=4)
def _permutation(examples: int, seed: int, epoch: int) -> Indices:
    permutation = np.random.default_rng([seed, epoch]).permutation(examples)
    permutation.setflags(write=False)
    return permutation


def probe_indices(examples: int, size: int, seed: int, update: int) -> Indices:
    """The examples of one update's probe batch: drawn without replacement, from a random stream of their own.

    Args:
        examples: how many there are to draw from.
        size: how many are drawn; where there are fewer, all are.
        seed: at least 0.
        update: the number of the update, at least 0; each has a batch of its own.

    Returns:
        Distinct indices.

    Raises:
        TypeError: a number that is no integer.
        ValueError: a number out of range.

    Example:
        >>> sorted(probe_indices(5, size=256, seed=0, update=1).tolist())
        [0, 1, 2, 3, 4]
    """
    check_integer("size", size, 1)
    check_integer("seed", seed, 0)
    check_integer("update", update, 0)
    rng = np.random.default_rng(np.random.SeedSequence([seed, update], spawn_key=PROBE_STREAM))
    return rng.choice(examples, min(size, examples), replace=False)


def evaluation_indices(
    examples: int, batch_size: int, process: int = 0, processes: int = 1
) -> Iterator[tuple[Indices, Float32[np.ndarray, " _"]]]:
    """All examples once, in order, in batches of one size, and the weight of each.

    Args:
        examples: how many there are.
        batch_size: examples in a batch, of all processes together: a multiple of `processes`.
        process: the number of this process, which takes its part of every batch.
        processes: how many there are.

    Returns:
        An iterator over this process's indices and weights: 1 for an example; 0 for what only fills the last batch,
        which is the first example again.

    Example:
        >>> for indices, weight in evaluation_indices(3, batch_size=2):
        ...     print(indices.tolist(), weight.tolist())
        [0, 1] [1.0, 1.0]
        [2, 0] [1.0, 0.0]
    """
    part = batch_size // processes
    for begin in range(0, examples, batch_size):
        places = begin + process * part + np.arange(part)
        yield np.where(places < examples, places, 0), (places < examples).astype(np.float32)


def check_integer(name: str, value: int, least: int, most: int | None = None) -> None:
    """Refuse what is no integer, or out of range."""
    if not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < least or (most is not None and value > most):
        allowed = f"at least {least}" if most is None else f"from {least} to {most}, the number of images"
        raise ValueError(f"{name} must be {allowed}, got {value}")
