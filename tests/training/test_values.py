"""Losses, metrics and gradients against NumPy in float64, for narrow types, all options, and any labels and outputs."""

import contextlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dropcluster_jax.training import classification_metrics, evaluate, make_steps

KEEP_GRADIENTS = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params), lambda grads, state, params=None: (grads, grads)
)
OPTIONS = ({}, {"grad_accum_steps": 4}, {"label_smoothing": 0.1}, {"ema_decay": 0.9})


class Head(nn.Module):
    """Logits that do not depend on the images."""

    logits: tuple[float, ...]
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x, train=False, rate=0.0):
        bias = self.param("bias", lambda key: jnp.array(self.logits, self.dtype))
        return jnp.broadcast_to(bias, (len(jax.tree.leaves(x)[0]), len(self.logits)))


def run(steps, batch):
    """Returns the state after a step, its metrics, and the evaluation."""
    state = jax.jit(steps.init)(jax.random.key(0), batch)
    state, metrics = jax.jit(steps.train)(state, batch)
    return state, metrics, evaluate(jax.jit(steps.evaluate), state, [batch])


def reference(logits, labels, smoothing=0.0):
    """Returns the mean loss and its gradient with respect to the logits of `Head`, in float64."""
    logits = np.asarray(logits, np.float64)
    log_softmax = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
    targets = (1 - smoothing) * np.eye(len(logits))[labels] + smoothing / len(logits)
    return -(targets @ log_softmax).mean(), np.exp(log_softmax) - targets.mean(0)


@contextlib.contextmanager
def strict_x64():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        yield


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(
    ("dtype", "context", "tolerance"),
    [
        ("bfloat16", contextlib.nullcontext, 2**-6),
        ("float16", contextlib.nullcontext, 2**-10),
        ("float32", strict_x64, 1e-5),
        ("float64", strict_x64, 1e-7),  # labels are smoothed in float32
    ],
)
def test_losses_and_gradients_equal_numpy(dtype, context, tolerance, options):
    logits, labels = (7.0, 0.0, 0.0, -1.0), np.array([0, 0, 0, 0, 0, 0, 0, 1], np.int32)
    batch = {"image": np.ones((8, 2), np.float32), "label": labels}
    with context():
        steps = make_steps(Head(logits, dtype), KEEP_GRADIENTS, **options)
        state = jax.jit(steps.init)(jax.random.key(0), batch)
        new_state, metrics = jax.jit(steps.train)(state, batch)
        sums = jax.jit(steps.evaluate)(state, batch)
    loss, gradient = reference(logits, labels, options.get("label_smoothing", 0.0))
    assert metrics["loss"].dtype == sums["loss"].dtype == max("float32", dtype, key=lambda name: name == "float64")
    assert float(metrics["loss"]) == pytest.approx(loss, rel=1e-4)
    assert float(sums["loss"]) / 8 == pytest.approx(reference(logits, labels)[0], rel=1e-4)
    actual = np.asarray(new_state.opt_state["bias"], np.float64)
    np.testing.assert_allclose(actual, gradient, rtol=tolerance, atol=1e-6)
    assert float(metrics["accuracy"]) == float(sums["accuracy"]) / 8 == 7 / 8


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("parts", [8, pytest.param(64, marks=pytest.mark.slow), 512])
def test_accumulated_gradients_are_those_of_the_whole_batch(dtype, parts):
    """Sums of 512 gradients in bfloat16 lose the small ones, and those of 16 large ones overflow in float16."""
    scale = 8192.0
    batch = {"image": np.ones((512, 2), np.float32), "label": np.arange(512) % 3 // 2}

    def loss(logits, labels):
        return scale * optax.softmax_cross_entropy_with_integer_labels(logits, labels)

    steps = make_steps(Head((1.0, 0.0), dtype), KEEP_GRADIENTS, loss=loss, grad_accum_steps=parts)
    state, metrics, _ = run(steps, batch)
    _, gradient = reference((1.0, 0.0), batch["label"])
    np.testing.assert_allclose(np.asarray(state.opt_state["bias"], np.float64), scale * gradient, atol=scale * 2**-10)
    assert metrics["finite"] and state.opt_state["bias"].dtype == dtype


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint32, np.int32, np.int64])
def test_labels_of_all_types_are_compared_as_numbers(dtype):
    """Class 261 is class 5 modulo 256."""
    logits = np.zeros(300)
    logits[261] = 9.0
    batch = {"image": np.ones((4, 2), np.float32), "label": np.full(4, 5, dtype)}
    _, metrics, results = run(make_steps(Head(tuple(logits)), optax.sgd(0.0)), batch)
    assert metrics["accuracy"] == results["accuracy"] == 0
    assert results["loss"] == pytest.approx(reference(logits, batch["label"])[0], rel=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"loss": lambda outputs, labels: (outputs - 1.0) ** 2},
        {"loss": lambda outputs, labels: jnp.mean(outputs)},
        {"loss": lambda outputs, labels: outputs[:2, 0]},
        {"loss": lambda outputs, labels: outputs[:, 0], "metrics": lambda outputs, labels: {"loss2": outputs}},
    ],
)
def test_losses_and_metrics_of_other_shapes_raise(options):
    batch = {"image": np.ones((4, 2), np.float32), "label": np.zeros(4, np.float32)}
    steps = make_steps(Head((1.0, 2.0)), optax.sgd(0.1), **options)
    state = steps.init(jax.random.key(0), batch)
    for function in (steps.train, steps.evaluate):
        with pytest.raises(ValueError, match=r"loss2? must have one value for each example, shape \(4,\)"):
            jax.eval_shape(function, state, batch)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        ((1.0,), np.zeros(4, np.int32), "at least two classes, got (4, 1); pass a loss"),
        ((1.0, 0.0), np.zeros(4, np.float32), "integers of shape (batch,) or probabilities of shape (batch, 2)"),
        ((1.0, 0.0), np.zeros((4, 3), np.float32), "probabilities of shape (batch, 2), got float32 of shape (4, 3)"),
        ((1.0, 0.0), np.zeros((4, 5, 5), np.int32), "pass a loss for other labels"),
        ((1.0, 0.0), {"a": np.zeros(4, np.int32)}, "pass a loss for other labels"),
    ],
)
def test_what_the_default_loss_does_not_accept_raises(logits, labels, message):
    batch = {"image": np.ones((4, 2), np.float32), "label": labels}
    steps = make_steps(Head(logits), optax.sgd(0.1))
    with pytest.raises(ValueError) as error:
        steps.init(jax.random.key(0), batch)
    assert message in str(error.value)


class Several(nn.Module):
    """A segmentation and a regression output, from two images of a dict."""

    @nn.compact
    def __call__(self, x, train=False, rate=0.0):
        features = nn.Conv(4, (3, 3))(x["left"] - x["right"])
        return nn.Conv(2, (1, 1))(features), nn.Dense(1)(features.mean((1, 2)))[:, 0]


def test_outputs_labels_and_images_may_be_pytrees():
    key = jax.random.key(0)
    left, right = jax.random.normal(key, (2, 8, 6, 6, 3))
    labels = {"mask": (left[..., 0] > right[..., 0]).astype(jnp.int32), "mean": (left - right).mean((1, 2, 3))}

    def loss(outputs, labels):
        segmentation = optax.softmax_cross_entropy_with_integer_labels(outputs[0], labels["mask"]).mean((1, 2))
        return segmentation + (outputs[1] - labels["mean"]) ** 2

    def metrics(outputs, labels):
        return {"pixel_accuracy": (outputs[0].argmax(-1) == labels["mask"]).mean((1, 2))}

    for parts in (1, 2):
        steps = make_steps(Several(), optax.adam(0.1), loss=loss, metrics=metrics, grad_accum_steps=parts)
        batch = {"image": {"left": left, "right": right}, "label": labels}
        state = jax.jit(steps.init)(key, batch)
        before = evaluate(jax.jit(steps.evaluate), state, [batch])
        train = jax.jit(steps.train)
        for _ in range(30):
            state, values = train(state, batch)
        after = evaluate(jax.jit(steps.evaluate), state, [batch])
        assert set(values) == {"loss", "pixel_accuracy", "rate", "finite"} and set(after) == {*before}
        assert after["loss"] < 0.5 * before["loss"] and after["pixel_accuracy"] > 0.9
        outputs = Several().apply(state.variables(), batch["image"])
        assert after["loss"] == pytest.approx(float(loss(outputs, labels).mean()), rel=1e-5)
        padded = {**batch, "weight": jnp.arange(8.0) < 4}
        expected = float(metrics(outputs, labels)["pixel_accuracy"][:4].mean())
        assert evaluate(jax.jit(steps.evaluate), state, [padded])["pixel_accuracy"] == pytest.approx(expected)


def test_models_without_parameters_and_scalars_in_a_batch():
    class Mean(nn.Module):
        def __call__(self, x, train=False, rate=0.0):
            return x.reshape(len(x), 2, -1).mean(-1)

    batch = {"image": np.eye(4, dtype=np.float32), "label": np.array([0, 0, 1, 1])}
    steps = make_steps(Mean(), optax.sgd(0.1))
    _, metrics, results = run(steps, batch)
    assert metrics["accuracy"] == results["accuracy"] == 1
    with pytest.raises(ValueError, match=r"epoch must have one entry for each of 4 images, got \(\)"):
        steps.init(jax.random.key(0), {**batch, "epoch": 3})


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("mode", ["shard_map", "vmap", "explicit"])
def test_devices_do_not_matter(mode, options):
    x = jax.random.normal(jax.random.key(1), (16, 3))
    batch = {"image": x, "label": jnp.arange(16) % 3}
    model = Affine()
    expected = run(make_steps(model, optax.sgd(0.5), **options), batch)[0]
    if mode == "shard_map":
        mesh = jax.make_mesh((4,), ("batch",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
        steps = make_steps(model, optax.sgd(0.5), axis_name="batch", **options)
        replicated, sharded = PartitionSpec(), PartitionSpec("batch")
        init = jax.shard_map(
            steps.init, mesh=mesh, in_specs=(replicated, sharded), out_specs=replicated, check_vma=False
        )
        train = jax.shard_map(steps.train, mesh=mesh, in_specs=(replicated, sharded), out_specs=replicated)
        state, _ = jax.jit(train)(jax.jit(init)(jax.random.key(0), batch), batch)
    elif mode == "vmap":
        steps = make_steps(model, optax.sgd(0.5), axis_name="batch", **options)
        initial = make_steps(model, optax.sgd(0.5), **options).init(jax.random.key(0), batch)
        train = jax.vmap(steps.train, in_axes=(None, 0), axis_name="batch")
        state, _ = jax.jit(train)(initial, jax.tree.map(lambda leaf: leaf.reshape(4, 4, *leaf.shape[1:]), batch))
        state = jax.tree.map(lambda leaf: leaf[0], state)
    else:
        mesh = jax.make_mesh((4,), ("batch",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:4])
        with jax.set_mesh(mesh):
            batch = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("batch")))
            state = run(make_steps(model, optax.sgd(0.5), **options), batch)[0]
    for leaf, expected_leaf in zip(jax.tree.leaves(state.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(leaf, expected_leaf, rtol=1e-5, atol=1e-6)


class Affine(nn.Module):
    @nn.compact
    def __call__(self, x, train=False, rate=0.0):
        return x @ self.param("kernel", nn.initializers.ones, (3, 3))


def test_metrics_of_probabilities_and_many_classes():
    logits = np.random.default_rng(0).normal(size=(6, 120)).astype(ml_dtypes.bfloat16)
    labels = np.argsort(np.asarray(logits, np.float32), axis=-1)[:, [-1, -2, -5, -6, 0, -1]].diagonal()
    for given in (labels.astype(np.uint8), np.eye(120, dtype=np.float32)[labels]):
        metrics = classification_metrics(jnp.asarray(logits), jnp.asarray(given))
        assert metrics["accuracy"].tolist() == [1, 0, 0, 0, 0, 1]
        assert metrics["accuracy_top5"].tolist() == [1, 1, 1, 0, 0, 1]
