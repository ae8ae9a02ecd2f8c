import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dropcluster_jax.runs.intervals import interval
from experiments.intervals import crossed_interval, paired_difference

sample = st.lists(st.floats(0, 1, width=32), min_size=2, max_size=8)


@given(sample)
def test_interval_equals_scipy(values):
    mean, low, high, num_values = interval(values)
    assert num_values == len(values) and mean == pytest.approx(np.mean(values))
    if np.std(values) > 1e-6:
        expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert (low, high) == pytest.approx(tuple(expected), abs=1e-9)


def test_interval_has_its_nominal_coverage():
    rng = np.random.default_rng(0)
    intervals = [interval(list(rng.normal(0.3, 1, 3))) for _ in range(4000)]
    coverage = np.mean([each.low <= 0.3 <= each.high for each in intervals])
    assert coverage == pytest.approx(0.95, abs=0.012)  # 3.5 standard deviations


@given(sample, st.randoms(use_true_random=False))
def test_differences_are_paired_by_key(values, random):
    first = dict(enumerate(values))
    second = {seed: random.random() for seed in first}
    difference = paired_difference(first, {**second, "another seed": 5.0})
    assert difference == interval([first[seed] - second[seed] for seed in first])
    assert paired_difference(first, first) == (0, 0, 0, len(values))


def test_differences_without_common_keys():
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_one_value_has_no_bounds():
    assert interval([0.5]) == (0.5, -np.inf, np.inf, 1)
    assert not interval([0.5]).excludes_zero


def test_no_values():
    with pytest.raises(ValueError, match="at least one"):
        interval([])


@given(sample, st.floats(-1, 1))
def test_excluding_zero_does_not_depend_on_the_order(values, other):
    first, second = dict(enumerate(values)), dict.fromkeys(range(len(values)), other)
    difference, reverse = paired_difference(first, second), paired_difference(second, first)
    assert difference is not None and reverse is not None
    assert difference.excludes_zero == reverse.excludes_zero


@pytest.mark.parametrize("num_seeds", [3, 5])
@pytest.mark.parametrize(("seed_std", "example_std"), [(0.0, 0.0), (0.05, 0.0), (0.0, 1.0), (0.05, 0.5)])
def test_crossed_interval_covers_the_mean_over_seeds_and_examples(num_seeds, seed_std, example_std):
    rng = np.random.default_rng(0)
    num_examples, covered = 400, []
    for _ in range(2000):
        values = (
            0.3
            + seed_std * rng.normal(size=(num_seeds, 1))
            + example_std * rng.normal(size=(1, num_examples))
            + rng.normal(size=(num_seeds, num_examples))
        )
        mean, low, high, _ = crossed_interval(values)
        assert mean == pytest.approx(values.mean())
        covered.append(low <= 0.3 <= high)
    assert np.mean(covered) >= 0.94


@given(st.integers(2, 5), st.integers(2, 20), st.integers(0, 2**32 - 1))
def test_crossed_interval_contains_those_over_seeds_and_over_examples(num_seeds, num_examples, seed):
    shapes = ((num_seeds, 1), (1, num_examples), (num_seeds, num_examples))
    values = sum(np.random.default_rng([seed, *shape]).normal(size=shape) for shape in shapes)
    half_width = crossed_interval(values).half_width
    assert half_width >= interval(values.mean(1).tolist()).half_width * (1 - 1e-9)
    assert half_width >= interval(values.mean(0).tolist()).half_width * (1 - 1e-9)


def test_crossed_interval_of_equal_examples():
    """Only the seeds vary."""
    values = np.repeat(np.random.default_rng(0).normal(size=(5, 1)), 100, axis=1)
    assert crossed_interval(values) == pytest.approx(interval(values[:, 0].tolist()))
    assert crossed_interval(np.ones((3, 4))) == (1.0, 1.0, 1.0, 3)
