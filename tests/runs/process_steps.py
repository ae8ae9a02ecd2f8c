"""One of several processes that take the same training steps together, each of which also takes them alone.

    python process_steps.py COORDINATOR PROCESSES PROCESS

Prints the largest relative differences, as JSON.
"""

import json
import sys

import jax
import numpy as np
from training.test_data_parallel import batches, difference, gradient, mesh_of, on_host, placed, small_steps, update

from dropcluster_jax.training import DataParallel


def main(coordinator: str, processes: int, process: int) -> None:
    jax.distributed.initialize(coordinator, processes, process, heartbeat_timeout_seconds=20)
    alone, together = DataParallel(mesh=mesh_of(jax.local_devices()[:1])), DataParallel()
    one, many = alone.compile(small_steps(alone)), together.compile(small_steps(together))

    def part(batch):  # of this process
        size = len(batch["label"]) // processes
        return {name: leaf[process * size :][:size] for name, leaf in batch.items()}

    each = batches(20)
    state = one.init(jax.random.key(0), alone.put(each[0]))
    worst: dict[str, float] = {}

    def note(**differences: float) -> None:
        for name, value in differences.items():
            worst[name] = max(worst.get(name, 0.0), float(value))

    for number, batch in enumerate(each):
        if number % 4 == 0:
            host = on_host(state)
            state = one.cluster(state, alone.put(batch))
            labels = many.cluster(placed(together, host), together.put(part(batch))).clusters["drop"]["labels"]
            note(labels=np.mean(np.asarray(labels) != state.clusters["drop"]["labels"]))
        host = on_host(state)
        there, metrics_there = many.train(placed(together, host), together.put(part(batch)))
        there = on_host(there)
        state, metrics = one.train(state, alone.put(batch))
        note(
            loss=abs(float(metrics_there["loss"]) / float(metrics["loss"]) - 1),
            gradients=difference(gradient(host, there), gradient(host, state)),
            update=difference(update(host.params, there.params), update(host.params, state.params)),
            statistics=difference(there.batch_stats, state.batch_stats),
        )
    sums = many.evaluate(placed(together, host), together.put(part(each[0])))
    sums_alone = one.evaluate(placed(alone, host), alone.put(each[0]))
    note(evaluation=abs(float(sums["loss"]) / float(sums_alone["loss"]) - 1))
    print(json.dumps({"devices": jax.device_count(), **worst}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
