"""Graceful shutdown on SIGTERM (sent by schedulers), SIGHUP (a closed terminal) and SIGINT (Ctrl-C)."""

import os
import signal
import threading
from types import FrameType
from typing import Any, Self

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Records whether the process was asked to stop; a context manager.

    After the first signal the current step still completes. A second Ctrl-C raises `KeyboardInterrupt`. With multiple
    processes, a signal to one of them stops all after the same step: JAX's coordination service, which handles SIGTERM
    itself, agrees on the step.

    Example:
        >>> with Preemption() as preemption:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     preemption(7), preemption.name, preemption.status
        (True, 'SIGTERM', 143)
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._multi_process = jax.process_count() > 1
        self._previous_handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python allows signal handlers only there
            names = ("SIGINT",) if self._multi_process else ("SIGINT", "SIGTERM", "SIGHUP")
            for number in (getattr(signal, name) for name in names if hasattr(signal, name)):  # not all on Windows
                if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
                    self._previous_handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def __call__(self, step: int) -> bool:
        """Returns whether to stop after this step; to be called after each step, in all processes."""
        if self._multi_process:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._signal is not None

    @property
    def name(self) -> str:
        """The name of the signal."""
        return signal.Signals(self._number).name

    @property
    def status(self) -> int:
        """The exit status by convention: 128 plus the signal number."""
        return 128 + (signal.SIGINT if self._number == signal.SIGINT else signal.SIGTERM)

    @property
    def _number(self) -> int:
        return self._signal or signal.SIGTERM

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._multi_process:
            os.kill(os.getpid(), signal.SIGTERM)  # the signal that JAX's coordination service handles
