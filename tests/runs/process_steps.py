"""A process that takes training steps with others and compares them to other steps; prints the largest differences.

python process_steps.py COORDINATOR NUM_PROCESSES PROCESS_ID jit
python process_steps.py COORDINATOR NUM_PROCESSES PROCESS_ID pmap

With jit, the other steps are those of one device. With pmap, they are those of shard_map on the same devices.
"""

import json
import sys

import jax
import numpy as np
from training.helpers import batches, difference, gradient, mesh_of, on_host, placed, small_steps, update

from dropcluster_jax.training import DataParallel
from dropcluster_jax.training.data_parallel import Strategy


def main(coordinator: str, num_processes: int, process_id: int, strategy: Strategy) -> None:
    jax.distributed.initialize(coordinator, num_processes, process_id, heartbeat_timeout_seconds=20)
    if strategy == "jit":
        expected, together = DataParallel(mesh=mesh_of(jax.local_devices()[:1])), DataParallel()
    else:
        expected, together = DataParallel("shard_map"), DataParallel(strategy)
    expected_steps, steps_together = expected.compile(small_steps(expected)), together.compile(small_steps(together))

    def local_part(batch, parallel):
        if not parallel.mesh.is_multi_process:
            return parallel.shard_batch(batch)
        size = len(batch["label"]) // num_processes
        return parallel.shard_batch({name: leaf[process_id * size :][:size] for name, leaf in batch.items()})

    all_batches = batches(20)
    state = expected_steps.init(jax.random.key(0), local_part(all_batches[0], expected))
    worst: dict[str, float] = {}

    def note(**differences: float) -> None:
        for name, value in differences.items():
            worst[name] = max(worst.get(name, 0.0), float(value))

    for number, batch in enumerate(all_batches):
        expected_batch, batch_together = local_part(batch, expected), local_part(batch, together)
        if number % 4 == 0:
            host = on_host(state)
            state = expected_steps.update_clusters(state, expected_batch)
            clusters = steps_together.update_clusters(placed(together, host), batch_together).clusters
            labels, expected_labels = (np.asarray(tree["drop"]["labels"]) for tree in (clusters, state.clusters))
            note(labels=np.mean(labels != expected_labels))
        host = on_host(state)
        state_together, metrics_together = steps_together.train(placed(together, host), batch_together)
        assert state_together.params["conv1"]["kernel"].sharding == together.replicated
        state_together = on_host(state_together)
        state, metrics = expected_steps.train(state, expected_batch)
        expected_state = on_host(state)
        note(
            loss=abs(float(metrics_together["loss"]) / float(metrics["loss"]) - 1),
            gradients=difference(gradient(host, state_together), gradient(host, expected_state)),
            update=difference(update(host.params, state_together.params), update(host.params, expected_state.params)),
            statistics=difference(state_together.batch_stats, expected_state.batch_stats),
        )
    sums_together = steps_together.evaluate(placed(together, host), local_part(all_batches[0], together))
    expected_sums = expected_steps.evaluate(placed(expected, host), local_part(all_batches[0], expected))
    note(evaluation=abs(float(sums_together["loss"]) / float(expected_sums["loss"]) - 1))
    print(json.dumps({"devices": jax.device_count(), **worst}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])  # pyright: ignore[reportArgumentType]
