"""Shares of a training set: balanced over classes, chosen by a seed, the smaller inside the larger."""

import numpy as np
from jaxtyping import Int, Int32


def stratified_subset(
    labels: Int32[np.ndarray, " examples"],
    *,
    fraction: float | None = None,
    examples_per_class: int | None = None,
    seed: int = 0,
) -> Int[np.ndarray, " chosen"]:
    """The indices of a share of the examples, in their order.

    Each class gives its first examples in a random order of its own, so with one seed a smaller share lies inside a
    larger one, and a class's examples do not depend on the other classes.

    Args:
        labels: int32 `(examples,)`.
        fraction: the share of each class, above 0 and at most 1; rounded, at least one example of each.
        examples_per_class: the number of examples of each class, instead of `fraction`.
        seed: at least 0; another seed, another share.

    Returns:
        Sorted indices, integers `(chosen,)`.

    Raises:
        ValueError: neither or both of `fraction` and `examples_per_class`, one is out of range, or a class has fewer examples
            than `examples_per_class`.

    Example:
        >>> labels = np.repeat(np.arange(2, dtype=np.int32), 50)
        >>> share = stratified_subset(labels, fraction=0.1)
        >>> labels[share].tolist()
        [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]
        >>> set(share) < set(stratified_subset(labels, examples_per_class=20))
        True
    """
    if (fraction is None) == (examples_per_class is None):
        raise ValueError(f"give one of fraction and examples_per_class, got {fraction} and {examples_per_class}")
    if fraction is not None and not 0 < fraction <= 1:
        raise ValueError(f"fraction must be above 0 and at most 1, got {fraction}")
    if examples_per_class is not None and examples_per_class < 1:
        raise ValueError(f"examples_per_class must be at least 1, got {examples_per_class}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")

    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = examples_per_class if examples_per_class is not None else max(1, round((fraction or 0) * len(members)))
        if count > len(members):
            raise ValueError(
                f"examples_per_class must be at most {len(members)}, the examples of class {label}, got {count}"
            )
        chosen.append(np.random.default_rng([seed, int(label)]).permutation(members)[:count])
    return np.sort(np.concatenate(chosen))


def stratified_split(
    labels: Int32[np.ndarray, " examples"], test_fraction: float
) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " test"]]:
    """The indices to train and to test on, where the examples come undivided.

    A share of each class, the same one for the same labels: no run trains on what another is tested on, as long as no
    example is added or removed.

    Args:
        labels: of all examples.
        test_fraction: the share of each class to test on, above 0 and below 1.

    Returns:
        Sorted indices of training and of test.

    Raises:
        ValueError: the share is out of range, or leaves a class without a training image.
    """
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction must be above 0 and below 1, got {test_fraction}")
    test = stratified_subset(labels, fraction=test_fraction)
    train = np.setdiff1d(np.arange(len(labels)), test)
    missing = set(labels.tolist()) - set(labels[train].tolist())
    if missing:
        raise ValueError(f"test_fraction {test_fraction} leaves class {min(missing)} without a training image")
    return train, test
