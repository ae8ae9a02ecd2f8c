import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropcluster_jax.data.subsets import stratified_split, stratified_subset

label_arrays = st.lists(st.integers(0, 4), min_size=1, max_size=80).map(lambda labels: np.array(labels, np.int32))
fractions = st.floats(0.01, 1)


@given(label_arrays, fractions, fractions, st.integers(0, 2**40))
def test_subsets_are_balanced_and_nested(labels, first, second, seed):
    smaller, larger = (stratified_subset(labels, fraction=f, seed=seed) for f in sorted([first, second]))
    assert set(smaller) <= set(larger)
    for label in np.unique(labels):
        assert (labels[smaller] == label).sum() == max(1, round(min(first, second) * (labels == label).sum()))
    assert (np.diff(larger) > 0).all()


def test_all_examples_are_equally_likely():
    labels = np.repeat(np.arange(3, dtype=np.int32), 20)
    counts = sum(
        np.bincount(stratified_subset(labels, examples_per_class=5, seed=seed), minlength=60) for seed in range(400)
    )
    assert abs(counts - 100).max() < 45  # Five standard deviations of a binomial distribution.


def test_split_holds_out_a_fraction_of_each_class():
    labels = np.repeat(np.arange(4, dtype=np.int32), [10, 20, 30, 2])
    kept, held_out = stratified_split(labels, 0.2)
    assert sorted([*kept, *held_out]) == list(range(62))
    assert np.bincount(labels[held_out]).tolist() == [2, 4, 6, 1]
    np.testing.assert_array_equal(held_out, stratified_subset(labels, fraction=0.2))


def test_split_that_exhausts_a_class_raises():
    labels = np.repeat(np.arange(4, dtype=np.int32), [10, 20, 30, 2])
    with pytest.raises(ValueError, match=r"holding out the fraction 0.8 leaves class 3 without training examples"):
        stratified_split(labels, 0.8)
    with pytest.raises(ValueError, match=r"leaves class 'owl' without training examples"):
        stratified_split(labels, 0.8, ["cat", "dog", "eel", "owl"])
    with pytest.raises(ValueError, match=r"at most 2, the size of class 'owl', got 3"):
        stratified_subset(labels, examples_per_class=3, classes=["cat", "dog", "eel", "owl"])


@pytest.mark.bad_input
@pytest.mark.parametrize("fraction", [0, 1, float("nan")])
def test_invalid_split_fractions_raise(fraction):
    with pytest.raises(ValueError, match=r"fraction must be in \(0, 1\), got"):
        stratified_split(np.array([0, 0, 1, 1], np.int32), fraction)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of fraction and examples_per_class must be given, got None and None"),
        ({"fraction": 0.5, "examples_per_class": 1}, "exactly one of .* must be given, got 0.5 and 1"),
        ({"fraction": 0.0}, r"fraction must be in \(0, 1\], got 0.0"),
        ({"fraction": float("nan")}, r"fraction must be in \(0, 1\], got nan"),
        ({"examples_per_class": 0}, "examples_per_class must be at least 1, got 0"),
        ({"examples_per_class": 3}, "examples_per_class must be at most 2, the size of class 1, got 3"),
        ({"fraction": 0.5, "seed": -1}, "seed must be at least 0, got -1"),
    ],
)
def test_invalid_arguments_raise(options, message):
    with pytest.raises(ValueError, match=message):
        stratified_subset(np.array([0, 0, 0, 1, 1], np.int32), **options)
