import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropcluster_jax.training import every, every_epochs, ramp


@given(rate=st.floats(0, 1, width=32), begin=st.integers(0, 500), length=st.integers(0, 500))
def test_a_ramp_is_zero_then_linear_then_full(rate, begin, length):
    schedule, steps = (
        ramp(rate, begin, begin + length),
        np.array([0, 7, begin, begin + length // 2, begin + length, 2000]),
    )
    expected = np.clip((steps - begin) / length, 0, 1) if length else steps >= begin
    np.testing.assert_allclose([float(schedule(step)) for step in steps], rate * expected, atol=1e-6)


def test_a_ramp_never_leaves_the_range_of_rates():
    rates = np.array([float(ramp(1.0, 3, 1000)(step)) for step in range(0, 1100, 7)])
    assert rates.min() == 0 and rates.max() == 1 and (np.diff(rates) >= 0).all()


@given(number=st.integers(1, 50), begin=st.integers(0, 100))
def test_every_is_due_at_the_begin_and_every_so_many_steps_after(number, begin):
    due = every(number, begin)
    assert [step for step in range(300) if due(step)] == list(range(begin, 300, number))


def test_a_cadence_may_be_a_schedule_of_optax_and_zero_is_never():
    slower = optax.piecewise_constant_schedule(2, {6: 5})
    assert [step for step in range(31) if every(slower)(step)] == [0, 2, 4, 10, 20, 30]
    assert not any(every(0)(step) for step in range(100))


@given(epochs=st.floats(0.01, 5), per_epoch=st.integers(1, 70), begin=st.floats(0, 3))
def test_epochs_are_kept_to_the_step(epochs, per_epoch, begin):
    due, start = every_epochs(epochs, per_epoch, begin), round(begin * per_epoch)
    steps = np.array([step for step in range(start + 500) if due(step)])
    assert steps[0] == start
    length = max(1.0, epochs * per_epoch)
    lag = steps - start - np.arange(len(steps)) * length
    assert (lag > -1e-5).all() and (lag < 1 + 1e-5).all()  # the n-th at the first step at or after n times the length


@pytest.mark.bad_input
def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"rate.* must be in \[0, 1\], got 2"):
        ramp(2, 0, 1)
    with pytest.raises(ValueError, match="end must not be before begin, step 5, got 4"):
        ramp(0.1, 5, 4)
    with pytest.raises(ValueError, match="begin must not be negative, got -3"):
        ramp(0.1, -3, 4)
    with pytest.raises(TypeError, match=r"begin must be an integer, got 1\.5"):
        every(2, start=1.5)
    with pytest.raises(ValueError, match=r"epochs and steps_per_epoch must be positive and finite.*got nan"):
        every_epochs(float("nan"), 10)
    with pytest.raises(ValueError, match="must not be negative, got -1 and 0"):
        every(-1)
    with pytest.raises(ValueError, match=r"epochs and steps_per_epoch must be positive.*got 0, 10 and 0"):
        every_epochs(0, 10)
