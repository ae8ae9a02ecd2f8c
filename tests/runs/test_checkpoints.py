"""Laws of checkpoints: what comes back is what went in, bit for bit, or is not used at all."""

import gc
import json
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
from training.test_data_parallel import mesh
from training.test_steps import Small, equal, separable

from dropcluster_jax.training import DataParallel, make_steps
from dropcluster_jax.runs.checkpoints import Checkpointer, CorruptCheckpointError, _checksums

# Where it fails, Orbax leaves coroutines behind.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning"),
]


@pytest.fixture(autouse=True)
def _nothing_is_left_for_other_tests():
    yield
    gc.collect()


@pytest.fixture(scope="module")
def setting():
    """Steps, a state after some of them, and its shapes."""
    batch = separable(jax.random.key(0))
    steps = make_steps(Small(), optax.adam(1e-3), rate=0.2, ema_decay=0.9)
    state = jax.jit(steps.init)(jax.random.key(1), batch)
    train, cluster = jax.jit(steps.train), jax.jit(steps.update_clusters)
    state, _ = train(cluster(state, batch), batch)
    return state, jax.eval_shape(steps.init, jax.random.key(1), batch)


@pytest.fixture
def said():
    return []


@pytest.fixture
def three(setting, tmp_path, said):
    """Checkpointer of the steps 1, 2 and 3, of which 1 has the best accuracy."""
    state, target = setting
    checkpoints = Checkpointer(tmp_path / "checkpoints", keep=2, say=said.append)
    for step, accuracy in ((1, 0.9), (2, 0.5), (3, 0.6)):
        checkpoints.save(at(state, step), {"position": {"epoch": step}}, accuracy)
    checkpoints.close()
    return checkpoints, target


def at(state, step):
    return state._replace(step=jnp.int32(step))


def test_all_of_the_state_comes_back_and_what_was_said_with_it(three, setting):
    checkpoints, target = three
    restored = checkpoints.restore(target)
    assert restored.about == {"position": {"epoch": 3}, "format": 1}
    assert jax.tree.structure(restored.state) == jax.tree.structure(setting[0])
    assert equal(restored.state, at(setting[0], 3))
    assert jax.random.uniform(restored.state.key) == jax.random.uniform(setting[0].key)


def test_the_newest_and_the_best_are_kept(setting, tmp_path):
    state, target = setting
    checkpoints = Checkpointer(tmp_path / "checkpoints", keep=2)
    for step, accuracy in enumerate((0.1, 0.8, 0.3, None, 0.7, None, 0.6), start=1):
        checkpoints.save(at(state, step), {}, accuracy)
    assert checkpoints.wait() == [2, 6, 7]
    checkpoints.close()
    assert int(checkpoints.restore(target).state.step) == 7
    assert int(checkpoints.restore(target, best=True).state.step) == 2


def test_none_is_no_checkpoint_and_is_no_error(setting, tmp_path):
    assert Checkpointer(tmp_path / "checkpoints").restore(setting[1]) is None


def test_one_that_was_being_written_is_not_taken_for_one_and_goes_with_the_next(three, setting):
    """As when a process is killed, or leaves at a second interrupt, while it saves."""
    checkpoints, target = three
    half = checkpoints.folder / "4.orbax-checkpoint-tmp"
    shutil.copytree(checkpoints.folder / "3", half)
    assert checkpoints.steps() == [1, 2, 3] and int(checkpoints.restore(target).state.step) == 3 and half.exists()
    checkpoints.save(at(setting[0], 4), {}, 0.1)
    assert checkpoints.wait() == [1, 3, 4] and not half.exists()
    checkpoints.close()


def test_no_file_is_a_pickle(three):
    for path in (path for path in three[0].folder.rglob("*") if path.is_file()):
        assert not path.read_bytes().startswith(b"\x80") and path.suffix not in (".pkl", ".pickle")


def biggest(folder: pathlib.Path) -> pathlib.Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip(path: pathlib.Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "truncated arrays": lambda folder: biggest(folder / "state" / "ocdbt.process_0").write_bytes(b"short"),
    "altered arrays": lambda folder: flip(biggest(folder / "state" / "ocdbt.process_0"), 1234),
    "missing arrays": lambda folder: biggest(folder / "state" / "ocdbt.process_0").unlink(),
    "missing manifest": lambda folder: (folder / "state" / "manifest.ocdbt").unlink(),
    "truncated manifest": lambda folder: (folder / "state" / "manifest.ocdbt").write_bytes(b""),
    "altered shapes": lambda folder: (folder / "state" / "_METADATA").write_text("{}"),
    "altered description": lambda folder: flip(folder / "about" / "metadata", 40),
    "missing description": lambda folder: shutil.rmtree(folder / "about"),
    "truncated metadata": lambda folder: (folder / "_CHECKPOINT_METADATA").write_text('{"item'),
    "altered metrics": lambda folder: (folder / "metrics" / "metrics").write_text('{"accur'),
    "missing everything": lambda folder: [shutil.rmtree(folder), folder.mkdir()],
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_of_damaged_checkpoints_the_newest_sound_one_is_used_and_it_is_told(three, kind, said, setting):
    checkpoints, target = three
    DAMAGE[kind](checkpoints.folder / "3")
    checkpoints.restore(target, quarantine=False)
    assert checkpoints.steps() == [1, 2, 3] and all("moved" not in message for message in said)
    said.clear()
    restored = checkpoints.restore(target)
    harmless = kind in ("altered metrics", "truncated metadata")  # beside what counts: all arrays are sound
    assert int(restored.state.step) == (3 if harmless else 2) and equal(
        restored.state, at(setting[0], restored.state.step)
    )
    if not harmless:
        assert len(said) == 1 and "step 3 is damaged" in said[0] and "that of step 2 is used" in said[0]
        assert (checkpoints.folder.parent / "damaged" / "3").is_dir() and checkpoints.steps() == [1, 2]
    for step in (3, 4):  # training goes on, past the damage
        checkpoints.save(at(setting[0], step), {}, 0.1)
    assert checkpoints.wait() == [1, 3, 4], said
    checkpoints.close()
    assert int(checkpoints.restore(target).state.step) == 4


def test_none_sound_is_an_error_and_nothing_is_removed(three, said):
    checkpoints, target = three
    for step in checkpoints.steps():
        flip(biggest(checkpoints.folder / str(step) / "state" / "ocdbt.process_0"), 777)
    before = {path: path.read_bytes() for path in checkpoints.folder.rglob("*") if path.is_file()}
    with pytest.raises(CorruptCheckpointError, match=r"no sound checkpoint \(step 3: .*; step 2: .*; step 1: "):
        checkpoints.restore(target)
    assert {path: path.read_bytes() for path in checkpoints.folder.rglob("*") if path.is_file()} == before and not said


def test_any_flipped_bit_of_the_arrays_is_found(setting):
    """Of the checksum itself: no leaf, no place and no bit goes unseen, and devices do not matter."""
    leaves, sums = {"a": jnp.arange(1000, dtype=jnp.float32), "b": jnp.zeros((7, 9), jnp.bfloat16)}, None

    @given(st.sampled_from(["a", "b"]), st.integers(0, 10**6), st.integers(0, 15))
    def law(name, place, bit):
        kind = np.uint32 if name == "a" else np.uint16
        words = np.asarray(leaves[name]).view(kind).copy()
        words.reshape(-1)[place % words.size] ^= kind(1 << bit)
        assert _checksums({**leaves, name: words.view(leaves[name].dtype)}) != sums

    sums = _checksums(leaves)
    law()
    swapped = np.arange(1000, dtype=np.float32)
    swapped[[3, 4]] = swapped[[4, 3]]
    assert _checksums({**leaves, "a": swapped}) != sums
    for way in (DataParallel(mesh=mesh(8)).batch_sharding, DataParallel(mesh=mesh(4)).replicated):
        assert _checksums(jax.device_put({"a": leaves["a"]}, way)) == {"['a']": sums["['a']"]}


@pytest.mark.parametrize("devices", [2, 8])
def test_it_comes_back_on_another_number_of_devices(three, devices, setting):
    checkpoints, target = three
    everywhere = DataParallel(mesh=mesh(devices)).replicated
    placed = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), target)
    restored = checkpoints.restore(placed)
    assert restored.state.params["conv1"]["kernel"].sharding == everywhere
    assert equal(restored.state, at(setting[0], 3))


def test_a_full_disk_is_said_and_the_last_good_one_stays(three, setting, said):
    """A file may not grow beyond a size, as if the disk were full; later there is room again."""
    checkpoints, target = three
    old, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old[1]))
    try:
        checkpoints.save(at(setting[0], 4), {}, 0.2)
        assert checkpoints.wait() == [1, 2, 3]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert len(said) == 1 and "step 4 cannot be written" in said[0] and "the last good one is of step 3" in said[0]
    checkpoints.save(at(setting[0], 5), {}, 0.2)
    assert checkpoints.wait() == [1, 3, 5], said
    checkpoints.close()
    assert int(checkpoints.restore(target).state.step) == 5 and len(said) == 1


@pytest.mark.bad_input
def test_what_cannot_be_is_refused(three, tmp_path, setting, monkeypatch):
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        Checkpointer(tmp_path, keep=0)
    monkeypatch.setattr("dropcluster_jax.runs.checkpoints.FORMAT", 2)
    with pytest.raises(ValueError, match="has format 1, this version reads 2"):
        three[0].restore(three[1])
    assert json.loads((three[0].folder / "3" / "metrics" / "metrics").read_text()) == {"accuracy": 0.6}
