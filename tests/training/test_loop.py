import collections
import functools
import itertools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training.test_data_parallel import mesh
from training.test_steps import Small, separable

import dropcluster_jax as dc
from dropcluster_jax.data import load, make_loader, normalize
from dropcluster_jax.training import DataParallel, NonFiniteError, evaluate, every, fit, make_steps
from dropcluster_jax.training.loop import mean_adjusted_rand_index


@pytest.fixture(scope="module")
def setting():
    batch = separable(jax.random.key(0))
    steps = make_steps(Small(), optax.sgd(0.2), rate=optax.linear_schedule(0.0, 0.2, 10, 5))
    return steps, batch


def run(setting, **arguments):
    steps, batch = setting
    records = []
    state = fit(
        steps,
        jax.jit(steps.init)(jax.random.key(1), batch),
        itertools.repeat(batch),
        log=records.append,
        **{"num_steps": 20, "log_every": 5, **arguments},
    )
    return state, records


def of(records, event):
    return [record for record in records if record["event"] == event]


def test_it_stops_at_the_last_step_and_reports_on_the_way(setting):
    state, records = run(setting)
    assert state.step == 20
    train = of(records, "train")
    assert [record["step"] for record in train] == [1, 5, 10, 15, 20]
    assert train[0]["images_per_second"] is None and all(record["images_per_second"] > 0 for record in train[1:])
    assert [record["rate"] for record in train] == pytest.approx([0, 0, 0.08, 0.18, 0.2])
    assert train[-1]["loss"] < train[0]["loss"] and set(train[0]) >= {"loss", "accuracy"}


def test_clusters_are_updated_when_due_and_before_the_rate_rises(setting):
    state, records = run(setting, update_clusters_when=every(4, start=6))
    updates = of(records, "clusters")
    assert [record["step"] for record in updates] == [6, 10, 14, 18]
    assert [record["layers"]["drop"]["num_updates"] for record in updates] == [1, 2, 3, 4]
    assert (
        updates[0]["layers"]["drop"]["adjusted_rand_index"] < 0.5 < updates[-1]["layers"]["drop"]["adjusted_rand_index"]
    )
    assert 0 < updates[0]["layers"]["drop"]["explained_variance"] <= 1
    assert state.clusters["drop"]["num_updates"] == 4


def test_each_update_is_watched_with_the_state_that_it_gave(setting):
    seen = []
    state, _ = run(
        setting, update_clusters_when=every(8, start=2), on_clusters=lambda state: seen.append(jax.device_get(state))
    )
    assert [int(each.step) for each in seen] == [2, 10, 18]
    assert [int(each.clusters["drop"]["num_updates"]) for each in seen] == [1, 2, 3]
    assert (seen[-1].clusters["drop"]["labels"] == state.clusters["drop"]["labels"]).all()


def test_the_cadence_may_be_a_schedule_and_zero_is_never(setting):
    _, records = run(setting, update_clusters_when=every(lambda step: 2 if step < 6 else 10))
    assert [record["step"] for record in of(records, "clusters")] == [0, 2, 4, 10]
    assert not of(run(setting)[1], "clusters")


def test_updates_learn_from_the_probe_batch_they_are_given(setting):
    _, batch = setting
    asked = []

    def probe(update):
        asked.append(update)
        return {name: leaf[:7] for name, leaf in batch.items()}

    run(setting, update_clusters_when=every(8), probe=probe)
    assert asked == [0, 1, 2]


def test_it_evaluates_when_due_and_at_the_end(setting):
    steps, batch = setting
    state, records = run(setting, test=lambda: [batch, batch], evaluate_every=8)
    tests = of(records, "test")
    assert [record["step"] for record in tests] == [8, 16, 20]
    assert tests[-1]["num_updates"] == 64
    sums = steps.evaluate(state, batch)
    assert tests[-1]["accuracy"] == float(sums["correct"]) / 32
    assert tests[-1]["loss"] == pytest.approx(float(sums["loss"]) / 32, rel=1e-5)


def test_two_runs_are_equal_bit_for_bit(setting):
    one, other = (run(setting, update_clusters_when=every(5))[0] for _ in range(2))
    for a, b in zip(jax.tree.leaves(one._replace(key=0)), jax.tree.leaves(other._replace(key=0)), strict=True):
        assert (np.asarray(a) == np.asarray(b)).all()


def test_agreement_is_the_mean_over_layers_that_scan_has_stacked():
    labels = jax.random.randint(jax.random.key(0), (3, 4, 5, 2), 0, 6)  # three layers, 4x5 positions, two channels
    other = labels.at[0].set(0)
    count = jnp.zeros(3, jnp.int32)
    stacked, others = (
        dc.ClusterState(each, jnp.zeros((3, 6, 2), jnp.int32), jnp.zeros((3, 2)), count, count)
        for each in (labels, other)
    )
    assert mean_adjusted_rand_index(stacked, stacked) == pytest.approx(1)
    assert mean_adjusted_rand_index(stacked, others) == pytest.approx(2 / 3)


@pytest.mark.bad_input
def test_batches_that_end_early_are_refused(setting):
    steps, batch = setting
    with pytest.raises(ValueError, match="batches ended after step 3, num_steps is 5"):
        fit(steps, jax.jit(steps.init)(jax.random.key(1), batch), [batch] * 3, num_steps=5)


@pytest.mark.bad_input
def test_nothing_to_evaluate_is_refused(setting):
    steps, batch = setting
    state = jax.jit(steps.init)(jax.random.key(1), batch)
    with pytest.raises(ValueError, match="no example"):
        evaluate(steps.evaluate, state, [])
    with pytest.raises(ValueError, match="no example"):
        evaluate(steps.evaluate, state, [{**batch, "weight": jnp.zeros(32)}])


# ---- Going on, stopping, and what is not finite


def test_from_a_state_in_the_middle_the_rest_is_what_it_would_have_been(setting):
    steps, batch = setting
    options = {"update_clusters_when": every(4, start=2), "test": lambda: [batch], "evaluate_every": 6, "num_steps": 20}
    whole, all_records = run(setting, **options)
    saved = []

    def save(state, *, accuracy, nonfinite_steps):
        saved.append((jax.tree.map(jnp.copy, state), accuracy, nonfinite_steps))

    told = []
    _, begun = run(setting, **options, save=save, save_every=5, stop=lambda step: told.append(step) or step == 9)
    assert [(int(state.step), accuracy is None) for state, accuracy, _ in saved] == [(5, True), (6, False), (9, True)]
    assert told == list(range(1, 10))
    ended = []
    state = fit(steps, saved[-1][0], itertools.repeat(batch), log=ended.append, log_every=5, **options)
    for one, other in zip(jax.tree.leaves(state._replace(key=0)), jax.tree.leaves(whole._replace(key=0)), strict=True):
        assert (np.asarray(one) == np.asarray(other)).all()

    def without_time(records):
        return [{name: value for name, value in each.items() if name != "images_per_second"} for each in records]

    assert without_time(begun + ended) == without_time(all_records)


def spoilt(batch, *bad):
    """BatchIterator of which those of these numbers, from 1 on, are not finite."""
    nan = {**batch, "image": batch["image"].at[0].set(jnp.nan)}
    return (nan if number in bad else batch for number in itertools.count(1))


def test_a_loss_that_is_not_finite_ends_the_training_and_is_never_saved(setting):
    steps, batch = setting
    records, saved = [], []

    def save(state, *, accuracy, nonfinite_steps):
        saved.append(int(state.step))

    with pytest.raises(NonFiniteError, match="not finite at step 7: try a lower learning rate"):
        fit(
            steps,
            jax.jit(steps.init)(jax.random.key(1), batch),
            spoilt(batch, 7),
            num_steps=20,
            log=records.append,
            save=save,
            save_every=3,
        )
    assert saved == [3, 6] and records[-1] == {"event": "bad", "step": 7, "nonfinite_steps": 1}


def test_so_many_bad_steps_are_skipped_and_one_more_ends_the_training(setting):
    _, batch = setting
    steps = make_steps(Small(), optax.sgd(0.2), skip_nonfinite=True)

    def train(allowed):
        first = jax.jit(steps.init)(jax.random.key(1), batch)
        return fit(
            steps,
            first,
            spoilt(batch, 3, 4, 9),
            num_steps=12,
            max_nonfinite_steps=allowed,
            log=records.append,
            log_every=5,
        )

    records = []
    state = train(3)
    assert state.step == 12 and np.isfinite(state.params["head"]["kernel"]).all()
    assert [(record["step"], record["nonfinite_steps"]) for record in of(records, "bad")] == [(3, 1), (4, 2), (9, 3)]
    with pytest.raises(NonFiniteError, match="at step 9, once more than the 2 steps that may be skipped"):
        train(2)


def test_within_the_loop_nothing_moves_unasked_and_each_step_is_compiled_once(caplog):
    """From host to device; the other way no transfer is one on CPU."""
    parallel = DataParallel(mesh=mesh(4))
    data = load("digits", train_split="train[:64]", test_split="test[:32]")
    loader = make_loader(data, 16, sharding=parallel.batch_sharding)
    steps = make_steps(
        Small(classes=10),
        optax.sgd(0.1),
        rate=optax.linear_schedule(0.0, 0.2, 10),
        preprocess=lambda images: normalize(images, data.spec.mean, data.spec.std),
    )
    state = parallel.compile(steps).init(jax.random.key(0), loader.probe(16, 0))
    jax.block_until_ready(state)
    with jax.transfer_guard("disallow"), jax.log_compiles(), caplog.at_level(logging.WARNING):
        fit(
            steps,
            state,
            loader.train(),
            num_steps=12,
            probe=functools.partial(loader.probe, 32),
            update_clusters_when=every(3),
            test=loader.test,
            evaluate_every=4,
            parallel=parallel,
            save=lambda state, *, accuracy, nonfinite_steps: None,
            save_every=5,
        )
    compiled = [message.split()[4] for message in caplog.messages if message.startswith("Finished XLA compilation of")]
    assert {f"jit({name})" for name in ("train", "clusters", "evaluate", "_take")} <= set(compiled)
    counts = collections.Counter(compiled)
    # Probe batches and test batches; the training batch's was compiled before.
    assert all(counts[f"jit({name})"] == 1 for name in ("train", "clusters", "evaluate")) and counts["jit(_take)"] == 2
