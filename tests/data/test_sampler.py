"""Laws of the order: each example once, resumable anywhere, promised to the bit, shared out among processes."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropcluster_jax.data.sampler import BatchSampler, evaluation_indices, probe_indices

number_and_batch_size = st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))
seeds = st.integers(0, 2**70)


def take(number, order, start=0):
    return [order.indices(batch).tolist() for batch in range(start, start + number)]


@given(number_and_batch_size, seeds)
def test_an_epoch_holds_each_example_once_but_for_what_fills_no_batch(sizes, seed):
    number, batch_size = sizes
    order = BatchSampler(number, batch_size, seed)
    assert order.batches_per_epoch == number // batch_size
    for epoch in range(3):
        batches = take(order.batches_per_epoch, order, epoch * order.batches_per_epoch)
        assert {len(batch) for batch in batches} == {batch_size}
        seen = list(itertools.chain(*batches))
        assert len(set(seen)) == len(seen) == number - number % batch_size and set(seen) <= set(range(number))


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 30), seeds, st.integers(0, 50))
def test_processes_share_out_the_batch_that_one_would_read(processes, part, more, seed, batch):
    size = processes * part
    whole = BatchSampler(size + more, size, seed).indices(batch)
    parts = [BatchSampler(size + more, size, seed, process, processes).indices(batch) for process in range(processes)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_a_batch_far_along_needs_no_walk():
    assert len(BatchSampler(10, 5, seed=0).indices(2 * 10**12 + 1)) == 5


def test_the_order_is_the_one_that_is_promised():
    """Old runs can be resumed and repeated only as long as these bits stay."""
    epochs = [np.random.default_rng([7, epoch]).permutation(10).tolist() for epoch in (0, 1)]
    expected = [epochs[0][0:4], epochs[0][4:8], epochs[1][0:4], epochs[1][4:8]]
    assert take(4, BatchSampler(10, 4, seed=7)) == expected


def test_epochs_and_seeds_differ():
    epochs = take(2, BatchSampler(50, 50, seed=0)) + take(2, BatchSampler(50, 50, seed=1))
    assert len({tuple(epoch) for epoch in epochs}) == 4


@given(st.integers(0, 60), st.integers(1, 10), st.integers(1, 7))
def test_evaluation_holds_each_example_once_and_in_order(number, part, processes):
    batches = [list(evaluation_indices(number, part * processes, process, processes)) for process in range(processes)]
    assert {len(each) for each in batches} == {-(-number // (part * processes))}  # no batch of padding alone
    seen = []
    for parts in zip(*batches, strict=True):  # what all processes read at once
        for indices, weight in parts:
            assert len(indices) == len(weight) == part and set(weight) <= {0, 1}
            assert weight.dtype == np.float32 and (indices < number).all()
            seen += indices[weight == 1].tolist()
    assert seen == list(range(number))


@given(st.integers(1, 60), st.integers(1, 70), seeds, st.integers(0, 1000))
def test_a_probe_holds_distinct_examples_that_seed_and_update_decide(number, size, seed, update):
    probe = probe_indices(number, size, seed, update).tolist()
    assert len(set(probe)) == len(probe) == min(size, number) and set(probe) <= set(range(number))
    assert probe == probe_indices(number, size, seed, update).tolist()


def test_probes_differ_from_one_another_and_from_the_epochs():
    draws = [probe_indices(50, 50, seed, update).tolist() for seed in (0, 1) for update in (0, 1)]
    epochs = [epoch for seed in (0, 1) for epoch in take(2, BatchSampler(50, 50, seed))]
    assert len({tuple(order) for order in draws + epochs}) == 8


def test_the_probes_are_the_ones_that_are_promised():
    """From a stream of their own, not from the one that orders the epochs."""
    stream = np.random.default_rng(np.random.SeedSequence([7, 3], spawn_key=(1,)))
    assert probe_indices(50, 8, seed=7, update=3).tolist() == stream.choice(50, 8, replace=False).tolist()


def test_every_example_gets_into_a_probe():
    probes = [probe_indices(20, 5, 0, update).tolist() for update in range(40)]
    assert set(itertools.chain(*probes)) == set(range(20))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: BatchSampler(5, 6, 0), ValueError, "batch_size must be from 1 to 5, .* got 6"),
        (lambda: BatchSampler(5, 0, 0), ValueError, "batch_size must be from 1 to 5, .* got 0"),
        (lambda: BatchSampler(5, 2.0, 0), TypeError, r"batch_size must be an integer, got 2\.0"),
        (lambda: BatchSampler(5, 2, -1), ValueError, "seed must be at least 0, got -1"),
        (lambda: BatchSampler(0, 2, 0), ValueError, "must hold an example, got none"),
        (lambda: BatchSampler(5, 3, 0, 0, 2), ValueError, "batch_size must be a multiple of the 2 processes, got 3"),
        (lambda: BatchSampler(5, 2, 0, 2, 2), ValueError, "process must be below the 2 processes, got 2"),
        (lambda: BatchSampler(5, 2, 0, 0, 0), ValueError, "processes must be at least 1, got 0"),
        (lambda: probe_indices(5, 0, 0, 0), ValueError, "size must be at least 1, got 0"),
        (lambda: probe_indices(5, 1, 0, -1), ValueError, "update must be at least 0, got -1"),
        (lambda: probe_indices(5, 1, -1, 0), ValueError, "seed must be at least 0, got -1"),
    ],
)
def test_wrong_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
