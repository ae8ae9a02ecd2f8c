import functools
import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from training.helpers import Linear, Small, equal, mesh, separable

import dropcluster_jax as dc
from dropcluster_jax.linen import DropCluster
from dropcluster_jax.models import resnet8
from dropcluster_jax.training import make_steps, softmax_cross_entropy


@pytest.fixture(scope="module")
def batch():
    return separable(jax.random.key(0))


@pytest.fixture(scope="module")
def sgd():
    """Compiled SGD steps and an initial state."""
    steps = make_steps(Small(), optax.sgd(0.3), rate=0.2)
    compiled = steps._replace(**{name: jax.jit(value) for name, value in steps._asdict().items() if callable(value)})
    return compiled, compiled.init(jax.random.key(1), separable(jax.random.key(0)))


@pytest.fixture(scope="module")
def without_norm(batch):
    """The initial state of `Small(batch_norm=False)`."""
    return jax.jit(make_steps(Small(batch_norm=False), optax.sgd(1.0)).init)(jax.random.key(0), batch)


def assert_trees_close(tree, other, rtol=1e-5, atol=1e-7):
    for leaf, other_leaf in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(leaf, other_leaf, rtol=rtol, atol=atol)


def test_defaults():
    """Defaults are part of the API."""
    parameters = inspect.signature(make_steps).parameters.values()
    actual = {parameter.name: parameter.default for parameter in parameters if parameter.default is not parameter.empty}
    assert actual == {
        **dict.fromkeys(("metrics", "augment", "preprocess", "mix", "eval_params", "axis_name")),
        "rate": 0.0,
        "loss": softmax_cross_entropy,
        "label_smoothing": 0.0,
        "grad_accum_steps": 1,
        "ema_decay": 0.0,
        "skip_nonfinite": False,
    }


def test_train_does_not_change_clusters(sgd, batch):
    steps, state = sgd
    state = steps.update_clusters(state, batch)
    after, _ = steps.train(state, batch)
    assert equal(after.clusters, state.clusters)
    assert not equal(after.params, state.params) and not equal(after.batch_stats, state.batch_stats)
    assert equal(after.key, state.key) and after.step == state.step + 1


def test_update_clusters_changes_clusters_only(sgd, batch):
    steps, state = sgd
    after = steps.update_clusters(state, batch)
    assert after.clusters["drop"]["num_updates"] == 1
    assert (after.clusters["drop"]["labels"] != state.clusters["drop"]["labels"]).any()
    assert equal(after._replace(clusters=state.clusters), state)


def test_clusters_are_learned_in_evaluation_mode(sgd, batch):
    steps, state = sgd
    kernel, bias = state.params["conv1"]["kernel"], state.params["conv1"]["bias"]
    x = nn.relu(nn.Conv(6, (3, 3)).apply({"params": {"kernel": kernel, "bias": bias}}, batch["image"]))
    clusterer = Small().clusterer
    expected = clusterer.update(clusterer.init(x.shape[1:]), x)
    assert (steps.update_clusters(state, batch).clusters["drop"]["labels"] == expected.labels).all()


def test_evaluation_mode_does_not_depend_on_the_default_of_train(batch):
    class TrainsByDefault(nn.Module):
        @nn.compact
        def __call__(self, x, train=True, rate=0.5, update_clusters=False):
            return Small()(x, train, rate, update_clusters)

    steps = make_steps(TrainsByDefault(), optax.sgd(0.1))
    state = jax.eval_shape(steps.init, jax.random.key(0), batch)  # in training mode, a key for dropout is missing
    assert jax.eval_shape(steps.update_clusters, state, batch) == state
    assert set(jax.eval_shape(steps.evaluate, state, batch)) == {"loss", "accuracy", "count"}


def test_update_clusters_is_the_identity_without_clusters(batch):
    steps = make_steps(Linear(), optax.sgd(0.1))
    state = steps.init(jax.random.key(0), batch)
    assert state.clusters == {} and steps.update_clusters(state, batch) is state
    state, metrics = jax.jit(steps.train)(state, batch)
    assert state.step == 1 and metrics["rate"] == 0


@pytest.mark.optimized
def test_train_is_deterministic_and_masks_depend_on_the_step(sgd, batch):
    steps, state = sgd
    after, metrics = steps.train(state, batch)
    repeated, _ = steps.train(state, batch)
    assert equal(after, repeated)
    _, later_metrics = steps.train(state._replace(step=state.step + 1), batch)
    assert later_metrics["loss"] != metrics["loss"]


def test_scheduled_rate_does_not_recompile(batch):
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


def test_mix_replaces_training_labels(batch):
    def one_hot(key, images, labels):
        return images, jax.nn.one_hot(labels, 4)

    def random_labels(key, images, labels):
        return images, jax.nn.softmax(jax.random.normal(key, (len(labels), 4)))

    plain, same, mixed = (make_steps(Small(), optax.sgd(0.0), mix=mix) for mix in (None, one_hot, random_labels))
    state = jax.jit(plain.init)(jax.random.key(0), batch)
    plain_metrics, same_metrics = (jax.jit(steps.train)(state, batch)[1] for steps in (plain, same))
    assert float(same_metrics["loss"]) == pytest.approx(float(plain_metrics["loss"]), rel=1e-6)
    assert float(same_metrics["accuracy"]) == float(plain_metrics["accuracy"])
    train = jax.jit(mixed.train)
    losses = {float(train(state._replace(step=jnp.int32(step)), batch)[1]["loss"]) for step in range(3)}
    assert len(losses) == 3 and float(train(state, batch)[1]["loss"]) in losses
    assert equal(jax.jit(plain.evaluate)(state, batch), jax.jit(mixed.evaluate)(state, batch))


def test_augment_depends_on_the_step_and_is_not_used_in_evaluation(batch):
    def shift(key, images):
        return images + jax.random.normal(key, ())

    plain, augmented = (
        make_steps(Small(), optax.sgd(0.0), augment=augment, preprocess=lambda images: images * 0.5)
        for augment in (None, shift)
    )
    state = jax.jit(plain.init)(jax.random.key(0), batch)
    train = jax.jit(augmented.train)
    losses = {float(train(state._replace(step=jnp.int32(step)), batch)[1]["loss"]) for step in range(3)}
    assert len(losses | {float(jax.jit(plain.train)(state, batch)[1]["loss"])}) == 4
    assert equal(jax.jit(plain.evaluate)(state, batch), jax.jit(augmented.evaluate)(state, batch))


def test_metrics_match_numpy(sgd, batch):
    steps, state = sgd
    logits = np.asarray(jax.jit(Small().apply)(state.variables(), batch["image"]), np.float64)
    labels = np.asarray(batch["label"])
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]
    sums = steps.evaluate(state, batch)
    assert sums["loss"] == pytest.approx(losses.sum(), rel=1e-5)
    assert sums["accuracy"] == (logits.argmax(1) == labels).sum() and sums["count"] == len(labels)
    np.testing.assert_allclose(softmax_cross_entropy(jnp.float32(logits), batch["label"]), losses, rtol=1e-4)


def test_examples_are_weighted_in_evaluation(sgd, batch):
    steps, state = sgd
    half = {name: leaf[:16] for name, leaf in batch.items()}
    padded = {**batch, "weight": (jnp.arange(32) < 16) * 0.25}
    sums = steps.evaluate(state, padded)
    for name, expected in steps.evaluate(state, half).items():
        assert sums[name] == pytest.approx(0.25 * float(expected), rel=1e-5)
    invalid = {**padded, "label": jnp.where(padded["weight"] > 0, batch["label"], -1)}  # labels of padding may be
    assert equal(steps.evaluate(state, invalid), sums)
    eager = make_steps(Small(), optax.sgd(0.3)).evaluate(state, invalid)
    assert float(eager["loss"]) == pytest.approx(float(sums["loss"]), rel=1e-5)


# Several devices


SPEC = jax.sharding.PartitionSpec


def test_replicas_draw_separate_masks(without_norm, batch):
    """With one mask for all replicas, four copies of a quarter batch would give the step of one copy."""
    quarter = {name: leaf[:8] for name, leaf in batch.items()}
    copies = {name: jnp.concatenate([leaf] * 4) for name, leaf in quarter.items()}
    model = Small(batch_norm=False, axis_name="batch")
    steps = make_steps(model, optax.sgd(1.0), rate=0.5, axis_name="batch")
    kernels = []
    for num_devices, data in ((4, copies), (1, quarter)):
        train = jax.shard_map(
            lambda state, batch: steps.train(state, batch)[0].params,
            mesh=mesh(num_devices),
            in_specs=(SPEC(), SPEC("batch")),
            out_specs=SPEC(),
            check_vma=False,
        )
        kernels.append(np.asarray(jax.jit(train)(without_norm, data)["conv2"]["kernel"]))
    assert not np.allclose(*kernels, atol=1e-5)


# Cost of a cluster update


class SumClusterer:
    """A clusterer of negligible cost that depends on all of `x`."""

    def init(self, shape):
        return dc.Grid(num_clusters=1).init(shape)

    def update(self, state, x, axis_name=None):
        return state._replace(explained_variance=jnp.sum(x, dtype=jnp.float32)[None])


def test_update_clusters_stops_at_the_last_drop_layer(batch):
    model = Small(clusterer=SumClusterer())
    steps = make_steps(model, optax.sgd(0.1))
    state = steps.init(jax.random.key(0), batch)
    functions = (
        lambda state, batch: steps.update_clusters(state, batch).clusters,
        lambda state, batch: model.apply(state.variables(), batch["image"]),
    )
    costs = [jax.jit(function).lower(state, batch).compile().cost_analysis() for function in functions]
    assert costs[0]["flops"] < 0.7 * costs[1]["flops"]


# Precision, gradient accumulation, averages, label smoothing and non-finite steps


def test_bfloat16_activations_keep_float32_state():
    model = resnet8(dtype=jnp.bfloat16, drop={"stage1": DropCluster(dc.KMeans(cluster_size=4))})
    steps = make_steps(model, optax.adam(1e-3), rate=0.1, ema_decay=0.9, grad_accum_steps=2)
    batch = {"image": jnp.ones((4, 8, 8, 3)), "label": jnp.zeros(4, jnp.int32)}
    state = jax.eval_shape(steps.init, jax.random.key(0), batch)
    after, metrics = jax.eval_shape(steps.train, state, batch)
    after = jax.eval_shape(steps.update_clusters, after, batch)
    assert jax.tree.map(lambda leaf: leaf.dtype, after) == jax.tree.map(lambda leaf: leaf.dtype, state)
    floats = [leaf for leaf in jax.tree.leaves((after, metrics)) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert {leaf.dtype for leaf in floats} == {jnp.dtype(jnp.float32)}


def test_accumulated_gradients_equal_those_of_the_batch(batch):
    results = []
    for grad_accum_steps in (1, 4):
        steps = make_steps(Small(batch_norm=False), optax.sgd(0.3), grad_accum_steps=grad_accum_steps)
        state = jax.jit(steps.init)(jax.random.key(1), batch)
        state, metrics = jax.jit(steps.train)(state, batch)
        results.append((state.params, metrics["loss"], metrics["accuracy"]))
    assert_trees_close(*results)


def test_accumulated_parts_have_separate_masks_and_update_batch_statistics_in_sequence(batch):
    part = jax.tree.map(lambda leaf: leaf[:8], batch)
    repeated = jax.tree.map(lambda leaf: jnp.repeat(leaf, 2, axis=0), part)  # both parts contain the same examples
    for rate in (0.0, 0.5):
        accumulated, single = (
            make_steps(Small(), optax.sgd(0.0), rate=rate, grad_accum_steps=number) for number in (2, 1)
        )
        state = jax.jit(single.init)(jax.random.key(1), part)
        after, metrics = jax.jit(accumulated.train)(state, repeated)
        state, single_metrics = jax.jit(single.train)(state, part)
        if rate:
            assert abs(float(metrics["loss"]) - float(single_metrics["loss"])) > 1e-4
        else:
            state, _ = jax.jit(single.train)(state, part)
            assert_trees_close(after.batch_stats, state.batch_stats)


def test_ema_follows_its_formula_and_is_evaluated(batch):
    steps = make_steps(Small(), optax.sgd(0.3), ema_decay=0.5)
    train, state = jax.jit(steps.train), jax.jit(steps.init)(jax.random.key(1), batch)
    expected = np.asarray(state.params["head"]["kernel"], np.float64)
    for step in range(12):
        decay = min(0.5, (1 + step) / (10 + step))
        state, _ = train(state, batch)
        expected = decay * expected + (1 - decay) * np.asarray(state.params["head"]["kernel"])
    np.testing.assert_allclose(state.ema["params"]["head"]["kernel"], expected, rtol=1e-5)
    assert set(state.ema) == {"params", "batch_stats"}
    ema_only = state._replace(params=state.ema["params"], batch_stats=state.ema["batch_stats"], ema=())
    evaluate = jax.jit(steps.evaluate)
    loss = float(evaluate(state, batch)["loss"])
    assert float(evaluate(ema_only, batch)["loss"]) == loss
    assert float(evaluate(state._replace(ema=()), batch)["loss"]) != loss


def test_averages_of_bfloat16_parameters_are_float32(batch):
    steps = make_steps(Linear(param_dtype=jnp.bfloat16), optax.sgd(0.1), ema_decay=0.9)
    before = jax.eval_shape(steps.init, jax.random.key(0), batch)
    assert {leaf.dtype for leaf in jax.tree.leaves(before.ema)} == {jnp.dtype("float32")}
    after, _ = jax.eval_shape(steps.train, before, batch)
    assert after == before


def test_labels_are_smoothed_in_training_only(batch):
    plain, smooth = (make_steps(Small(), optax.sgd(0.3), label_smoothing=value) for value in (0.0, 0.1))
    state = jax.jit(plain.init)(jax.random.key(1), batch)
    apply = jax.jit(functools.partial(Small().apply, train=True, mutable=["batch_stats"]))
    logits, _ = apply(state.variables(), batch["image"])
    targets = 0.9 * jax.nn.one_hot(batch["label"], 4) + 0.1 / 4
    expected = -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1))
    assert float(jax.jit(smooth.train)(state, batch)[1]["loss"]) == pytest.approx(float(expected), rel=1e-5)
    smooth_loss, plain_loss = (float(jax.jit(steps.evaluate)(state, batch)["loss"]) for steps in (smooth, plain))
    assert smooth_loss == plain_loss


def test_top5_is_counted_for_100_classes_but_not_for_99(batch):
    model = Small(classes=100)
    steps = make_steps(model, optax.sgd(0.3))
    state = jax.jit(steps.init)(jax.random.key(1), batch)
    logits = jax.jit(model.apply)(state.variables(), batch["image"])
    top5 = np.argsort(np.asarray(logits), axis=-1)[:, -5:]
    expected = sum(label in classes for label, classes in zip(batch["label"], top5, strict=True))
    for labels in (batch["label"], jax.nn.one_hot(batch["label"], 100)):
        assert float(jax.jit(steps.evaluate)(state, {**batch, "label": labels})["accuracy_top5"]) == expected
    steps = make_steps(Small(classes=99), optax.sgd(0.3))
    state = jax.eval_shape(steps.init, jax.random.key(1), batch)
    assert set(jax.eval_shape(steps.evaluate, state, batch)) == {"loss", "accuracy", "count"}


@pytest.mark.parametrize("grad_accum_steps", [1, 2])
def test_nonfinite_steps_are_reported_and_skipped(batch, grad_accum_steps):
    nonfinite = {**batch, "image": batch["image"].at[3, 2, 2, 0].set(jnp.nan)}
    tx = optax.sgd(optax.constant_schedule(0.3), momentum=0.9)
    steps = make_steps(Small(), tx, rate=0.2, ema_decay=0.9, skip_nonfinite=True, grad_accum_steps=grad_accum_steps)
    train, state = jax.jit(steps.train), jax.jit(steps.init)(jax.random.key(1), batch)
    state, metrics = train(state, batch)
    assert metrics["finite"]
    after, metrics = train(state, nonfinite)
    assert not metrics["finite"] and int(after.step) == int(state.step) + 1
    assert equal(after._replace(step=state.step), state)
    plain = make_steps(Small(), tx, rate=0.2, ema_decay=0.9)
    after, metrics = jax.jit(plain.train)(state, nonfinite)
    assert not metrics["finite"] and not np.isfinite(after.batch_stats["norm"]["mean"]).all()


def test_steps_with_nonfinite_parameters_are_skipped(batch):
    """Loss, gradients and statistics are finite, but the optimizer's updates are not."""
    steps = make_steps(Small(), optax.scale(float("inf")), skip_nonfinite=True)
    state = jax.jit(steps.init)(jax.random.key(1), batch)
    after, metrics = jax.jit(steps.train)(state, batch)
    assert np.isfinite(metrics["loss"]) and np.isfinite(after.batch_stats["norm"]["mean"]).all()
    assert not metrics["finite"] and equal(after._replace(step=state.step), state)


# Invalid arguments


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "options",
    [
        *({"rate": value} for value in (1.5, -0.1, {"stage1": 2.0})),
        *({name: value} for name in ("label_smoothing", "ema_decay") for value in (1.0, -0.1, float("nan"))),
        {"grad_accum_steps": 0},
        {"ema_decay": 0.9, "eval_params": lambda opt_state, params: params},
    ],
)
def test_invalid_options_raise(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        make_steps(Small(), optax.sgd(0.1), **options)


class WithoutRate(nn.Module):
    def __call__(self, x, train=False):
        return x


class Options(nn.Module):
    def __call__(self, x, **options):
        return x


class Counting(nn.Module):
    @nn.compact
    def __call__(self, x, train=False, rate=0.0):
        self.variable("counts", "calls", jnp.zeros, ())
        return Linear()(x)


@pytest.mark.bad_input
def test_models_of_another_interface_raise(batch):
    assert callable(make_steps(Options(), optax.sgd(0.1)).train)
    with pytest.raises(TypeError, match="WithoutRate does not accept rate"):
        make_steps(WithoutRate(), optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"collections .* got 'counts'"):
        make_steps(Counting(), optax.sgd(0.1)).init(jax.random.key(0), batch)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("step", "message", "change"),
    [
        ("init", "'image' and 'label', got", lambda batch: {"image": batch["image"]}),
        ("train", "'image' and 'label', got tuple", lambda batch: (batch["image"], batch["label"])),
        ("update_clusters", "'image', got", lambda batch: {"label": batch["label"]}),
        ("evaluate", "weight", lambda batch: {**batch, "weight": jnp.ones((len(batch["label"]), 1))}),
        *(
            (step, "label", lambda batch, change=change: {**batch, "label": change(batch["label"])})
            for step in ("train", "evaluate")
            for change in (
                lambda labels: labels[:, None],
                lambda labels: jax.nn.one_hot(labels, 4, dtype=jnp.int32),
                lambda labels: jax.nn.one_hot(labels, 5),
                lambda labels: labels.astype(jnp.float32),
                lambda labels: labels[:-1],
            )
        ),
    ],
)
def test_invalid_batches_raise(sgd, batch, step, message, change):
    steps, state = sgd
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(getattr(steps, step), jax.random.key(0) if step == "init" else state, change(batch))


@pytest.mark.bad_input
def test_batches_that_cannot_be_split_raise(sgd, batch):
    steps = make_steps(Small(), optax.sgd(0.3), grad_accum_steps=5)
    with pytest.raises(ValueError, match="grad_accum_steps must divide the batch size, 32, got 5"):
        jax.eval_shape(steps.train, sgd[1], batch)


def test_concrete_labels_outside_the_classes_raise(batch):
    steps = make_steps(Small(), optax.sgd(0.1))
    state = steps.init(jax.random.key(1), batch)
    wrong = {**batch, "label": batch["label"] + 1}
    for function in (lambda: steps.init(jax.random.key(1), wrong), lambda: steps.evaluate(state, wrong)):
        with pytest.raises(ValueError, match=r"labels must be in \[0, 4\), got 4 at index"):
            function()


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("label", [-1, 4])
def test_labels_outside_the_classes_make_the_step_nonfinite(sgd, batch, label, label_smoothing):
    _, state = sgd
    train = jax.jit(make_steps(Small(), optax.sgd(0.3), label_smoothing=label_smoothing).train)
    _, metrics = train(state, {**batch, "label": batch["label"].at[3].set(label)})
    assert jnp.isnan(metrics["loss"]) and not metrics["finite"]


def test_nan_rate_makes_the_step_nonfinite(batch):
    steps = make_steps(Small(), optax.sgd(0.1), rate=lambda step: 0.0 * step / step)
    _, metrics = jax.jit(lambda batch: steps.train(steps.init(jax.random.key(0), batch), batch))(batch)
    assert not metrics["finite"]
