import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropcluster_jax.training import every, every_epochs, ramp


@given(rate=st.floats(0, 1, width=32), start=st.integers(0, 500), length=st.integers(0, 500))
def test_ramp_is_zero_then_linear_then_constant(rate, start, length):
    schedule = ramp(rate, start, start + length)
    steps = np.array([0, 7, start, start + length // 2, start + length, 2000])
    expected = np.clip((steps - start) / length, 0, 1) if length else steps >= start
    np.testing.assert_allclose([float(schedule(step)) for step in steps], rate * expected, atol=1e-6)


def test_ramp_increases_from_zero_to_rate():
    rates = np.array([float(ramp(1.0, 3, 1000)(step)) for step in range(0, 1100, 7)])
    assert rates.min() == 0 and rates.max() == 1 and (np.diff(rates) >= 0).all()


@given(steps=st.integers(1, 50), start=st.integers(0, 100))
def test_every_is_periodic_from_start(steps, start):
    is_due = every(steps, start)
    assert [step for step in range(300) if is_due(step)] == list(range(start, 300, steps))


def test_every_takes_an_optax_schedule():
    is_due = every(optax.piecewise_constant_schedule(2, {6: 5}))
    assert [step for step in range(31) if is_due(step)] == [0, 2, 4, 10, 20, 30]


def test_every_takes_numpy_integers():
    assert [step for step in range(9) if every(np.int64(3), np.int64(2))(step)] == [2, 5, 8]


def test_every_zero_steps_is_never():
    assert not any(every(0)(step) for step in range(100))


@given(epochs=st.floats(0.01, 5), steps_per_epoch=st.integers(1, 70), start=st.floats(0, 3))
def test_every_epochs_is_true_at_the_first_step_after_each_multiple(epochs, steps_per_epoch, start):
    is_due, first_step = every_epochs(epochs, steps_per_epoch, start), round(start * steps_per_epoch)
    steps = np.array([step for step in range(first_step + 500) if is_due(step)])
    assert steps[0] == first_step
    interval = max(1.0, epochs * steps_per_epoch)
    delay = steps - first_step - np.arange(len(steps)) * interval
    assert (delay > -1e-5).all() and (delay < 1 + 1e-5).all()


@pytest.mark.bad_input
def test_invalid_ramps_raise():
    with pytest.raises(ValueError, match=r"rate.* must be in \[0, 1\], got 2"):
        ramp(2, 0, 1)
    with pytest.raises(ValueError, match="end must be at least start, 5, got 4"):
        ramp(0.1, 5, 4)
    with pytest.raises(ValueError, match="start must be at least 0, got -3"):
        ramp(0.1, -3, 4)


@pytest.mark.bad_input
def test_invalid_intervals_raise():
    with pytest.raises(TypeError, match=r"start must be an integer, got 1\.5"):
        every(2, start=1.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="steps must be an integer, got True"):
        every(True)
    with pytest.raises(ValueError, match="steps must be at least 0, got -1"):
        every(-1)
    with pytest.raises(ValueError, match="epochs must be positive and finite, got nan"):
        every_epochs(float("nan"), 10)
    with pytest.raises(ValueError, match="epochs must be positive and finite, got 0"):
        every_epochs(0, 10)
    with pytest.raises(ValueError, match="steps_per_epoch must be positive and finite, got 0"):
        every_epochs(1, 0)
    with pytest.raises(ValueError, match="start must be at least 0 and finite, got -1"):
        every_epochs(1, 10, start=-1)
