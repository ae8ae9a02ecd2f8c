"""When: the rate of dropping over the steps, and the steps before which clusters are updated.

A rate is an Optax schedule, a function of the step; any of Optax's will do. A cadence is a function of the step too,
a Python integer, and says whether an update is due. Neither is ever compiled anew.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
import optax

from dropcluster_jax.masking.common import Rate, check_rate

StepPredicate = Callable[[int], bool]


def ramp(rate: Rate, start: int, end: int) -> optax.Schedule:
    """0 until step `start`, `rate` from step `end` on, and linear between: `rate (step - start) / (end - start)`.

    Args:
        rate: the full rate, in [0, 1]; may be a traced scalar.
        start: the last step with 0 (the first with the full rate, where `end` is no later), at least 0.
        end: the first step with the full rate, at least `start`.

    Returns:
        An Optax schedule: of the step, which may be traced, the rate, a scalar in [0, `rate`].

    Raises:
        TypeError: `rate` is no number.
        ValueError: `rate` is no scalar in [0, 1], a negative `start`, or `end` before it.

    References:
        Ghiasi, Lin, Le, "DropBlock: A regularization method for convolutional networks", NeurIPS 2018,
        arXiv:1810.12890: its scheduled DropBlock does the same to the probability of being kept.

    Example:
        >>> schedule = ramp(0.2, start=10, end=20)
        >>> [round(float(schedule(step)), 3) for step in (0, 10, 15, 20, 100)]
        [0.0, 0.0, 0.1, 0.2, 0.2]
    """
    check_rate(rate)
    if start < 0:
        raise ValueError(f"start must not be negative, got {start}")
    if end < start:
        raise ValueError(f"end must not be before start, step {start}, got {end}")
    if end == start:
        return lambda step: jnp.where(jnp.asarray(step) < start, 0.0, rate)
    return optax.linear_schedule(0.0, rate, end - start, start)  # pyright: ignore[reportArgumentType]


def every(steps: int | Callable[[int], int], start: int = 0) -> StepPredicate:
    """An update before every so many steps.

    Args:
        steps: the number of steps from one update to the next; 0 is never. Or a schedule of it: an update is due at
            the steps that, counted from `start`, are multiples of what it gives there.
        start: the first step before which there is one, at least 0.

    Returns:
        `step -> bool`: whether an update is due before that step, a Python integer from 0 on.

    Raises:
        TypeError: a number that is no integer.
        ValueError: a negative number.

    Example:
        >>> due = every(100, start=50)
        >>> [step for step in range(400) if due(step)]
        [50, 150, 250, 350]
    """
    for name, number in (("start", start), ("steps", 0 if callable(steps) else steps)):
        if not isinstance(number, int):
            raise TypeError(f"{name} must be an integer, got {number!r}")
    if start < 0 or (not callable(steps) and steps < 0):
        raise ValueError(f"steps and start must not be negative, got {steps} and {start}")

    def due(step: int) -> bool:
        if step < start:
            return False
        number = int(steps(step)) if callable(steps) else steps
        return number > 0 and (step - start) % number == 0

    return due


def every_epochs(epochs: float, steps_per_epoch: int, start: float = 0) -> StepPredicate:
    """An update before every so many epochs, or every so large part of one.

    Args:
        epochs: the number of epochs from one update to the next, above 0; less than a step counts as one.
        steps_per_epoch: the steps in an epoch, above 0.
        start: the epoch, counted from 0, at whose start there is the first; or a place within one, rounded to a step.

    Returns:
        `step -> bool`: whether an update is due before that step, a Python integer from 0 on.

    Raises:
        ValueError: a number that is not positive and finite, or a `start` that is negative or infinite.

    Example:
        >>> due = every_epochs(2, steps_per_epoch=100, start=0.5)
        >>> [step for step in range(600) if due(step)]
        [50, 250, 450]
        >>> due = every_epochs(0.3, steps_per_epoch=10)  # when a third more of an epoch is full
        >>> [step for step in range(21) if due(step)]
        [0, 3, 6, 9, 12, 15, 18]
    """
    if not (0 < epochs < math.inf and steps_per_epoch > 0 and 0 <= start < math.inf):
        raise ValueError(
            "epochs and steps_per_epoch must be positive and finite, start not negative, "
            f"got {epochs}, {steps_per_epoch} and {start}"
        )
    length = max(1.0, epochs * steps_per_epoch)
    first = round(start * steps_per_epoch)

    def due(step: int) -> bool:
        # The first step at or after each multiple; a little is allowed for rounding.
        turns = math.floor((step - first) / length + 1e-9)
        return step >= first and math.ceil(turns * length - 1e-6) == step - first

    return due
