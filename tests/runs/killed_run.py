"""A process that trains and kills itself, as `kill -9` would, at a moment that is told.

    python killed_run.py '{"when": "save", "after": 20, "delay": 0.01, "signal": 9}' train digits ...

`when` is what a delay of so many seconds begins with: the first save, cluster update or step after so many steps.
"""

import json
import os
import sys
import threading

from dropcluster_jax.cli import main
from dropcluster_jax.training import checkpoints, loop


def arrange(when: str, after: int, delay: float, signal: int) -> None:
    """Let the moment come."""
    armed = threading.Event()

    def strike() -> None:
        if not armed.is_set():
            armed.set()
            threading.Timer(delay, os.kill, (os.getpid(), signal)).start()

    save, compiled = checkpoints.Checkpointer.save, loop._compiled

    def save_and_strike(self, state, *arguments, **options):
        if when == "save" and int(state.step) > after:
            strike()
        return save(self, state, *arguments, **options)

    def compiled_and_strike(steps, parallel):
        train, cluster, evaluate = compiled(steps, parallel)
        number = 0

        def counted_train(state, batch):
            nonlocal number
            number = int(state.step)
            if when == "step" and number >= after:
                strike()
            return train(state, batch)

        def counted_cluster(state, batch):
            if when == "cluster" and int(state.step) >= after:
                strike()
            return cluster(state, batch)

        return counted_train, counted_cluster, evaluate

    checkpoints.Checkpointer.save, loop._compiled = save_and_strike, compiled_and_strike  # pyright: ignore


if __name__ == "__main__":
    arrange(**json.loads(sys.argv[1]))
    main(sys.argv[2:])
