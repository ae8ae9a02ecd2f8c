"""Being told to stop: SIGTERM, as schedulers send it, and SIGINT, Ctrl-C. Between steps, not within one."""

import os
import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Says whether a run was told to stop; a context manager.

    The first signal is noted, and the step goes on to its end. A second SIGINT ends the process at once, with
    status 130. Of several processes one is told, and all stop after the same step: JAX's coordination service agrees
    on it, and takes SIGTERM itself.

    Example:
        >>> with Preemption() as told:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     told(7), told.name, told.status
        (True, 'SIGTERM', 143)
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._together = jax.process_count() > 1
        self._before: dict[int, Any] = {}
        self._wakeup: tuple[int, int] | None = None  # where signals are heard, and where they were before

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python takes no handler
            for number in (signal.SIGINT,) if self._together else (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
            heard, told = os.pipe()
            os.set_blocking(told, False)
            self._wakeup = told, signal.set_wakeup_fd(told, warn_on_full_buffer=False)
            threading.Thread(target=_leave_at_the_second_interrupt, args=(heard,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._wakeup is not None:
            told, before = self._wakeup
            signal.set_wakeup_fd(before)
            os.close(told)

    def __call__(self, step: int) -> bool:
        """Whether to stop after this step; called after each, in all processes."""
        if self._together:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._signal is not None

    @property
    def name(self) -> str:
        """Of the signal."""
        return signal.Signals(self._signal or signal.SIGTERM).name

    @property
    def status(self) -> int:
        """What the process exits with: 128 and the signal's number, as of a process that it ended."""
        return 128 + (self._signal or signal.SIGTERM)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        if self._together:
            os.kill(os.getpid(), signal.SIGTERM)  # the coordination service listens for it


def _leave_at_the_second_interrupt(heard: int) -> None:
    """In a thread: Python calls handlers only between steps, and XLA may be compiling for minutes."""
    interrupts = 0
    while number := os.read(heard, 1):  # nothing once the other end is closed
        interrupts += number[0] == signal.SIGINT
        if interrupts == 2:
            os._exit(128 + signal.SIGINT)  # the last checkpoint is whole: one that is being written has another name
    os.close(heard)
