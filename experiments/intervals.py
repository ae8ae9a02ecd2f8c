"""Means with 95% confidence intervals, and differences paired by seed."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import stats

from dropcluster_jax.runs.intervals import LEVEL, Interval, interval


def paired_difference(first: Mapping[Any, float], second: Mapping[Any, float]) -> Interval | None:
    """Returns the interval of the differences between values with the same key; None without common keys.

    Example:
        >>> difference = paired_difference({0: 0.5, 1: 0.6}, {1: 0.5, 2: 0.9})
        >>> round(difference.mean, 3), difference.num_values
        (0.1, 1)
    """
    common = [key for key in first if key in second]
    return interval([first[key] - second[key] for key in common]) if common else None


def crossed_interval(values: np.ndarray) -> Interval:
    """Returns the interval of the mean over seeds and examples, if both are samples.

    The seeds could have been others, and so could the test images; the interval of the means by seed considers only the
    former. The variance of the mean is estimated in the model value = mean + seed effect + example effect + residual
    with independent effects. The result contains the intervals over the seeds alone and over the examples alone:
    with few seeds, the approximate degrees of freedom alone would make it too narrow.

    Args:
        values: Results of at least two seeds on the same examples, `(seeds, examples)`.

    References:
        Searle, Casella, McCulloch, "Variance Components", Wiley 1992, section 4.5: two-way crossed random effects.
        Satterthwaite, "An Approximate Distribution of Estimates of Variance Components", Biometrics 1946: the degrees
        of freedom.

    Example:
        >>> crossed_interval(np.array([[1.0, 0.0, 1.0, 1.0], [1.0, 0.0, 0.0, 1.0]])).mean
        0.625
    """
    num_seeds, num_examples = values.shape
    seed_means, example_means, mean = values.mean(1), values.mean(0), float(values.mean())
    residuals = values - seed_means[:, None] - example_means + mean
    dof_seeds, dof_examples = num_seeds - 1, num_examples - 1
    # Mean squares divided by the number of values.
    by_seeds = float(np.var(seed_means, ddof=1)) / num_seeds
    by_examples = float(np.var(example_means, ddof=1)) / num_examples
    by_residuals = float(np.sum(residuals**2)) / (dof_seeds * dof_examples * values.size)
    variance = max(by_seeds + by_examples - by_residuals, by_seeds, by_examples)
    if variance == 0:
        return Interval(mean, mean, mean, num_seeds)
    dof = variance**2 / (
        by_seeds**2 / dof_seeds + by_examples**2 / dof_examples + by_residuals**2 / (dof_seeds * dof_examples)
    )
    half_width = max(
        float(stats.t.ppf((1 + LEVEL) / 2, max(own_dof, 1)) * own_variance**0.5)
        for own_variance, own_dof in ((variance, dof), (by_seeds, dof_seeds), (by_examples, dof_examples))
    )
    return Interval(mean, mean - half_width, mean + half_width, num_seeds)
