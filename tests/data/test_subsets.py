"""Laws of shares: balanced, nested, and decided by the seed alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropcluster_jax.data.subsets import stratified_subset

labels_of_classes = st.lists(st.integers(0, 4), min_size=1, max_size=80).map(lambda found: np.array(found, np.int32))
fractions = st.floats(0.01, 1)


@given(labels_of_classes, fractions, fractions, st.integers(0, 2**40))
def test_a_smaller_share_lies_inside_a_larger_one_and_both_are_balanced(labels, one, other, seed):
    smaller, larger = (stratified_subset(labels, fraction=f, seed=seed) for f in sorted([one, other]))
    assert set(smaller) <= set(larger)
    for label in np.unique(labels):
        found, there = (labels[smaller] == label).sum(), (labels == label).sum()
        assert found == max(1, round(min(one, other) * there))
    assert (np.diff(larger) > 0).all()


@given(labels_of_classes, st.integers(0, 100))
def test_the_whole_is_the_whole(labels, seed):
    np.testing.assert_array_equal(stratified_subset(labels, fraction=1.0, seed=seed), np.arange(len(labels)))


def test_another_seed_is_another_share_and_each_is_as_likely():
    labels = np.repeat(np.arange(3, dtype=np.int32), 20)
    counts = sum(
        np.bincount(stratified_subset(labels, examples_per_class=5, seed=seed), minlength=60) for seed in range(400)
    )
    assert abs(counts - 100).max() < 45  # 5 deviations of a binomial


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "one of fraction and examples_per_class"),
        ({"fraction": 0.5, "examples_per_class": 1}, "one of fraction and examples_per_class"),
        ({"fraction": 0.0}, "fraction must be above 0 and at most 1, got 0.0"),
        ({"fraction": float("nan")}, "fraction must be above 0"),
        ({"examples_per_class": 0}, "examples_per_class must be at least 1, got 0"),
        ({"examples_per_class": 3}, "examples_per_class must be at most 2, the examples of class 1, got 3"),
        ({"fraction": 0.5, "seed": -1}, "seed must be at least 0"),
    ],
)
def test_shares_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        stratified_subset(np.array([0, 0, 0, 1, 1], np.int32), **options)
