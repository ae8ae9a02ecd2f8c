"""A process that takes the same training steps together with others and alone, and prints the largest differences.

python process_steps.py COORDINATOR NUM_PROCESSES PROCESS_ID
"""

import json
import sys

import jax
import numpy as np
from training.helpers import batches, difference, gradient, mesh_of, on_host, placed, small_steps, update

from dropcluster_jax.training import DataParallel


def main(coordinator: str, num_processes: int, process_id: int) -> None:
    jax.distributed.initialize(coordinator, num_processes, process_id, heartbeat_timeout_seconds=20)
    alone, together = DataParallel(mesh=mesh_of(jax.local_devices()[:1])), DataParallel()
    steps_alone, steps_together = alone.compile(small_steps(alone)), together.compile(small_steps(together))

    def local_part(batch):
        size = len(batch["label"]) // num_processes
        return {name: leaf[process_id * size :][:size] for name, leaf in batch.items()}

    all_batches = batches(20)
    state = steps_alone.init(jax.random.key(0), alone.shard_batch(all_batches[0]))
    worst: dict[str, float] = {}

    def note(**differences: float) -> None:
        for name, value in differences.items():
            worst[name] = max(worst.get(name, 0.0), float(value))

    for number, batch in enumerate(all_batches):
        whole, part = alone.shard_batch(batch), together.shard_batch(local_part(batch))
        if number % 4 == 0:
            host = on_host(state)
            state = steps_alone.update_clusters(state, whole)
            labels = steps_together.update_clusters(placed(together, host), part).clusters["drop"]["labels"]
            note(labels=np.mean(np.asarray(labels) != state.clusters["drop"]["labels"]))
        host = on_host(state)
        state_together, metrics_together = steps_together.train(placed(together, host), part)
        state_together = on_host(state_together)
        state, metrics = steps_alone.train(state, whole)
        note(
            loss=abs(float(metrics_together["loss"]) / float(metrics["loss"]) - 1),
            gradients=difference(gradient(host, state_together), gradient(host, state)),
            update=difference(update(host.params, state_together.params), update(host.params, state.params)),
            statistics=difference(state_together.batch_stats, state.batch_stats),
        )
    sums_together = steps_together.evaluate(placed(together, host), together.shard_batch(local_part(all_batches[0])))
    sums_alone = steps_alone.evaluate(placed(alone, host), alone.shard_batch(all_batches[0]))
    note(evaluation=abs(float(sums_together["loss"]) / float(sums_alone["loss"]) - 1))
    print(json.dumps({"devices": jax.device_count(), **worst}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
