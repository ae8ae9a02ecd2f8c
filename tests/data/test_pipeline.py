"""Laws of the batches: who is in them, how often, and that nothing but the seed and the number decides it."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropcluster_jax.data import evaluation_batches, probe_batch, training_batches


def examples(number):
    """Examples that say who they are: in their pixels and in their label."""
    who = np.arange(number)
    return np.broadcast_to(who[:, None, None, None], (number, 2, 3, 1)).astype(np.uint8), who.astype(np.int32)


def who(batch):
    """Whose images a batch holds, once it is known that labels go with them."""
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["label"])
    assert batch["image"].dtype == np.uint8 and batch["label"].dtype == np.int32
    assert batch["image"].shape == (len(batch["label"]), 2, 3, 1)
    return batch["label"].tolist()


def take(number, *arguments, **more):
    return [who(batch) for batch in itertools.islice(training_batches(*arguments, **more), number)]


number_and_batch_size = st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))
seeds = st.integers(0, 2**70)


@given(number_and_batch_size, seeds)
def test_an_epoch_holds_each_example_once_but_for_what_fills_no_batch(sizes, seed):
    number, batch_size = sizes
    per_epoch = number // batch_size
    batches = take(3 * per_epoch, *examples(number), batch_size, seed)
    assert {len(batch) for batch in batches} == {batch_size}
    for epoch in range(3):
        seen = list(itertools.chain(*batches[epoch * per_epoch : (epoch + 1) * per_epoch]))
        assert len(set(seen)) == len(seen) == number - number % batch_size


@given(number_and_batch_size, seeds, st.integers(0, 200))
def test_a_resumed_run_meets_the_batches_it_would_have_met(sizes, seed, start):
    number, batch_size = sizes
    whole = take(start + 5, *examples(number), batch_size, seed)
    assert take(5, *examples(number), batch_size, seed, start=start) == whole[start:]


def test_resuming_far_along_needs_no_walk():
    assert take(1, *examples(10), 5, seed=0, start=2 * 10**12 + 1)


def test_the_order_is_the_one_that_is_promised():
    """Old runs can be resumed and repeated only as long as these bits stay."""
    order = [np.random.default_rng([7, epoch]).permutation(10).tolist() for epoch in (0, 1)]
    expected = [order[0][0:4], order[0][4:8], order[1][0:4], order[1][4:8]]
    assert take(4, *examples(10), 4, seed=7) == expected


def test_epochs_and_seeds_differ():
    epochs = take(2, *examples(50), 50, seed=0) + take(2, *examples(50), 50, seed=1)
    assert len({tuple(epoch) for epoch in epochs}) == 4


@given(st.integers(0, 60), st.integers(1, 70))
def test_evaluation_holds_each_example_once_and_in_order(number, batch_size):
    batches = list(evaluation_batches(*examples(number), batch_size))
    seen = []
    for batch in batches:
        assert len(who(batch)) == len(batch["weight"]) == batch_size
        assert batch["weight"].dtype == np.float32 and set(batch["weight"]) <= {0, 1}
        seen += batch["label"][batch["weight"] == 1].tolist()
    assert seen == list(range(number))
    assert len(batches) == -(-number // batch_size)  # no batch of padding alone


@given(st.integers(1, 60), st.integers(1, 70), seeds, st.integers(0, 1000))
def test_a_probe_holds_distinct_examples_that_seed_and_update_decide(number, size, seed, update):
    probe = who(probe_batch(*examples(number), size, seed, update))
    assert len(set(probe)) == len(probe) == min(size, number)
    assert probe == who(probe_batch(*examples(number), size, seed, update))


def test_probes_differ_from_one_another_and_from_the_epochs():
    data = examples(50)
    draws = [who(probe_batch(*data, 50, seed, update)) for seed in (0, 1) for update in (0, 1)]
    epochs = [epoch for seed in (0, 1) for epoch in take(2, *data, 50, seed)]
    assert len({tuple(order) for order in draws + epochs}) == 8


def test_the_probes_are_the_ones_that_are_promised():
    """From a stream of their own, not from the one that orders the epochs."""
    stream = np.random.default_rng(np.random.SeedSequence([7, 3], spawn_key=(1,)))
    assert who(probe_batch(*examples(50), 8, seed=7, update=3)) == stream.choice(50, 8, replace=False).tolist()


def test_every_example_gets_into_a_probe():
    probes = [who(probe_batch(*examples(20), 5, 0, update)) for update in range(40)]
    assert set(itertools.chain(*probes)) == set(range(20))


def test_batches_are_copies_of_the_training_images():
    """What is done to a batch is not done to the data."""
    images, labels = examples(4)
    next(training_batches(images, labels, 4, 0))["image"][:] = 255
    probe_batch(images, labels, 4, 0, 0)["image"][:] = 255
    np.testing.assert_array_equal(images, examples(4)[0])


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, y: training_batches(x, y, 6, 0), ValueError, "batch_size must be from 1 to 5, .* got 6"),
        (lambda x, y: training_batches(x, y, 0, 0), ValueError, "batch_size must be from 1 to 5, .* got 0"),
        (lambda x, y: training_batches(x, y, 2.0, 0), TypeError, r"batch_size must be an integer, got 2\.0"),
        (lambda x, y: training_batches(x, y, 2, -1), ValueError, "seed must be at least 0, got -1"),
        (lambda x, y: training_batches(x, y, 2, 0, start=-3), ValueError, "start must be at least 0, got -3"),
        (lambda x, y: training_batches(x, y[1:], 2, 0), ValueError, "images and labels .* got 5 and 4"),
        (lambda x, y: training_batches(x[:0], y[:0], 2, 0), ValueError, "images must hold an example"),
        (lambda x, y: evaluation_batches(x, y, 0), ValueError, "batch_size must be at least 1, got 0"),
        (lambda x, y: evaluation_batches(x, y[1:], 2), ValueError, "images and labels .* got 5 and 4"),
        (lambda x, y: probe_batch(x, y, 0, 0, 0), ValueError, "size must be at least 1, got 0"),
        (lambda x, y: probe_batch(x, y, 1, 0, -1), ValueError, "update must be at least 0, got -1"),
        (lambda x, y: probe_batch(x, y, 1, -1, 0), ValueError, "seed must be at least 0, got -1"),
        (lambda x, y: probe_batch(x, y[1:], 1, 0, 0), ValueError, "images and labels .* got 5 and 4"),
    ],
)
def test_wrong_arguments_are_named_at_the_call(call, error, message):
    with pytest.raises(error, match=message):
        call(*examples(5))  # not next(call(...))
