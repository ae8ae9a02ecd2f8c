"""The training loop: reads top to bottom as the story of a run. What it tells goes to a `report` function."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from dropcluster_jax.clustering import ClusterState, agreement
from dropcluster_jax.linen import cluster_states
from dropcluster_jax.training.schedules import Cadence, every
from dropcluster_jax.training.steps import Batch, Steps, TrainState

Record = dict[str, Any]

_NEVER = every(0)


def fit(
    steps: Steps,
    state: TrainState,
    batches: Iterable[Batch],
    *,
    num_steps: int,
    probe: Callable[[int], Batch] | None = None,
    cluster_when: Cadence = _NEVER,
    test: Callable[[], Iterable[Batch]] | None = None,
    evaluate_every: int = 0,
    log_every: int = 10,
    report: Callable[[Record], None] = lambda record: None,
) -> TrainState:
    """Train until step `num_steps`.

    Args:
        steps: the pure steps; compiled here.
        state: the state to start from; its buffers are given away.
        batches: training batches, at least as many as steps are left.
        num_steps: the number of the last step.
        probe: the probe batch of the n-th update of the clusters, n = 0, 1, ...; None takes the training batch.
        cluster_when: says before which steps the clusters are updated, such as `every(200, begin=1000)`; never, if
            not given.
        test: gives the test batches anew for each evaluation.
        evaluate_every: evaluate after every so many steps, and after the last; 0 is never.
        log_every: report training metrics every so many steps.
        report: called with each record, a dict with `"event"` and `"step"`:
            `"train"` has `loss`, `accuracy`, `rate` and `images_per_second` (None in the first, which compiles);
            `"clusters"` has `layers`, for each the variance `explained`, the `agreement` with the labels before (the
            adjusted Rand index), `count` and `skipped`; `"test"` has `loss`, `accuracy` and `count`.

    Returns:
        The last state.

    Raises:
        ValueError: the batches ended before the last step.
    """
    train, cluster = jax.jit(steps.train, donate_argnums=0), jax.jit(steps.cluster)
    evaluate_step = jax.jit(steps.evaluate)
    iterator = iter(batches)
    first = step = int(state.step)
    updates = 0
    images, since = 0, None

    while step < num_steps:
        batch = next(iterator, None)
        if batch is None:
            raise ValueError(f"batches ended after step {step}, num_steps is {num_steps}")

        # Clusters first: the rate's first step above 0 finds them learned.
        if cluster_when(step):
            before = state.clusters
            state = cluster(state, batch if probe is None else probe(updates))
            updates += 1
            report({"event": "clusters", "step": step, "layers": _describe(before, state.clusters)})

        state, metrics = train(state, batch)
        step += 1
        images += len(batch["label"])

        if step % log_every == 0 or step in (first + 1, num_steps):
            metrics = jax.tree.map(float, jax.device_get(metrics))  # waits for the step
            now = time.perf_counter()
            speed = None if since is None or not images else images / (now - since)
            report({"event": "train", "step": step, **metrics, "images_per_second": speed})
            images, since = 0, now

        if test is not None and evaluate_every and (step % evaluate_every == 0 or step == num_steps):
            report({"event": "test", "step": step, **evaluate(evaluate_step, state, test())})
            images, since = 0, time.perf_counter()  # evaluation does not count as training
    return state


def evaluate(
    evaluate_step: Callable[[TrainState, Batch], dict[str, Any]], state: TrainState, batches: Iterable[Batch]
) -> dict[str, float]:
    """The mean `loss` and `accuracy` over all examples of the batches, and their `count`.

    Args:
        evaluate_step: `Steps.evaluate`, compiled.
        state: the network.
        batches: may carry `"weight"`, 0 for examples that only fill a batch.

    Raises:
        ValueError: there is no example.
    """
    sums = None
    for batch in batches:
        one = evaluate_step(state, batch)
        sums = one if sums is None else jax.tree.map(lambda a, b: a + b, sums, one)
    if sums is None or not float(sums["count"]):
        raise ValueError("batches hold no example to evaluate")
    loss, correct, count = (float(sums[name]) for name in ("loss", "correct", "count"))
    return {"loss": loss / count, "accuracy": correct / count, "count": count}


def agreement_of(state: ClusterState, other: ClusterState) -> float:
    """The adjusted Rand index of two states of a layer, the mean over channels and over layers that scan stacked."""
    groups, groups_other = (
        np.moveaxis(np.reshape(each.labels, (-1, *each.labels.shape[np.ndim(each.count) :])), 0, -1)
        for each in (state, other)
    )
    flat, flat_other = (np.reshape(each, (-1, each.shape[-2] * each.shape[-1])) for each in (groups, groups_other))
    return float(np.mean(agreement(flat, flat_other)))


def _describe(before: Any, after: Any) -> dict[str, dict[str, float]]:
    """What an update did to each layer's clusters."""
    old, new = cluster_states(jax.device_get(before)), cluster_states(jax.device_get(after))
    return {
        layer: {
            "explained": float(np.mean(state.explained)),
            "agreement": agreement_of(state, old[layer]),
            "count": int(np.max(state.count)),
            "skipped": int(np.max(state.skipped)),
        }
        for layer, state in new.items()
    }
