"""Shares of a training set: balanced over classes, chosen by a seed, the smaller inside the larger."""

import numpy as np
from jaxtyping import Int, Int32


def balanced_share(
    labels: Int32[np.ndarray, " examples"],
    *,
    fraction: float | None = None,
    per_class: int | None = None,
    seed: int = 0,
) -> Int[np.ndarray, " chosen"]:
    """The indices of a share of the examples, in their order.

    Each class gives its first examples in a random order of its own, so with one seed a smaller share lies inside a
    larger one, and a class's examples do not depend on the other classes.

    Args:
        labels: int32 `(examples,)`.
        fraction: the share of each class, above 0 and at most 1; rounded, at least one example of each.
        per_class: the number of examples of each class, instead of `fraction`.
        seed: at least 0; another seed, another share.

    Returns:
        Sorted indices, integers `(chosen,)`.

    Raises:
        ValueError: neither or both of `fraction` and `per_class`, one is out of range, or a class has fewer examples
            than `per_class`.

    Example:
        >>> labels = np.repeat(np.arange(2, dtype=np.int32), 50)
        >>> share = balanced_share(labels, fraction=0.1)
        >>> labels[share].tolist()
        [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]
        >>> set(share) < set(balanced_share(labels, per_class=20))
        True
    """
    if (fraction is None) == (per_class is None):
        raise ValueError(f"give one of fraction and per_class, got {fraction} and {per_class}")
    if fraction is not None and not 0 < fraction <= 1:
        raise ValueError(f"fraction must be above 0 and at most 1, got {fraction}")
    if per_class is not None and per_class < 1:
        raise ValueError(f"per_class must be at least 1, got {per_class}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")

    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = per_class if per_class is not None else max(1, round((fraction or 0) * len(members)))
        if count > len(members):
            raise ValueError(f"per_class must be at most {len(members)}, the examples of class {label}, got {count}")
        chosen.append(np.random.default_rng([seed, int(label)]).permutation(members)[:count])
    return np.sort(np.concatenate(chosen))
