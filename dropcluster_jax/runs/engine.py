"""Jobs that any number of processes share, and races between candidates."""

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from dropcluster_jax.runs.folder import LockedError

Job = TypeVar("Job")
Candidate = TypeVar("Candidate")
_POLL_SECONDS = 5.0


def work(
    open_jobs: Callable[[], Sequence[Job]],
    execute: Callable[[Job], None],
    *,
    max_jobs: int | None = None,
    max_minutes: float | None = None,
) -> bool:
    """Executes jobs one after the other until none is open.

    Args:
        open_jobs: Returns the jobs that can be executed next, of which the first one is. Called before each job, so
            that it sees what other processes have finished.
        execute: Executes a job. While another process executes it, raises `LockedError`, and the next job is tried; if
            all are locked, the function waits.
        max_jobs: Number of jobs to execute at most; None for no limit.
        max_minutes: Time after which no further job starts; None for no limit.

    Returns:
        Whether no job is open, i.e. False if a limit was reached first.
    """
    start, num_executed = time.monotonic(), 0
    while jobs := open_jobs():
        if num_executed == max_jobs or (max_minutes is not None and time.monotonic() - start >= 60 * max_minutes):
            return False
        for job in jobs:
            with contextlib.suppress(LockedError):
                execute(job)
                num_executed += 1
                break
        else:
            time.sleep(_POLL_SECONDS)
    return True


def race(
    candidates: Sequence[Candidate],
    accuracies: Mapping[tuple[Candidate, int], float],
    seeds: Sequence[int],
    reduction: int,
) -> tuple[list[tuple[Candidate, int]], Candidate]:
    """Returns the candidates and seeds to run next, empty when the race is over, and the leader.

    All candidates run with the first seed; with each further seed, only the best ones by mean accuracy remain, until
    a single one is left. The leader has the largest sum of accuracies.

    Args:
        candidates: At least one candidate. On ties, earlier ones are better.
        accuracies: Accuracies by candidate and seed.
        seeds: The seed of each round.
        reduction: Factor by which the number of candidates falls after each round; rounded up.

    References:
        Jamieson, Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", AISTATS 2016,
        arXiv:1502.07943: successive halving, here of seeds instead of steps.

    Example:
        >>> race("abc", {("a", 0): 0.5, ("b", 0): 0.7, ("c", 0): 0.6}, seeds=(0, 1), reduction=2)
        ([('b', 1), ('c', 1)], 'b')
    """
    leader = max(candidates, key=lambda candidate: sum(accuracies.get((candidate, seed), 0.0) for seed in seeds))
    running = list(candidates)
    for number, seed in enumerate(seeds, 1):
        if len(running) == 1:
            break
        if missing := [(candidate, seed) for candidate in running if (candidate, seed) not in accuracies]:
            return missing, leader
        running.sort(key=lambda candidate: -sum(accuracies[candidate, seed] for seed in seeds[:number]))
        del running[math.ceil(len(running) / reduction) :]
    return [], leader
