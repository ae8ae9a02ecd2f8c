"""The pure steps of a training: initialise, train, update the clusters, evaluate. No loop, no device, no file."""

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


class TrainState(NamedTuple):
    """All that changes while a network trains: a pytree.

    Attributes:
        params: the parameters.
        batch_stats: the running statistics of BatchNorm; empty without.
        clusters: the clusters of every `DropCluster`; empty without. Only `Steps.cluster` changes them.
        opt_state: the optimiser's state.
        key: a PRNG key that is never consumed: each step folds in its number.
        step: int32 scalar, training steps so far.
    """

    params: PyTree
    batch_stats: PyTree
    clusters: PyTree
    opt_state: PyTree
    key: Array
    step: Int[Array, ""]

    def variables(self) -> dict[str, PyTree]:
        """What the network's `apply` takes."""
        named = {"params": self.params, "batch_stats": self.batch_stats, "clusters": self.clusters}
        return {name: value for name, value in named.items() if value}


class Steps(NamedTuple):
    """Four pure functions; compile them with `jax.jit`, on a sharded batch if wanted, `shard_map` or `pmap`.

    A batch is a mapping: `"image"`, `(batch, *spatial, channels)`, and `"label"`, `(batch,)`.

    Attributes:
        init: `(key, batch) -> TrainState`.
        train: `(state, batch) -> (state, metrics)`, one optimiser step; metrics are the means `loss` and `accuracy`,
            and `rate`. Leaves the clusters as they are.
        cluster: `(state, batch) -> state`, one update of the clusters on the batch as probe batch, in evaluation mode.
            Leaves all else as it is.
        evaluate: `(state, batch) -> metrics`, the sums `loss` and `correct`, and `count`. An optional `"weight"`,
            `(batch,)`, weighs examples: 0 for those that only fill a batch.
        axis_name: the mapped axis that they were made for; None without.
    """

    init: Callable[[Array, Batch], TrainState]
    train: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    cluster: Callable[[TrainState, Batch], TrainState]
    evaluate: Callable[[TrainState, Batch], Metrics]
    axis_name: str | None = None


def softmax_cross_entropy(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"] | Float[Array, "batch classes"]
) -> Float[Array, " batch"]:
    """The cross-entropy of each example, in nats; see `optax.softmax_cross_entropy`.

    Args:
        logits: `(batch, classes)`.
        labels: integers `(batch,)`, or probabilities `(batch, classes)`, as `mixup` gives.

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
        preprocess: `images -> images`, always, after `augment`; normalisation, say.
        mix: `(key, images, labels) -> (images, labels)`, in training only, after `preprocess`; `mixup`, say. It may
            make probabilities `(batch, classes)` of the labels, which `loss` then takes.
        axis_name: the mapped axis over which the batch is split under `shard_map` or `pmap`: gradients, statistics
            and metrics are averaged over it, and each replica draws masks of its own. Give the same name to the
            `DropCluster` layers, and to BatchNorm where its batch statistics are to be averaged too. None under `jit`,
            also on a sharded batch.

    Returns:
        The steps; equal states and batches give equal results.

    Raises:
        ValueError: `rate` is a number outside [0, 1]; when initialising, the model has variables of a collection
            other than `params`, `batch_stats` and `clusters`.

    Example:
        >>> from dropcluster_jax import KMeans
        >>> from dropcluster_jax.linen import DropCluster
        >>> from dropcluster_jax.models import resnet20
        >>> model = resnet20(drop={"stage1": DropCluster(KMeans(cluster_size=4))})
        >>> steps = make_steps(model, optax.sgd(0.1), rate=optax.linear_schedule(0.0, 0.1, 100))
        >>> batch = {"image": jnp.ones((8, 8, 8, 1)), "label": jnp.zeros(8, jnp.int32)}
        >>> state = jax.jit(steps.init)(jax.random.key(0), batch)
        >>> state, metrics = jax.jit(steps.train)(state, batch)
        >>> int(state.step), sorted(metrics)
        (1, ['accuracy', 'loss', 'rate'])
    """
    if not callable(rate):
        for number in rate.values() if isinstance(rate, Mapping) else [rate]:
            check_rate(number)

    def prepare(images: Array) -> Array:
        return images if preprocess is None else preprocess(images)

    def over_replicas(reduce: Callable[..., PyTree], tree: PyTree) -> PyTree:
        return tree if axis_name is None else reduce(tree, axis_name)

    def init(key: Array, batch: Batch) -> TrainState:
        init_key, key = jax.random.split(key)
        variables = dict(model.init(init_key, prepare(batch["image"]), train=False))
        params = variables.pop("params")
        batch_stats, clusters = variables.pop("batch_stats", {}), variables.pop("clusters", {})
        if variables:
            raise ValueError(
                f"model has variables of the collection {next(iter(variables))!r}; "
                "steps keep 'params', 'batch_stats' and 'clusters' only"
            )
        return TrainState(params, batch_stats, clusters, tx.init(params), key, jnp.zeros((), jnp.int32))

    def train(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        if axis_name is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
        augment_key, mix_key, drop_key = jax.random.split(key, 3)
        images = batch["image"] if augment is None else augment(augment_key, batch["image"])
        images, labels = prepare(images), batch["label"]
        if mix is not None:
            images, labels = mix(mix_key, images, labels)
        rate_now = rate(state.step) if callable(rate) else rate

        def objective(params: PyTree) -> tuple[Array, tuple[Array, PyTree]]:
            logits, changed = model.apply(
                {**state.variables(), "params": params},
                images,
                train=True,
                rate=rate_now,
                rngs={"dropout": drop_key},
                mutable=["batch_stats"],
            )
            return jnp.mean(loss(logits, labels)), (logits, changed.get("batch_stats", {}))

        # Under shard_map gradients of replicated parameters arrive summed; those of a replica's own do not.
        params = state.params if axis_name is None else jax.lax.pcast(state.params, axis_name, to="varying")
        (value, (logits, batch_stats)), grads = jax.value_and_grad(objective, has_aux=True)(params)
        accuracy = jnp.mean(_correct(logits, labels))
        grads, batch_stats, value, accuracy = over_replicas(jax.lax.pmean, (grads, batch_stats, value, accuracy))
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        state = state._replace(
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
            step=state.step + 1,
        )
        return state, {"loss": value, "accuracy": accuracy, "rate": jax.tree.map(jnp.float32, rate_now)}

    def cluster(state: TrainState, batch: Batch) -> TrainState:
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
        logits: Any = model.apply(state.variables(), prepare(batch["image"]), train=False)
        weight = batch.get("weight", jnp.ones(len(logits)))
        sums = {
            "loss": jnp.sum(weight * loss(logits, batch["label"])),
            "correct": jnp.sum(weight * _correct(logits, batch["label"])),
            "count": jnp.sum(weight),
        }
        return over_replicas(jax.lax.psum, sums)

    return Steps(init, train, cluster, evaluate, axis_name)


def _correct(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"] | Float[Array, "batch classes"]
) -> Float[Array, " batch"]:
    if labels.ndim == 2:  # of what was mixed, the class that most of it is
        labels = jnp.argmax(labels, axis=-1)
    return (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
