import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropcluster_jax.data.sampling import BatchOrder, evaluation_indices, probe_indices

sizes_and_batch_sizes = st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))
seeds = st.integers(0, 2**70)


def take(count, sampler, start=0):
    return [sampler.indices(batch).tolist() for batch in range(start, start + count)]


@given(sizes_and_batch_sizes, seeds)
def test_epoch_contains_each_example_once_except_for_the_remainder(sizes, seed):
    num_examples, batch_size = sizes
    sampler = BatchOrder(num_examples, batch_size, seed)
    assert sampler.batches_per_epoch == num_examples // batch_size
    for epoch in range(3):
        batches = take(sampler.batches_per_epoch, sampler, epoch * sampler.batches_per_epoch)
        assert {len(batch) for batch in batches} == {batch_size}
        seen = list(itertools.chain(*batches))
        assert len(set(seen)) == len(seen) == num_examples - num_examples % batch_size
        assert set(seen) <= set(range(num_examples))


def test_late_batches_are_accessed_directly():
    assert len(BatchOrder(10, 5, seed=0).indices(2 * 10**12 + 1)) == 5


def test_order_is_as_documented():
    """Saved runs can be resumed and repeated only as long as the order does not change."""
    epochs = [np.random.default_rng([7, epoch]).permutation(10).tolist() for epoch in (0, 1)]
    expected = [epochs[0][0:4], epochs[0][4:8], epochs[1][0:4], epochs[1][4:8]]
    assert take(4, BatchOrder(10, 4, seed=7)) == expected


def test_epochs_and_seeds_differ():
    epochs = take(2, BatchOrder(50, 50, seed=0)) + take(2, BatchOrder(50, 50, seed=1))
    assert len({tuple(epoch) for epoch in epochs}) == 4


@given(st.integers(1, 60), st.integers(1, 70), seeds, st.integers(0, 1000))
def test_probe_examples_are_distinct_and_reproducible(num_examples, size, seed, update):
    probe = probe_indices(num_examples, size, seed, update).tolist()
    assert len(set(probe)) == len(probe) == min(size, num_examples) and set(probe) <= set(range(num_examples))
    assert probe == probe_indices(num_examples, size, seed, update).tolist()


def test_probes_differ_between_updates_and_from_epochs():
    probes = [probe_indices(50, 50, seed, update).tolist() for seed in (0, 1) for update in (0, 1)]
    epochs = [epoch for seed in (0, 1) for epoch in take(2, BatchOrder(50, 50, seed))]
    assert len({tuple(order) for order in probes + epochs}) == 8


@given(st.integers(0, 60), st.integers(1, 70))
def test_evaluation_contains_each_example_once_in_order(num_examples, batch_size):
    batches = list(evaluation_indices(num_examples, batch_size))
    assert len(batches) == -(-num_examples // batch_size)  # No batch consists of padding only.
    for indices, weight in batches:
        assert len(indices) == len(weight) == batch_size and set(weight) <= {0, 1}
        assert weight.dtype == np.float32 and (indices < num_examples).all()
    assert [int(i) for indices, weight in batches for i in indices[weight == 1]] == list(range(num_examples))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: BatchOrder(5, 6, 0), ValueError, "batch_size must be at most 5, .* got 6"),
        (lambda: BatchOrder(5, 0, 0), ValueError, "batch_size must be at least 1, got 0"),
        (lambda: BatchOrder(5, 2.0, 0), TypeError, r"batch_size must be an integer, got 2\.0"),
        (lambda: BatchOrder(5, 2, -1), ValueError, "seed must be at least 0, got -1"),
        (lambda: probe_indices(5, 0, 0, 0), ValueError, "size must be at least 1, got 0"),
        (lambda: probe_indices(5, 1, 0, -1), ValueError, "update must be at least 0, got -1"),
    ],
)
def test_invalid_arguments_raise(call, error, message):
    with pytest.raises(error, match=message):
        call()
