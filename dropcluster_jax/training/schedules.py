"""Schedules of the rate, and predicates for the steps with a cluster update.

The rate is an Optax schedule. A predicate is a function of the step number, a Python integer, that is evaluated on the
host, so it never causes recompilation.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import optax

from dropcluster_jax.masking.common import Rate, check_rate


def ramp(rate: Rate, start: int, end: int) -> optax.Schedule:
    """Returns an Optax schedule that increases linearly from 0 to `rate`. See `optax.linear_schedule`.

    Args:
        rate: Final rate, in [0, 1]. May be traced.
        start: Last step with rate 0. If equal to `end`, the first step with the final rate.
        end: First step with the final rate, at least `start`.

    Raises:
        TypeError: If `rate` is not a number.
        ValueError: If `rate` is not a scalar in [0, 1], `start` is negative, or `end` is less than `start`.

    References:
        Ghiasi, Lin and Le, "DropBlock: A regularization method for convolutional networks", NeurIPS 2018,
        arXiv:1810.12890 (scheduled DropBlock).

    Example:
        >>> schedule = ramp(0.2, start=10, end=20)
        >>> [round(float(schedule(step)), 3) for step in (0, 10, 15, 20, 100)]
        [0.0, 0.0, 0.1, 0.2, 0.2]
    """
    check_rate(rate)
    if start < 0:
        raise ValueError(f"start must be at least 0, got {start}")
    if end < start:
        raise ValueError(f"end must be at least start, {start}, got {end}")
    if end == start:
        return lambda step: jnp.where(jnp.asarray(step) < start, 0.0, rate)
    return optax.linear_schedule(0.0, rate, end - start, start)  # pyright: ignore[reportArgumentType]


def every(steps: int | Callable[[int], int], start: int = 0) -> Callable[[int], bool]:
    """Returns a predicate that is true at `start`, `start + steps`, `start + 2 * steps`, ...

    Args:
        steps: Interval in steps, or a schedule of it: the predicate is then true if the distance from `start` is a
            multiple of the scheduled interval. 0 means never.
        start: First step at which the predicate is true, at least 0.

    Raises:
        TypeError: If `steps` or `start` is not an integer.
        ValueError: If `steps` or `start` is negative.

    Example:
        >>> is_due = every(100, start=50)
        >>> [step for step in range(400) if is_due(step)]
        [50, 150, 250, 350]
    """
    for name, value in (("steps", 0 if callable(steps) else steps), ("start", start)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise TypeError(f"{name} must be an integer, got {value!r}")
        if value < 0:
            raise ValueError(f"{name} must be at least 0, got {value}")

    def is_due(step: int) -> bool:
        if step < start:
            return False
        interval = int(steps(step)) if callable(steps) else steps
        return interval > 0 and (step - start) % interval == 0

    return is_due
