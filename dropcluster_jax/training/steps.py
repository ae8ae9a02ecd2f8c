"""Pure functions that initialize, train and evaluate a network and update its clusters."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PyTree

from dropcluster_jax.masking.common import Rate, check_rate

Batch = Mapping[str, Any]  # JAX or NumPy arrays
Metrics = dict[str, Any]
Rates = Rate | Mapping[str, Rate]
Labels = Int[Array, " batch"] | Float[Array, "batch classes"]

_MIN_CLASSES_FOR_TOP5 = 100


class TrainState(NamedTuple):
    """Everything that changes during training, as one pytree.

    Attributes:
        params: Parameters.
        batch_stats: Running statistics of BatchNorm, or an empty dict.
        clusters: Clusters of the `DropCluster` layers, or an empty dict. Only `Steps.update_clusters` changes them.
        opt_state: Optimizer state.
        key: PRNG key. Never changes; each step folds in its step number.
        step: Number of training steps so far, an int32 scalar.
        ema: Exponential moving averages, a dict with `params` and `batch_stats`, or an empty tuple.

    Example:
        >>> state = TrainState({"w": jnp.array(3.0)}, {}, {}, (), jax.random.key(0), jnp.array(7))
        >>> sorted(state.variables())
        ['params']
    """

    params: PyTree
    batch_stats: PyTree
    clusters: PyTree
    opt_state: PyTree
    key: Array
    step: Int[Array, ""]
    ema: PyTree = ()

    def variables(self, ema: bool = False) -> dict[str, PyTree]:
        """Returns the variables for `model.apply`. `ema` selects the moving averages, if the state has any."""
        collections = {"params": self.params, "batch_stats": self.batch_stats, "clusters": self.clusters}
        if ema and self.ema:
            collections |= self.ema
        return {name: collection for name, collection in collections.items() if collection}


class Steps(NamedTuple):
    """The pure functions of a training run; see `make_steps`.

    Compile them with `jax.jit`, `jax.shard_map` or `jax.pmap`, or with `DataParallel`. A batch is a mapping with
    `"image"`, `(batch, *spatial, channels)`, and `"label"`, class indices `(batch,)` or, if the loss accepts them,
    probabilities `(batch, classes)`. `update_clusters` needs no label.

    Attributes:
        init: `(key, batch) -> TrainState`.
        train: `(state, batch) -> (state, metrics)`, one optimizer step that leaves the clusters unchanged. The metrics
            are scalars: the means `loss` and `accuracy` (in [0, 1]), `rate`, and `finite`, whether loss, gradients,
            statistics, new parameters and rate are finite.
        update_clusters: `(state, batch) -> state`, one update of the clusters with the batch as probe batch and the
            network in evaluation mode. Leaves everything else unchanged.
        evaluate: `(state, batch) -> metrics`, sums over the examples: `loss`, `correct`, `count`, and `correct_top5`
            for 100 or more classes. Uses the moving averages if the state has any. An optional `"weight"`, `(batch,)`,
            in the batch weights the examples; 0 marks padding.
        axis_name: Mapped axis the functions were made for, if any.
        skip_nonfinite: Whether `train` skips non-finite steps.
    """

    init: Callable[[Array, Batch], TrainState]
    train: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    update_clusters: Callable[[TrainState, Batch], TrainState]
    evaluate: Callable[[TrainState, Batch], Metrics]
    axis_name: str | None = None
    skip_nonfinite: bool = False


def softmax_cross_entropy(logits: Float[Array, "batch classes"], labels: Labels) -> Float[Array, " batch"]:
    """Returns the cross-entropy of each example in nats.

    Args:
        logits: Unnormalized log probabilities, `(batch, classes)`.
        labels: Class indices, integers `(batch,)`, or probabilities, floats `(batch, classes)`.

    Returns:
        `(batch,)`; NaN for class indices outside [0, classes).

    Raises:
        ValueError: If `labels` is neither.

    Example:
        >>> losses = softmax_cross_entropy(jnp.zeros((3, 4)), jnp.array([2, 4, -1]))
        >>> bool(jnp.allclose(losses, jnp.array([jnp.log(4), jnp.nan, jnp.nan]), equal_nan=True))
        True
    """
    _check_labels(labels, logits.shape[-1])
    if labels.ndim == 2:
        return optax.softmax_cross_entropy(logits, labels)
    valid = (labels >= 0) & (labels < logits.shape[-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(valid, labels, 0))
    return jnp.where(valid, losses, jnp.nan)


def make_steps(
    model: nn.Module,
    tx: optax.GradientTransformation,
    *,
    rate: Rates | Callable[[Array], Rates] = 0.0,
    loss: Callable[[Array, Array], Array] = softmax_cross_entropy,
    augment: Callable[[Array, Array], Array] | None = None,
    preprocess: Callable[[Array], Array] | None = None,
    mix: Callable[[Array, Array, Array], tuple[Array, Array]] | None = None,
    label_smoothing: float = 0.0,
    grad_accum_steps: int = 1,
    ema_decay: float = 0.0,
    eval_params: Callable[[PyTree, PyTree], PyTree] | None = None,
    skip_nonfinite: bool = False,
    axis_name: str | None = None,
) -> Steps:
    """Returns pure functions that train `model` with `tx`.

    Args:
        model: Network that is called as `model.apply(variables, images, train=, rate=)`, with `update_clusters=` too
            if it has clusters, like those of `dropcluster_jax.models`.
        tx: Optax gradient transformation. Its update gets the extra arguments `value` (the loss), `grad` and
            `value_fn` (the loss of the same batch, with the same masks, as a function of the parameters). Those that
            need gradients per example (`optax.contrib.dpsgd`), other arguments (`optax.contrib.sophia`) or parameters
            of another structure (`optax.lookahead`) are not supported and raise an error.
        rate: Rate of the drop layers, in [0, 1]: a scalar, a mapping from places to scalars, or a schedule of the step
            number that returns either.
        loss: `(logits, labels) -> losses`, with losses of shape `(batch,)`. Receives probabilities in training if
            `label_smoothing` is positive.
        augment: `(key, images) -> images`, applied in training only.
        preprocess: `images -> images`, e.g. normalization. Applied in training (after `augment`) and evaluation.
        mix: `(key, images, labels) -> (images, labels)`, e.g. mixup. Applied in training only, after `preprocess`. May
            return labels as probabilities, `(batch, classes)`, if `loss` accepts them.
        label_smoothing: Probability mass of each training label to spread over all classes, in [0, 1).
        grad_accum_steps: Number of sequential parts into which `train` splits a batch (of each replica) to save memory.
            Gradients are averaged over the parts. BatchNorm normalizes each part separately.
        ema_decay: Decay of the moving averages of parameters and BatchNorm statistics, in [0, 1), limited to
            `(1 + step) / (10 + step)`. 0 disables averaging. Averages are in at least float32.
        eval_params: `(opt_state, params) -> params`, the parameters to evaluate, e.g.
            `optax.contrib.schedule_free_eval_params`. Not with `ema_decay`.
        skip_nonfinite: Whether a training step with non-finite loss, gradients, statistics, new parameters or rate
            changes nothing but the step number.
        axis_name: Mapped axis over which the batch is split under `shard_map` or `pmap`. Gradients, statistics and
            metrics are averaged over it, and each replica draws separate masks. Pass the same name to `DropCluster`
            layers, and to BatchNorm to average its batch statistics. None under `jit`, also with a sharded batch.

    Returns:
        The steps. Their results depend on their arguments only.

    Raises:
        TypeError: If `rate` is neither scalars nor a schedule, or the model's call does not take `train` and `rate`.
            `init` raises it if `tx` contains `optax.lookahead`, whose parameters have another structure.
        ValueError: If `rate`, `label_smoothing`, `grad_accum_steps` or `ema_decay` is out of range, or `ema_decay` is
            given with `eval_params`. All functions raise it for batches without image or label, or of invalid shapes
            or types, `init` for models with variables in other collections, and `train` if `grad_accum_steps` does
            not divide the batch size.

    References:
        Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016, arXiv:1512.00567,
        section 7 (label smoothing).
        Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", SIAM J. Control Optim. 30(4),
        1992.

    Example:
        >>> from dropcluster_jax import KMeans
        >>> from dropcluster_jax.linen import DropCluster
        >>> class Net(nn.Module):
        ...     @nn.compact
        ...     def __call__(self, x, train=False, rate=0.0, update_clusters=False):
        ...         drop = DropCluster(KMeans(cluster_size=4), name="drop")
        ...         x = drop(nn.Conv(8, (3, 3))(x), rate, not train, update_clusters)
        ...         return nn.Dense(10)(x.mean((1, 2)))
        >>> steps = make_steps(Net(), optax.sgd(0.1), rate=optax.linear_schedule(0.0, 0.1, 2))
        >>> batch = {"image": jnp.ones((8, 8, 8, 1)), "label": jnp.zeros(8, jnp.int32)}
        >>> state = jax.jit(steps.init)(jax.random.key(0), batch)
        >>> state, train = jax.jit(steps.update_clusters)(state, batch), jax.jit(steps.train)
        >>> for _ in range(3):
        ...     state, metrics = train(state, batch)
        ...     print(int(state.step), round(float(metrics["rate"]), 3), int(state.clusters["drop"]["num_updates"]))
        1 0.0 1
        2 0.05 1
        3 0.1 1
    """
    if not callable(rate):
        for scalar in rate.values() if isinstance(rate, Mapping) else [rate]:
            check_rate(scalar)
    for name, value in (("label_smoothing", label_smoothing), ("ema_decay", ema_decay)):
        if not 0 <= value < 1:
            raise ValueError(f"{name} must be in [0, 1), got {value}")
    if grad_accum_steps < 1:
        raise ValueError(f"grad_accum_steps must be at least 1, got {grad_accum_steps}")
    if ema_decay and eval_params is not None:
        raise ValueError("only one of ema_decay and eval_params can be given")
    parameters = inspect.signature(model.__call__).parameters
    missing = [name for name in ("train", "rate") if name not in parameters]
    if missing and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        raise TypeError(
            "model must accept the keyword arguments train and rate, and update_clusters if it has clusters; "
            f"{type(model).__name__} does not accept {' and '.join(missing)}"
        )
    functions = _StepFunctions(
        model=model,
        tx=optax.with_extra_args_support(tx),
        rate=rate if callable(rate) else lambda step: rate,
        loss=loss,
        augment=augment or (lambda key, images: images),
        preprocess=preprocess or (lambda images: images),
        mix=mix or (lambda key, images, labels: (images, labels)),
        label_smoothing=label_smoothing,
        grad_accum_steps=grad_accum_steps,
        ema_decay=ema_decay,
        eval_params=eval_params,
        skip_nonfinite=skip_nonfinite,
        axis_name=axis_name,
    )
    return Steps(
        functions.init, functions.train, functions.update_clusters, functions.evaluate, axis_name, skip_nonfinite
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _StepFunctions:
    """Implements `Steps`, with the arguments of `make_steps` after filling in defaults."""

    model: nn.Module
    tx: optax.GradientTransformationExtraArgs
    rate: Callable[[Array], Rates]
    loss: Callable[[Array, Array], Array]
    augment: Callable[[Array, Array], Array]
    preprocess: Callable[[Array], Array]
    mix: Callable[[Array, Array, Array], tuple[Array, Array]]
    label_smoothing: float
    grad_accum_steps: int
    ema_decay: float
    eval_params: Callable[[PyTree, PyTree], PyTree] | None
    skip_nonfinite: bool
    axis_name: str | None

    def init(self, key: Array, batch: Batch) -> TrainState:
        _check_batch(batch)
        init_key, key = jax.random.split(key)
        logits, variables = self.model.init_with_output(init_key, self.preprocess(batch["image"]), train=False)
        _check_label_range(batch["label"], logits.shape[-1])
        variables = dict(variables)
        params = variables.pop("params")
        batch_stats, clusters = variables.pop("batch_stats", {}), variables.pop("clusters", {})
        if variables:
            raise ValueError(
                "model must have variables in the collections 'params', 'batch_stats' and 'clusters' only, "
                f"got {next(iter(variables))!r}"
            )
        ema = jax.tree.map(_average_of, {"params": params, "batch_stats": batch_stats}) if self.ema_decay else ()
        return TrainState(
            params=params,
            batch_stats=batch_stats,
            clusters=clusters,
            opt_state=self._init_optimizer(params),
            key=key,
            step=jnp.zeros((), jnp.int32),
            ema=ema,
        )

    def _init_optimizer(self, params: PyTree) -> PyTree:
        opt_state = self.tx.init(params)
        states = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, optax.LookaheadState))
        if any(isinstance(state, optax.LookaheadState) for state in states):
            raise TypeError("tx must not contain optax.lookahead, which requires the parameters as LookaheadParams")
        return opt_state

    def train(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        _check_batch(batch)
        rate, key = self.rate(state.step), self._step_key(state)
        grads, batch_stats, (loss, accuracy) = self._mean_gradients(state.params, state, batch, key, rate)

        def value_fn(params: PyTree) -> Array:
            _, _, (loss, _) = self._mean_gradients(params, state, batch, key, rate)
            return loss

        extra_args = {"value": loss, "grad": grads, "value_fn": value_fn}
        updates, opt_state = self.tx.update(grads, state.opt_state, state.params, **_accepted(self.tx, extra_args))
        params = optax.apply_updates(state.params, updates)
        new_state = state._replace(params=params, batch_stats=batch_stats, opt_state=opt_state)
        finite = _all_finite((loss, batch_stats, rate)) & _are_finite(grads, params)
        new_state = self._update_ema(new_state)
        if self.skip_nonfinite:
            new_state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new_state, state)
        metrics = {"loss": loss, "accuracy": accuracy, "rate": jax.tree.map(jnp.float32, rate), "finite": finite}
        return new_state._replace(step=state.step + 1), metrics

    def update_clusters(self, state: TrainState, batch: Batch) -> TrainState:
        _check_entries(batch, "image")
        if not state.clusters:
            return state
        images = self.preprocess(batch["image"])
        _, updates = self.model.apply(
            state.variables(), images, train=False, update_clusters=True, mutable=["clusters"]
        )
        return state._replace(clusters=updates["clusters"])

    def evaluate(self, state: TrainState, batch: Batch) -> Metrics:
        _check_batch(batch)
        variables = state.variables(ema=True)
        if self.eval_params is not None:
            variables["params"] = self.eval_params(state.opt_state, state.params)
        logits: Any = self.model.apply(variables, self.preprocess(batch["image"]), train=False)
        labels, weight = batch["label"], batch.get("weight", jnp.ones(logits.shape[0], jnp.float32))
        _check_label_range(labels, logits.shape[-1], weight)
        losses = jnp.where(weight > 0, self.loss(logits, labels), 0.0)  # labels of padding may be invalid
        sums = {
            "loss": jnp.sum(weight * losses),
            "correct": jnp.sum(weight * _correct(logits, labels)),
            "count": jnp.sum(weight),
        }
        if logits.shape[-1] >= _MIN_CLASSES_FOR_TOP5:
            sums["correct_top5"] = jnp.sum(weight * _correct_top5(logits, labels))
        return sums if self.axis_name is None else jax.lax.psum(sums, self.axis_name)

    def _step_key(self, state: TrainState) -> Array:
        """Returns a key that differs between steps and between replicas."""
        key = jax.random.fold_in(state.key, state.step)
        return key if self.axis_name is None else jax.random.fold_in(key, jax.lax.axis_index(self.axis_name))

    def _mean_gradients(
        self, params: PyTree, state: TrainState, batch: Batch, key: Array, rate: Rates
    ) -> tuple[PyTree, PyTree, tuple[Array, Array]]:
        """Returns gradients, batch statistics, and mean loss and accuracy at `params`, averaged over replicas."""
        result = self._accumulate_gradients(params, state, batch, key, rate)
        return result if self.axis_name is None else jax.lax.pmean(result, self.axis_name)

    def _accumulate_gradients(
        self, params: PyTree, state: TrainState, batch: Batch, key: Array, rate: Rates
    ) -> tuple[PyTree, PyTree, tuple[Array, Array]]:
        """Returns the replica's gradients, batch statistics, and mean loss and accuracy over all parts of a batch."""
        # Under shard_map, the gradients of replicated parameters are summed over the axis, and those of varying ones
        # are not, as under pmap: https://jax.readthedocs.io/en/latest/jep/17111-shmap-transpose.html
        params, batch_stats = self._varying((params, state.batch_stats))
        if self.grad_accum_steps == 1:
            return self._loss_and_grads(params, batch_stats, state.clusters, batch, key, rate)

        def add_part(carry: tuple[PyTree, PyTree], part: tuple[Array, Batch]) -> tuple[tuple[PyTree, PyTree], None]:
            sums, batch_stats = carry
            index, batch = part
            part_key = jax.random.fold_in(key, index)
            grads, batch_stats, means = self._loss_and_grads(params, batch_stats, state.clusters, batch, part_key, rate)
            return (jax.tree.map(jnp.add, sums, (grads, means)), batch_stats), None

        zeros = (jax.tree.map(jnp.zeros_like, params), self._varying((jnp.zeros(()), jnp.zeros(()))))
        parts = (jnp.arange(self.grad_accum_steps), _split_batch(batch, self.grad_accum_steps))
        (sums, batch_stats), _ = jax.lax.scan(add_part, (zeros, batch_stats), parts)
        grads, means = jax.tree.map(lambda total: total / self.grad_accum_steps, sums)
        return grads, batch_stats, means

    def _loss_and_grads(
        self, params: PyTree, batch_stats: PyTree, clusters: PyTree, batch: Batch, key: Array, rate: Rates
    ) -> tuple[PyTree, PyTree, tuple[Array, Array]]:
        """Returns gradients, batch statistics, and the mean loss and accuracy."""
        augment_key, mix_key, drop_key = jax.random.split(key, 3)
        images = self.preprocess(self.augment(augment_key, batch["image"]))
        images, labels = self.mix(mix_key, images, batch["label"])

        def objective(params: PyTree) -> tuple[Array, tuple[Array, PyTree]]:
            collections = {"params": params, "batch_stats": batch_stats, "clusters": clusters}
            logits, updates = self.model.apply(
                {name: collection for name, collection in collections.items() if collection},
                images,
                train=True,
                rate=rate,
                rngs={"dropout": drop_key},
                mutable=["batch_stats"],
            )
            targets = _smooth(labels, logits.shape[-1], self.label_smoothing) if self.label_smoothing else labels
            return jnp.mean(self.loss(logits, targets)), (logits, updates.get("batch_stats", {}))

        (loss, (logits, batch_stats)), grads = jax.value_and_grad(objective, has_aux=True)(params)
        return grads, batch_stats, (loss, jnp.mean(_correct(logits, labels)))

    def _update_ema(self, state: TrainState) -> TrainState:
        """Moves the averages, if there are any, toward the state's parameters and batch statistics."""
        if not self.ema_decay:
            return state
        step = state.step.astype(jnp.float32)
        decay = jnp.minimum(self.ema_decay, (1 + step) / (10 + step))
        new = {"params": state.params, "batch_stats": state.batch_stats}
        return state._replace(ema=optax.incremental_update(new, state.ema, 1 - decay))

    def _varying(self, tree: PyTree) -> PyTree:
        """Marks replicated arrays as varying over the mapped axis, if there is one."""
        return tree if self.axis_name is None else jax.lax.pcast(tree, self.axis_name, to="varying")


def _average_of(x: Array) -> Array:
    """Returns the initial moving average: a copy in at least float32, as small changes would be lost in bfloat16."""
    return jnp.array(x, jnp.promote_types(x.dtype, jnp.float32), copy=True)


def _accepted(tx: optax.GradientTransformationExtraArgs, extra_args: dict[str, Any]) -> dict[str, Any]:
    """Returns the extra arguments that the update accepts; `optax.contrib.sam`, unlike others, rejects unknown ones."""
    parameters = inspect.signature(tx.update).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return extra_args
    return {name: value for name, value in extra_args.items() if name in parameters}


def _check_batch(batch: Batch) -> None:
    """Raises ValueError if a batch is not a mapping with images, labels and optional weights of valid shapes."""
    _check_entries(batch, "image", "label")
    _check_labels(batch["label"])
    shape = jnp.shape(batch["image"])[:1]
    for name in ("label", "weight"):
        if name in batch and jnp.shape(batch[name])[: 2 if name == "weight" else 1] != shape:
            raise ValueError(f"{name} must have one entry for each of {shape[0]} images, got {jnp.shape(batch[name])}")


def _check_entries(batch: Batch, *names: str) -> None:
    """Raises ValueError if a batch is not a mapping with these entries."""
    if not isinstance(batch, Mapping) or not set(names) <= set(batch):
        got = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
        raise ValueError(f"batch must be a mapping with {' and '.join(map(repr, names))}, got {got}")


def _check_labels(labels: Any, num_classes: int | None = None) -> None:
    """Raises ValueError if labels are neither class indices nor probabilities of `num_classes` classes."""
    shape, dtype = jnp.shape(labels), jnp.result_type(labels)
    if len(shape) == 1 and jnp.issubdtype(dtype, jnp.integer):
        return
    if len(shape) != 2 or not jnp.issubdtype(dtype, jnp.floating) or num_classes not in (None, shape[1]):
        classes = "classes" if num_classes is None else num_classes
        raise ValueError(
            f"labels must be integers of shape (batch,) or probabilities of shape (batch, {classes}), got {dtype} of "
            f"shape {shape}"
        )


def _check_label_range(labels: Any, num_classes: int, weight: Any = 1.0) -> None:
    """Raises ValueError if class indices are not in [0, num_classes), unless they are traced or on other hosts.

    Labels of weight 0 are not checked.
    """
    if jnp.ndim(labels) != 1:
        return
    if any(isinstance(x, Tracer) or not getattr(x, "is_fully_addressable", True) for x in (labels, weight)):
        return
    labels = np.asarray(labels)
    invalid = np.flatnonzero(((labels < 0) | (labels >= num_classes)) & (np.asarray(weight) > 0))
    if len(invalid):
        raise ValueError(f"labels must be in [0, {num_classes}), got {labels[invalid[0]]} at index {invalid[0]}")


def _correct(logits: Float[Array, "batch classes"], labels: Labels) -> Float[Array, " batch"]:
    """Returns 1 for correct predictions and 0 for others."""
    labels = _class_indices(labels)
    return (jnp.argmax(logits, axis=-1).astype(labels.dtype) == labels).astype(jnp.float32)


def _correct_top5(logits: Float[Array, "batch classes"], labels: Labels) -> Float[Array, " batch"]:
    _, classes = jax.lax.top_k(logits, 5)
    return jnp.any(classes == _class_indices(labels)[:, None], axis=-1).astype(jnp.float32)


def _class_indices(labels: Labels) -> Int[Array, " batch"]:
    """Returns the labels, or the most likely classes of probabilities."""
    return jnp.argmax(labels, axis=-1) if labels.ndim == 2 else labels


def _smooth(labels: Labels, num_classes: int, label_smoothing: float) -> Float[Array, "batch classes"]:
    """Returns smoothed probabilities, NaN for class indices outside [0, num_classes)."""
    if labels.ndim == 2:
        return optax.smooth_labels(labels, label_smoothing)
    valid = (labels >= 0) & (labels < num_classes)
    smoothed = optax.smooth_labels(jax.nn.one_hot(labels, num_classes), label_smoothing)
    return jnp.where(valid[:, None], smoothed, jnp.nan)


def _split_batch(batch: Batch, num_parts: int) -> Batch:
    """Reshapes arrays to `(num_parts, batch / num_parts, ...)`."""
    size = len(batch["label"])
    if size % num_parts:
        raise ValueError(f"grad_accum_steps must divide the batch size, {size}, got {num_parts}")
    # Parts are strided, so that each contains examples from all devices and resharding is not needed.
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf.reshape(-1, num_parts, *leaf.shape[1:]), 1, 0), dict(batch))


def _are_finite(grads: PyTree, params: PyTree) -> Bool[Array, ""]:
    """Returns whether gradients and new parameters are finite.

    On TPU, one reduction checks both. With two, the compiler orders the operations of ResNet-50 with DropCluster such
    that they need 1.07 times the temporaries. On GPU, one reduction needs 1.04 times those of two.
    """

    def check_together(grads: PyTree, params: PyTree) -> Array:
        return _all_finite(jax.tree.map(lambda grad, param: jnp.where(jnp.isfinite(grad), param, grad), grads, params))

    return jax.lax.platform_dependent(grads, params, tpu=check_together, default=lambda *trees: _all_finite(trees))


def _all_finite(tree: PyTree) -> Bool[Array, ""]:
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))
