"""The training loop: reads top to bottom as the story of a run. What it tells goes to a `log` function."""

import pathlib
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import jax
import numpy as np

from dropcluster_jax.clustering import ClusterState, adjusted_rand_index
from dropcluster_jax.linen import cluster_states
from dropcluster_jax.training.data_parallel import DataParallel
from dropcluster_jax.training.schedules import StepPredicate, every
from dropcluster_jax.training.steps import Batch, Steps, TrainState

LogEntry = dict[str, Any]

_NEVER = every(0)
_agreement = jax.jit(adjusted_rand_index)
_TRACED = range(5, 10)  # steps of a run that the profiler looks at: after compilation


class NonFiniteError(FloatingPointError):
    """The loss or a gradient was not finite at a step, once more than is allowed.

    Example:
        >>> try:
        ...     raise NonFiniteError("the loss was not finite at step 3")
        ... except FloatingPointError as error:  # as NumPy's own
        ...     print(error)
        the loss was not finite at step 3
    """


class Save(Protocol):
    """Writes a checkpoint."""

    def __call__(self, state: TrainState, *, accuracy: float | None, nonfinite_steps: int) -> None:
        """`accuracy` is that of an evaluation of this very state, if there was one."""
        ...


def fit(
    steps: Steps,
    state: TrainState,
    batches: Iterable[Batch],
    *,
    num_steps: int,
    probe: Callable[[int], Batch] | None = None,
    update_clusters_when: StepPredicate = _NEVER,
    test: Callable[[], Iterable[Batch]] | None = None,
    evaluate_every: int = 0,
    log_every: int = 10,
    log: Callable[[LogEntry], None] = lambda record: None,
    on_clusters: Callable[[TrainState], None] = lambda state: None,
    parallel: DataParallel | None = None,
    save: Save | None = None,
    save_every: int = 0,
    stop: Callable[[int], bool] = lambda step: False,
    max_nonfinite_steps: int = 0,
    nonfinite_steps: int = 0,
    profile: pathlib.Path | None = None,
) -> TrainState:
    """Train until step `num_steps`.

    From a state and batches as they were at any step, the rest of the run is what it would have been.

    Args:
        steps: the pure steps; compiled here.
        state: the state to start from; its buffers are given away.
        batches: training batches, at least as many as steps are left.
        num_steps: the number of the last step.
        probe: the probe batch of the n-th update of the clusters, n = 0, 1, ...; None takes the training batch.
        update_clusters_when: says before which steps the clusters are updated, such as `every(200, start=1000)`; never, if
            not given.
        test: gives the test batches anew for each evaluation.
        evaluate_every: evaluate after every so many steps, and after the last; 0 is never.
        log_every: report training metrics, and look whether they are finite, every so many steps.
        log: called with each record, a dict with `"event"` and `"step"`:
            `"train"` has `loss`, `accuracy`, `rate` and `images_per_second` (None where compilation counts in);
            `"clusters"` has `layers`, for each the `explained_variance`, the `adjusted_rand_index` with the labels before (the
            adjusted Rand index), `num_updates` and `num_skipped`; `"test"` has `loss`, `accuracy`, of 100 classes or more
            `accuracy_top5`, and `count`; `"bad"`, a step whose loss or gradients were not finite, has `nonfinite_steps`, how
            many there were so far.
        on_clusters: called with the state after each update of its clusters. Its arrays are given away to the next step:
            copy what is to stay, by `jax.device_get`.
        parallel: the devices, and how the steps run on them; None is the default device. State and batches lie there.
        save: called with the state after each evaluation, when stopped, and after the last step; never with a state
            that came after a step that was not finite, unless steps made with `skip_nonfinite` left it as it was.
        save_every: `save` is also called after every so many steps; 0 is never.
        stop: asked after each step, with its number, whether to save and return.
        max_nonfinite_steps: so many steps may be not finite; for steps made with `skip_nonfinite`.
        nonfinite_steps: how many there were before.
        profile: a folder into which JAX's profiler writes what happened in five steps.

    Returns:
        The last state.

    Raises:
        ValueError: the batches ended before the last step.
        NonFiniteError: one step more than `max_nonfinite_steps` was not finite.

    Example:
        >>> import flax.linen as nn
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from dropcluster_jax.training import make_steps
        >>> class Linear(nn.Module):
        ...     @nn.compact
        ...     def __call__(self, x, train=False, rate=0.0):
        ...         return nn.Dense(2)(x.reshape(len(x), -1))
        >>> steps = make_steps(Linear(), optax.sgd(1.0))
        >>> batch = {"image": jnp.array([1.0, -1.0]).reshape(2, 1, 1, 1), "label": jnp.array([0, 1])}
        >>> state, records = steps.init(jax.random.key(0), batch), []
        >>> state = fit(
        ...     steps, state, [batch] * 9, num_steps=9, test=lambda: [batch], evaluate_every=9, log=records.append
        ... )
        >>> int(state.step), [(record["event"], record["step"]) for record in records], records[-1]["accuracy"]
        (9, [('train', 1), ('train', 9), ('test', 9)], 1.0)
    """
    train, update_clusters, evaluate_step = _compiled(steps, parallel)
    iterator = iter(batches)
    first = step = int(jax.device_get(state.step))
    updates = sum(map(update_clusters_when, range(first)))
    images, since = 0, None
    unchecked: list[tuple[int, Any]] = []

    def check() -> None:
        """Were the steps since the last look finite?"""
        nonlocal nonfinite_steps
        for number, finite in jax.device_get(unchecked):
            if not finite:
                nonfinite_steps += 1
                log({"event": "bad", "step": number, "nonfinite_steps": nonfinite_steps})
                if nonfinite_steps > max_nonfinite_steps:
                    raise NonFiniteError(_advice(number, max_nonfinite_steps))
        unchecked.clear()

    def save_now(accuracy: float | None = None) -> None:
        check()
        if save is not None:
            save(state, accuracy=accuracy, nonfinite_steps=nonfinite_steps)

    while step < num_steps:
        batch = next(iterator, None)
        if batch is None:
            raise ValueError(f"batches ended after step {step}, num_steps is {num_steps}")

        # Clusters first: the rate's first step above 0 finds them learned.
        if update_clusters_when(step):
            before = state.clusters
            state = update_clusters(state, batch if probe is None else probe(updates))
            updates += 1
            log({"event": "clusters", "step": step, "layers": _describe(before, state.clusters)})
            on_clusters(state)

        if profile is not None and step == min(first + _TRACED.start, num_steps - 1):
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(profile))
        state, metrics = train(state, batch)
        finite = metrics.pop("finite")
        step += 1
        images += len(batch["label"])
        unchecked.append((step, finite))
        if profile is not None and step == min(first + _TRACED.stop, num_steps):
            jax.block_until_ready(state)
            jax.profiler.stop_trace()

        if step % log_every == 0 or step in (1, num_steps):
            metrics = jax.tree.map(float, jax.device_get(metrics))  # waits for the step
            check()
            now = time.perf_counter()
            speed = None if since is None or not images else images / (now - since)
            log({"event": "train", "step": step, **metrics, "images_per_second": speed})
            images, since = 0, now
        elif step == first + 1:
            jax.block_until_ready(metrics)
            images, since = 0, time.perf_counter()  # compilation does not count as training

        accuracy = None
        if test is not None and evaluate_every and (step % evaluate_every == 0 or step == num_steps):
            check()
            results = evaluate(evaluate_step, state, test())
            accuracy = results["accuracy"]
            log({"event": "test", "step": step, **results})
        stopped = stop(step)
        if accuracy is not None or stopped or step == num_steps or (save_every and step % save_every == 0):
            save_now(accuracy)
            images, since = 0, time.perf_counter()  # nor do evaluation and saving
        if stopped:
            break
    return state


def evaluate(
    evaluate_step: Callable[[TrainState, Batch], dict[str, Any]], state: TrainState, batches: Iterable[Batch]
) -> dict[str, float]:
    """The mean `loss` and `accuracy` (and `accuracy_top5`) over all examples of the batches, and their `count`.

    Args:
        evaluate_step: `Steps.evaluate`, compiled.
        state: the network.
        batches: may carry `"weight"`, `(batch,)`, 0 for examples that only fill a batch.

    Returns:
        `loss`, `accuracy`, of 100 classes or more `accuracy_top5`, and `count`; accuracies are in [0, 1].

    Raises:
        ValueError: there is no example.

    Example:
        >>> def always_0(state, batch):  # in the place of a compiled `Steps.evaluate`
        ...     weight = batch["weight"]
        ...     return {"loss": 0.5 * weight.sum(), "correct": weight @ (batch["label"] == 0), "count": weight.sum()}
        >>> batches = [
        ...     {"label": np.array([0, 1]), "weight": np.array([1.0, 1.0])},
        ...     {"label": np.array([0, 0]), "weight": np.array([2.0, 0.0])},
        ... ]
        >>> evaluate(always_0, None, batches)
        {'accuracy': 0.75, 'loss': 0.5, 'count': 4.0}
    """
    sums = None
    for batch in batches:
        one = evaluate_step(state, batch)
        sums = one if sums is None else jax.tree.map(lambda a, b: a + b, sums, one)
    totals: dict[str, float] = {} if sums is None else jax.tree.map(float, jax.device_get(sums))
    count = totals.pop("count", 0)
    if not count:
        raise ValueError("batches hold no example to evaluate")
    names = {"loss": "loss", "correct": "accuracy", "correct_top5": "accuracy_top5"}
    return {**{names[name]: total / count for name, total in totals.items()}, "count": count}


def _compiled(steps: Steps, parallel: DataParallel | None) -> tuple[Callable[..., Any], ...]:
    if parallel is None:
        return jax.jit(steps.train, donate_argnums=0), jax.jit(steps.update_clusters), jax.jit(steps.evaluate)
    compiled = parallel.compile(steps)
    return compiled.train, compiled.update_clusters, compiled.evaluate


def _advice(step: int, allowed: int) -> str:
    more = f", once more than the {allowed} steps that may be skipped" if allowed else ""
    return (
        f"the loss or a gradient was not finite at step {step}{more}: try a lower learning rate, a longer warm-up, "
        "gradient clipping, or float32 in place of bfloat16; a few bad batches may be skipped by max_nonfinite_steps"
    )


def mean_adjusted_rand_index(state: ClusterState, other: ClusterState) -> float:
    """The adjusted Rand index of two states of a layer, the mean over channels and over layers that scan stacked."""
    groups, groups_other = (
        np.moveaxis(np.reshape(each.labels, (-1, *each.labels.shape[np.ndim(each.num_updates) :])), 0, -1)
        for each in (state, other)
    )
    flat, flat_other = (np.reshape(each, (-1, each.shape[-2] * each.shape[-1])) for each in (groups, groups_other))
    return float(np.mean(jax.device_get(_agreement(*jax.device_put((flat, flat_other))))))


def _describe(before: Any, after: Any) -> dict[str, dict[str, float]]:
    """What an update did to each layer's clusters."""
    old, new = cluster_states(jax.device_get(before)), cluster_states(jax.device_get(after))
    return {
        layer: {
            "explained_variance": float(np.mean(state.explained_variance)),
            "adjusted_rand_index": mean_adjusted_rand_index(state, old[layer]),
            "num_updates": int(np.max(state.num_updates)),
            "num_skipped": int(np.max(state.num_skipped)),
        }
        for layer, state in new.items()
    }
