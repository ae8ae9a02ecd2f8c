"""Runs training and sends itself a signal at a given point.

    python killed_run.py '{"when": "save", "after": 20, "delay": 0.01, "signal": 9}' train digits ...

The signal is sent `delay` seconds after the first save, cluster update or step (`when`) after step `after`.
"""

import json
import os
import sys
import threading

from dropcluster_jax.cli import main
from dropcluster_jax.runs.checkpoints import Checkpointer
from dropcluster_jax.training import loop


def arrange(when: str, after: int, delay: float, signal: int) -> None:
    """Patches the library so that the signal is sent."""
    armed = threading.Event()

    def strike() -> None:
        if not armed.is_set():
            armed.set()
            threading.Timer(delay, os.kill, (os.getpid(), signal)).start()

    save, compile_steps = Checkpointer.save, loop._compile

    def save_and_strike(self, state, *arguments, **options):
        if when == "save" and int(state.step) > after:
            strike()
        return save(self, state, *arguments, **options)

    def compile_and_strike(steps, parallel):
        train, update_clusters, evaluate = compile_steps(steps, parallel)

        def train_and_strike(state, batch):
            if when == "step" and int(state.step) >= after:
                strike()
            return train(state, batch)

        def update_and_strike(state, batch):
            if when == "clusters" and int(state.step) >= after:
                strike()
            return update_clusters(state, batch)

        return train_and_strike, update_and_strike, evaluate

    Checkpointer.save, loop._compile = save_and_strike, compile_and_strike  # pyright: ignore


if __name__ == "__main__":
    arrange(**json.loads(sys.argv[1]))
    main(sys.argv[2:])
