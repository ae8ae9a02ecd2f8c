import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from tfds_folders import prepare

from dropcluster_jax.data import CorruptImageError, load


def test_cifar10_equals_the_tfds_data_source(tfds_dir):
    import tensorflow_datasets as tfds

    data = load("cifar10", dir=tfds_dir, train_split="train[:300]", test_split="test[-40:]")
    assert data.name == "cifar10" and data.classes[:2] == ("airplane", "automobile") and data.spec.num_classes == 10
    for split, examples in (("train[:300]", data.train), ("test[-40:]", data.test)):
        source = tfds.data_source("cifar10", data_dir=tfds_dir, split=split)
        assert examples.images.dtype == np.uint8 and examples.images.shape == (len(source), 32, 32, 3)
        assert examples.labels.dtype == np.int32
        for i in range(len(source)):
            np.testing.assert_array_equal(examples.images[i], source[i]["image"])
            assert examples.labels[i] == source[i]["label"]


def test_default_data_dir_is_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"`tfds build tiny --data_dir {tmp_path}/tensorflow_datasets "):
        load("tiny")
    prepare(tmp_path / "tensorflow_datasets")
    data = load("tiny")
    assert data.train.images.shape == (6, 4, 5, 3) and data.classes == ("cat", "dog")
    assert data.train.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert data.train.labels.tolist() == [0, 1, 0, 1, 0, 1]


def test_newest_version_is_the_default(tmp_path):
    prepare(tmp_path, version="9.0.0", sizes=[(9, 9, 3)])
    prepare(tmp_path, version="10.0.0", sizes=[(2, 2, 3)])
    (tmp_path / "tiny" / "incomplete.ABC_11.0.0").mkdir()
    assert load("tiny", dir=tmp_path).train.images.shape == (1, 2, 2, 3)
    assert load("tiny:9.0.0", dir=tmp_path).train.images.shape == (1, 9, 9, 3)
    with pytest.raises(FileNotFoundError, match=r"'tiny:2\.0\.0' is not prepared"):
        load("tiny:2.0.0", dir=tmp_path)


def test_ambiguous_configuration_raises(tmp_path):
    prepare(tmp_path, config="red")
    prepare(tmp_path, config="blue")
    assert load("tiny/red", dir=tmp_path).train.images.shape == (6, 4, 5, 3)
    with pytest.raises(ValueError, match=r"include a configuration of tiny, one of blue, red; got 'tiny'"):
        load("tiny", dir=tmp_path)


@pytest.mark.parametrize("name", ["mnist", "no_such_thing"])  # With and without a builder in TFDS.
def test_missing_dataset_is_not_downloaded_and_the_error_contains_the_command(name, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError) as info:
        load(name, dir=tmp_path)
    message = str(info.value)
    assert f"{name!r} is not prepared in {tmp_path} (dir or TFDS_DATA_DIR)" in message
    assert f"`tfds build {name} --data_dir {tmp_path} --file_format array_record`" in message
    assert message.endswith("imagenet2012, folder:PATH and npz:PATH; digits needs no files") and "\n" not in message
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="is not prepared in"):
        load(name)


def test_missing_data_dir_raises(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"dir or TFDS_DATA_DIR must be a folder, got .*nowhere"):
        load("cifar10", dir=tmp_path / "nowhere")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"TFDS_DATA_DIR must be a folder, got .*nowhere"):
        load("cifar10")


@pytest.mark.parametrize("name", ["", "../cifar10", "cifar10:new", "a/b/c"])
def test_invalid_names_raise(name, tmp_path):
    with pytest.raises(ValueError, match=r"name must be .* or NAME\[/CONFIG\]\[:VERSION\]"):
        load(name, dir=tmp_path)


@pytest.mark.parametrize("split", ["validation", "train[", "train[:100]", "train[:0]", "train[5:2]"])
def test_invalid_splits_raise(split, tmp_path):
    message = rf"train_split must be a split of 'tiny' or a slice of one, got {re.escape(repr(split))}: [^\n]+$"
    with pytest.raises(ValueError, match=message):
        load("tiny", dir=prepare(tmp_path), train_split=split)


def test_images_of_different_sizes_raise(tmp_path):
    prepare(tmp_path, sizes=[(4, 5, 3), (4, 5, 3), (7, 5, 3)])
    message = r"must have the same size, got \(4, 5, 3\), \(7, 5, 3\); set `image_size`"
    with pytest.raises(ValueError, match=f"train images of 'tiny' {message}"):
        load("tiny", dir=tmp_path)
    with pytest.raises(ValueError, match="must have the same shape"):
        load("tiny", dir=tmp_path, train_split="train[:2]", test_split="test[2:]")


def test_grayscale_images_keep_one_channel(tmp_path):
    import tensorflow_datasets as tfds

    features = {"image": tfds.features.Image(shape=(4, 5, 1)), "label": tfds.features.ClassLabel(num_classes=2)}
    data = load("gray", dir=prepare(tmp_path, name="gray", sizes=[(4, 5)] * 3, features=features))
    assert data.train.images.shape == (3, 4, 5, 1) and data.train.images[:, 1, 2, 0].tolist() == [0, 1, 2]


def test_images_with_four_channels_raise(tmp_path):
    import tensorflow_datasets as tfds

    features = {"image": tfds.features.Image(shape=(4, 5, 4)), "label": tfds.features.ClassLabel(num_classes=2)}
    prepare(tmp_path, name="four", sizes=[(4, 5, 4)], features=features)
    with pytest.raises(ValueError, match="images of 'four' must have 1 or 3 channels, got 4"):
        load("four", dir=tmp_path)


def test_decoded_images_are_cached_until_the_files_change(tmp_path, monkeypatch):
    from dropcluster_jax.data import reading as module

    prepare(tmp_path)
    first = load("tiny", dir=tmp_path)
    monkeypatch.setattr(module, "read_block", lambda *_: pytest.fail("decoded again"))
    again = load("tiny", dir=tmp_path)
    for expected, examples in ((first.train, again.train), (first.test, again.test)):
        np.testing.assert_array_equal(examples.images, expected.images)
        np.testing.assert_array_equal(examples.labels, expected.labels)
        for array in (expected.images, expected.labels, examples.images, examples.labels):
            assert not array.flags.writeable
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "tiny")
    prepare(tmp_path, labels=[1] * 6)
    assert load("tiny", dir=tmp_path).train.labels.tolist() == [1] * 6


def test_invalid_labels_raise_or_are_skipped(tmp_path):
    prepare(tmp_path, labels=[0, 1, 0, -1, 0, 1])
    with pytest.raises(CorruptImageError, match=r"tiny/train, example 3, has the label -1, labels must be in \[0, 2\)"):
        load("tiny", dir=tmp_path)
    for _ in range(2):  # Decoded, and from the cache.
        data = load("tiny", dir=tmp_path, skip_corrupt=True)
        assert data.train.labels.tolist() == [0, 1, 0, 0, 1] and data.train.images[3, 0, 0, 0] == 4
        assert len(data.skipped) == 2 and "tiny/train, example 3, has the label -1" in data.skipped[0]


@pytest.mark.parametrize("kind", ["no image", "no label", "several labels", "16 bits"])
def test_datasets_without_labeled_8_bit_images_raise(kind, tmp_path):
    import tensorflow_datasets as tfds

    image, label = tfds.features.Image(shape=(4, 5, 3)), tfds.features.ClassLabel(num_classes=2)
    features = {
        "no image": {"label": label},
        "no label": {"image": image},
        "several labels": {"image": image, "label": tfds.features.Sequence(label)},
        "16 bits": {"image": tfds.features.Image(shape=(4, 5, 1), dtype=np.uint16), "label": label},
    }[kind]
    prepare(tmp_path, sizes=[], features=features)
    with pytest.raises(ValueError, match=f"'tiny' must have the features \"image\", .* but has '{min(features)}': "):
        load("tiny", dir=tmp_path)


def test_formats_that_need_tensorflow_raise(tmp_path):
    prepare(tmp_path, fileFormat="tfrecord")
    with pytest.raises(ValueError, match=r"'tiny' is prepared as tfrecord, .*`tfds build --file_format array_record"):
        load("tiny", dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [("digits", "sklearn.datasets", "scikit-learn"), ("tiny", "tensorflow_datasets", "tensorflow-datasets")],
)
def test_missing_packages_raise_with_the_install_command(name, module, package, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf'{package} is not installed: pip install .*"{package}>='):
        load(name, dir=tmp_path)


def test_import_is_light_and_loading_prints_nothing(tmp_path):
    program = f"""
import sys
import dropcluster_jax.data
heavy = {{"sklearn", "tensorflow_datasets", "tensorflow", "flax", "PIL"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
data = dropcluster_jax.data.load("tiny", dir={prepare(tmp_path)!r})
assert len(data.train.images) == 6 and "tensorflow" not in sys.modules
"""
    root = pathlib.Path(__file__).parents[2]
    # In a new process, because TFDS logs a hint only once per process.
    run = subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=root, capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout == run.stderr == "", run.stderr


def test_known_dataset_with_other_classes_raises(tmp_path):
    prepare(tmp_path, name="cifar10")
    with pytest.raises(ValueError, match=r"'cifar10' has 10 classes, but the dataset in .*cifar10.* has 2"):
        load("cifar10", dir=tmp_path)


def test_default_configuration_of_imagenette(tmp_path):
    import tensorflow_datasets as tfds

    image = tfds.features.Image(shape=(None, None, 3))
    features = {"image": image, "label": tfds.features.ClassLabel(num_classes=10)}
    prepare(tmp_path, name="imagenette", config="160px-v2", features=features)
    with pytest.raises(ValueError, match="include a configuration of imagenette, one of 160px-v2"):
        load("imagenette", dir=tmp_path, test_split="test")
    prepare(tmp_path, name="imagenette", config="full-size-v2", features=features, sizes=[(4, 5, 3), (6, 4, 3)])
    data = load("imagenette", dir=tmp_path, test_split="test")
    assert data.image_size == 224 and data.spec.image_shape == (224, 224, 3) and len(data.train) == 2
    assert list(data.spec.mean) == pytest.approx([0.485, 0.456, 0.406])


def test_damaged_records_raise(tmp_path):
    prepare(tmp_path, sizes=[(40, 50, 3)] * 8)
    (shard,) = tmp_path.glob("tiny/1.0.0/tiny-train*")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 8] = b"damaged!"
    shard.write_bytes(content)
    with pytest.raises(CorruptImageError, match=r"tiny/train, example \d, cannot be read"):
        load("tiny", dir=tmp_path)
    # ArrayRecord rejects such a small file as a whole.
    with pytest.raises(ValueError, match=r"all train images of 'tiny' were skipped, the first: .* Corrupted"):
        load("tiny", dir=tmp_path, skip_corrupt=True)


def test_damaged_description_raises(tmp_path):
    prepare(tmp_path)
    (tmp_path / "tiny" / "1.0.0" / "dataset_info.json").write_text("{")
    with pytest.raises(ValueError, match=r"tiny/1\.0\.0 cannot be read as a TFDS dataset"):
        load("tiny", dir=tmp_path)


@pytest.mark.parametrize("image_size", [None, 4], ids=["arrays", "encoded"])
def test_fingerprint_does_not_depend_on_the_location(tmp_path, image_size):
    for folder in ("old", "new"):
        prepare(tmp_path / folder, sizes=[(4, 5, 3)] * 12, labels=[0, 1] * 6)
    old, new = (load("tiny", dir=tmp_path / folder, image_size=image_size) for folder in ("old", "new"))
    assert not old.spec.differences(new.spec)
    for options in ({"test_split": "test[:5]"}, {"validation_fraction": 0.3, "evaluate_on": "validation"}):
        other = load("tiny", dir=tmp_path / "old", image_size=image_size, **options)
        assert "the test examples are different" in old.spec.differences(other.spec)
