"""Laws of training on many devices: which step it is, on how many, and by which way."""

import functools

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from training.test_steps import Small, equal

import dropcluster_jax as dc
from dropcluster_jax.data import load, make_loader, normalize, random_shift
from dropcluster_jax.training import DataParallel, make_steps

WAYS = ("jit", "shard_map", "pmap")


def mesh(devices):
    return mesh_of(jax.devices()[:devices])


def mesh_of(devices):
    return jax.make_mesh((len(devices),), ("batch",), axis_types=(AxisType.Auto,), devices=devices)


@functools.cache
def digits():
    return load("digits")


def small_steps(parallel, rate=0.3, synchronised=True, shift=1):
    """Momentum on shifted digits; BatchNorm over the whole batch, or over each replica's part."""
    data = digits()
    model = Small(
        clusterer=dc.KMeans(num_clusters=8),
        axis_name=parallel.axis_name,
        norm_axis_name=parallel.axis_name if synchronised else None,
        classes=10,
    )
    return make_steps(
        model,
        optax.sgd(0.1, momentum=0.9),
        rate=rate,
        augment=functools.partial(random_shift, pixels=shift),
        preprocess=lambda images: normalize(images, data.spec.mean, data.spec.std),
        axis_name=parallel.axis_name,
    )


def batches(number, size=32):
    loader = make_loader(digits(), size)
    train = loader.train()
    return [jax.tree.map(np.asarray, next(train)) for _ in range(number)]


def difference(one, other):
    """The norm of the difference by the norm."""
    one, other = ([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)] for tree in (one, other))
    return np.linalg.norm(np.concatenate(one) - np.concatenate(other)) / np.linalg.norm(np.concatenate(other))


def update(before, after):
    return jax.tree.map(lambda a, b: np.asarray(b, np.float64) - np.asarray(a, np.float64), before, after)


def gradient(before, after):
    """Of a step of momentum: its trace less 0.9 of the one before."""
    return jax.tree.map(lambda a, b: np.asarray(b, np.float64) - 0.9 * np.asarray(a), before.opt_state, after.opt_state)


def on_host(state):
    return jax.device_get(state._replace(key=jax.random.key_data(state.key)))


def placed(parallel, host):
    """A state from the host on the devices, those of other processes too."""
    state = jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(parallel.replicated, np.asarray(leaf)), host
    )
    return state._replace(key=jax.random.wrap_key_data(state.key))


def compiled(way, devices, **options):
    parallel = DataParallel(way, mesh(devices))
    return parallel, parallel.compile(small_steps(parallel, **options))


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_under_jit_each_step_is_that_of_one_device(devices):
    """20 steps, each from one device's state: loss, gradients, update and statistics to 1e-5, and the same clusters."""
    each = batches(20)
    (alone, one), (together, many) = compiled("jit", 1), compiled("jit", devices)
    state = one.init(jax.random.key(0), alone.put(each[0]))
    for number, batch in enumerate(each):
        if number % 4 == 0:
            host = on_host(state)
            state = one.update_clusters(state, alone.put(batch))
            labels = many.update_clusters(placed(together, host), together.put(batch)).clusters["drop"]["labels"]
            assert np.mean(np.asarray(labels) == state.clusters["drop"]["labels"]) >= 0.9999
        host = on_host(state)
        there, metrics_there = many.train(placed(together, host), together.put(batch))
        state, metrics = one.train(state, alone.put(batch))
        assert float(metrics_there["loss"]) == pytest.approx(float(metrics["loss"]), rel=1e-5)
        # The trace of momentum is 0.9 of the same trace and the gradient.
        assert difference(gradient(host, there), gradient(host, state)) < 1e-5
        assert difference(update(host.params, there.params), update(host.params, state.params)) < 1e-5
        assert difference(there.batch_stats, state.batch_stats) < 1e-5


@pytest.mark.parametrize("way", WAYS)
def test_gradients_and_clusters_of_replicas_are_those_of_one_device(way):
    """Nothing dropped or shifted, and BatchNorm over all of the batch: one step on four devices is the step of one."""
    batch = batches(1)[0]
    results = []
    for parallel, steps in (compiled("jit", 1, rate=0.0, shift=0), compiled(way, 4, rate=0.0, shift=0)):
        state = steps.init(jax.random.key(0), parallel.shard_batch(batch))
        before = on_host(state)
        clusters = steps.update_clusters(state, parallel.shard_batch(batch)).clusters["drop"]
        sums = steps.evaluate(state, parallel.shard_batch(batch))
        after, metrics = steps.train(state, parallel.shard_batch(batch))
        results.append((clusters["labels"], sums, gradient(before, after), metrics))
    (labels, sums, grads, metrics), (labels_there, sums_there, grads_there, metrics_there) = results
    assert (np.asarray(labels) == np.asarray(labels_there)).all()
    assert difference(grads_there, grads) < 1e-5
    for name in ("loss", "accuracy"):
        assert float(metrics_there[name]) == pytest.approx(float(metrics[name]), rel=1e-5)
    for name, total in sums.items():
        assert float(sums_there[name]) == pytest.approx(float(total), rel=1e-5)


def test_shard_map_and_pmap_repeat_themselves_and_agree():
    """Masks and BatchNorm of each replica's own: the same twice bit for bit, one way and the other to 1e-5 a step."""
    each, runs = batches(5), []
    for way in ("shard_map", "shard_map", "pmap", "pmap"):
        parallel, steps = compiled(way, 4, synchronised=False)
        state, run = steps.init(jax.random.key(0), parallel.shard_batch(each[0])), []
        for batch in each:
            host = on_host(state)
            state, metrics = steps.train(state, parallel.shard_batch(batch))
            run.append((host, on_host(state), float(metrics["loss"])))
        runs.append(run)
    for one, other in (runs[:2], runs[2:]):
        assert all(equal(a[1], b[1]) and a[2] == b[2] for a, b in zip(one, other, strict=True))
    for batch, (before, after, loss) in zip(each, runs[0], strict=True):  # by pmap, from the states of shard_map
        there, metrics = steps.train(placed(parallel, before), parallel.shard_batch(batch))
        assert float(metrics["loss"]) == pytest.approx(loss, rel=1e-5)
        assert difference(update(before.params, there.params), update(before.params, after.params)) < 1e-5


def test_whole_runs_agree_in_float64():
    """Float32 rounding grows from step to step, so that runs drift apart; float64's stays small over 20 steps."""
    each, ends = batches(20), []
    with jax.enable_x64(True):
        for devices in (1, 8):
            parallel = DataParallel(mesh=mesh(devices))
            steps = parallel.compile(small_steps(parallel))
            state = steps.init(jax.random.key(0), parallel.shard_batch(each[0]))
            wide = jax.tree.map(
                lambda leaf: leaf.astype(np.float64) if leaf.dtype == np.float32 else leaf,
                (state.params, state.batch_stats, state.opt_state),
            )
            state = state._replace(params=wide[0], batch_stats=wide[1], opt_state=wide[2])
            for batch in each:
                state, metrics = steps.train(state, parallel.shard_batch(batch))
            ends.append((jax.device_get(state.params), float(metrics["loss"])))
        assert jax.tree.leaves(ends[0][0])[0].dtype == np.float64
    assert difference(ends[1][0], ends[0][0]) < 1e-5 and ends[1][1] == pytest.approx(ends[0][1], rel=1e-5)


def test_each_device_may_hold_a_part_of_the_optimisers_state_only():
    batch, results = batches(1)[0], []
    for divided in (False, True):
        parallel = DataParallel(mesh=mesh(4), shard_optimizer=divided)
        steps = parallel.compile(small_steps(parallel))
        state = steps.init(jax.random.key(0), parallel.shard_batch(batch))
        for _ in range(2):
            state, _ = steps.train(state, parallel.shard_batch(batch))
        kernel = state.opt_state[0].trace["conv2"]["kernel"]
        assert kernel.addressable_shards[0].data.size * (4 if divided else 1) == kernel.size
        assert state.params["conv2"]["kernel"].is_fully_replicated
        results.append(state)
    assert difference(results[1].params, results[0].params) < 1e-6
    assert difference(results[1].opt_state, results[0].opt_state) < 1e-6


@pytest.mark.parametrize("way", WAYS)
def test_a_step_gives_its_state_away_and_one_way_goes_on_where_another_stopped(way):
    batch = batches(1)[0]
    parallel, steps = compiled("jit", 4)
    state = steps.init(jax.random.key(0), parallel.shard_batch(batch))
    parallel, steps = compiled(way, 4)
    after, _ = steps.train(state, parallel.shard_batch(batch))
    assert after.step == 1 and after.params["conv2"]["kernel"].is_fully_replicated
    assert state.params["conv2"]["kernel"].is_deleted() and not after.params["conv2"]["kernel"].is_deleted()


@pytest.mark.bad_input
def test_meshes_and_ways_that_cannot_be_are_refused_with_the_remedy():
    explicit = jax.make_mesh((4,), ("batch",), devices=jax.devices()[:4])
    remedy = r"axis_types=\(jax.sharding.AxisType.Auto,\)\), got Explicit"
    with pytest.raises(ValueError, match=remedy):
        DataParallel(mesh=explicit)
    with pytest.raises(ValueError, match=remedy):
        make_loader(digits(), 32, sharding=NamedSharding(explicit, PartitionSpec("batch")))
    with pytest.raises(ValueError, match="mesh must have one axis"):
        DataParallel(mesh=jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4]))
    with pytest.raises(ValueError, match="way must be one of jit, shard_map, pmap, got 'xmap'"):
        DataParallel("xmap")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="shard_optimizer needs the way 'jit', got 'pmap'"):
        DataParallel("pmap", shard_optimizer=True)


@pytest.mark.bad_input
@pytest.mark.parametrize("way", WAYS)
def test_steps_made_for_another_way_are_refused(way):
    made_for = DataParallel("jit" if way != "jit" else "pmap", mesh(4))
    parallel = DataParallel(way, mesh(4))
    with pytest.raises(ValueError, match=f"steps must be made with axis_name={parallel.axis_name!r} for the way"):
        parallel.compile(small_steps(made_for))
    with pytest.raises(ValueError, match="dimension size is 6"):
        parallel.shard_batch({"image": np.zeros((6, 8, 8, 1))})
