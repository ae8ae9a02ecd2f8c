"""Restored checkpoints are bit-identical to saved ones; damaged checkpoints are detected."""

import math
import pathlib
import resource
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from training.helpers import Small, equal, mesh, separable

from dropcluster_jax.runs.checkpoints import (
    FORMAT,
    Checkpointer,
    CheckpointMismatchError,
    CorruptCheckpointError,
    _checksums,
)
from dropcluster_jax.runs.folder import RunFolderError
from dropcluster_jax.training import DataParallel, make_steps


@pytest.fixture(scope="module")
def setting():
    """A state without zeros, as after training, and its shapes."""
    batch = separable(jax.random.key(0))
    steps = make_steps(Small(), optax.adam(1e-3), rate=0.2, ema_decay=0.9)

    def init(key):
        state, rng = steps.init(key, batch), np.random.default_rng(0)
        params, opt_state, ema = jax.tree.map(
            lambda leaf: leaf + rng.uniform(1, 2, leaf.shape).astype(leaf.dtype),
            (state.params, state.opt_state, state.ema),
        )
        return state._replace(params=params, opt_state=opt_state, ema=ema)

    return jax.jit(init)(jax.random.key(1)), jax.eval_shape(steps.init, jax.random.key(1), batch)


@pytest.fixture
def messages():
    return []


@pytest.fixture
def three(setting, tmp_path, messages):
    """A checkpointer with steps 1, 2 and 3, of which 1 has the best accuracy, and the shapes to restore."""
    state, target = setting
    checkpointer = Checkpointer(tmp_path / "checkpoints", keep=2, notify=messages.append)
    for step, accuracy in ((1, 0.9), (2, 0.5), (3, 0.6)):
        checkpointer.save(at(state, step), {"batches": {"epoch": step}}, accuracy)
    checkpointer.close()
    return checkpointer, target


def at(state, step):
    return state._replace(step=jnp.int32(step))


def test_state_and_metadata_are_restored(three, setting):
    checkpointer, target = three
    restored = checkpointer.restore(target)
    assert restored.metadata == {"batches": {"epoch": 3}}
    assert jax.tree.structure(restored.state) == jax.tree.structure(setting[0])
    assert equal(restored.state, at(setting[0], 3))
    assert jax.random.uniform(restored.state.key) == jax.random.uniform(setting[0].key)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
@pytest.mark.parametrize("default", ["threefry2x32", pytest.param("rbg", marks=pytest.mark.slow)])
def test_key_keeps_its_implementation_whatever_the_default(impl, default, setting, tmp_path):
    state = setting[0]._replace(key=jax.random.key(3, impl=impl))
    checkpointer = Checkpointer(tmp_path / "checkpoints")
    checkpointer.save(state, {})
    checkpointer.close()
    with jax.default_prng_impl(default):
        restored = checkpointer.restore(jax.eval_shape(lambda: setting[0]._replace(key=jax.random.key(0))))
    assert restored.state.key.dtype == state.key.dtype and equal(restored.state, state)
    assert jax.random.uniform(restored.state.key) == jax.random.uniform(state.key)


def test_checkpoint_of_another_network_is_one_error(three):
    """It names the arrays, and older checkpoints are not tried."""
    checkpointer, target = three
    params = {**target.params, "extra": jax.ShapeDtypeStruct((2,), jnp.float32)}
    with pytest.raises(CheckpointMismatchError) as error:
        checkpointer.restore(target._replace(params=params))
    assert str(error.value) == (
        f"{checkpointer.folder / '3'} is intact but does not fit the configuration: "
        "params/extra is missing, not float32[2]"
    )


def test_latest_and_best_are_kept(setting, tmp_path):
    state, target = setting
    checkpointer = Checkpointer(tmp_path / "checkpoints", keep=2)
    for step, accuracy in enumerate((math.nan, 0.8, 0.3, None, 0.7, math.nan, 0.6), start=1):
        checkpointer.save(at(state, step), {}, accuracy)
    assert checkpointer.wait() == [2, 6, 7]
    checkpointer.close()
    assert int(checkpointer.restore(target).state.step) == 7
    assert int(checkpointer.restore(target, best=True).state.step) == 2


def test_best_checkpoint_needs_an_accuracy(setting, tmp_path):
    checkpointer = Checkpointer(tmp_path / "checkpoints")
    checkpointer.save(at(setting[0], 1), {})
    checkpointer.close()
    assert checkpointer.restore(setting[1], best=True) is None and checkpointer.restore(setting[1]) is not None


def test_checkpoint_of_a_step_is_restored(three):
    checkpointer, target = three
    assert [int(checkpointer.restore(target, step=step).state.step) for step in (1, 2, 3)] == [1, 2, 3]
    assert checkpointer.restore(target, step=4) is None


def test_restore_without_checkpoints_returns_none(setting, tmp_path):
    assert Checkpointer(tmp_path / "checkpoints").restore(setting[1]) is None


def test_incomplete_checkpoint_is_ignored_and_removed_by_the_next_save(three, setting):
    """As when a process is killed while it saves."""
    checkpointer, target = three
    incomplete = checkpointer.folder / "4.orbax-checkpoint-tmp"
    shutil.copytree(checkpointer.folder / "3", incomplete)
    assert (
        checkpointer.steps() == [1, 2, 3] and int(checkpointer.restore(target).state.step) == 3 and incomplete.exists()
    )
    checkpointer.save(at(setting[0], 4), {}, 0.1)
    assert checkpointer.wait() == [1, 3, 4] and not incomplete.exists()
    checkpointer.close()


def test_no_pickle_is_written(three):
    for path in (path for path in pathlib.Path(three[0].folder).rglob("*") if path.is_file()):
        assert not path.read_bytes().startswith(b"\x80") and path.suffix not in (".pkl", ".pickle")


def largest_file(folder: pathlib.Path) -> pathlib.Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def contents(folder) -> dict[pathlib.Path, bytes]:
    return {path: path.read_bytes() for path in pathlib.Path(folder).rglob("*") if path.is_file()}


def flip_bit(path: pathlib.Path, index: int) -> None:
    content = bytearray(path.read_bytes())
    content[index % len(content)] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "truncated arrays": lambda folder: largest_file(folder / "state" / "ocdbt.process_0").write_bytes(b"short"),
    "altered arrays": lambda folder: flip_bit(largest_file(folder / "state" / "ocdbt.process_0"), 1234),
    "missing arrays": lambda folder: largest_file(folder / "state" / "ocdbt.process_0").unlink(),
    "missing manifest": lambda folder: (folder / "state" / "manifest.ocdbt").unlink(),
    "truncated manifest": lambda folder: (folder / "state" / "manifest.ocdbt").write_bytes(b""),
    "altered shapes": lambda folder: (folder / "state" / "_METADATA").write_text("{}"),
    "altered run metadata": lambda folder: flip_bit(folder / "run_metadata" / "metadata", 40),
    "missing run metadata": lambda folder: shutil.rmtree(folder / "run_metadata"),
    "truncated metadata": lambda folder: (folder / "_CHECKPOINT_METADATA").write_text('{"item'),
    "missing everything": lambda folder: [shutil.rmtree(folder), folder.mkdir()],
}
FAST_DAMAGE = ("altered arrays", "truncated manifest", "altered run metadata")


@pytest.mark.parametrize(
    "kind",
    [kind if kind in FAST_DAMAGE else pytest.param(kind, marks=pytest.mark.slow) for kind in DAMAGE],
)
def test_damaged_checkpoint_is_reported_and_the_previous_one_restored(three, kind, messages, setting):
    checkpointer, target = three
    DAMAGE[kind](pathlib.Path(checkpointer.folder, "3"))
    checkpointer.restore(target, move_damaged=False)
    assert checkpointer.steps() == [1, 2, 3] and all("moved" not in message for message in messages)
    messages.clear()
    restored = checkpointer.restore(target)
    harmless = kind == "truncated metadata"  # Orbax's own, which it does not need to read the arrays
    assert int(restored.state.step) == (3 if harmless else 2) and equal(
        restored.state, at(setting[0], restored.state.step)
    )
    if not harmless:
        assert len(messages) == 1 and "step 3 is damaged" in messages[0] and "using the one of step 2" in messages[0]
        damaged = checkpointer.folder.parent / "damaged"
        assert (damaged / "3").is_dir() and checkpointer.steps() == [1, 2]
        assert (damaged / "3.txt").read_text().strip() in messages[0]
    for step in (3, 4):  # training continues
        checkpointer.save(at(setting[0], step), {}, 0.1)
    assert checkpointer.wait() == [1, 3, 4], messages
    checkpointer.close()
    assert int(checkpointer.restore(target).state.step) == 4


def test_if_no_checkpoint_is_intact_restore_raises_and_removes_nothing(three, messages):
    checkpointer, target = three
    for step in checkpointer.steps():
        flip_bit(largest_file(pathlib.Path(checkpointer.folder, str(step), "state", "ocdbt.process_0")), 777)
    before = contents(checkpointer.folder)
    with pytest.raises(CorruptCheckpointError, match=r"no intact checkpoint \(step 3: .*; step 2: .*; step 1: "):
        checkpointer.restore(target)
    assert contents(checkpointer.folder) == before and not messages


def test_checksum_detects_any_flipped_bit(setting):
    """In any leaf and position, and independently of the devices."""
    leaves, sums = {"a": jnp.arange(1000, dtype=jnp.float32), "b": jnp.zeros((7, 9), jnp.bfloat16)}, None

    @given(st.sampled_from(["a", "b"]), st.integers(0, 10**6), st.integers(0, 15))
    def check(name, index, bit):
        kind = np.uint32 if name == "a" else np.uint16
        words = np.asarray(leaves[name]).view(kind).copy()
        words.reshape(-1)[index % words.size] ^= kind(1 << bit)
        assert _checksums({**leaves, name: words.view(leaves[name].dtype)}) != sums

    sums = _checksums(leaves)
    check()
    swapped = np.arange(1000, dtype=np.float32)
    swapped[[3, 4]] = swapped[[4, 3]]
    assert _checksums({**leaves, "a": swapped}) != sums
    for sharding in (DataParallel(mesh=mesh(8)).batch_sharding, DataParallel(mesh=mesh(4)).replicated):
        assert _checksums(jax.device_put({"a": leaves["a"]}, sharding)) == {"['a']": sums["['a']"]}


@pytest.mark.parametrize("devices", [pytest.param(2, marks=pytest.mark.slow), 8])
def test_restore_on_another_number_of_devices(three, devices, setting):
    checkpointer, target = three
    replicated = DataParallel(mesh=mesh(devices)).replicated
    placed = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated), target)
    restored = checkpointer.restore(placed)
    assert restored.state.params["conv1"]["kernel"].sharding == replicated
    assert equal(restored.state, at(setting[0], 3))


def test_full_disk_is_reported_and_the_last_checkpoint_kept(three, setting, messages):
    """A limit of the file size simulates a full disk; later saves succeed again."""
    checkpointer, target = three
    old, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old[1]))
    try:
        checkpointer.save(at(setting[0], 4), {}, 0.2)
        assert checkpointer.wait() == [1, 2, 3]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert len(messages) == 1 and "step 4 could not be written" in messages[0]
    assert "the last intact one is of step 3" in messages[0]
    checkpointer.save(at(setting[0], 5), {}, 0.2)
    assert checkpointer.wait() == [1, 3, 5], messages
    checkpointer.close()
    assert int(checkpointer.restore(target).state.step) == 5 and len(messages) == 1


@pytest.mark.bad_input
def test_invalid_arguments_and_formats_raise(three, tmp_path, setting, monkeypatch):
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        Checkpointer(tmp_path, keep=0)
    monkeypatch.setattr("dropcluster_jax.runs.checkpoints.FORMAT", FORMAT + 1)
    with pytest.raises(ValueError, match=f"has format {FORMAT}, but this version reads format {FORMAT + 1}"):
        three[0].restore(three[1])
    for name in ("run[1]", "a*b", "what?", "back\\slash"):
        with pytest.raises(RunFolderError, match="must not contain "):
            Checkpointer(tmp_path / name)
    params = {"a.b": jnp.zeros(2), "a": {"b": jnp.ones(2)}}
    with pytest.raises(ValueError, match=r"\['a'\]\['b'\] and .*\['a.b'\] do"):
        three[0].save(at(setting[0], 4)._replace(params=params), {})
