"""Stratified subsets and splits of a dataset."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Int32

from dropcluster_jax.data.sampling import check_integer


def stratified_subset(
    labels: Int32[np.ndarray, " examples"],
    *,
    fraction: float | None = None,
    examples_per_class: int | None = None,
    seed: int = 0,
    classes: Sequence[str] | None = None,
) -> Int[np.ndarray, " subset"]:
    """Returns the indices of a random subset that is balanced over classes.

    Each class is shuffled independently and its first examples are taken. With the same seed, smaller subsets are
    therefore contained in larger ones, and the examples of a class do not depend on the other classes.

    Args:
        labels: Labels of all examples, int32 `(examples,)`.
        fraction: Fraction of each class, in (0, 1]; at least one example is taken.
        examples_per_class: Number of examples of each class, instead of `fraction`.
        seed: Selects the subset; at least 0.
        classes: Class names, indexed by label, for error messages.

    Returns:
        Sorted indices, integers `(subset,)`.

    Raises:
        ValueError: If not one of `fraction` and `examples_per_class` is given, or an argument is out of range.

    Example:
        >>> labels = np.repeat(np.arange(2, dtype=np.int32), 50)
        >>> subset = stratified_subset(labels, fraction=0.1)
        >>> labels[subset].tolist()
        [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]
        >>> set(subset) < set(stratified_subset(labels, examples_per_class=20))
        True
    """
    if (fraction is None) == (examples_per_class is None):
        raise ValueError(
            f"exactly one of fraction and examples_per_class must be given, got {fraction} and {examples_per_class}"
        )
    if fraction is not None and not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}")
    if examples_per_class is not None:
        check_integer("examples_per_class", examples_per_class, 1)
    check_integer("seed", seed, 0)

    subsets = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = examples_per_class if examples_per_class is not None else max(1, round((fraction or 0) * len(members)))
        if count > len(members):
            name = _name(label, classes)
            raise ValueError(
                f"examples_per_class must be at most {len(members)}, the size of class {name}, got {count}"
            )
        subsets.append(np.random.default_rng([seed, int(label)]).permutation(members)[:count])
    return np.sort(np.concatenate(subsets))


def stratified_split(
    labels: Int32[np.ndarray, " examples"], fraction: float, classes: Sequence[str] | None = None, seed: int = 0
) -> tuple[Int[np.ndarray, " kept"], Int[np.ndarray, " held_out"]]:
    """Splits off a fraction of each class.

    The split is a function of the labels and the seed, so that of runs with the same seed, none trains on examples that
    another one is evaluated on.

    Args:
        labels: Labels of all examples, int32 `(examples,)`.
        fraction: Fraction of each class to hold out, in (0, 1); at least one example is held out.
        classes: Class names, indexed by label, for error messages.
        seed: Selects the examples to hold out; at least 0.

    Returns:
        Sorted indices of the examples kept, and of those held out.

    Raises:
        ValueError: If `fraction` is out of range, or would hold out all examples of a class.

    Example:
        >>> labels = np.repeat(np.arange(2, dtype=np.int32), [10, 20])
        >>> train, test = stratified_split(labels, 0.2)
        >>> labels[test].tolist()
        [0, 0, 1, 1, 1, 1]
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be in (0, 1), got {fraction}")
    held_out = stratified_subset(labels, fraction=fraction, seed=seed)
    kept = np.setdiff1d(np.arange(len(labels)), held_out)
    exhausted = np.setdiff1d(labels, labels[kept])
    if len(exhausted):
        name = _name(exhausted[0], classes)
        raise ValueError(f"holding out the fraction {fraction} leaves class {name} without training examples")
    return kept, held_out


def _name(label: np.integer, classes: Sequence[str] | None) -> str:
    return str(label) if classes is None else repr(classes[int(label)])
