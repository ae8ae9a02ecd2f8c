import collections
import functools
import itertools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training.helpers import Small, equal, mesh, separable

from dropcluster_jax.data import load, make_loader, normalize
from dropcluster_jax.training import DataParallel, NonFiniteError, evaluate, every, fit, make_steps


@pytest.fixture(scope="module")
def setup():
    """Steps with a ramped rate, and a batch."""
    batch = separable(jax.random.key(0))
    steps = make_steps(Small(), optax.sgd(0.2), rate=optax.linear_schedule(0.0, 0.2, 10, 5))
    return steps, batch


def run(setup, batches=None, **arguments):
    """Trains for 20 steps; returns the state and the log entries."""
    steps, batch = setup
    entries = []
    state = fit(
        steps,
        jax.jit(steps.init)(jax.random.key(1), batch),
        itertools.repeat(batch) if batches is None else batches,
        on_metrics=entries.append,
        **{"num_steps": 20, "log_every": 5, **arguments},
    )
    return state, entries


def select(entries, event):
    return [entry for entry in entries if entry["event"] == event]


def without_throughput(entries):
    return [{name: value for name, value in entry.items() if name != "images_per_second"} for entry in entries]


def test_training_metrics_are_logged(setup):
    state, entries = run(setup)
    assert state.step == 20
    train = select(entries, "train")
    assert [entry["step"] for entry in train] == [1, 5, 10, 15, 20]
    assert train[0]["images_per_second"] is None and all(entry["images_per_second"] > 0 for entry in train[1:])
    assert [entry["rate"] for entry in train] == pytest.approx([0, 0, 0.08, 0.18, 0.2])
    assert train[-1]["loss"] < train[0]["loss"] and set(train[0]) >= {"loss", "accuracy"}


def test_clusters_are_updated_when_due(setup):
    _, batch = setup
    states, indices = [], []

    def probe(index):
        indices.append(index)
        return {name: leaf[:7] for name, leaf in batch.items()}

    state, entries = run(
        setup,
        probe=probe,
        update_clusters_when=every(4, start=6),
        on_clusters=lambda state: states.append(jax.device_get(state._replace(key=()))),
    )
    assert not select(run(setup)[1], "clusters")  # by default
    assert indices == [0, 1, 2, 3]
    assert [int(updated.step) for updated in states] == [6, 10, 14, 18]
    assert [int(updated.clusters["drop"]["num_updates"]) for updated in states] == [1, 2, 3, 4]
    updates = select(entries, "clusters")
    assert [entry["step"] for entry in updates] == [6, 10, 14, 18]
    layers = [entry["layers"]["drop"] for entry in updates]
    assert [layer["num_updates"] for layer in layers] == [1, 2, 3, 4]
    assert [layer["num_skipped"] for layer in layers] == [0, 0, 0, 0]
    assert layers[0]["adjusted_rand_index"] < 0.5 < layers[-1]["adjusted_rand_index"]
    assert 0 < layers[0]["explained_variance"] <= 1
    assert state.clusters["drop"]["num_updates"] == 4


def test_evaluation_runs_when_due_and_at_the_end(setup):
    steps, batch = setup
    state, entries = run(setup, eval_batches=lambda: [batch, batch], evaluate_every=8)
    tests = select(entries, "eval")
    assert [entry["step"] for entry in tests] == [8, 16, 20]
    assert tests[-1]["count"] == 64
    sums = steps.evaluate(state, batch)
    assert tests[-1]["accuracy"] == float(sums["accuracy"]) / 32
    assert tests[-1]["loss"] == pytest.approx(float(sums["loss"]) / 32, rel=1e-5)


@pytest.mark.parametrize("disabled", [None, 0])
def test_intervals_can_be_disabled(setup, disabled):
    _, batch = setup
    saved_steps = []
    _, entries = run(
        setup,
        num_steps=5,
        eval_batches=lambda: [batch],
        evaluate_every=disabled,
        log_every=disabled,
        save=lambda state, *, accuracy, nonfinite_steps: saved_steps.append(int(state.step)),
        save_every=disabled,
    )
    assert [(entry["event"], entry["step"]) for entry in entries] == [("train", 1), ("train", 5)]
    assert saved_steps == [5]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"batches": []}, ValueError, "batches must last until step 20, but ended after step 0"),
        ({"eval_batches": [{}]}, TypeError, "eval_batches must be callable"),
        ({"update_clusters_when": 2}, TypeError, "update_clusters_when must be callable"),
        ({"max_nonfinite_steps": 1}, ValueError, "max_nonfinite_steps requires steps made with skip_nonfinite=True"),
    ],
)
def test_invalid_arguments_raise(setup, arguments, error, message):
    with pytest.raises(error, match=message):
        run(setup, **arguments)


@pytest.mark.bad_input
def test_evaluation_without_examples_raises(setup):
    steps, batch = setup
    state = jax.jit(steps.init)(jax.random.key(1), batch)
    for batches in ([], [{**batch, "weight": jnp.zeros(32)}]):
        with pytest.raises(ValueError, match="at least one example"):
            evaluate(steps.evaluate, state, batches)


# Resuming, stopping and non-finite steps


@pytest.mark.optimized
def test_resuming_equals_an_uninterrupted_run(setup):
    steps, batch = setup
    options = {
        "update_clusters_when": every(4, start=2),
        "eval_batches": lambda: [batch],
        "evaluate_every": 6,
        "num_steps": 20,
    }
    expected_state, expected_entries = run(setup, **options)
    saved = []

    def save(state, *, accuracy, nonfinite_steps):
        saved.append((jax.tree.map(jnp.copy, state), accuracy, nonfinite_steps))

    stop_calls = []
    _, first_entries = run(
        setup, **options, save=save, save_every=5, stop=lambda step: stop_calls.append(step) or step == 9
    )
    assert [(int(state.step), accuracy is None) for state, accuracy, _ in saved] == [(5, True), (6, False), (9, True)]
    assert stop_calls == list(range(1, 10))
    entries = []
    state = fit(steps, saved[-1][0], itertools.repeat(batch), on_metrics=entries.append, log_every=5, **options)
    assert equal(state, expected_state)
    assert without_throughput(first_entries + entries) == without_throughput(expected_entries)


def with_nonfinite(batch, *numbers):
    """Yields `batch` forever, with a NaN in the batches of these numbers, counted from 1."""
    nonfinite = {**batch, "image": batch["image"].at[0].set(jnp.nan)}
    return (nonfinite if number in numbers else batch for number in itertools.count(1))


def test_nonfinite_steps_raise_and_are_not_saved(setup):
    steps, batch = setup
    entries, saved_steps = [], []
    with pytest.raises(NonFiniteError, match="not finite at step 7: try a lower learning rate"):
        fit(
            steps,
            jax.jit(steps.init)(jax.random.key(1), batch),
            with_nonfinite(batch, 7),
            num_steps=20,
            on_metrics=entries.append,
            save=lambda state, *, accuracy, nonfinite_steps: saved_steps.append(int(state.step)),
            save_every=3,
        )
    assert saved_steps == [3, 6] and entries[-1] == {"event": "nonfinite", "step": 7, "nonfinite_steps": 1}


@pytest.mark.parametrize(("shift", "wrong"), [(1, 4), (-1, -1)])
@pytest.mark.parametrize("step", [1, 6])
def test_labels_outside_the_classes_are_named_and_not_blamed_on_the_learning_rate(setup, shift, wrong, step):
    steps, batch = setup
    labels = np.asarray(batch["label"])
    shifted = {**batch, "label": labels + shift}
    index = int(np.flatnonzero(shifted["label"] == wrong)[0])
    state = jax.jit(steps.init)(jax.random.key(1), batch)
    batches = [batch] * (step - 1) + [shifted] + [batch] * 20
    with pytest.raises(ValueError, match=rf"labels must be in \[0, 4\), got {wrong} at index {index}"):
        fit(steps, state, batches, num_steps=20, log_every=4)


def test_nonfinite_steps_are_tolerated_up_to_the_maximum(setup):
    _, batch = setup
    steps = make_steps(Small(), optax.sgd(0.2), skip_nonfinite=True)
    batches = with_nonfinite(batch, 3, 4, 9)
    state, entries = run((steps, batch), batches, num_steps=12, max_nonfinite_steps=3)
    assert state.step == 12 and np.isfinite(state.params["head"]["kernel"]).all()
    nonfinite = select(entries, "nonfinite")
    assert [(entry["step"], entry["nonfinite_steps"]) for entry in nonfinite] == [(3, 1), (4, 2), (9, 3)]
    with pytest.raises(NonFiniteError, match="not finite at step 9, after 2 skipped steps"):
        run((steps, batch), with_nonfinite(batch, 3, 4, 9), max_nonfinite_steps=2)


def test_a_trace_ends_when_training_stops(setup, tmp_path):
    """Otherwise no other trace could start in this process."""
    for name in ("first", "second"):
        run(setup, profile=tmp_path / name, stop=lambda step: step == 7)
        assert list((tmp_path / name).rglob("*.xplane.pb"))


def test_steps_compile_once_without_implicit_transfers(caplog):
    """Transfers from the host must be explicit. Transfers to the host cannot be detected on CPU."""
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
            eval_batches=loader.test,
            evaluate_every=4,
            parallel=parallel,
            save=lambda state, *, accuracy, nonfinite_steps: None,
            save_every=5,
        )
    compiled = [message.split()[4] for message in caplog.messages if message.startswith("Finished XLA compilation of")]
    counts = collections.Counter(compiled)
    assert all(counts[f"jit({name})"] == 1 for name in ("train", "update_clusters", "evaluate"))


def test_probe_batches_are_requested_by_update_index(setup):
    _, batch = setup
    indices = []

    def probe(index):
        indices.append(index)
        return {name: leaf[:7] for name, leaf in batch.items()}

    run(setup, update_clusters_when=every(8), probe=probe)
    assert indices == [0, 1, 2]


@pytest.mark.optimized
def test_runs_are_reproducible(setup):
    state, other = (run(setup, update_clusters_when=every(5))[0] for _ in range(2))
    assert equal(state, other)


@pytest.mark.bad_input
def test_nonfinite_steps_are_tolerated_only_if_skipped(setup):
    with pytest.raises(ValueError, match="max_nonfinite_steps requires steps made with skip_nonfinite=True"):
        run(setup, max_nonfinite_steps=1)
