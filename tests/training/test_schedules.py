import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropcluster_jax.training import every, ramp


@given(rate=st.floats(0, 1, width=32), start=st.integers(0, 500), length=st.integers(0, 500))
def test_ramp_is_zero_then_linear_then_constant(rate, start, length):
    schedule = ramp(rate, start, start + length)
    steps = np.array([0, 7, start, start + length // 2, start + length, 2000])
    expected = np.clip((steps - start) / length, 0, 1) if length else steps >= start
    np.testing.assert_allclose([float(schedule(step)) for step in steps], rate * expected, atol=1e-6)


@given(steps=st.integers(1, 50), start=st.integers(0, 100))
def test_every_is_periodic_from_start(steps, start):
    for is_due in (every(steps, start), every(np.int64(steps), np.int64(start))):  # pyright: ignore[reportArgumentType]
        assert [step for step in range(300) if is_due(step)] == list(range(start, 300, steps))


@pytest.mark.parametrize(
    ("interval", "due"),
    [(0, []), (optax.piecewise_constant_schedule(2, {6: 5}), [0, 2, 4, 10, 20, 30])],
)
def test_every_takes_zero_and_optax_schedules(interval, due):
    assert [step for step in range(31) if every(interval)(step)] == due


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("function", "arguments", "error", "message"),
    [
        (ramp, (2, 0, 1), ValueError, r"rate.* must be in \[0, 1\], got 2"),
        (ramp, (0.1, 5, 4), ValueError, "end must be at least start, 5, got 4"),
        (ramp, (0.1, -3, 4), ValueError, "start must be at least 0, got -3"),
        (every, (2, 1.5), TypeError, r"start must be an integer, got 1\.5"),
        (every, (True,), TypeError, "steps must be an integer, got True"),
        (every, (-1,), ValueError, "steps must be at least 0, got -1"),
    ],
)
def test_invalid_arguments_raise(function, arguments, error, message):
    with pytest.raises(error, match=message):
        function(*arguments)
