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
MetricFunction = Callable[[Any, Any], Mapping[str, Array]]

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
    `"image"`, the network's input, and `"label"`: class indices `(batch,)` or probabilities `(batch, classes)` for the
    default loss, and what the loss accepts for others. Both may be pytrees; all arrays have a leading batch axis.
    `update_clusters` needs no label.

    Attributes:
        init: `(key, batch) -> TrainState`.
        train: `(state, batch) -> (state, metrics)`, one optimizer step that leaves the clusters unchanged. The metrics
            are scalars: the means of `loss` and of the metrics, by default `accuracy` (in [0, 1]), `rate`, and
            `finite`, whether loss, gradients, statistics, new parameters and rate are finite.
        update_clusters: `(state, batch) -> state`, one update of the clusters with the batch as probe batch and the
            network in evaluation mode. Leaves everything else unchanged.
        evaluate: `(state, batch) -> metrics`, sums over the examples: `loss`, the metrics, and `count`. Uses the moving
            averages if the state has any. An optional `"weight"`, `(batch,)`, in the batch weights the examples; 0
            marks padding.
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
        logits: Unnormalized log probabilities, `(batch, classes)`, of at least two classes.
        labels: Class indices, integers `(batch,)`, or probabilities, floats `(batch, classes)`.

    Returns:
        `(batch,)`, at least float32; NaN for class indices outside [0, classes).

    Raises:
        ValueError: If `logits` or `labels` is anything else.

    Example:
        >>> losses = softmax_cross_entropy(jnp.zeros((3, 4)), jnp.array([2, 4, -1]))
        >>> bool(jnp.allclose(losses, jnp.array([jnp.log(4), jnp.nan, jnp.nan]), equal_nan=True))
        True
    """
    _check_classes(logits, labels)
    logits = _at_least_float32(logits)
    if labels.ndim == 2:
        return optax.softmax_cross_entropy(logits, labels.astype(logits.dtype))
    labels = labels.astype(jnp.int32)
    valid = (labels >= 0) & (labels < logits.shape[-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(valid, labels, 0))
    return jnp.where(valid, losses, jnp.nan)


def classification_metrics(logits: Float[Array, "batch classes"], labels: Labels) -> dict[str, Float[Array, " batch"]]:
    """Returns `accuracy` of each example, 0 or 1, and `accuracy_top5` for 100 or more classes.

    Args:
        logits: `(batch, classes)`.
        labels: Class indices, integers `(batch,)`, or probabilities `(batch, classes)`, of which the largest counts.

    Example:
        >>> classification_metrics(jnp.eye(3), jnp.array([0, 1, 1]))["accuracy"].tolist()
        [1.0, 1.0, 0.0]
    """
    # Not in the type of the labels: class 261 is class 5 in uint8.
    classes = (jnp.argmax(labels, axis=-1) if labels.ndim == 2 else labels).astype(jnp.int32)
    correct = {"accuracy": jnp.argmax(logits, axis=-1).astype(jnp.int32) == classes}
    if logits.shape[-1] >= _MIN_CLASSES_FOR_TOP5:
        _, largest = jax.lax.top_k(logits, 5)
        correct["accuracy_top5"] = jnp.any(largest == classes[:, None], axis=-1)
    return {name: values.astype(jnp.float32) for name, values in correct.items()}


def make_steps(
    model: nn.Module,
    tx: optax.GradientTransformation,
    *,
    rate: Rates | Callable[[Array], Rates] = 0.0,
    loss: Callable[[Any, Any], Array] = softmax_cross_entropy,
    metrics: MetricFunction | None = None,
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
        loss: `(outputs, labels) -> losses`, with losses of shape `(batch,)`. Outputs are those of the network, in at
            least float32: logits, or any other pytree. Receives probabilities in training if `label_smoothing` is
            positive.
        metrics: `(outputs, labels) -> values`, a dict of arrays of shape `(batch,)`, whose means are reported. By
            default `classification_metrics` for the default loss, and nothing for others.
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
            or types, and for losses and metrics of another shape, `init` for models with variables in other
            collections, and `train` if `grad_accum_steps` does not divide the batch size.

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
        metrics=metrics or (classification_metrics if loss is softmax_cross_entropy else lambda outputs, labels: {}),
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
    loss: Callable[[Any, Any], Array]
    metrics: MetricFunction
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
        outputs, variables = self.model.init_with_output(init_key, self.preprocess(batch["image"]), train=False)
        self._check_label_range(outputs, batch["label"])
        variables = dict(variables)
        params = variables.pop("params", {})
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
        if self.eval_params is not None:
            jax.eval_shape(self.eval_params, opt_state, params)  # raises now what evaluate would raise later
        return opt_state

    def train(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        _check_batch(batch)
        rate, key = self.rate(state.step), self._step_key(state)
        grads, batch_stats, means = self._mean_gradients(state.params, state, batch, key, rate)

        def value_fn(params: PyTree) -> Array:
            _, _, means = self._mean_gradients(params, state, batch, key, rate)
            return means["loss"]

        extra_args = {"value": means["loss"], "grad": grads, "value_fn": value_fn}
        updates, opt_state = self.tx.update(grads, state.opt_state, state.params, **_accepted(self.tx, extra_args))
        params = optax.apply_updates(state.params, updates)
        new_state = state._replace(params=params, batch_stats=batch_stats, opt_state=opt_state)
        finite = _all_finite((means["loss"], batch_stats, rate)) & _are_finite(grads, params)
        new_state = self._update_ema(new_state)
        if self.skip_nonfinite:
            new_state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new_state, state)
        metrics = {**means, "rate": jax.tree.map(jnp.float32, rate), "finite": finite}
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
        outputs = self.model.apply(variables, self.preprocess(batch["image"]), train=False)
        weight = jnp.asarray(batch.get("weight", jnp.ones(_batch_size(batch), jnp.float32)))
        self._check_label_range(outputs, batch["label"], weight)
        values = {**self._values(outputs, batch["label"], batch["label"]), "count": jnp.ones_like(weight)}
        # The labels of padding may be invalid.
        sums = {
            name: jnp.sum(jnp.where(weight > 0, value, 0) * weight.astype(value.dtype))
            for name, value in values.items()
        }
        return sums if self.axis_name is None else jax.lax.psum(sums, self.axis_name)

    def _values(self, outputs: Any, labels: Any, targets: Any) -> dict[str, Float[Array, " batch"]]:
        """Returns the loss, of the targets, and the metrics of each example, in at least float32."""
        outputs = jax.tree.map(_at_least_float32, outputs)
        values = {"loss": self.loss(outputs, targets), **self.metrics(outputs, labels)}
        size = jnp.shape(jax.tree.leaves(labels)[0])[0]
        for name, value in values.items():
            if jnp.shape(value) != (size,):
                raise ValueError(
                    f"{name} must have one value for each example, shape ({size},), got {jnp.shape(value)}"
                )
        return jax.tree.map(_at_least_float32, values)

    def _check_label_range(self, outputs: Any, labels: Any, weight: Any = 1.0) -> None:
        if self.loss is softmax_cross_entropy:
            _check_classes(outputs, labels)
            _check_label_range(labels, outputs.shape[-1], weight)

    def _step_key(self, state: TrainState) -> Array:
        """Returns a key that differs between steps and between replicas."""
        key = jax.random.fold_in(state.key, state.step)
        return key if self.axis_name is None else jax.random.fold_in(key, jax.lax.axis_index(self.axis_name))

    def _mean_gradients(
        self, params: PyTree, state: TrainState, batch: Batch, key: Array, rate: Rates
    ) -> tuple[PyTree, PyTree, Metrics]:
        """Returns gradients, batch statistics, and mean loss and metrics at `params`, averaged over replicas."""
        result = self._accumulate_gradients(params, state, batch, key, rate)
        return result if self.axis_name is None else jax.lax.pmean(result, self.axis_name)

    def _accumulate_gradients(
        self, params: PyTree, state: TrainState, batch: Batch, key: Array, rate: Rates
    ) -> tuple[PyTree, PyTree, Metrics]:
        """Returns the replica's gradients, batch statistics, and mean loss and metrics over all parts of a batch."""
        # Under shard_map, the gradients of replicated parameters are summed over the axis, and those of varying ones
        # are not, as under pmap: https://jax.readthedocs.io/en/latest/jep/17111-shmap-transpose.html
        params, batch_stats = self._varying((params, state.batch_stats))
        if self.grad_accum_steps == 1:
            return self._loss_and_grads(params, batch_stats, state.clusters, batch, key, rate)

        def of_part(batch_stats: PyTree, part: tuple[Array, Batch]) -> tuple[PyTree, PyTree]:
            index, batch = part
            part_key = jax.random.fold_in(key, index)
            grads, batch_stats, means = self._loss_and_grads(params, batch_stats, state.clusters, batch, part_key, rate)
            return (grads, means), batch_stats

        def add_part(carry: tuple[PyTree, PyTree], part: tuple[Array, Batch]) -> tuple[tuple[PyTree, PyTree], None]:
            sums, batch_stats = carry
            values, batch_stats = of_part(batch_stats, part)
            return (
                jax.tree.map(lambda total, x: total + x.astype(total.dtype) / num_parts, sums, values),
                batch_stats,
            ), None

        num_parts = self.grad_accum_steps
        parts = (jnp.arange(num_parts), _split_batch(batch, num_parts))
        shapes, _ = jax.eval_shape(of_part, batch_stats, jax.tree.map(lambda leaf: leaf[0], parts))
        # In at least float32: small summands would be lost in bfloat16, and sums could overflow in float16.
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, _wide(x.dtype)), shapes)
        (sums, batch_stats), _ = jax.lax.scan(add_part, (self._varying(zeros), batch_stats), parts)
        grads, means = jax.tree.map(lambda total, x: total.astype(x.dtype), sums, shapes)
        return grads, batch_stats, means

    def _loss_and_grads(
        self, params: PyTree, batch_stats: PyTree, clusters: PyTree, batch: Batch, key: Array, rate: Rates
    ) -> tuple[PyTree, PyTree, Metrics]:
        """Returns gradients, batch statistics, and the mean loss and metrics."""
        augment_key, mix_key, drop_key = jax.random.split(key, 3)
        images = self.preprocess(self.augment(augment_key, batch["image"]))
        images, labels = self.mix(mix_key, images, batch["label"])

        def objective(params: PyTree) -> tuple[Array, tuple[Metrics, PyTree]]:
            collections = {"params": params, "batch_stats": batch_stats, "clusters": clusters}
            outputs, updates = self.model.apply(
                {name: collection for name, collection in collections.items() if collection},
                images,
                train=True,
                rate=rate,
                rngs={"dropout": drop_key},
                mutable=["batch_stats"],
            )
            targets = _smooth(labels, outputs, self.label_smoothing) if self.label_smoothing else labels
            means = jax.tree.map(jnp.mean, self._values(outputs, labels, targets))
            return means["loss"], (means, updates.get("batch_stats", {}))

        (_, (means, batch_stats)), grads = jax.value_and_grad(objective, has_aux=True)(params)
        return grads, batch_stats, means

    def _update_ema(self, state: TrainState) -> TrainState:
        """Moves the averages, if there are any, toward the state's parameters and batch statistics."""
        if not self.ema_decay:
            return state
        step = state.step.astype(jnp.float32)
        decay = jnp.minimum(self.ema_decay, (1 + step) / (10 + step))
        new = {"params": state.params, "batch_stats": state.batch_stats}

        def move(average: Array, x: Array) -> Any:
            return optax.incremental_update(x.astype(average.dtype), average, (1 - decay).astype(average.dtype))

        return state._replace(ema=jax.tree.map(move, state.ema, new))

    def _varying(self, tree: PyTree) -> PyTree:
        """Marks replicated arrays as varying over the axis of a `shard_map`, if there is one."""
        is_manual = self.axis_name in jax.sharding.get_abstract_mesh().manual_axes
        return jax.lax.pcast(tree, self.axis_name, to="varying") if is_manual else tree


def _at_least_float32(x: Array) -> Array:
    """Returns floats in at least float32, as bfloat16 would round losses and their sums, and other types unchanged."""
    return jnp.asarray(x).astype(_wide(jnp.asarray(x).dtype))


def _wide(dtype: jnp.dtype) -> jnp.dtype:
    """Returns float32 for narrower floats, and other types unchanged, also with strict type promotion."""
    narrow = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
    return jnp.dtype(jnp.float32) if narrow else dtype


def _batch_size(batch: Batch) -> int:
    return jnp.shape(jax.tree.leaves(batch["image"])[0])[0]


def _average_of(x: Array) -> Array:
    """Returns the initial moving average: a copy in at least float32, as small changes would be lost in bfloat16."""
    return jnp.array(x, _wide(x.dtype), copy=True)


def _accepted(tx: optax.GradientTransformationExtraArgs, extra_args: dict[str, Any]) -> dict[str, Any]:
    """Returns the extra arguments that the update accepts; `optax.contrib.sam`, unlike others, rejects unknown ones."""
    parameters = inspect.signature(tx.update).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return extra_args
    return {name: value for name, value in extra_args.items() if name in parameters}


def _check_batch(batch: Batch) -> None:
    """Raises ValueError if a batch is not a mapping with images and labels, or an array lacks the batch axis."""
    _check_entries(batch, "image", "label")
    size = jnp.shape(jax.tree.leaves(batch["image"])[0])[:1]
    for name, entry in batch.items():
        for shape in map(jnp.shape, jax.tree.leaves(entry)):
            if not shape or shape[: 2 if name == "weight" else 1] != size:
                raise ValueError(f"{name} must have one entry for each of {size[0] if size else 0} images, got {shape}")


def _check_entries(batch: Batch, *names: str) -> None:
    """Raises ValueError if a batch is not a mapping with these entries."""
    if not isinstance(batch, Mapping) or not set(names) <= set(batch):
        got = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
        raise ValueError(f"batch must be a mapping with {' and '.join(map(repr, names))}, got {got}")


def _check_classes(logits: Any, labels: Any) -> None:
    """Raises ValueError unless there are logits of two classes or more, and class indices or probabilities of these."""
    if not hasattr(logits, "shape") or len(logits.shape) != 2 or logits.shape[1] < 2:
        got = getattr(logits, "shape", type(logits).__name__)
        raise ValueError(
            f"logits must have shape (batch, classes) with at least two classes, got {got}; pass a loss for other "
            "outputs"
        )
    shape = jnp.shape(labels) if hasattr(labels, "dtype") else type(labels).__name__
    dtype = getattr(labels, "dtype", None)
    if dtype is not None and len(shape) == 1 and jnp.issubdtype(dtype, jnp.integer):
        return
    if dtype is None or shape[1:] != logits.shape[1:] or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"labels must be integers of shape (batch,) or probabilities of shape (batch, {logits.shape[1]}), got "
            f"{dtype} of shape {shape}; pass a loss for other labels"
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


def _smooth(
    labels: Labels, logits: Float[Array, "batch classes"], label_smoothing: float
) -> Float[Array, "batch classes"]:
    """Returns smoothed probabilities, NaN for class indices that are not among the classes."""
    _check_classes(logits, labels)
    if labels.ndim == 2:
        return optax.smooth_labels(_at_least_float32(labels), label_smoothing)
    labels, num_classes = labels.astype(jnp.int32), logits.shape[-1]
    valid = (labels >= 0) & (labels < num_classes)
    smoothed = optax.smooth_labels(jax.nn.one_hot(labels, num_classes, dtype=jnp.float32), label_smoothing)
    return jnp.where(valid[:, None], smoothed, jnp.nan)


def _split_batch(batch: Batch, num_parts: int) -> Batch:
    """Reshapes arrays to `(num_parts, batch / num_parts, ...)`."""
    size = _batch_size(batch)
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
