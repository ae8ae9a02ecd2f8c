"""The pure steps of a training: initialize, train, update the clusters, evaluate. No loop, no device, no file."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from dropcluster_jax.masking.common import Rate, check_rate

Batch = Mapping[str, Any]  # arrays of JAX or NumPy
Metrics = dict[str, Any]
Rates = Rate | Mapping[str, Rate]

_TOP5_FROM = 100  # classes; with fewer the five best say little


class TrainState(NamedTuple):
    """All that changes while a network trains: a pytree.

    Attributes:
        params: the parameters.
        batch_stats: the running statistics of BatchNorm; empty without.
        clusters: the clusters of every `DropCluster`; empty without. Only `Steps.update_clusters` changes them.
        opt_state: the optimizer's state.
        key: a PRNG key that is never consumed: each step folds in its number.
        step: int32 scalar, training steps so far.
        ema: moving averages of `params` and `batch_stats`, a dict of the two; empty without.

    Example:
        >>> weights, smoothed = {"w": jnp.array(3.0)}, {"w": jnp.array(2.5)}
        >>> state = TrainState(
        ...     weights, {}, {}, (), jax.random.key(0), jnp.array(7), ema={"params": smoothed, "batch_stats": {}}
        ... )
        >>> float(state.variables()["params"]["w"]), float(state.variables(ema=True)["params"]["w"])
        (3.0, 2.5)
    """

    params: PyTree
    batch_stats: PyTree
    clusters: PyTree
    opt_state: PyTree
    key: Array
    step: Int[Array, ""]
    ema: PyTree = ()

    def variables(self, ema: bool = False) -> dict[str, PyTree]:
        """What the network's `apply` takes.

        Args:
            ema: whether the averages, if there are any, stand in for what they are of.

        Returns:
            Those of `params`, `batch_stats` and `clusters` that are not empty, by these names.
        """
        named = {"params": self.params, "batch_stats": self.batch_stats, "clusters": self.clusters}
        if ema and self.ema:
            named |= self.ema
        return {name: value for name, value in named.items() if value}


class Steps(NamedTuple):
    """Four pure functions; compile them with `jax.jit`, on a sharded batch if wanted, `shard_map` or `pmap`.

    A batch is a mapping: `"image"`, `(batch, *spatial, channels)`, and `"label"`, integers `(batch,)`.

    Attributes:
        init: `(key, batch) -> TrainState`.
        train: `(state, batch) -> (state, metrics)`, one optimizer step; metrics are scalars, the means `loss` and
            `accuracy` in [0, 1], `rate`, and `finite`: whether loss, gradients, statistics and new parameters are.
            Leaves the clusters as they are.
        update_clusters: `(state, batch) -> state`, one update of the clusters on the batch as probe batch, in evaluation mode.
            Leaves all else as it is.
        evaluate: `(state, batch) -> metrics`, the sums `loss` and `correct`, of 100 classes or more also
            `correct_top5`, and `count`, by the averages if the state has any. An optional `"weight"`, `(batch,)`,
            weighs examples: 0 for those that only fill a batch.
        axis_name: the mapped axis that they were made for; None without.

    Example:
        >>> class Linear(nn.Module):
        ...     @nn.compact
        ...     def __call__(self, x, train=False, rate=0.0):
        ...         return nn.Dense(2)(x.reshape(len(x), -1))
        >>> steps = make_steps(Linear(), optax.sgd(1.0))
        >>> batch = {"image": jnp.array([1.0, -1.0]).reshape(2, 1, 1, 1), "label": jnp.array([0, 1])}
        >>> state, train = steps.init(jax.random.key(0), batch), jax.jit(steps.train)
        >>> for _ in range(9):
        ...     state, metrics = train(state, batch)
        >>> sums = steps.evaluate(state, {**batch, "weight": jnp.array([1.0, 0.0])})  # the second only fills the batch
        >>> int(state.step), float(sums["correct"]), float(sums["count"]), float(sums["loss"]) < 0.1
        (9, 1.0, 1.0, True)
    """

    init: Callable[[Array, Batch], TrainState]
    train: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    update_clusters: Callable[[TrainState, Batch], TrainState]
    evaluate: Callable[[TrainState, Batch], Metrics]
    axis_name: str | None = None


def softmax_cross_entropy(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"] | Float[Array, "batch classes"]
) -> Float[Array, " batch"]:
    """The cross-entropy of each example, in nats; see `optax.softmax_cross_entropy`.

    Args:
        logits: `(batch, classes)`.
        labels: integers `(batch,)` from 0 to below the classes, or probabilities `(batch, classes)`, as `mixup` gives.

    Returns:
        `(batch,)`, at least 0.

    Example:
        >>> round(float(softmax_cross_entropy(jnp.zeros((1, 4)), jnp.array([2]))[0]), 4)
        1.3863
        >>> round(float(softmax_cross_entropy(jnp.zeros((1, 4)), jnp.array([[0, 0.5, 0.5, 0]]))[0]), 4)
        1.3863
    """
    if labels.ndim == 2:
        return optax.softmax_cross_entropy(logits, labels)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


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
    skip_nonfinite: bool = False,
    axis_name: str | None = None,
) -> Steps:
    """The pure steps that train `model` with `tx`.

    Args:
        model: called as `model.apply(variables, images, train=, rate=, update_clusters=)`, as the networks of
            `dropcluster_jax.models` are; `update_clusters` only if it has clusters.
        tx: an Optax transformation, called as `update(grads, state, params)`.
        rate: the rate of the drop layers: a number, or a schedule of the step number; or a mapping of places to
            numbers, or a schedule that gives one.
        loss: `(logits, labels) -> (batch,)`.
        augment: `(key, images) -> images`, in training only.
        preprocess: `images -> images`, always, after `augment`; normalization, say.
        mix: `(key, images, labels) -> (images, labels)`, in training only, after `preprocess`; `mixup`, say. It may
            make probabilities `(batch, classes)` of the labels, which `loss` then takes.
        label_smoothing: in training only, so much of each label, in [0, 1), is spread evenly over all classes.
        grad_accum_steps: a step goes over its batch in so many parts, one after the other, and takes the mean of their
            gradients: so much less memory for activations. BatchNorm sees each part alone. Divides the batch (of
            each replica).
        ema_decay: keep moving averages `a <- d a + (1 - d) p` of parameters and BatchNorm statistics after each step,
            where d is the smaller of this and `(1 + step) / (10 + step)`, and evaluate by them; 0 keeps none.
        skip_nonfinite: leave all but the step number as it was where loss, gradients, statistics or new
            parameters are not finite.
        axis_name: the mapped axis over which the batch is split under `shard_map` or `pmap`: gradients, statistics
            and metrics are averaged over it, and each replica draws masks of its own. Give the same name to the
            `DropCluster` layers, and to BatchNorm where its batch statistics are to be averaged too. None under `jit`,
            also on a sharded batch.

    Returns:
        The steps; equal states and batches give equal results.

    Raises:
        TypeError: `rate` is neither a number nor callable, nor a mapping to numbers; the model takes no `train` or
            `rate`.
        ValueError: `rate` is a number outside [0, 1], `label_smoothing` or `ema_decay` one outside [0, 1), `grad_accum_steps`
            less than 1; when initializing, a batch without image or label, or a model with variables of a collection
            other than `params`, `batch_stats` and `clusters`; when training, `grad_accum_steps` does not divide the batch.

    References:
        Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016, arXiv:1512.00567,
        section 7: smoothing.
        Polyak, Juditsky, "Acceleration of Stochastic Approximation by Averaging", SIAM J. Control Optim. 30(4), 1992.

    Example:
        >>> from dropcluster_jax import KMeans
        >>> from dropcluster_jax.linen import DropCluster
        >>> class Net(nn.Module):
        ...     @nn.compact
        ...     def __call__(self, x, train=False, rate=0.0, update_clusters=False):
        ...         x = DropCluster(KMeans(cluster_size=4))(nn.Conv(8, (3, 3))(x), rate, not train, update_clusters)
        ...         return nn.Dense(10)(x.mean((1, 2)))
        >>> steps = make_steps(Net(), optax.sgd(0.1), rate=optax.linear_schedule(0.0, 0.1, 2))
        >>> batch = {"image": jnp.ones((8, 8, 8, 1)), "label": jnp.zeros(8, jnp.int32)}
        >>> state = jax.jit(steps.init)(jax.random.key(0), batch)
        >>> state, train = jax.jit(steps.update_clusters)(state, batch), jax.jit(steps.train)
        >>> for _ in range(3):
        ...     state, metrics = train(state, batch)
        ...     print(int(state.step), round(float(metrics["rate"]), 3), int(state.clusters["DropCluster_0"]["num_updates"]))
        1 0.0 1
        2 0.05 1
        3 0.1 1
    """
    if not callable(rate):
        for number in rate.values() if isinstance(rate, Mapping) else [rate]:
            check_rate(number)
    for name, value in (("label_smoothing", label_smoothing), ("ema_decay", ema_decay)):
        if not 0 <= value < 1:
            raise ValueError(f"{name} must be at least 0 and below 1, got {value}")
    if grad_accum_steps < 1:
        raise ValueError(f"grad_accum_steps must be at least 1, got {grad_accum_steps}")
    takes = inspect.signature(model.__call__).parameters
    missing = [name for name in ("train", "rate") if name not in takes]
    if missing and not any(each.kind is each.VAR_KEYWORD for each in takes.values()):
        raise TypeError(
            f"model must take train= and rate= at its call, and update_clusters= if it has clusters; "
            f"{type(model).__name__} does not take {' and '.join(missing)}"
        )

    def prepare(images: Array) -> Array:
        return images if preprocess is None else preprocess(images)

    def over_replicas(reduce: Callable[..., PyTree], tree: PyTree) -> PyTree:
        return tree if axis_name is None else reduce(tree, axis_name)

    def init(key: Array, batch: Batch) -> TrainState:
        if not isinstance(batch, Mapping) or not {"image", "label"} <= set(batch):
            got = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
            raise ValueError(f"batch must be a dict with 'image' and 'label', got {got}")
        init_key, key = jax.random.split(key)
        variables = dict(model.init(init_key, prepare(batch["image"]), train=False))
        params = variables.pop("params")
        batch_stats, clusters = variables.pop("batch_stats", {}), variables.pop("clusters", {})
        if variables:
            raise ValueError(
                f"model has variables of the collection {next(iter(variables))!r}; "
                "steps keep 'params', 'batch_stats' and 'clusters' only"
            )
        averages = jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats}) if ema_decay else ()
        return TrainState(params, batch_stats, clusters, tx.init(params), key, jnp.zeros((), jnp.int32), averages)

    def gradients(
        params: PyTree, batch_stats: PyTree, state: TrainState, batch: Batch, key: Array, rate_now: Rates
    ) -> tuple[PyTree, PyTree, tuple[Array, Array]]:
        """Of one part of a batch: the gradients, the new statistics, and the means `loss` and `accuracy`."""
        augment_key, mix_key, drop_key = jax.random.split(key, 3)
        images = batch["image"] if augment is None else augment(augment_key, batch["image"])
        images, labels = prepare(images), batch["label"]
        if mix is not None:
            images, labels = mix(mix_key, images, labels)

        def objective(params: PyTree) -> tuple[Array, tuple[Array, PyTree]]:
            logits, changed = model.apply(
                {**state.variables(), "params": params, **({"batch_stats": batch_stats} if batch_stats else {})},
                images,
                train=True,
                rate=rate_now,
                rngs={"dropout": drop_key},
                mutable=["batch_stats"],
            )
            targets = _smooth(labels, logits.shape[-1], label_smoothing) if label_smoothing else labels
            return jnp.mean(loss(logits, targets)), (logits, changed.get("batch_stats", {}))

        (value, (logits, batch_stats)), grads = jax.value_and_grad(objective, has_aux=True)(params)
        return grads, batch_stats, (value, jnp.mean(_correct(logits, labels)))

    def train(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        params, batch_stats = state.params, state.batch_stats
        if axis_name is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
            # Under shard_map gradients of replicated parameters arrive summed; those of a replica's own do not.
            params, batch_stats = jax.lax.pcast((params, batch_stats), axis_name, to="varying")
        rate_now = rate(state.step) if callable(rate) else rate

        if grad_accum_steps == 1:
            grads, batch_stats, means = gradients(params, batch_stats, state, batch, key, rate_now)
        else:

            def part(carry: tuple[PyTree, PyTree, PyTree], numbered: tuple[Array, Batch]) -> tuple[Any, None]:
                sums, batch_stats, totals = carry
                number, batch = numbered
                grads, batch_stats, means = gradients(
                    params, batch_stats, state, batch, jax.random.fold_in(key, number), rate_now
                )
                return (_add(sums, grads), batch_stats, _add(totals, means)), None

            zeros = jax.tree.map(jnp.zeros_like, params)
            nothing = (jnp.zeros(()), jnp.zeros(()))
            if axis_name is not None:
                nothing = jax.lax.pcast(nothing, axis_name, to="varying")
            parts = (jnp.arange(grad_accum_steps), _parts(batch, grad_accum_steps))
            (grads, batch_stats, means), _ = jax.lax.scan(part, (zeros, batch_stats, nothing), parts)
            grads, means = jax.tree.map(lambda total: total / grad_accum_steps, (grads, means))

        grads, batch_stats, (value, accuracy) = over_replicas(jax.lax.pmean, (grads, batch_stats, means))
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        after = state._replace(params=optax.apply_updates(state.params, updates), batch_stats=batch_stats)
        after = after._replace(opt_state=opt_state)
        looked_at = jax.tree.leaves((value, grads, batch_stats, after.params))
        finite = jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in looked_at]))
        if ema_decay:
            decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
            newest = {"params": after.params, "batch_stats": batch_stats}
            after = after._replace(ema=optax.incremental_update(newest, state.ema, 1 - decay))
        if skip_nonfinite:
            kept = jax.tree.map(
                lambda new, old: jnp.where(finite, new, old), after._replace(key=()), state._replace(key=())
            )
            after = kept._replace(key=state.key)
        metrics = {"loss": value, "accuracy": accuracy, "rate": jax.tree.map(jnp.float32, rate_now), "finite": finite}
        return after._replace(step=state.step + 1), metrics

    def update_clusters(state: TrainState, batch: Batch) -> TrainState:
        if not state.clusters:
            return state
        _, changed = model.apply(
            state.variables(),
            prepare(batch["image"]),
            train=False,
            update_clusters=True,
            mutable=["clusters"],
        )
        return state._replace(clusters=changed["clusters"])

    def evaluate(state: TrainState, batch: Batch) -> Metrics:
        logits: Any = model.apply(state.variables(ema=True), prepare(batch["image"]), train=False)
        weight = batch.get("weight", jnp.ones(len(logits)))
        sums = {
            "loss": jnp.sum(weight * loss(logits, batch["label"])),
            "correct": jnp.sum(weight * _correct(logits, batch["label"])),
            "count": jnp.sum(weight),
        }
        if logits.shape[-1] >= _TOP5_FROM:
            sums["correct_top5"] = jnp.sum(weight * _correct_top5(logits, batch["label"]))
        return over_replicas(jax.lax.psum, sums)

    return Steps(init, train, update_clusters, evaluate, axis_name)


def _correct(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"] | Float[Array, "batch classes"]
) -> Float[Array, " batch"]:
    if labels.ndim == 2:  # of what was mixed, the class that most of it is
        labels = jnp.argmax(labels, axis=-1)
    return (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)


def _correct_top5(logits: Float[Array, "batch classes"], labels: Int[Array, " batch"]) -> Float[Array, " batch"]:
    _, best = jax.lax.top_k(logits, 5)
    return jnp.any(best == labels[:, None], axis=-1).astype(jnp.float32)


def _smooth(
    labels: Int[Array, " batch"] | Float[Array, "batch classes"], classes: int, share: float
) -> Float[Array, "batch classes"]:
    return optax.smooth_labels(labels if labels.ndim == 2 else jax.nn.one_hot(labels, classes), share)


def _parts(batch: Batch, number: int) -> Batch:
    """Arrays `(number, batch / number, ...)`: each part takes of what lies on every device, so that none moves."""
    size = len(batch["label"])
    if size % number:
        raise ValueError(f"grad_accum_steps must divide the batch of {size}, got {number}")
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf.reshape(-1, number, *leaf.shape[1:]), 1, 0), dict(batch))


def _add(one: PyTree, other: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, one, other)
