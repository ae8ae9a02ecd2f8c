"""What is loaded is what is stored, and what cannot be loaded is said in one clear line."""

import io
import json
import logging
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from dropcluster_jax.data import Dataset, load

SIZES = [(4, 5, 3)] * 6


def prepare(data_dir, name="tiny", sizes=SIZES, labels=None, version="1.0.0", config=None, features=None, **info):
    """Write what TFDS would write, a PNG of each size in each of train and test."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter
    from etils import epath
    from PIL import Image
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    if features is None:
        image = tfds.features.Image(shape=(None, None, 3))
        features = {"image": image, "label": tfds.features.ClassLabel(names=["cat", "dog"])}
    folder = epath.Path(data_dir) / name / (config or "") / version
    folder.mkdir(parents=True)
    features = tfds.features.FeaturesDict(features)
    features.save_config(folder)
    serializer = ExampleSerializer(features.get_serialized_info())
    for split in ("train", "test"):
        writer = ArrayRecordWriter(str(folder / f"{name}-{split}.array_record-00000-of-00001"), "group_size:1")
        for i, size in enumerate(sizes):
            png = io.BytesIO()
            Image.fromarray(np.full(size, i, np.uint8)).save(png, "PNG")
            png.seek(0)
            example = {"image": png, "label": i % 2 if labels is None else labels[i]}
            example = features.encode_example({key: example[key] for key in features})
            writer.write(serializer.serialize_example(example))
        writer.close()
    splits = [
        {
            "name": split,
            "shardLengths": [str(len(sizes))],
            "numBytes": "1",
            "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        }
        for split in ("train", "test")
    ]
    about = {"name": name, "version": version, "fileFormat": "array_record", "splits": splits, **info}
    (folder / "dataset_info.json").write_text(json.dumps(about))
    return str(data_dir)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits")


def rows(images):
    return sorted(image.tobytes() for image in images)


def test_digits_are_divided_and_none_is_lost_or_doubled(digits):
    from sklearn.datasets import load_digits

    whole = load_digits()
    together = np.concatenate([digits.train_images, digits.test_images])
    assert together.dtype == np.uint8 and together.shape == (1797, 8, 8, 1)
    expected = np.array([[[round(value * 255 / 16)] for value in image.ravel()] for image in whole.images])
    assert rows(together) == rows(expected.astype(np.uint8))
    labels = np.concatenate([digits.train_labels, digits.test_labels])
    assert labels.dtype == np.int32
    with_labels = [image.tobytes() + bytes([label]) for image, label in zip(together, labels, strict=True)]
    assert sorted(with_labels) == sorted(
        image.astype(np.uint8).tobytes() + bytes([label]) for image, label in zip(expected, whole.target, strict=True)
    )


def test_each_digit_gives_a_fifth_to_the_test(digits):
    assert digits.classes == tuple("0123456789") and digits.num_classes == 10
    train, test = np.bincount(digits.train_labels), np.bincount(digits.test_labels)
    assert len(train) == len(test) == 10
    assert (abs(test - (train + test) / 5) < 1).all()


def test_digits_are_divided_the_same_each_time(digits):
    again = load("digits")
    np.testing.assert_array_equal(again.train_images, digits.train_images)
    np.testing.assert_array_equal(again.test_labels, digits.test_labels)


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train[:100]", slice(0, 100)),
        ("train[10:-20]", slice(10, -20)),
        ("train[:10%]", slice(0, 144)),
        ("train[-50%:]", slice(1437 - 718, None)),
        ("train[:]", slice(None)),
    ],
)
def test_parts_of_digits_are_those_that_tfds_would_take(digits, split, expected):
    part = load("digits", train_split=split)
    np.testing.assert_array_equal(part.train_images, digits.train_images[expected])
    np.testing.assert_array_equal(part.train_labels, digits.train_labels[expected])
    np.testing.assert_array_equal(part.test_images, digits.test_images)


@pytest.mark.parametrize("split", ["validation", "train[", "train[:2000]", "train[5:5]", "train[-2000:]", ""])
def test_parts_that_digits_do_not_have_are_refused(split):
    with pytest.raises(ValueError, match=r"test_split must be a split of 'digits', train \(1437 examples\), test"):
        load("digits", test_split=split)


def test_mean_and_deviation_are_those_of_the_training_images(digits):
    scaled = digits.train_images.astype(np.float64) / 255
    for found, expected in ((digits.mean, scaled.mean()), (digits.std, scaled.std())):
        assert found.dtype == np.float32 and found.shape == (1,)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_mean_and_deviation_hold_over_chunks_and_channels():
    """More pixels than one chunk, and values whose squares would overflow narrow sums."""
    rng = np.random.default_rng(0)
    images = rng.integers((0, 100, 254), 256, (1100, 32, 32, 3)).astype(np.uint8)
    labels = np.zeros(1100, np.int32)
    data = Dataset("noise", images, labels, images[:1], labels[:1], ("noise",))
    np.testing.assert_allclose(data.mean, images.mean((0, 1, 2)) / 255, rtol=1e-6)
    np.testing.assert_allclose(data.std, images.std((0, 1, 2), dtype=np.float64) / 255, rtol=1e-6)


def test_a_data_set_prints_in_one_line(digits):
    assert repr(digits).startswith("Dataset(name='digits', classes=('0', '1'")


def test_cifar10_is_what_tfds_reads(tfds_dir):
    import tensorflow_datasets as tfds

    data = load("cifar10", tfds_dir, train_split="train[:300]", test_split="test[-40:]")
    assert data.name == "cifar10" and data.classes[:2] == ("airplane", "automobile") and data.num_classes == 10
    for split, images, labels in (
        ("train[:300]", data.train_images, data.train_labels),
        ("test[-40:]", data.test_images, data.test_labels),
    ):
        source = tfds.data_source("cifar10", data_dir=tfds_dir, split=split)
        assert images.dtype == np.uint8 and images.shape == (len(source), 32, 32, 3)
        assert labels.dtype == np.int32
        for i in range(len(source)):
            np.testing.assert_array_equal(images[i], source[i]["image"])
            assert labels[i] == source[i]["label"]


def test_cifar10_is_found_by_the_environment(tfds_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", tfds_dir)
    by_environment = load("cifar10:3.0.2", train_split="train[:3]", test_split="test[:2]")
    assert len(by_environment.train_labels) == 3 and len(by_environment.test_labels) == 2


def test_prepared_files_are_read_by_default_from_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    prepare(tmp_path / "tensorflow_datasets")
    data = load("tiny")
    assert data.train_images.shape == (6, 4, 5, 3) and data.classes == ("cat", "dog")
    assert data.train_images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert data.train_labels.tolist() == [0, 1, 0, 1, 0, 1]


def test_who_never_used_tfds_is_told_what_to_do(tmp_path, monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"`tfds build mnist --data_dir {tmp_path}/tensorflow_datasets "):
        load("mnist")


def test_the_newest_version_is_read_unless_one_is_named(tmp_path):
    prepare(tmp_path, version="9.0.0", sizes=[(9, 9, 3)])
    prepare(tmp_path, version="10.0.0", sizes=[(2, 2, 3)])
    (tmp_path / "tiny" / "incomplete.ABC_11.0.0").mkdir()
    assert load("tiny", tmp_path).train_images.shape == (1, 2, 2, 3)
    assert load("tiny:9.0.0", tmp_path).train_images.shape == (1, 9, 9, 3)


def test_a_configuration_is_named_never_guessed(tmp_path):
    prepare(tmp_path, config="red")
    prepare(tmp_path, config="blue")
    assert load("tiny/red", tmp_path).train_images.shape == (6, 4, 5, 3)
    with pytest.raises(ValueError, match=r"which configuration of tiny, one of blue, red; got 'tiny'"):
        load("tiny", tmp_path)


def test_what_is_not_prepared_is_never_downloaded_but_named(tmp_path, monkeypatch):
    """With TFDS' own code for mnist at hand, and none for the other."""
    for name in ("mnist", "no_such_thing"):
        with pytest.raises(FileNotFoundError) as caught:
            load(name, tmp_path)
        message = str(caught.value)
        assert f"{name!r} is not prepared in {tmp_path} (data_dir)" in message
        assert f"`tfds build {name} --data_dir {tmp_path} --file_format array_record`" in message
        assert '"digits" is embedded' in message and "\n" not in message
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="the environment variable TFDS_DATA_DIR"):
        load("mnist")


def test_a_version_that_is_not_there_is_not_replaced(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"'tiny:2\.0\.0' is not prepared"):
        load("tiny:2.0.0", prepare(tmp_path))


def test_a_folder_that_is_not_there_is_named(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"data_dir must be a folder .*nowhere is none"):
        load("cifar10", tmp_path / "nowhere")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"TFDS_DATA_DIR must be a folder .*nowhere is none"):
        load("cifar10")


@pytest.mark.parametrize("name", ["", "../cifar10", "cifar10:new", "a/b/c"])
def test_a_name_that_is_none_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match=r"name must be \"digits\" or NAME\[/CONFIG\]\[:VERSION\]"):
        load(name, tmp_path)


@pytest.mark.parametrize("split", ["validation", "train[", "train[:100]", "train[:0]", "train[5:2]"])
def test_a_split_that_is_not_there_is_refused(split, tmp_path):
    splits = "train_split must be a split of 'tiny', train (6 examples), test (6 examples), or a part of one"
    with pytest.raises(ValueError, match=re.escape(f"{splits}, got {split!r}: ")):
        load("tiny", prepare(tmp_path), train_split=split)


def test_images_of_unequal_size_are_refused(tmp_path):
    prepare(tmp_path, sizes=[(4, 5, 3), (4, 5, 3), (7, 5, 3)])
    with pytest.raises(ValueError, match=r"images of 'tiny' must be of one size, got \(4, 5, 3\), \(7, 5, 3\)"):
        load("tiny", tmp_path)
    with pytest.raises(ValueError, match=r"images of 'tiny' must be of one size, got \(4, 5, 3\), \(7, 5, 3\)"):
        load("tiny", tmp_path, train_split="train[:2]", test_split="test[2:]")


def test_grey_images_keep_their_one_channel_and_other_channels_are_refused(tmp_path):
    import tensorflow_datasets as tfds

    label = tfds.features.ClassLabel(names=["cat", "dog"])
    grey = {"image": tfds.features.Image(shape=(4, 5, 1)), "label": label}
    data = load("grey", prepare(tmp_path, name="grey", sizes=[(4, 5)] * 3, features=grey))
    assert data.train_images.shape == (3, 4, 5, 1) and data.train_images[:, 1, 2, 0].tolist() == [0, 1, 2]
    four = {"image": tfds.features.Image(shape=(4, 5, 4)), "label": label}
    with pytest.raises(ValueError, match="images of 'four' must have 1 or 3 channels, got 4"):
        load("four", prepare(tmp_path, name="four", sizes=[(4, 5, 4)], features=four))


def test_what_was_read_once_is_read_from_the_cache_until_the_files_change(tmp_path, monkeypatch):
    from dropcluster_jax.data import sources

    prepare(tmp_path)
    first = load("tiny", tmp_path)
    monkeypatch.setattr(sources, "decode_all", lambda *_: pytest.fail("decoded again"))
    again = load("tiny", tmp_path)
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name))
        assert not getattr(first, name).flags.writeable and not getattr(again, name).flags.writeable
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "tiny")
    prepare(tmp_path, labels=[1] * 6)
    assert load("tiny", tmp_path).train_labels.tolist() == [1] * 6


def test_labels_that_are_no_class_are_refused(tmp_path):
    prepare(tmp_path, labels=[0, 1, 0, -1, 0, 1])
    with pytest.raises(ValueError, match="tiny/train, example 3, has the label -1, labels must be from 0 to 1"):
        load("tiny", tmp_path)


@pytest.mark.parametrize("missing", ["image", "label", "one label", "8 bits"])
def test_data_of_another_kind_is_refused(missing, tmp_path):
    import tensorflow_datasets as tfds

    image, label = tfds.features.Image(shape=(4, 5, 3)), tfds.features.ClassLabel(num_classes=2)
    features = {
        "image": {"label": label},
        "label": {"image": image},
        "one label": {"image": image, "label": tfds.features.Sequence(label)},
        "8 bits": {"image": tfds.features.Image(shape=(4, 5, 1), dtype=np.uint16), "label": label},
    }[missing]
    needed, found = "image" if missing in ("image", "8 bits") else "label", min(features)
    prepare(tmp_path, sizes=[], features=features)
    with pytest.raises(ValueError, match=f"'tiny' must have a feature \"{needed}\", .* but has '{found}': "):
        load("tiny", tmp_path)


def test_files_that_only_tensorflow_reads_are_refused(tmp_path):
    prepare(tmp_path, fileFormat="tfrecord")
    with pytest.raises(ValueError, match=r"'tiny' is prepared as tfrecord, .*`--file_format array_record"):
        load("tiny", tmp_path)


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [("digits", "sklearn.datasets", "scikit-learn"), ("tiny", "tensorflow_datasets", "tensorflow-datasets")],
)
def test_a_missing_extra_is_named(name, module, package, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf'{package} cannot .*pip install "dropcluster-jax\[train\]"'):
        load(name, tmp_path)


def test_the_import_is_light_and_loading_is_quiet(tmp_path):
    """In a process of its own, where TFDS would log its hint, as it does once in a process."""
    program = f"""
import sys
import dropcluster_jax.data
heavy = {{"sklearn", "tensorflow_datasets", "tensorflow", "flax", "PIL"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
data = dropcluster_jax.data.load("tiny", {prepare(tmp_path)!r})
assert len(data.train_images) == 6 and "tensorflow" not in sys.modules
"""
    root = pathlib.Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=root, capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout == run.stderr == "", run.stderr


def test_loading_leaves_logging_as_it_was(tmp_path):
    logger = logging.getLogger("absl")
    before = list(logger.filters), logger.level, logger.disabled
    load("tiny", prepare(tmp_path))
    assert (list(logger.filters), logger.level, logger.disabled) == before
