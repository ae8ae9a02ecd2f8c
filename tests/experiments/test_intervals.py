import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from experiments.intervals import interval, paired, verdict

values = st.lists(st.floats(0, 1, width=32), min_size=2, max_size=8)


@given(values)
def test_an_interval_is_that_of_students_t_test(found):
    mean, low, high, number = interval(found)
    assert number == len(found) and mean == pytest.approx(np.mean(found))
    if np.std(found) > 1e-6:
        expected = stats.ttest_1samp(found, 0).confidence_interval(0.95)
        assert (low, high) == pytest.approx(tuple(expected), abs=1e-9)


def test_it_holds_the_true_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = [found.low <= 0.3 <= found.high for found in (interval(list(rng.normal(0.3, 1, 3))) for _ in range(4000))]
    assert np.mean(held) == pytest.approx(0.95, abs=0.012)  # 3.5 standard deviations


@given(values, st.randoms(use_true_random=False))
def test_differences_are_taken_seed_by_seed(found, random):
    ours = dict(enumerate(found))
    theirs = {seed: random.random() for seed in ours}
    difference = paired(ours, {**theirs, "another seed": 5.0})
    assert difference == interval([ours[seed] - theirs[seed] for seed in ours])
    assert paired(ours, ours) == (0, 0, 0, len(found))


def test_of_one_value_nothing_is_told_and_of_none_there_is_no_interval():
    assert verdict(interval([0.5])) == "not told apart" and paired({0: 1.0}, {1: 1.0}) is None
    with pytest.raises(ValueError, match="at least one"):
        interval([])


@given(values, st.floats(-1, 1))
def test_better_and_worse_are_each_others_mirror(found, by):
    one = paired(dict(enumerate(found)), dict.fromkeys(range(len(found)), by))
    other = paired(dict.fromkeys(range(len(found)), by), dict(enumerate(found)))
    mirrored = {"better": "worse", "worse": "better", "not told apart": "not told apart"}
    assert one is not None and other is not None and mirrored[verdict(one)] == verdict(other)
