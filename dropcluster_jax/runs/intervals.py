"""Confidence intervals of mean accuracies."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95
_MAX_SEEDS = 1000


class Interval(NamedTuple):
    """A mean and its 95% confidence interval.

    Attributes:
        mean: Mean of the values.
        low: Lower bound, minus infinity for a single value.
        high: Upper bound, infinity for a single value.
        num_values: Number of values.
    """

    mean: float
    low: float
    high: float
    num_values: int

    @property
    def half_width(self) -> float:
        """Distance from the mean to the bounds, infinity for a single value."""
        return self.high - self.mean

    @property
    def excludes_zero(self) -> bool:
        """Whether all values in the interval have the same sign."""
        return self.low > 0 or self.high < 0


def interval(values: Sequence[float], test_ratio: float = 0.0) -> Interval:
    """Returns Student's t interval of the mean of values.

    Args:
        values: Results with different seeds.
        test_ratio: 0 if the values are independent. For results on repeated random splits, whose training images
            overlap: the number of held-out images divided by the number of training images, by which the variance of
            the mean is corrected.

    Raises:
        ValueError: If there are no values.

    References:
        Student, "The Probable Error of a Mean", Biometrika 1908.
        Nadeau, Bengio, "Inference for the Generalization Error", Machine Learning 52, 2003, equation 9: the correction.

    Example:
        >>> [round(bound, 2) for bound in interval([1.0, 2.0, 3.0])]
        [2.0, -0.48, 4.48, 3]
    """
    if not values:
        raise ValueError("values must contain at least one value")
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return Interval(mean, -math.inf, math.inf, count)
    half_width = float(_half_width(np.std(values, ddof=1), count, test_ratio))
    return Interval(mean, mean - half_width, mean + half_width, count)


def required_seeds(values: Sequence[float], test_ratio: float = 0.0) -> int | None:
    """Returns the number of seeds at which the interval of the mean would exclude 0, if mean and deviation stay.

    None if no number suffices: then only more held-out images help.

    Example:
        >>> required_seeds([1.0, 2.0, 3.0]), required_seeds([0.0, 2.0, 1.0], test_ratio=1.0)
        (4, None)
    """
    mean, deviation = abs(float(np.mean(values))), float(np.std(values, ddof=1))
    counts = np.arange(2, _MAX_SEEDS + 1)
    sufficient = counts[_half_width(deviation, counts, test_ratio) < mean]
    return int(sufficient[0]) if len(sufficient) else None


def _half_width(deviation: Any, count: Any, test_ratio: float) -> Any:
    return stats.t.ppf((1 + LEVEL) / 2, count - 1) * deviation * np.sqrt(1 / count + test_ratio)
