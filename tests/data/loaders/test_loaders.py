import itertools
import json
import subprocess
import sys

import jax
import numpy as np
import portpicker
import pytest
from image_files import CORRUPT, PHOTO, encoded
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
from dropcluster_jax.data.loaders import choice

NUM_TRAIN, NUM_TEST = 50, 23


def indexed_examples(count):
    """Returns examples whose pixels and labels are their index."""
    index = np.arange(count)
    images = np.broadcast_to(index[:, None, None, None], (count, 2, 3, 1)).astype(np.uint8)
    return ArrayExamples(np.ascontiguousarray(images), index.astype(np.int32))


ARRAYS = Dataset("arrays", indexed_examples(NUM_TRAIN), indexed_examples(NUM_TEST), tuple(map(str, range(NUM_TRAIN))))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same examples as files of different sizes."""
    root = tmp_path_factory.mktemp("files")
    for split, count in (("train", NUM_TRAIN), ("test", NUM_TEST)):
        for index in range(count):
            (root / split / f"{index:02}").mkdir(parents=True)
            pixels = np.full((10 + index % 3, 12, 3), index, np.uint8)
            (root / split / f"{index:02}" / "image.png").write_bytes(encoded(pixels))
    return load(f"folder:{root}", image_size=4)


LOADERS = {
    "memory": lambda files, batch_size, **options: InMemoryLoader(ARRAYS, batch_size, 7, **options),
    "grain, arrays": lambda files, batch_size, **options: GrainLoader(ARRAYS, batch_size, 7, **options),
    "grain, files": lambda files, batch_size, **options: GrainLoader(files, batch_size, 7, **options),
}
parametrize_loaders = pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)


def batch_sharding(devices):
    mesh = jax.make_mesh((devices,), ("batch",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    return NamedSharding(mesh, PartitionSpec("batch"))


def indices_of(batch):
    """Returns the indices of a batch's examples, after checking that images and labels agree."""
    image, label = np.asarray(batch["image"]), np.asarray(batch["label"])
    np.testing.assert_array_equal(image[:, 0, 0, 0], label)
    assert image.dtype == np.uint8 and label.dtype == np.int32 and len(image) == len(label)
    return label.tolist()


def take(count, batches):
    indices = [indices_of(batch) for batch in itertools.islice(batches, count)]
    batches.close()
    return indices


@parametrize_loaders
def test_epochs_contain_each_example_once_and_are_the_same_for_all_loaders(make, files):
    batches = take(10, make(files, 10).train())
    for epoch in (batches[:5], batches[5:]):
        assert sorted(itertools.chain(*epoch)) == list(range(NUM_TRAIN))
    assert batches == take(10, InMemoryLoader(ARRAYS, 10, 7).train())


@parametrize_loaders
@pytest.mark.parametrize("position", [0, 1, 6])
def test_restored_iterators_resume_at_the_saved_position(make, files, position):
    batches = make(files, 20).train()
    for _ in range(position):
        next(batches)
    state = batches.get_state()
    assert state == {
        "epoch": position // 2,
        "batch": position % 2,
        "num_examples": NUM_TRAIN,
        "batch_size": 20,
        "seed": 7,
    }
    expected = take(3, batches)
    batches.set_state(state)
    assert take(3, batches) == expected
    restored = make(files, 20).train()
    restored.set_state(state)
    assert take(3, restored) == expected


@pytest.fixture
def photos(tmp_path):
    for i in range(12):
        (tmp_path / "train" / "a").mkdir(parents=True, exist_ok=True)
        (tmp_path / "test" / "a").mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / "a" / f"{i}.png").write_bytes(encoded(np.roll(PHOTO, 9 * i, 1)[:60, :80]))
        (tmp_path / "test" / "a" / f"{i}.png").write_bytes(encoded(PHOTO[:60, :80]))
    return load(f"folder:{tmp_path}", image_size=16)


def loaders_of_two_processes(*arguments, **options):
    loaders = []
    for index in (0, 1):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jax, "process_index", lambda index=index: index)
            patch.setattr(jax, "process_count", lambda: 2)
            loaders.append(GrainLoader(*arguments, **options))
    return loaders


def take_images(loader, count, state=None):
    """Returns the images of the next batches and the state after them."""
    batches = loader.train()
    if state is not None:
        batches.set_state(state)
    images = np.stack([np.asarray(next(batches)["image"]) for _ in range(count)])
    state = batches.get_state()
    batches.close()
    return images, state


def test_random_crops_are_reproducible_across_restarts_and_processes(photos):
    options = {"random_crop": True, "flip": True}
    expected, _ = take_images(GrainLoader(photos, 4, **options), 9)
    start, state = take_images(GrainLoader(photos, 4, **options), 4)
    end, _ = take_images(GrainLoader(photos, 4, **options), 5, state)
    np.testing.assert_array_equal(np.concatenate([start, end]), expected)
    halves = loaders_of_two_processes(photos, 4, **options)
    np.testing.assert_array_equal(np.concatenate([take_images(half, 9)[0] for half in halves], axis=1), expected)
    first_epoch, second_epoch = expected[:3].reshape(12, -1), expected[3:6].reshape(12, -1)
    assert not (first_epoch[:, None] == second_epoch).all(-1).any()


def test_flip_mirrors_some_images(photos):
    centered, _ = take_images(GrainLoader(photos, 4), 3)
    flipped, _ = take_images(GrainLoader(photos, 4, flip=True), 3)
    unchanged = (centered == flipped).all((2, 3, 4))
    mirrored = (centered[..., ::-1, :] == flipped).all((2, 3, 4))
    assert unchanged.any() and not unchanged.all() and (unchanged | mirrored).all()


@parametrize_loaders
@pytest.mark.parametrize("batch_size", [7, 40, *(pytest.param(size, marks=pytest.mark.slow) for size in (1, 8, 23))])
def test_evaluation_contains_each_example_once_on_any_number_of_devices(make, files, batch_size):
    for devices in (None, 1, 2, 4, 8):
        loader = make(files, 8, **({"sharding": batch_sharding(devices)} if devices else {}))
        rounded = -(-batch_size // (devices or 1)) * (devices or 1)
        seen = []
        for batch in loader.test(batch_size):
            weight = np.asarray(batch["weight"])
            assert len(indices_of(batch)) == len(weight) == rounded and set(weight.tolist()) <= {0, 1}
            assert devices is None or len(batch["image"].sharding.device_set) == devices
            seen += np.asarray(batch["label"])[weight == 1].tolist()
        assert seen == list(range(NUM_TEST))


@parametrize_loaders
@pytest.mark.parametrize("devices", [2, 8])
def test_sharded_batches_equal_unsharded_ones(make, files, devices):
    unsharded, sharded = make(files, 16), make(files, 16, sharding=batch_sharding(devices))
    assert take(4, sharded.train()) == take(4, unsharded.train())
    probe = sharded.probe(21, 3)
    assert indices_of(probe) == indices_of(unsharded.probe(21, 3))[: 21 // devices * devices]
    assert len(probe["image"].sharding.device_set) == devices


@parametrize_loaders
def test_probes_are_training_images_determined_by_the_update(make, files):
    loader = make(files, 10)
    first, second, again = (indices_of(loader.probe(12, update)) for update in (0, 1, 0))
    assert first == again != second and len(set(first)) == 12
    assert sorted(indices_of(loader.probe(1000, 0))) == list(range(NUM_TRAIN))


def test_processes_share_each_epoch_and_the_test_set(files):
    for data in (ARRAYS, files):
        loaders = loaders_of_two_processes(data, 10, 7)
        halves = [take(5, loader.train()) for loader in loaders]
        batches = [first + second for first, second in zip(*halves, strict=True)]
        assert batches == take(5, InMemoryLoader(ARRAYS, 10, 7).train())
        seen = [
            np.asarray(batch["label"])[np.asarray(batch["weight"]) == 1].tolist()
            for loader in loaders
            for batch in loader.test()
        ]
        assert sorted(itertools.chain(*seen)) == list(range(NUM_TEST))
        probe = indices_of(loaders[0].probe(20, 0)) + indices_of(loaders[1].probe(20, 0))
        assert sorted(probe) == sorted(indices_of(GrainLoader(data, 10, 7).probe(20, 0)))


@pytest.mark.slow
def test_two_jax_processes_form_global_batches(tmp_path):
    """Two processes with two devices each, connected by `jax.distributed`."""
    program = """
import json, sys, jax
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from dropcluster_jax.data import InMemoryLoader, GrainLoader, load
sharding = NamedSharding(jax.make_mesh((4,), ("batch",), axis_types=(AxisType.Auto,)), PartitionSpec("batch"))
digits, results = load("digits"), []
for make in (InMemoryLoader, GrainLoader):
    loader = make(digits, 16, 3, sharding=sharding)
    batches = loader.train()
    labels = [next(batches)["label"] for _ in range(2)]
    batches.close()
    count = sum(float(jax.numpy.sum(batch["weight"])) for batch in loader.test())
    results.append([[multihost_utils.process_allgather(label, tiled=True).tolist() for label in labels], count])
with open(sys.argv[3], "w") as file:  # Gloo prints to the standard output
    json.dump(results, file)
"""
    address = f"127.0.0.1:{portpicker.pick_unused_port()}"
    files = [tmp_path / "0.json", tmp_path / "1.json"]
    processes = [
        subprocess.Popen([sys.executable, "-c", program, address, str(index), file], stderr=subprocess.PIPE, text=True)
        for index, file in enumerate(files)
    ]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    batches = InMemoryLoader(load("digits"), 16, 3).train()
    expected = [[next(batches)["label"].tolist() for _ in range(2)], 360.0]
    assert [json.loads(file.read_text()) for file in files] == [[expected, expected]] * 2


@pytest.mark.slow
def test_workers_and_threads_read_the_same_batches(tmp_path):
    for i in range(8):
        (tmp_path / "images" / "a").mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / "a" / f"{i}.png").write_bytes(encoded(np.roll(PHOTO, 9 * i, 1)[:60, :80]))
    program = tmp_path / "program.py"  # Grain starts its workers from the main program's file.
    program.write_text("""
import sys
import numpy as np
from dropcluster_jax.data import GrainLoader, load

def take_images(data, workers):
    batches = GrainLoader(data, 2, random_crop=True, flip=True, workers=workers).train()
    images = np.stack([np.asarray(next(batches)["image"]) for _ in range(7)])
    batches.close()
    return images

if __name__ == "__main__":
    data = load(f"folder:{sys.argv[1]}", image_size=8)
    np.testing.assert_array_equal(take_images(data, 2), take_images(data, 0))
""")
    run = subprocess.run([sys.executable, program, tmp_path / "images"], capture_output=True, text=True, check=False)
    assert run.returncode == 0 and run.stdout == run.stderr == "", run.stderr


def test_corrupt_images_stop_the_stream(tmp_path):
    for index in range(6):
        (tmp_path / "a").mkdir(exist_ok=True)
        corrupt = index in (1, 2, 4)
        (tmp_path / "a" / f"{index}.png").write_bytes(CORRUPT["truncated"][0] if corrupt else encoded(PHOTO))
    loader = GrainLoader(load(f"folder:{tmp_path}", image_size=4, test_fraction=0.5), 2)
    for batches in (loader.train(), loader.test()):
        with pytest.raises(CorruptImageError, match=r"/a/\d\.png cannot be read as a JPEG"):
            list(itertools.islice(batches, 3))


def test_auto_chooses_the_loader_by_size(files, monkeypatch):
    assert isinstance(make_loader(ARRAYS, 4), InMemoryLoader)
    assert isinstance(make_loader(ARRAYS, 4, loader="grain"), GrainLoader)
    assert isinstance(make_loader(files, 4), GrainLoader)
    with pytest.raises(ValueError, match="loader must be 'grain' or 'auto' for 'folder:"):
        make_loader(files, 4, loader="memory")
    monkeypatch.setattr(choice, "_DEFAULT_LIMIT", 10)
    assert isinstance(make_loader(ARRAYS, 4), GrainLoader)


def test_states_of_other_iterators_raise():
    batches = InMemoryLoader(ARRAYS, 10, 7).train()
    state = batches.get_state()
    for other in ({**state, "num_examples": 99}, {**state, "batch_size": 99}, {**state, "seed": 99}, {"epoch": 1}):
        with pytest.raises(ValueError, match=r"state must contain epoch, batch, and .*'num_examples': 50, .*, got "):
            batches.set_state(other)


@pytest.mark.bad_input
def test_invalid_arguments_raise(files):
    with pytest.raises(ValueError, match=r"batch_size must be a multiple of the 8 devices .* got 12"):
        InMemoryLoader(ARRAYS, 12, sharding=batch_sharding(8))
    with pytest.raises(ValueError, match=r"batch_size must be a multiple of the 8 devices .* got 12"):
        GrainLoader(ARRAYS, 12, sharding=batch_sharding(8))
    for loader in (InMemoryLoader(ARRAYS, 4), GrainLoader(ARRAYS, 4)):
        with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
            next(loader.test(0))
    with pytest.raises(ValueError, match="workers must be at least 0, got -1"):
        GrainLoader(ARRAYS, 4, workers=-1)
    with pytest.raises(ValueError, match="loader must be 'auto', 'memory' or 'grain', got 'disk'"):
        make_loader(ARRAYS, 4, loader="disk")


def test_missing_grain_raises_with_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    assert next(make_loader(ARRAYS, 4).train())["image"].shape == (4, 2, 3, 1)
    with pytest.raises(ImportError, match=r'Grain is not installed: pip install .*"grain>='):
        make_loader(ARRAYS, 4, loader="grain")
