"""Means with 95 % intervals, and differences of runs that share a seed."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95


class Interval(NamedTuple):
    """A mean, and where the true one lies with 95 % confidence; without bounds for fewer than two values.

    Attributes:
        mean: of the values.
        low: the lower bound.
        high: the upper bound.
        number: how many values there are.
    """

    mean: float
    low: float
    high: float
    number: int


def interval(values: Sequence[float]) -> Interval:
    """Student's t interval of the mean.

    Args:
        values: of independent runs, at least one.

    Raises:
        ValueError: there is none.

    References:
        Student, "The Probable Error of a Mean", Biometrika 1908.

    Example:
        >>> [round(number, 2) for number in interval([1.0, 2.0, 3.0])]
        [2.0, -0.48, 4.48, 3]
    """
    if not values:
        raise ValueError("values must hold at least one")
    mean, number = float(np.mean(values)), len(values)
    if number < 2:
        return Interval(mean, -np.inf, np.inf, number)
    half = float(stats.t.ppf((1 + LEVEL) / 2, number - 1) * np.std(values, ddof=1) / number**0.5)
    return Interval(mean, mean - half, mean + half, number)


def paired(ours: Mapping[Any, float], theirs: Mapping[Any, float]) -> Interval | None:
    """The mean of the differences of runs with one key, a seed; None where no key is in both.

    Example:
        >>> difference = paired({0: 0.5, 1: 0.6}, {1: 0.5, 2: 0.9})
        >>> round(difference.mean, 3), difference.number
        (0.1, 1)
    """
    common = [key for key in ours if key in theirs]
    return interval([ours[key] - theirs[key] for key in common]) if common else None


def verdict(difference: Interval) -> str:
    """What a difference says: "better", "worse", or "not told apart"."""
    if difference.low > 0:
        return "better"
    return "worse" if difference.high < 0 else "not told apart"
