import contextlib
import functools

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import dropcluster_jax as dc
from dropcluster_jax.linen import DropCluster

X = jax.random.normal(jax.random.key(0), (6, 8, 8, 3))
KEY = jax.random.key(1)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False, deterministic=None):
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(8, (3, 3))(x)))
        deterministic = not train if deterministic is None else deterministic
        x = DropCluster(dc.KMeans(num_clusters=6))(x, rate=0.4, deterministic=deterministic)
        return 5 * nn.Dense(4)(x.mean((1, 2)))


@pytest.fixture(scope="module")
def net():
    model = Net()
    return functools.partial(model.apply, train=False, deterministic=False), model.init(jax.random.key(2), X)


def numpy_prediction(net, samples):
    apply, variables = net
    logits = np.stack([apply(variables, X, rngs={"dropout": key}) for key in jax.random.split(KEY, samples)])
    p = np.exp(logits - logits.max(-1, keepdims=True)).astype(np.float64)
    p /= p.sum(-1, keepdims=True)
    mean = p.mean(0)
    entropy = -(mean * np.log(mean)).sum(-1)
    return mean, p.var(0), entropy, entropy + (p * np.log(p)).sum(-1).mean(0)


@pytest.mark.parametrize("chunk", [4, 100])
def test_prediction_matches_numpy(net, chunk):
    prediction = dc.mc_predict(*net, X, KEY, 10, chunk=chunk)
    for actual, expected in zip(prediction, numpy_prediction(net, 10), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-6)


def test_old_style_keys_give_the_same_prediction(net):
    actual, expected = (dc.mc_predict(*net, X, key, 10, chunk=4) for key in (jax.random.key_data(KEY), KEY))
    assert all((a == b).all() for a, b in zip(actual, expected, strict=True))


def test_results_are_in_range(net):
    mean, variance, entropy, information = dc.mc_predict(*net, X, KEY, 10, chunk=4)
    np.testing.assert_allclose(mean.sum(-1), 1.0, rtol=1e-5)
    assert (variance > 0).any() and (information > 1e-3).all() and (information <= entropy + 1e-6).all()
    assert (entropy <= np.log(4) + 1e-6).all()


def test_equal_outputs_under_all_masks_raise(net):
    apply, variables = net
    deterministic = functools.partial(apply.func, train=False, deterministic=True)
    with pytest.raises(ValueError, match="same outputs under all 5 masks: dropout is off"):
        dc.mc_predict(deterministic, variables, X, KEY, 5, chunk=2)
    mean, variance, _, information = dc.mc_predict(deterministic, variables, X, KEY, 1)
    np.testing.assert_allclose(mean, jax.nn.softmax(deterministic(variables, X)), rtol=1e-5)
    assert (variance == 0).all() and (information < 1e-5).all()


def shifted(variables, x, rngs):
    """Adds the same random number to all logits, which does not change their softmax."""
    return x + jax.random.normal(rngs["dropout"])


def test_probabilities_of_0_give_finite_results():
    prediction = dc.mc_predict(shifted, {}, jnp.array([[0.0, -jnp.inf], [200.0, -200.0]]), KEY, 3)
    assert all(jnp.isfinite(array).all() for array in prediction) and (prediction.entropy == 0).all()


def test_nan_is_propagated():
    prediction = dc.mc_predict(shifted, {}, jnp.array([[jnp.nan, 1.0]]), KEY, 3)
    assert all(jnp.isnan(array).all() for array in prediction)


def test_links_match_numpy():
    outputs = np.stack([shifted({}, X[..., :1], {"dropout": key}) for key in jax.random.split(KEY, 7)]).astype(
        np.float64
    )
    p = 1 / (1 + np.exp(-outputs))
    mean = p.mean(0)

    def entropy(p):
        return -p * np.log(p) - (1 - p) * np.log(1 - p)

    actual = dc.mc_predict(shifted, {}, X[..., :1], KEY, 7, link="sigmoid", chunk=3)
    for array, expected in zip(
        actual, (mean, p.var(0), entropy(mean), entropy(mean) - entropy(p).mean(0)), strict=True
    ):
        np.testing.assert_allclose(array, expected, rtol=1e-3, atol=1e-6)
    actual = dc.mc_predict(shifted, {}, X[..., :1], KEY, 7, link="identity", chunk=3)
    np.testing.assert_allclose(actual.mean, outputs.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(actual.variance, outputs.var(0), rtol=1e-3)
    assert actual.entropy is actual.mutual_information is None


@pytest.mark.parametrize("mode", ["shard_map", "explicit", "set_mesh"])
def test_devices_do_not_matter(mode):
    x = jax.random.normal(jax.random.key(0), (8, 6, 6, 3))
    axis_type = AxisType.Auto if mode == "shard_map" else AxisType.Explicit
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(axis_type,), devices=jax.devices()[:4])

    def predict(key, x):
        return dc.mc_predict(lambda variables, x, rngs: scaled(rngs["dropout"], x), {}, x, key, samples=5, chunk=2)

    def scaled(key, x):
        return x.mean((1, 2)) * jax.random.normal(key, (3,))

    expected = predict(KEY, x)
    if mode == "shard_map":
        specs = {"in_specs": (PartitionSpec(), PartitionSpec("batch")), "out_specs": PartitionSpec("batch")}
        actual = jax.jit(jax.shard_map(predict, mesh=mesh, **specs))(KEY, x)
    else:
        sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("batch")))
        with jax.set_mesh(mesh) if mode == "set_mesh" else contextlib.nullcontext():
            actual = predict(KEY, sharded)
    for array, expected_array in zip(actual, expected, strict=True):
        np.testing.assert_allclose(array, expected_array, rtol=1e-4, atol=1e-6)


def test_training_batch_norm_raises(net):
    apply, variables = net
    training = functools.partial(apply.func, train=True, deterministic=False)
    with pytest.raises(flax.errors.ModifyScopeVariableError):
        dc.mc_predict(training, variables, X, KEY, 2)


def test_compiles_once_and_memory_does_not_grow_with_samples(net):
    from dropcluster_jax.uncertainty import _mc_predict

    inner, variables = net
    traces = []

    def apply(*arguments, **keywords):
        traces.append(arguments)
        return inner(*arguments, **keywords)

    dc.mc_predict(apply, variables, X, jax.random.key(0), 9, chunk=3)
    first_traces = len(traces)
    for seed in range(3):
        dc.mc_predict(apply, variables, X, jax.random.key(seed), 9, chunk=3)
    assert len(traces) == first_traces

    def temporaries(samples, chunk):
        compiled = _mc_predict.lower(apply, samples, chunk, "softmax", variables, X, KEY).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    few, many = temporaries(8, 2), temporaries(800, 2)
    assert many < few + 800 * 64 and temporaries(800, 50) > 2 * many


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"samples": 3, "chunk": 0}, "chunk must be at least 1, got 0"),
        ({"samples": 3, "link": "probit"}, "link must be one of 'softmax', 'sigmoid', 'identity'"),
        ({"samples": 3}, "at least two classes"),
    ],
)
def test_invalid_arguments_raise(options, message):
    with pytest.raises(ValueError, match=message):
        dc.mc_predict(shifted, {}, X[..., :1], KEY, **options)
