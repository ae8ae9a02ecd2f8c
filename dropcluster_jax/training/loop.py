"""The training loop."""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import jax

from dropcluster_jax.training.cluster_metrics import cluster_metrics
from dropcluster_jax.training.data_parallel import DataParallel
from dropcluster_jax.training.steps import Batch, Steps, TrainState

LogEntry = dict[str, Any]

_PROFILED_STEPS = range(5, 10)  # counted from the first step of a call, after compilation


class NonFiniteError(FloatingPointError):
    """Raised if more steps are non-finite than allowed."""


class Save(Protocol):
    """Saves a state, with its accuracy if it was evaluated and the number of non-finite steps so far."""

    def __call__(self, state: TrainState, *, accuracy: float | None, nonfinite_steps: int) -> None: ...


def fit(
    steps: Steps,
    state: TrainState,
    batches: Iterable[Batch],
    *,
    num_steps: int,
    probe: Callable[[int], Batch] | None = None,
    update_clusters_when: Callable[[int], bool] = lambda step: False,
    eval_batches: Callable[[], Iterable[Batch]] | None = None,
    evaluate_every: int | None = None,
    log_every: int | None = 10,
    on_metrics: Callable[[LogEntry], None] = lambda entry: None,
    on_clusters: Callable[[TrainState], None] = lambda state: None,
    parallel: DataParallel | None = None,
    save: Save | None = None,
    save_every: int | None = None,
    stop: Callable[[int], bool] = lambda step: False,
    max_nonfinite_steps: int = 0,
    nonfinite_steps: int = 0,
    profile: pathlib.Path | None = None,
) -> TrainState:
    """Trains a network.

    Intervals are in steps; None or 0 disables them. Callbacks whose names begin with `on_` observe the run: what they
    return is ignored.

    Args:
        steps: Steps of `make_steps`, not compiled.
        state: State to start from, of any step. Its buffers are donated.
        batches: Training batches; with `parallel`, sharded by `batch_sharding`.
        num_steps: Step number after which training ends.
        probe: Returns the probe batch of a cluster update, given its index. Defaults to the training batch.
        update_clusters_when: Predicate of the steps before which clusters are updated, e.g. `every(200, start=1000)`.
            By default, clusters are not updated, and a new network keeps the tiles of its grid.
        eval_batches: Returns the batches to evaluate on. Called for each evaluation.
        evaluate_every: Interval of evaluations. Also evaluates after the last step, unless disabled.
        log_every: Interval of training metrics and of checks for non-finite steps. The first and last steps are
            included.
        on_metrics: Called with each log entry, a dict with `event` and `step`. `"train"` entries have `loss`,
            the metrics, `rate` and `images_per_second` (None if not known yet). `"clusters"` entries have `layers`, a
            dict from layer names to `explained_variance`, `adjusted_rand_index` (with the previous labels),
            `num_updates` and `num_skipped`. `"eval"` entries have the results of `evaluate`. `"nonfinite"` entries, one
            for each non-finite step, have `nonfinite_steps`, their number so far.
        on_clusters: Called with the state after each cluster update. The next step donates its buffers.
        parallel: Devices and parallelization strategy. Defaults to `jax.jit` on the default device.
        save: Called with the state after each evaluation, after the last step and when stopped. Never called with a
            state that depends on a non-finite step, unless `steps` were made with `skip_nonfinite=True`.
        save_every: Interval of further calls of `save`.
        stop: Predicate of the step number, called after each step. If true, the loop saves and returns.
        max_nonfinite_steps: Number of non-finite steps tolerated. Requires steps made with `skip_nonfinite=True`.
        nonfinite_steps: Number of non-finite steps before this call, e.g. from a checkpoint.
        profile: Folder for a trace of five steps by `jax.profiler`.

    Returns:
        State after the last step.

    Raises:
        TypeError: If `update_clusters_when` or `eval_batches` is not callable.
        ValueError: If `batches` ends before `num_steps`, labels outside the classes made a step non-finite, or
            `max_nonfinite_steps` is positive and `steps` were not made with `skip_nonfinite=True`.
        NonFiniteError: If more than `max_nonfinite_steps` steps were non-finite.

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
        >>> state, entries = steps.init(jax.random.key(0), batch), []
        >>> options = {"num_steps": 9, "eval_batches": lambda: [batch], "evaluate_every": 9}
        >>> state = fit(steps, state, [batch] * 9, on_metrics=entries.append, **options)
        >>> int(state.step), [(entry["event"], entry["step"]) for entry in entries], entries[-1]["accuracy"]
        (9, [('train', 1), ('train', 9), ('eval', 9)], 1.0)
    """
    for name, function in (("update_clusters_when", update_clusters_when), ("eval_batches", eval_batches)):
        if function is not None and not callable(function):
            raise TypeError(f"{name} must be callable, got {type(function).__name__}")
    if max_nonfinite_steps and not steps.skip_nonfinite:
        raise ValueError("max_nonfinite_steps requires steps made with skip_nonfinite=True")
    train, update_clusters, evaluate_step = _compile(steps, parallel)
    iterator = iter(batches)
    first_step = step = int(jax.device_get(state.step))
    num_updates = sum(map(update_clusters_when, range(first_step)))
    key = jax.eval_shape(lambda key: key, state.key)  # the steps donate the array
    nonfinite = _NonFiniteSteps(nonfinite_steps, max_nonfinite_steps, on_metrics, steps, key)
    throughput = _Throughput()
    with _Profiler(profile, first_step, num_steps) as profiler:
        while step < num_steps:
            batch = next(iterator, None)
            if batch is None:
                raise ValueError(f"batches must last until step {num_steps}, but ended after step {step}")

            # Update clusters first, so that they are learned before the first step with a positive rate.
            if update_clusters_when(step):
                previous = state.clusters
                state = update_clusters(state, batch if probe is None else probe(num_updates))
                num_updates += 1
                on_metrics({"event": "clusters", "step": step, "layers": cluster_metrics(previous, state.clusters)})
                on_clusters(state)

            profiler.before_step(step, state)
            state, metrics = train(state, batch)
            step += 1
            profiler.after_step(step, state)
            nonfinite.add(step, metrics.pop("finite"), batch)
            throughput.add(len(jax.tree.leaves(batch["image"])[0]))

            if _is_due(step, log_every) or step in (1, num_steps):
                scalars = jax.tree.map(float, jax.device_get(metrics))  # waits for the step
                nonfinite.check()
                images_per_second = throughput.restart()
                on_metrics({"event": "train", "step": step, **scalars, "images_per_second": images_per_second})
            elif step == first_step + 1:
                jax.block_until_ready(metrics)
                throughput.restart()  # excludes compilation

            accuracy, evaluated = None, False
            if eval_batches is not None and evaluate_every and (_is_due(step, evaluate_every) or step == num_steps):
                nonfinite.check()
                results, evaluated = evaluate(evaluate_step, state, eval_batches()), True
                accuracy = results.get("accuracy")
                on_metrics({"event": "eval", "step": step, **results})

            stopped = stop(step)
            if evaluated or stopped or step == num_steps or _is_due(step, save_every):
                nonfinite.check()
                if save is not None:
                    save(state, accuracy=accuracy, nonfinite_steps=nonfinite.count)
                throughput.restart()  # excludes evaluation and saving
            if stopped:
                break
    return state


def evaluate(
    evaluate_step: Callable[[TrainState, Batch], dict[str, Any]], state: TrainState, batches: Iterable[Batch]
) -> dict[str, float]:
    """Evaluates a network on all examples of `batches`.

    Args:
        evaluate_step: Compiled `Steps.evaluate`.
        state: State with the network's variables.
        batches: Batches to evaluate on. An optional `"weight"`, `(batch,)`, weights the examples; 0 marks padding.

    Returns:
        The means of `loss` and of the metrics, e.g. `accuracy` (in [0, 1]), and `count`.

    Raises:
        ValueError: If `batches` contains no example with a positive weight.

    Example:
        >>> import numpy as np
        >>> def predict_class_0(state, batch):  # instead of a compiled Steps.evaluate
        ...     weight = batch["weight"]
        ...     return {"loss": 0.5 * weight.sum(), "accuracy": weight @ (batch["label"] == 0), "count": weight.sum()}
        >>> batches = [
        ...     {"label": np.array([0, 1]), "weight": np.array([1.0, 1.0])},
        ...     {"label": np.array([0, 0]), "weight": np.array([2.0, 0.0])},
        ... ]
        >>> evaluate(predict_class_0, None, batches)
        {'accuracy': 0.75, 'loss': 0.5, 'count': 4.0}
    """
    sums = None
    for batch in batches:
        batch_sums = evaluate_step(state, batch)
        sums = batch_sums if sums is None else jax.tree.map(lambda a, b: a + b, sums, batch_sums)
    totals: dict[str, float] = {} if sums is None else jax.tree.map(float, jax.device_get(sums))
    count = totals.pop("count", 0)
    if not count:
        raise ValueError("batches must contain at least one example with a positive weight")
    return {**{name: total / count for name, total in totals.items()}, "count": count}


def _compile(steps: Steps, parallel: DataParallel | None) -> tuple[Callable[..., Any], ...]:
    if parallel is None:
        return jax.jit(steps.train, donate_argnums=0), jax.jit(steps.update_clusters), jax.jit(steps.evaluate)
    compiled = parallel.compile(steps)
    return compiled.train, compiled.update_clusters, compiled.evaluate


def _is_due(step: int, interval: int | None) -> bool:
    return bool(interval) and step % interval == 0


@dataclasses.dataclass
class _NonFiniteSteps:
    """Counts and logs non-finite steps. Raises `NonFiniteError` if there are more than `allowed`."""

    count: int
    allowed: int
    on_metrics: Callable[[LogEntry], None]
    steps: Steps
    key: jax.ShapeDtypeStruct
    _unchecked: list[tuple[int, jax.Array, Batch]] = dataclasses.field(default_factory=list)

    def add(self, step: int, finite: jax.Array, batch: Batch) -> None:
        """Records a step without waiting for its result, and without keeping the images."""
        image = jax.eval_shape(lambda image: image, batch["image"])
        self._unchecked.append((step, finite, {"image": image, "label": batch["label"]}))

    def check(self) -> None:
        """Waits for the steps since the last check."""
        all_finite = jax.device_get([finite for _, finite, _ in self._unchecked])
        for (step, _, batch), finite in zip(self._unchecked, all_finite, strict=True):
            if not finite:
                self.count += 1
                self.on_metrics({"event": "nonfinite", "step": step, "nonfinite_steps": self.count})
                if self.count > self.allowed:
                    self._check_labels(batch)
                    raise NonFiniteError(self._message(step))
        self._unchecked.clear()

    def _check_labels(self, batch: Batch) -> None:
        """Raises ValueError for labels outside the classes, which `Steps.init` knows from the shape of the logits."""
        jax.eval_shape(lambda key, image: self.steps.init(key, {**batch, "image": image}), self.key, batch["image"])

    def _message(self, step: int) -> str:
        skipped = f", after {self.allowed} skipped steps" if self.allowed else ""
        return (
            f"the loss or a gradient was not finite at step {step}{skipped}: try a lower learning rate, a longer "
            "warm-up, gradient clipping, or float32 instead of bfloat16, and check that labels are in [0, classes); "
            "max_nonfinite_steps tolerates rare non-finite steps"
        )


class _Throughput:
    """Measures images per second."""

    def __init__(self) -> None:
        self._num_images, self._start = 0, None

    def add(self, num_images: int) -> None:
        self._num_images += num_images

    def restart(self) -> float | None:
        """Returns images per second since the last restart, or None if there was none."""
        now = time.perf_counter()
        images_per_second = None if self._start is None else self._num_images / (now - self._start)
        self._num_images, self._start = 0, now
        return images_per_second


class _Profiler:
    """Traces a few steps with `jax.profiler`, if there is a folder for the trace."""

    def __init__(self, folder: pathlib.Path | None, first_step: int, num_steps: int) -> None:
        self._folder, self._running = folder, False
        self._start = min(first_step + _PROFILED_STEPS.start, num_steps - 1)
        self._stop = min(first_step + _PROFILED_STEPS.stop, num_steps)

    def __enter__(self) -> "_Profiler":
        return self

    def __exit__(self, *exception: object) -> None:
        """Ends a trace that is still running, because the process can have only one."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()

    def before_step(self, step: int, state: TrainState) -> None:
        if self._folder is not None and step == self._start:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def after_step(self, step: int, state: TrainState) -> None:
        if self._running and step == self._stop:
            jax.block_until_ready(state)
            self.__exit__()
