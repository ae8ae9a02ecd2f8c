import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import dropcluster_jax as dc
from dropcluster_jax.linen import DropCluster
from dropcluster_jax.masking.common import Rate
from dropcluster_jax.models import resnet8
from dropcluster_jax.training import TrainState, make_steps, softmax_cross_entropy


class Small(nn.Module):
    """Two convolutions and a head, with a DropCluster after the first."""

    clusterer: dc.Clusterer = dc.KMeans(num_clusters=6)
    axis_name: str | None = None
    batch_norm: bool = True
    norm_axis_name: str | None = None
    classes: int = 4

    @nn.compact
    def __call__(self, x, train: bool = False, rate: Rate = 0.0, update_clusters: bool = False):
        x = nn.relu(nn.Conv(6, (3, 3), name="conv1")(x))
        x = DropCluster(self.clusterer, axis_name=self.axis_name, name="drop")(
            x, rate, deterministic=not train, update_clusters=update_clusters
        )
        x = nn.Conv(8, (3, 3), name="conv2")(x)
        if self.batch_norm:
            x = nn.BatchNorm(use_running_average=not train, axis_name=self.norm_axis_name, name="norm")(x)
        return nn.Dense(self.classes, name="head")(jnp.mean(nn.relu(x), axis=(1, 2)))


def separable(key, number=32):
    """Four classes, each a bright quadrant under noise."""
    label_key, noise_key = jax.random.split(key)
    label = jax.random.randint(label_key, (number,), 0, 4)
    quadrant = (jnp.arange(6) >= 3).astype(jnp.int32)
    bright = (2 * quadrant[:, None] + quadrant)[None] == label[:, None, None]
    image = bright[..., None] + 0.3 * jax.random.normal(noise_key, (number, 6, 6, 1))
    return {"image": image, "label": label}


@pytest.fixture(scope="module")
def batch():
    return separable(jax.random.key(0))


@pytest.fixture(scope="module")
def sgd():
    """Steps with SGD, compiled, and a first state."""
    steps = make_steps(Small(), optax.sgd(0.3), rate=0.2)
    compiled = steps._replace(**{name: jax.jit(getattr(steps, name)) for name in steps._fields if name != "axis_name"})
    return compiled, compiled.init(jax.random.key(1), separable(jax.random.key(0)))


def equal(one, other) -> bool:
    """Bit for bit."""
    leaves = jax.tree.leaves(jax.tree.map(lambda a, b: bool((_raw(a) == _raw(b)).all()), one, other))
    return all(leaves)


def _raw(leaf):
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def test_the_state_is_as_documented(sgd):
    _, state = sgd
    assert isinstance(state, TrainState) and state.step == 0
    assert set(state.clusters["drop"]) == set(dc.ClusterState._fields)
    assert set(state.variables()) == {"params", "batch_stats", "clusters"}


OPTIMIZERS = {
    "clipped sgd": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.3)),
    "adamw": lambda: optax.adamw(3e-3),
    "accumulating": lambda: optax.MultiSteps(optax.sgd(0.5), every_k_schedule=2).gradient_transformation(),
    "sam": lambda: optax.contrib.sam(optax.sgd(0.3), optax.sgd(0.05), sync_period=2),
    "scheduled": lambda: optax.sgd(optax.cosine_decay_schedule(0.3, 60)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optax_transformation_learns(name, batch):
    steps = make_steps(Small(), OPTIMIZERS[name](), rate=0.1)
    state = jax.jit(steps.init)(jax.random.key(1), batch)
    train = jax.jit(steps.train)
    before = jax.jit(steps.evaluate)(state, batch)["loss"]
    for _ in range(60):
        state, metrics = train(state, batch)
    assert state.step == 60 and jnp.isfinite(metrics["loss"])
    assert jax.jit(steps.evaluate)(state, batch)["loss"] < 0.8 * before


def test_training_leaves_the_clusters_untouched(sgd, batch):
    steps, state = sgd
    state = steps.update_clusters(state, batch)
    trained, _ = steps.train(state, batch)
    assert equal(trained.clusters, state.clusters)
    assert not equal(trained.params, state.params) and not equal(trained.batch_stats, state.batch_stats)
    assert equal(trained.key, state.key) and trained.step == state.step + 1


def test_an_update_of_the_clusters_touches_nothing_else(sgd, batch):
    steps, state = sgd
    updated = steps.update_clusters(state, batch)
    assert updated.clusters["drop"]["num_updates"] == 1
    assert (updated.clusters["drop"]["labels"] != state.clusters["drop"]["labels"]).any()
    assert equal(updated._replace(clusters=state.clusters), state)


def test_clusters_are_learned_from_unmasked_activations_in_evaluation_mode(sgd, batch):
    steps, state = sgd
    kernel, bias = state.params["conv1"]["kernel"], state.params["conv1"]["bias"]
    x = nn.relu(nn.Conv(6, (3, 3)).apply({"params": {"kernel": kernel, "bias": bias}}, batch["image"]))
    clusterer = Small().clusterer
    expected = clusterer.update(clusterer.init(x.shape[1:]), x)
    assert (steps.update_clusters(state, batch).clusters["drop"]["labels"] == expected.labels).all()


def test_a_network_without_clusters_trains_and_its_update_is_the_identity(batch):
    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x, train=False, rate=0.0):
            return nn.Dense(4)(x.reshape(len(x), -1))

    steps = make_steps(Plain(), optax.sgd(0.1))
    state = steps.init(jax.random.key(0), batch)
    assert state.clusters == {} and steps.update_clusters(state, batch) is state
    state, metrics = jax.jit(steps.train)(state, batch)
    assert state.step == 1 and metrics["rate"] == 0


def test_the_same_state_and_batch_give_the_same_step_and_another_step_other_masks(sgd, batch):
    steps, state = sgd
    one, metrics = steps.train(state, batch)
    same, _ = steps.train(state, batch)
    assert equal(one, same)
    _, later = steps.train(state._replace(step=state.step + 1), batch)
    assert later["loss"] != metrics["loss"]


def test_the_rate_follows_its_schedule_without_recompiling(batch):
    traces = []

    def rate(step):
        traces.append(step)
        return optax.linear_schedule(0.0, 0.5, 4, 2)(step)

    steps = make_steps(Small(), optax.sgd(0.1), rate=rate)
    state, train, rates = jax.jit(steps.init)(jax.random.key(0), batch), jax.jit(steps.train), []
    for _ in range(8):
        state, metrics = train(state, batch)
        rates.append(float(metrics["rate"]))
    assert np.allclose(rates, [0, 0, 0, 0.125, 0.25, 0.375, 0.5, 0.5]) and len(traces) == 1


def test_what_mixes_has_a_key_of_its_own_each_step_and_gives_the_labels_of_the_loss(batch):
    """One-hot labels change nothing; others are what the loss meets; evaluation is left alone."""

    def one_hot(key, images, labels):
        return images, jax.nn.one_hot(labels, 4)

    def scramble(key, images, labels):
        return images, jax.nn.softmax(jax.random.normal(key, (len(labels), 4)))

    plain, same, mixed = (make_steps(Small(), optax.sgd(0.0), mix=mix) for mix in (None, one_hot, scramble))
    state = jax.jit(plain.init)(jax.random.key(0), batch)
    before, after = (jax.jit(steps.train)(state, batch)[1] for steps in (plain, same))
    assert float(before["loss"]) == pytest.approx(float(after["loss"]), rel=1e-6)
    assert float(before["accuracy"]) == float(after["accuracy"])
    train = jax.jit(mixed.train)
    losses = {float(train(state._replace(step=jnp.int32(i)), batch)[1]["loss"]) for i in range(3)}
    assert len(losses) == 3 and float(train(state, batch)[1]["loss"]) in losses
    assert equal(jax.jit(plain.evaluate)(state, batch), jax.jit(mixed.evaluate)(state, batch))


def test_augmentation_has_a_key_of_its_own_each_step_and_evaluation_none(batch):
    def augment(key, images):
        return images + jax.random.normal(key, ())

    plain, augmented = (
        make_steps(Small(), optax.sgd(0.0), augment=a, preprocess=lambda images: images * 0.5) for a in (None, augment)
    )
    state = jax.jit(plain.init)(jax.random.key(0), batch)
    losses = {float(jax.jit(augmented.train)(state._replace(step=jnp.int32(i)), batch)[1]["loss"]) for i in range(3)}
    assert len(losses | {float(jax.jit(plain.train)(state, batch)[1]["loss"])}) == 4
    assert equal(jax.jit(plain.evaluate)(state, batch), jax.jit(augmented.evaluate)(state, batch))


def test_metrics_are_those_of_numpy(sgd, batch):
    steps, state = sgd
    logits = np.asarray(Small().apply(state.variables(), batch["image"], train=False), np.float64)
    labels = np.asarray(batch["label"])
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]
    sums = steps.evaluate(state, batch)
    assert sums["loss"] == pytest.approx(losses.sum(), rel=1e-5)
    assert sums["correct"] == (logits.argmax(1) == labels).sum() and sums["count"] == len(labels)
    np.testing.assert_allclose(softmax_cross_entropy(jnp.float32(logits), batch["label"]), losses, rtol=1e-4)


def test_examples_of_weight_zero_do_not_count(sgd, batch):
    steps, state = sgd
    half = {name: leaf[:16] for name, leaf in batch.items()}
    weighted = {**batch, "weight": (jnp.arange(32) < 16).astype(jnp.float32)}
    for name, value in steps.evaluate(state, half).items():
        assert steps.evaluate(state, weighted)[name] == pytest.approx(float(value), rel=1e-5)


# Across devices


def gradients_of(steps_of, wrap, batch, key=0):
    """The update of one plain SGD step is minus the gradient."""
    state = make_steps(Small(batch_norm=False), optax.sgd(1.0)).init(jax.random.key(key), batch)
    after, metrics = wrap(steps_of().train)(state, batch)
    return (
        jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), state.params, after.params),
        metrics,
        after,
    )


def one_device():
    return make_steps(Small(batch_norm=False), optax.sgd(1.0), rate=0.0)


def replicated():
    return make_steps(Small(batch_norm=False, axis_name="batch"), optax.sgd(1.0), rate=0.0, axis_name="batch")


MESH = functools.cache(lambda: jax.make_mesh((4,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,)))
SPEC = jax.sharding.PartitionSpec


def under_shard_map(function, check_vma, outputs=2):
    out_specs = (SPEC(), SPEC()) if outputs == 2 else SPEC()
    return jax.jit(
        jax.shard_map(function, mesh=MESH(), in_specs=(SPEC(), SPEC("batch")), out_specs=out_specs, check_vma=check_vma)
    )


def under_pmap(function):
    def wrapped(state, batch):
        split = jax.tree.map(lambda leaf: leaf.reshape(4, -1, *leaf.shape[1:]), batch)
        outputs = jax.pmap(function, axis_name="batch", in_axes=(None, 0), devices=jax.devices()[:4])(state, split)
        return jax.tree.map(lambda leaf: leaf[0], outputs)

    return wrapped


def on_a_sharded_batch(function):
    def wrapped(state, batch):
        return jax.jit(function)(state, jax.device_put(batch, jax.sharding.NamedSharding(MESH(), SPEC("batch"))))

    return wrapped


WAYS = {
    "jit on a sharded batch": (one_device, on_a_sharded_batch),
    "shard_map": (replicated, functools.partial(under_shard_map, check_vma=True)),
    "shard_map unchecked": (replicated, functools.partial(under_shard_map, check_vma=False)),
    "pmap": (replicated, under_pmap),
}


@pytest.mark.parametrize("way", WAYS)
def test_gradients_across_devices_are_those_of_one(way, batch):
    expected, metrics, _ = gradients_of(one_device, jax.jit, batch)
    gradients, metrics_there, _ = gradients_of(*WAYS[way], batch)
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-6)
    assert metrics_there["loss"] == pytest.approx(float(metrics["loss"]), rel=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_clusters_across_devices_are_those_of_one(way, batch):
    steps_of, wrap = WAYS[way]
    state = one_device().init(jax.random.key(0), batch)
    expected = jax.jit(one_device().cluster)(state, batch).clusters["drop"]
    if "shard_map" in way:
        wrap = functools.partial(wrap, outputs=1)
    clusters = wrap(steps_of().cluster)(state, batch).clusters["drop"]
    assert (clusters["labels"] == expected["labels"]).mean() > 0.99 and clusters["num_updates"] == 1


def test_replicas_draw_masks_of_their_own(batch):
    """The same quarter of a batch on each replica: with one mask the loss would be that of one device."""
    quarter = {name: leaf[:8] for name, leaf in batch.items()}
    copies = {name: jnp.concatenate([leaf] * 4) for name, leaf in quarter.items()}
    model = Small(batch_norm=False, axis_name="batch")
    steps = make_steps(model, optax.sgd(1.0), rate=0.5, axis_name="batch")
    state = steps.init(jax.random.key(0), batch)

    def losses(state, batch):
        return steps.train(state, batch)[0].params

    together = under_shard_map(losses, check_vma=False, outputs=1)(state, copies)
    one = jax.jit(
        jax.shard_map(
            losses,
            mesh=jax.make_mesh((1,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,)),
            in_specs=(SPEC(), SPEC("batch")),
            out_specs=SPEC(),
            check_vma=False,
        )
    )(state, quarter)
    assert not np.allclose(together["conv2"]["kernel"], one["conv2"]["kernel"], atol=1e-5)


def test_sharding_changes_no_mask(batch):
    """One step with masks on, from one state, on 1 and 4 devices: the same loss to rounding."""
    steps = make_steps(Small(batch_norm=False), optax.sgd(1.0), rate=0.5)
    state = steps.init(jax.random.key(0), batch)
    _, one = jax.jit(steps.train)(state, batch)
    _, four = on_a_sharded_batch(steps.train)(state, batch)
    assert four["loss"] == pytest.approx(float(one["loss"]), rel=1e-5)


# What the update of the clusters costs


class Stub:
    """A clusterer that does next to nothing, to count what the network costs."""

    def init(self, shape):
        return dc.Grid(num_clusters=1).init(shape)

    def update(self, state, x, axis_name=None):
        # Depends on all of x, so that no part of it may be left out.
        return state._replace(explained_variance=jnp.sum(x, dtype=jnp.float32)[None])


def operations(function, *arguments) -> float:
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


def test_an_update_costs_no_more_than_the_network_up_to_its_last_drop_layer(batch):
    model = Small(clusterer=Stub())
    steps = make_steps(model, optax.sgd(0.1))
    state = steps.init(jax.random.key(0), batch)

    def up_to_the_drop(params, images):
        x = nn.relu(nn.Conv(6, (3, 3)).apply({"params": params["conv1"]}, images))
        return jnp.sum(x, dtype=jnp.float32)

    cluster = operations(lambda state, batch: steps.update_clusters(state, batch).clusters, state, batch)
    network = operations(up_to_the_drop, state.params, batch["image"])
    whole = operations(lambda state, batch: model.apply(state.variables(), batch["image"]), state, batch)
    assert cluster <= network * 1.001 < whole * 0.7


# Bad input


@pytest.mark.bad_input
@pytest.mark.parametrize("rate", [1.5, -0.1, {"stage1": 2.0}])
def test_a_rate_outside_0_and_1_is_refused(rate):
    with pytest.raises(ValueError, match=r"rate.* must be in \[0, 1\]"):
        make_steps(Small(), optax.sgd(0.1), rate=rate)


@pytest.mark.bad_input
def test_variables_that_the_state_cannot_hold_are_refused(batch):
    class Counting(nn.Module):
        @nn.compact
        def __call__(self, x, train=False, rate=0.0):
            self.variable("counts", "calls", jnp.zeros, ())
            return nn.Dense(4)(x.reshape(len(x), -1))

    with pytest.raises(ValueError, match=r"collection 'counts'.*'params', 'batch_stats' and 'clusters'"):
        make_steps(Counting(), optax.sgd(0.1)).init(jax.random.key(0), batch)


def test_in_bfloat16_parameters_statistics_loss_and_clusters_are_float32():
    model = resnet8(dtype=jnp.bfloat16, drop={"stage1": DropCluster(dc.KMeans(cluster_size=4))})
    steps = make_steps(model, optax.adam(1e-3), rate=0.1, ema_decay=0.9, grad_accum_steps=2)
    batch = {"image": jnp.ones((4, 8, 8, 3)), "label": jnp.zeros(4, jnp.int32)}
    state = jax.eval_shape(steps.init, jax.random.key(0), batch)
    after, metrics = jax.eval_shape(steps.train, state, batch)
    after = jax.eval_shape(steps.update_clusters, after, batch)
    assert jax.tree.map(lambda leaf: leaf.dtype, after) == jax.tree.map(lambda leaf: leaf.dtype, state)
    floats = [leaf for leaf in jax.tree.leaves((after, metrics)) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert {leaf.dtype for leaf in floats} == {jnp.dtype(jnp.float32)}


# ---- Accumulation, averages, smoothing, steps that are not finite


def test_accumulated_parts_make_the_step_of_the_whole_batch(batch):
    """Without BatchNorm and drops a mean of means is the mean; a batch that cannot be divided is refused."""
    states = []
    for grad_accum_steps in (1, 4):
        steps = make_steps(Small(batch_norm=False), optax.sgd(0.3), grad_accum_steps=grad_accum_steps)
        state = jax.jit(steps.init)(jax.random.key(1), batch)
        state, metrics = jax.jit(steps.train)(state, batch)
        states.append((state.params, metrics["loss"], metrics["accuracy"]))
    for one, other in zip(jax.tree.leaves(states[0]), jax.tree.leaves(states[1]), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match="grad_accum_steps must divide the batch of 32, got 5"):
        make_steps(Small(), optax.sgd(0.3), grad_accum_steps=5).train(state, batch)


def test_accumulated_parts_have_masks_of_their_own_and_statistics_one_after_the_other(batch):
    part = jax.tree.map(lambda leaf: leaf[:8], batch)
    repeated = jax.tree.map(lambda leaf: jnp.repeat(leaf, 2, axis=0), part)  # both parts hold the same examples
    steps = make_steps(Small(), optax.sgd(0.0), rate=0.5, grad_accum_steps=2)
    alone = make_steps(Small(), optax.sgd(0.0), rate=0.5)
    state = jax.jit(steps.init)(jax.random.key(1), part)
    after, metrics = jax.jit(steps.train)(state, repeated)
    _, one = jax.jit(alone.train)(state, part)
    assert abs(float(metrics["loss"]) - float(one["loss"])) > 1e-4
    quiet = make_steps(Small(), optax.sgd(0.0), grad_accum_steps=2)
    after, _ = jax.jit(quiet.train)(state, repeated)
    twice = state
    for _ in range(2):
        twice, _ = jax.jit(make_steps(Small(), optax.sgd(0.0)).train)(twice, part)
    for one, other in zip(jax.tree.leaves(after.batch_stats), jax.tree.leaves(twice.batch_stats), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_averages_follow_their_formula_and_are_what_is_evaluated(batch):
    steps = make_steps(Small(), optax.sgd(0.3), ema_decay=0.5)
    train, state = jax.jit(steps.train), jax.jit(steps.init)(jax.random.key(1), batch)
    expected = np.asarray(state.params["head"]["kernel"], np.float64)
    for step in range(12):
        decay = min(0.5, (1 + step) / (10 + step))
        state, _ = train(state, batch)
        expected = decay * expected + (1 - decay) * np.asarray(state.params["head"]["kernel"])
    np.testing.assert_allclose(state.ema["params"]["head"]["kernel"], expected, rtol=1e-5)
    assert set(state.ema) == {"params", "batch_stats"}
    averaged = state._replace(params=state.ema["params"], batch_stats=state.ema["batch_stats"], ema=())
    assert float(steps.evaluate(state, batch)["loss"]) == float(steps.evaluate(averaged, batch)["loss"])
    assert float(steps.evaluate(state._replace(ema=()), batch)["loss"]) != float(steps.evaluate(state, batch)["loss"])


def test_labels_are_smoothed_in_training_only(batch):
    plain, smooth = (make_steps(Small(), optax.sgd(0.3), label_smoothing=share) for share in (0.0, 0.1))
    state = jax.jit(plain.init)(jax.random.key(1), batch)
    logits, _ = Small().apply(state.variables(), batch["image"], train=True, mutable=["batch_stats"])
    targets = 0.9 * jax.nn.one_hot(batch["label"], 4) + 0.1 / 4
    expected = -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1))
    assert float(smooth.train(state, batch)[1]["loss"]) == pytest.approx(float(expected), rel=1e-5)
    assert float(smooth.evaluate(state, batch)["loss"]) == float(plain.evaluate(state, batch)["loss"])


def test_of_many_classes_the_five_best_are_counted_too(batch):
    steps = make_steps(Small(classes=100), optax.sgd(0.3))
    state = jax.jit(steps.init)(jax.random.key(1), batch)
    logits = Small(classes=100).apply(state.variables(), batch["image"])
    best = np.argsort(np.asarray(logits), axis=-1)[:, -5:]
    sums = steps.evaluate(state, batch)
    assert float(sums["correct_top5"]) == sum(label in row for label, row in zip(batch["label"], best, strict=True))
    assert "correct_top5" not in make_steps(Small(), optax.sgd(0.3)).evaluate(
        jax.jit(make_steps(Small(), optax.sgd(0.3)).init)(jax.random.key(1), batch), batch
    )


@pytest.mark.parametrize("grad_accum_steps", [1, 2])
def test_a_step_that_is_not_finite_is_told_and_leaves_all_as_it_was_if_asked(batch, grad_accum_steps):
    bad = {**batch, "image": batch["image"].at[3, 2, 2, 0].set(jnp.nan)}
    tx = optax.sgd(optax.constant_schedule(0.3), momentum=0.9)
    steps = make_steps(Small(), tx, rate=0.2, ema_decay=0.9, skip_nonfinite=True, grad_accum_steps=grad_accum_steps)
    train, state = jax.jit(steps.train), jax.jit(steps.init)(jax.random.key(1), batch)
    state, metrics = train(state, batch)
    assert metrics["finite"]
    after, metrics = train(state, bad)
    assert not metrics["finite"] and int(after.step) == int(state.step) + 1
    assert equal(after._replace(step=state.step), state)
    plain = make_steps(Small(), tx, rate=0.2, ema_decay=0.9)
    spoiled, metrics = jax.jit(plain.train)(state, bad)
    assert not metrics["finite"] and not np.isfinite(spoiled.batch_stats["norm"]["mean"]).all()


def test_a_step_whose_new_parameters_are_not_finite_is_none(batch):
    """Loss and gradients are finite, and what is made of them is not."""
    steps = make_steps(Small(), optax.scale(float("inf")), skip_nonfinite=True)
    state = jax.jit(steps.init)(jax.random.key(1), batch)
    after, metrics = jax.jit(steps.train)(state, batch)
    assert np.isfinite(metrics["loss"]) and np.isfinite(after.batch_stats["norm"]["mean"]).all()
    assert not metrics["finite"] and equal(after._replace(step=state.step), state)


@pytest.mark.bad_input
def test_options_of_steps_out_of_range_are_refused():
    for option in ("label_smoothing", "ema_decay"):
        with pytest.raises(ValueError, match=rf"{option} must be at least 0 and below 1, got 1\.0"):
            make_steps(Small(), optax.sgd(0.1), **{option: 1.0})
    with pytest.raises(ValueError, match="grad_accum_steps must be at least 1, got 0"):
        make_steps(Small(), optax.sgd(0.1), grad_accum_steps=0)
