"""Properties of training on several devices."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from training.helpers import (
    batches,
    difference,
    equal,
    gradient,
    mesh,
    on_host,
    placed,
    small_steps,
    update,
)

from dropcluster_jax.training import DataParallel

STRATEGIES = ("jit", "shard_map", "pmap")


def slow(value):
    return pytest.param(value, marks=pytest.mark.slow)


def compiled(strategy, num_devices, **options):
    parallel = DataParallel(strategy, mesh(num_devices))
    return parallel, parallel.compile(small_steps(parallel, **options))


@pytest.mark.parametrize(
    "num_devices",
    [slow(2), slow(4), pytest.param(8, marks=pytest.mark.optimized)],
)
def test_jit_steps_equal_those_of_one_device(num_devices):
    """Each of 20 steps starts from the state of one device, as rounding errors would grow over steps."""
    data = batches(20)
    (single, single_steps), (parallel, steps) = compiled("jit", 1), compiled("jit", num_devices)
    state = single_steps.init(jax.random.key(0), single.shard_batch(data[0]))
    for index, batch in enumerate(data):
        single_batch, sharded_batch = single.shard_batch(batch), parallel.shard_batch(batch)
        if index % 4 == 0:
            before = on_host(state)
            state = single_steps.update_clusters(state, single_batch)
            labels = steps.update_clusters(placed(parallel, before), sharded_batch).clusters["drop"]["labels"]
            assert np.mean(np.asarray(labels) == state.clusters["drop"]["labels"]) >= 0.9999
        before = on_host(state)
        sharded_state, sharded_metrics = steps.train(placed(parallel, before), sharded_batch)
        state, metrics = single_steps.train(state, single_batch)
        assert float(sharded_metrics["loss"]) == pytest.approx(float(metrics["loss"]), rel=1e-5)
        assert difference(gradient(before, sharded_state), gradient(before, state)) < 1e-5
        assert difference(update(before.params, sharded_state.params), update(before.params, state.params)) < 1e-5
        assert difference(sharded_state.batch_stats, state.batch_stats) < 1e-5


@pytest.mark.parametrize("strategy", [slow("jit"), "shard_map", slow("pmap")])
def test_gradients_and_clusters_equal_those_of_one_device(strategy):
    """Without randomness and with synchronized BatchNorm, all strategies compute the same step."""
    batch = batches(1)[0]
    results = []
    for parallel, steps in (compiled("jit", 1, rate=0.0, shift=0), compiled(strategy, 4, rate=0.0, shift=0)):
        sharded = parallel.shard_batch(batch)
        state = steps.init(jax.random.key(0), sharded)
        before = on_host(state)
        labels = steps.update_clusters(state, sharded).clusters["drop"]["labels"]
        sums = steps.evaluate(state, sharded)
        after, metrics = steps.train(state, sharded)
        results.append((np.asarray(labels), sums, gradient(before, after), metrics))
    (expected_labels, expected_sums, expected_grads, expected_metrics), (labels, sums, grads, metrics) = results
    assert (labels == expected_labels).all()
    assert difference(grads, expected_grads) < 1e-5
    for name in ("loss", "accuracy"):
        assert float(metrics[name]) == pytest.approx(float(expected_metrics[name]), rel=1e-5)
    for name, expected_sum in expected_sums.items():
        assert float(sums[name]) == pytest.approx(float(expected_sum), rel=1e-5)


@pytest.mark.slow
def test_optimizer_state_can_be_sharded():
    batch, states = batches(1)[0], []
    for shard_optimizer in (False, True):
        parallel = DataParallel(mesh=mesh(4), shard_optimizer=shard_optimizer)
        steps = parallel.compile(small_steps(parallel))
        state = steps.init(jax.random.key(0), parallel.shard_batch(batch))
        for _ in range(2):
            state, _ = steps.train(state, parallel.shard_batch(batch))
        kernel = state.opt_state[0].trace["conv2"]["kernel"]
        assert kernel.addressable_shards[0].data.size * (4 if shard_optimizer else 1) == kernel.size
        assert state.params["conv2"]["kernel"].is_fully_replicated
        states.append(state)
    assert difference(states[1].params, states[0].params) < 1e-6
    assert difference(states[1].opt_state, states[0].opt_state) < 1e-6


@pytest.mark.parametrize("strategy", ["jit", slow("shard_map"), slow("pmap")])
def test_train_donates_its_state_and_strategies_can_be_switched(strategy):
    batch = batches(1)[0]
    parallel, steps = compiled("jit", 4)
    state = steps.init(jax.random.key(0), parallel.shard_batch(batch))
    parallel, steps = compiled(strategy, 4)
    after, _ = steps.train(state, parallel.shard_batch(batch))
    assert after.step == 1 and after.params["conv2"]["kernel"].is_fully_replicated
    assert state.params["conv2"]["kernel"].is_deleted() and not after.params["conv2"]["kernel"].is_deleted()


def test_compiled_steps_are_cached():
    parallel = DataParallel(mesh=mesh(4))
    steps = small_steps(parallel)
    assert parallel.compile(steps) is parallel.compile(steps)
    assert parallel.compile(small_steps(parallel)) is not parallel.compile(steps)
    assert DataParallel().mesh.size == jax.device_count()
    assert parallel == DataParallel(mesh=mesh(4)) and hash(parallel) == hash(DataParallel(mesh=mesh(4)))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mesh": jax.make_mesh((4,), ("batch",), devices=jax.devices()[:4])}, "automatic axes.* got Explicit"),
        ({"mesh": jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)}, "mesh must have one axis"),
        ({"strategy": "xmap"}, "strategy must be one of jit, shard_map, pmap, got 'xmap'"),
        ({"strategy": "pmap", "shard_optimizer": True}, "shard_optimizer requires strategy 'jit', got 'pmap'"),
    ],
)
def test_invalid_arguments_raise(options, message):
    with pytest.raises(ValueError, match=message):
        DataParallel(**options)


@pytest.mark.bad_input
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_steps_with_another_axis_name_and_indivisible_batches_raise(strategy):
    other = DataParallel("jit" if strategy != "jit" else "pmap", mesh(4))
    parallel = DataParallel(strategy, mesh(4))
    message = f"steps must be made with axis_name={parallel.axis_name!r} for strategy '{strategy}'"
    with pytest.raises(ValueError, match=message):
        parallel.compile(small_steps(other))
    steps = small_steps(parallel)
    with (
        jax.set_mesh(jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:4])),
        pytest.raises(ValueError, match="explicit axes, got data: with them, pass"),
    ):
        parallel.compile(steps)
    with pytest.raises(ValueError, match="dimension size is 6"):
        parallel.shard_batch({"image": np.zeros((6, 8, 8, 1))})


@pytest.mark.slow
def test_shard_map_and_pmap_are_reproducible_and_agree():
    """With separate masks and BatchNorm per replica, runs are equal bit for bit, and strategies agree to 1e-5."""
    data, runs = batches(5), []
    for strategy in ("shard_map", "shard_map", "pmap", "pmap"):
        parallel, steps = compiled(strategy, 4, sync_batch_norm=False)
        state, run = steps.init(jax.random.key(0), parallel.shard_batch(data[0])), []
        for batch in data:
            before = on_host(state)
            state, metrics = steps.train(state, parallel.shard_batch(batch))
            run.append((before, on_host(state), float(metrics["loss"])))
        runs.append(run)
    for first, second in (runs[:2], runs[2:]):
        assert all(equal(a[1], b[1]) and a[2] == b[2] for a, b in zip(first, second, strict=True))
    for batch, (before, after, loss) in zip(data, runs[0], strict=True):  # pmap steps from the states of shard_map
        pmap_state, metrics = steps.train(placed(parallel, before), parallel.shard_batch(batch))
        assert float(metrics["loss"]) == pytest.approx(loss, rel=1e-5)
        assert difference(update(before.params, pmap_state.params), update(before.params, after.params)) < 1e-5


@pytest.mark.slow
def test_whole_runs_agree_in_float64():
    """In float32, rounding errors grow until runs differ; in float64, they stay small over 20 steps."""
    data, results = batches(20), []
    with jax.enable_x64(True):
        for num_devices in (1, 8):
            parallel = DataParallel(mesh=mesh(num_devices))
            steps = parallel.compile(small_steps(parallel))
            state = steps.init(jax.random.key(0), parallel.shard_batch(data[0]))
            params, batch_stats, opt_state = jax.tree.map(
                lambda leaf: leaf.astype(np.float64) if leaf.dtype == np.float32 else leaf,
                (state.params, state.batch_stats, state.opt_state),
            )
            state = state._replace(params=params, batch_stats=batch_stats, opt_state=opt_state)
            for batch in data:
                state, metrics = steps.train(state, parallel.shard_batch(batch))
            results.append((jax.device_get(state.params), float(metrics["loss"])))
    (expected_params, expected_loss), (params, loss) = results
    assert jax.tree.leaves(expected_params)[0].dtype == np.float64
    assert difference(params, expected_params) < 1e-5 and loss == pytest.approx(expected_loss, rel=1e-5)
