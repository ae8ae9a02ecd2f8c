"""Trains, and sends a signal to itself at a given moment.

    python killed_run.py '{"when": "save", "after": 20, "delay": 0.01, "signal": 9}' train digits ...

The signal is sent `delay` seconds after the first save, cluster update or step (`when`) after step `after`.
"""

import json
import os
import sys
import threading

from dropcluster_jax.cli import main
from dropcluster_jax.runs.checkpoints import Checkpointer
from dropcluster_jax.training.data_parallel import DataParallel


def arrange(when: str, after: int, delay: float, signal: int) -> None:
    """Patches the library so that the signal is sent."""
    armed = threading.Event()

    def strike() -> None:
        if not armed.is_set():
            armed.set()
            threading.Timer(delay, os.kill, (os.getpid(), signal)).start()

    save, compile_steps = Checkpointer.save, DataParallel.compile

    def save_and_strike(self, state, *arguments, **options):
        if when == "save" and int(state.step) > after:
            strike()
        return save(self, state, *arguments, **options)

    def compile_and_strike(self, steps):
        compiled = compile_steps(self, steps)

        def train(state, batch):
            if when == "step" and int(state.step) >= after:
                strike()
            return compiled.train(state, batch)

        def update_clusters(state, batch):
            if when == "clusters" and int(state.step) >= after:
                strike()
            return compiled.update_clusters(state, batch)

        return compiled._replace(train=train, update_clusters=update_clusters)

    Checkpointer.save, DataParallel.compile = save_and_strike, compile_and_strike  # pyright: ignore


if __name__ == "__main__":
    arrange(**json.loads(sys.argv[1]))
    main(sys.argv[2:])
