"""Laws of both loaders: each example once, resumable to the bit, the same on any number of devices and processes."""

import dataclasses
import itertools
import subprocess
import sys

import jax
import numpy as np
import pytest
from image_files import BAD, PHOTO, encoded
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dropcluster_jax.data import (
    ArrayExamples,
    CorruptImageError,
    Dataset,
    GrainLoader,
    InMemoryLoader,
    load,
    make_loader,
)

NUMBER, TEST = 50, 23


def example_set(number):
    """Examples that say who they are: in their pixels and in their label."""
    who = np.arange(number)
    images = np.broadcast_to(who[:, None, None, None], (number, 2, 3, 1)).astype(np.uint8)
    return ArrayExamples(np.ascontiguousarray(images), who.astype(np.int32))


ARRAYS = Dataset("arrays", example_set(NUMBER), example_set(TEST), tuple(map(str, range(NUMBER))))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same as files of unequal size, whose colors say who they are."""
    root = tmp_path_factory.mktemp("files")
    for part, number in (("train", NUMBER), ("test", TEST)):
        for who in range(number):
            (root / part / f"{who:02}").mkdir(parents=True)
            pixels = np.full((10 + who % 3, 12, 3), who, np.uint8)
            (root / part / f"{who:02}" / "image.png").write_bytes(encoded(pixels))
    return load(f"folder:{root}", image_size=4)


ROADS = {
    "device": lambda files, size, **more: InMemoryLoader(ARRAYS, size, 7, **more),
    "stream of arrays": lambda files, size, **more: GrainLoader(ARRAYS, size, 7, **more),
    "stream of files": lambda files, size, **more: GrainLoader(files, size, 7, **more),
}
every_road = pytest.mark.parametrize("make", ROADS.values(), ids=ROADS)


def sharding(devices):
    mesh = jax.make_mesh((devices,), ("batch",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    return NamedSharding(mesh, PartitionSpec("batch"))


def who(batch):
    """Whose images a batch holds, once it is known that labels go with them."""
    image, label = np.asarray(batch["image"]), np.asarray(batch["label"])
    np.testing.assert_array_equal(image[:, 0, 0, 0], label)
    assert image.dtype == np.uint8 and label.dtype == np.int32 and len(image) == len(label)
    return label.tolist()


def first(number, batches):
    taken = [who(batch) for batch in itertools.islice(batches, number)]
    batches.close()
    return taken


@every_road
def test_an_epoch_holds_each_example_once_and_the_roads_agree(make, files):
    batches = first(10, make(files, 10).train())
    for epoch in (batches[:5], batches[5:]):
        assert sorted(itertools.chain(*epoch)) == list(range(NUMBER))
    assert batches == first(10, InMemoryLoader(ARRAYS, 10, 7).train())


@every_road
@pytest.mark.parametrize("stop", [0, 1, 6])
def test_a_restored_stream_goes_on_where_it_was(make, files, stop):
    batches = make(files, 20).train()
    whole = [next(batches) for _ in range(stop)]
    state = batches.get_state()
    assert state == {"epoch": stop // 2, "batch": stop % 2, "examples": NUMBER, "batch_size": 20, "seed": 7}
    expected = first(3, batches)
    batches.set_state(state)  # the same iterator goes back
    assert first(3, batches) == expected
    other = make(files, 20).train()
    other.set_state(state)  # and another goes there
    assert first(3, other) == expected and len(whole) == stop


def test_restored_crops_are_the_same_to_the_bit(tmp_path):
    for i in range(12):
        (tmp_path / "train" / "a").mkdir(parents=True, exist_ok=True)
        (tmp_path / "test" / "a").mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / "a" / f"{i}.png").write_bytes(encoded(np.roll(PHOTO, 9 * i, 1)[:60, :80]))
        (tmp_path / "test" / "a" / f"{i}.png").write_bytes(encoded(PHOTO[:60, :80]))
    data = load(f"folder:{tmp_path}", image_size=16)

    def images(loader, number, state=None):
        batches = loader.train()
        if state is not None:
            batches.set_state(state)
        taken = np.stack([np.asarray(next(batches)["image"]) for _ in range(number)])
        state = batches.get_state()
        batches.close()
        return taken, state

    loader = GrainLoader(data, 4, random_crop=True, flip=True)
    whole, _ = images(loader, 9)
    begin, state = images(loader, 4)
    end, _ = images(GrainLoader(data, 4, random_crop=True, flip=True), 5, state)
    np.testing.assert_array_equal(np.concatenate([begin, end]), whole)
    halves = [GrainLoader(data, 4, random_crop=True, flip=True, process=p, processes=2) for p in (0, 1)]
    np.testing.assert_array_equal(np.concatenate([images(half, 9)[0] for half in halves], axis=1), whole)
    # Each epoch crops anew; without random crops only the mirror is left.
    assert not (whole[:3].reshape(12, -1)[:, None] == whole[3:6].reshape(12, -1)).all(-1).any()
    plain, _ = images(GrainLoader(data, 4), 3)
    flipped, _ = images(GrainLoader(data, 4, flip=True), 3)
    same = (plain == flipped).all((2, 3, 4))
    assert same.any() and not same.all() and (same | (plain[..., ::-1, :] == flipped).all((2, 3, 4))).all()


@every_road
@pytest.mark.parametrize("size", [1, 7, 8, 23, 40])
def test_evaluation_holds_each_test_example_once_on_any_number_of_devices(make, files, size):
    for devices in (None, 1, 2, 4, 8):
        loader = make(files, 8, **({"sharding": sharding(devices)} if devices else {}))
        divided = -(-size // (devices or 1)) * (devices or 1)
        seen = []
        for batch in loader.test(size):
            weight = np.asarray(batch["weight"])
            assert len(who(batch)) == len(weight) == divided and set(weight.tolist()) <= {0, 1}
            assert devices is None or len(batch["image"].sharding.device_set) == devices
            seen += np.asarray(batch["label"])[weight == 1].tolist()
        assert seen == list(range(TEST))


@every_road
@pytest.mark.parametrize("devices", [2, 8])
def test_batches_divided_over_devices_hold_what_one_device_holds(make, files, devices):
    one, many = make(files, 16), make(files, 16, sharding=sharding(devices))
    assert first(4, many.train()) == first(4, one.train())
    batch = many.probe(21, 3)
    assert who(batch) == who(one.probe(21, 3))[: 21 // devices * devices]
    assert len(batch["image"].sharding.device_set) == devices


@every_road
def test_probes_are_training_images_that_the_update_decides(make, files):
    loader = make(files, 10)
    probes = [who(loader.probe(12, update)) for update in (0, 1, 0)]
    assert probes[0] == probes[2] != probes[1] and len(set(probes[0])) == 12
    assert sorted(who(loader.probe(1000, 0))) == list(range(NUMBER))


def test_two_processes_share_out_each_epoch_and_the_test(files):
    for data in (ARRAYS, files):
        loaders = [GrainLoader(data, 10, 7, process=process, processes=2) for process in (0, 1)]
        parts = [first(5, loader.train()) for loader in loaders]
        together = [one + other for one, other in zip(*parts, strict=True)]
        assert together == first(5, InMemoryLoader(ARRAYS, 10, 7).train())
        seen = [
            np.asarray(batch["label"])[np.asarray(batch["weight"]) == 1].tolist()
            for loader in loaders
            for batch in loader.test()
        ]
        assert sorted(itertools.chain(*seen)) == list(range(TEST))
        assert sorted(who(loaders[0].probe(20, 0)) + who(loaders[1].probe(20, 0))) == sorted(
            who(GrainLoader(data, 10, 7).probe(20, 0))
        )


def test_two_processes_of_jax_make_one_global_batch_of_it():
    """For real: two processes with two devices each, joined by JAX's distributed runtime."""
    import portpicker

    program = """
import sys, jax
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from dropcluster_jax.data import InMemoryLoader, GrainLoader, load
sharding = NamedSharding(jax.make_mesh((4,), ("batch",), axis_types=(AxisType.Auto,)), PartitionSpec("batch"))
digits = load("digits")
for make in (InMemoryLoader, GrainLoader):
    loader = make(digits, 16, 3, sharding=sharding)
    batches = loader.train()
    labels = [next(batches)["label"] for _ in range(2)]
    batches.close()
    count = sum(float(jax.numpy.sum(batch["weight"])) for batch in loader.test())
    print([multihost_utils.process_allgather(label, tiled=True).tolist() for label in labels], count)
"""
    address = f"127.0.0.1:{portpicker.pick_unused_port()}"
    runs = [
        subprocess.Popen([sys.executable, "-c", program, address, str(i)], stdout=-1, stderr=-1, text=True)
        for i in (0, 1)
    ]
    said = [run.communicate() for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    digits = load("digits")
    expected = InMemoryLoader(digits, 16, 3).train()
    line = f"{[next(expected)['label'].tolist() for _ in range(2)]} 360.0"
    # Gloo says to whom it is connected.
    found = [[said for said in out.splitlines() if not said.startswith("[Gloo]")] for out, _ in said]
    assert found == [[line, line]] * 2


def test_workers_give_what_threads_give(tmp_path):
    """In a process of its own, as a program would: Grain starts the workers anew from its file."""
    for i in range(8):
        (tmp_path / "images" / "a").mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / "a" / f"{i}.png").write_bytes(encoded(np.roll(PHOTO, 9 * i, 1)[:60, :80]))
    program = tmp_path / "program.py"
    program.write_text("""
import sys
import numpy as np
from dropcluster_jax.data import GrainLoader, load

def taken(data, workers):
    batches = GrainLoader(data, 2, random_crop=True, flip=True, workers=workers).train()
    images = np.stack([np.asarray(next(batches)["image"]) for _ in range(7)])
    batches.close()
    return images

if __name__ == "__main__":
    data = load(f"folder:{sys.argv[1]}", image_size=8)
    np.testing.assert_array_equal(taken(data, 2), taken(data, 0))
""")
    run = subprocess.run([sys.executable, program, tmp_path / "images"], capture_output=True, text=True, check=False)
    assert run.returncode == 0 and run.stdout == run.stderr == "", run.stderr


@pytest.fixture
def with_bad_ones(tmp_path):
    for part in ("train", "test"):
        for who_ in range(6):
            folder = tmp_path / part / f"{who_:02}"
            folder.mkdir(parents=True)
            bad = BAD["truncated"][0] if who_ in (1, 2) else None
            (folder / "image.png").write_bytes(bad or encoded(np.full((9, 9, 3), who_, np.uint8)))
    return load(f"folder:{tmp_path}", image_size=4, skip_corrupt=True)


def test_bad_images_in_a_stream_stop_it_or_are_replaced_and_counted(with_bad_ones):
    with pytest.raises(CorruptImageError, match=r"/0[12]/image\.png cannot be read as a JPEG"):
        first(3, GrainLoader(with_bad_ones, 2).train())
    with pytest.raises(CorruptImageError, match=r"/0[12]/image\.png cannot be read as a JPEG"):
        list(GrainLoader(with_bad_ones, 2).test())
    loader = GrainLoader(with_bad_ones, 2, skip_corrupt=True)
    # The next sound one stands in for each bad one: number 3 for 1 and 2.
    assert sorted(itertools.chain(*first(3, loader.train()))) == [0, 3, 3, 3, 4, 5]
    assert len(loader.skipped) == 2
    seen = [
        label
        for batch in loader.test()
        for label, weight in zip(np.asarray(batch["label"]), np.asarray(batch["weight"]), strict=True)
        if weight
    ]
    assert seen == [0, 3, 4, 5] and len(loader.skipped) == 4 and "/test/01/image.png" in "".join(loader.skipped)
    alone = dataclasses.replace(with_bad_ones, test=with_bad_ones.test.take(slice(1, 3)))
    with pytest.raises(
        CorruptImageError, match=r"no test image is left: all were skipped, the first: .*/test/01/image"
    ):
        list(GrainLoader(alone, 2, skip_corrupt=True).test())


def test_the_road_is_chosen_by_what_fits(files, monkeypatch):
    from dropcluster_jax.data import loaders

    assert isinstance(make_loader(ARRAYS, 4), InMemoryLoader)
    assert isinstance(make_loader(ARRAYS, 4, loader="grain"), GrainLoader)
    assert isinstance(make_loader(files, 4), GrainLoader)
    with pytest.raises(ValueError, match="loader must be stream or auto for 'folder:"):
        make_loader(files, 4, loader="memory")
    monkeypatch.setattr(loaders, "_UNKNOWN", 10)
    assert isinstance(make_loader(ARRAYS, 4), GrainLoader)


def test_a_state_of_something_else_is_refused():
    batches = InMemoryLoader(ARRAYS, 10, 7).train()
    state = batches.get_state()
    for name in ("examples", "batch_size", "seed"):
        with pytest.raises(ValueError, match=f"state is of batches of another {name}: 99 there and"):
            batches.set_state({**state, name: 99})
    with pytest.raises(ValueError, match="state must hold epoch, batch, examples, batch_size, seed"):
        batches.set_state({"epoch": 1})


@pytest.mark.bad_input
def test_what_a_road_cannot_take_is_refused(files):
    with pytest.raises(ValueError, match=r"batch_size must be a multiple of the 8 devices .* got 12"):
        InMemoryLoader(ARRAYS, 12, sharding=sharding(8))
    with pytest.raises(ValueError, match=r"batch_size must be a multiple of the 8 devices .* got 12"):
        GrainLoader(ARRAYS, 12, sharding=sharding(8))
    for loader in (InMemoryLoader(ARRAYS, 4), GrainLoader(ARRAYS, 4)):
        with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
            next(loader.test(0))
    with pytest.raises(TypeError, match="must be arrays, got FileExamples"):
        InMemoryLoader(files, 4)
    with pytest.raises(ValueError, match="workers must be at least 0, got -1"):
        GrainLoader(ARRAYS, 4, workers=-1)
    with pytest.raises(ValueError, match="loader must be auto, device or stream, got 'rail'"):
        make_loader(ARRAYS, 4, loader="rail")


def test_without_grain_the_stream_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    assert next(make_loader(ARRAYS, 4).train())["image"].shape == (4, 2, 3, 1)
    with pytest.raises(ImportError, match=r'Grain cannot .*pip install "dropcluster-jax\[train\]"'):
        make_loader(ARRAYS, 4, loader="grain")
