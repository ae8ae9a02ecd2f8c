"""What is loaded is what is stored, and what cannot be loaded is said in one clear line."""

import io
import logging
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from image_files import encoded
from tfds_folders import prepare

from dropcluster_jax.data import CorruptImageError, load


def test_cifar10_is_what_tfds_reads(tfds_dir):
    import tensorflow_datasets as tfds

    data = load("cifar10", tfds_dir, train_split="train[:300]", test_split="test[-40:]")
    assert data.name == "cifar10" and data.classes[:2] == ("airplane", "automobile") and data.spec.num_classes == 10
    for split, images, labels in (
        ("train[:300]", data.train.images, data.train.labels),
        ("test[-40:]", data.test.images, data.test.labels),
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
    assert len(by_environment.train.labels) == 3 and len(by_environment.test.labels) == 2


def test_prepared_files_are_read_by_default_from_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    prepare(tmp_path / "tensorflow_datasets")
    data = load("tiny")
    assert data.train.images.shape == (6, 4, 5, 3) and data.classes == ("cat", "dog")
    assert data.train.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert data.train.labels.tolist() == [0, 1, 0, 1, 0, 1]


def test_who_never_used_tfds_is_told_what_to_do(tmp_path, monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"`tfds build mnist --data_dir {tmp_path}/tensorflow_datasets "):
        load("mnist")


def test_the_newest_version_is_read_unless_one_is_named(tmp_path):
    prepare(tmp_path, version="9.0.0", sizes=[(9, 9, 3)])
    prepare(tmp_path, version="10.0.0", sizes=[(2, 2, 3)])
    (tmp_path / "tiny" / "incomplete.ABC_11.0.0").mkdir()
    assert load("tiny", tmp_path).train.images.shape == (1, 2, 2, 3)
    assert load("tiny:9.0.0", tmp_path).train.images.shape == (1, 9, 9, 3)


def test_a_configuration_is_named_never_guessed(tmp_path):
    prepare(tmp_path, config="red")
    prepare(tmp_path, config="blue")
    assert load("tiny/red", tmp_path).train.images.shape == (6, 4, 5, 3)
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
    with pytest.raises(ValueError, match=r"name must be .* or NAME\[/CONFIG\]\[:VERSION\]"):
        load(name, tmp_path)


@pytest.mark.parametrize("split", ["validation", "train[", "train[:100]", "train[:0]", "train[5:2]"])
def test_a_split_that_is_not_there_is_refused(split, tmp_path):
    splits = "train_split must be a split of 'tiny', train (6 examples), test (6 examples), or a part of one"
    with pytest.raises(ValueError, match=re.escape(f"{splits}, got {split!r}: ")):
        load("tiny", prepare(tmp_path), train_split=split)


def test_images_of_unequal_size_are_refused(tmp_path):
    prepare(tmp_path, sizes=[(4, 5, 3), (4, 5, 3), (7, 5, 3)])
    with pytest.raises(
        ValueError, match=r"images of 'tiny/train' must be of one size, got \(4, 5, 3\), \(7, 5, 3\); an `image_size`"
    ):
        load("tiny", tmp_path)
    with pytest.raises(ValueError, match=r"images of 'tiny' must be of one size, got \(4, 5, 3\), \(7, 5, 3\)"):
        load("tiny", tmp_path, train_split="train[:2]", test_split="test[2:]")


def test_grey_images_keep_their_one_channel_and_other_channels_are_refused(tmp_path):
    import tensorflow_datasets as tfds

    label = tfds.features.ClassLabel(names=["cat", "dog"])
    gray = {"image": tfds.features.Image(shape=(4, 5, 1)), "label": label}
    data = load("gray", prepare(tmp_path, name="gray", sizes=[(4, 5)] * 3, features=gray))
    assert data.train.images.shape == (3, 4, 5, 1) and data.train.images[:, 1, 2, 0].tolist() == [0, 1, 2]
    four = {"image": tfds.features.Image(shape=(4, 5, 4)), "label": label}
    with pytest.raises(ValueError, match="images of 'four' must have 1 or 3 channels, got 4"):
        load("four", prepare(tmp_path, name="four", sizes=[(4, 5, 4)], features=four))


def test_what_was_read_once_is_read_from_the_cache_until_the_files_change(tmp_path, monkeypatch):
    from dropcluster_jax.data.datasets import tfds as prepared

    prepare(tmp_path)
    first = load("tiny", tmp_path)
    monkeypatch.setattr(prepared, "decode_all", lambda *_: pytest.fail("decoded again"))
    again = load("tiny", tmp_path)
    for one, other in ((first.train, again.train), (first.test, again.test)):
        for array, same in ((one.images, other.images), (one.labels, other.labels)):
            np.testing.assert_array_equal(array, same)
            assert not array.flags.writeable and not same.flags.writeable
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "tiny")
    prepare(tmp_path, labels=[1] * 6)
    assert load("tiny", tmp_path).train.labels.tolist() == [1] * 6


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
    with pytest.raises(ImportError, match=rf'{package} is not installed: pip install "dropcluster-jax\[train\]"'):
        load(name, tmp_path)


def test_the_import_is_light_and_loading_is_quiet(tmp_path):
    """In a process of its own, where TFDS would log its hint, as it does once in a process."""
    program = f"""
import sys
import dropcluster_jax.data
heavy = {{"sklearn", "tensorflow_datasets", "tensorflow", "flax", "PIL"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
data = dropcluster_jax.data.load("tiny", {prepare(tmp_path)!r})
assert len(data.train.images) == 6 and "tensorflow" not in sys.modules
"""
    root = pathlib.Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=root, capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout == run.stderr == "", run.stderr


def test_loading_leaves_logging_as_it_was(tmp_path):
    logger = logging.getLogger("absl")
    before = list(logger.filters), logger.level, logger.disabled
    load("tiny", prepare(tmp_path))
    assert (list(logger.filters), logger.level, logger.disabled) == before


def test_what_is_known_of_a_data_set_is_used_and_must_be_true(tmp_path):
    prepare(tmp_path, name="cifar10")
    with pytest.raises(ValueError, match="'cifar10' has 10 classes, what is prepared as such has 2"):
        load("cifar10", tmp_path)


def test_the_usual_configuration_may_be_left_out(tmp_path):
    import tensorflow_datasets as tfds

    image = tfds.features.Image(shape=(None, None, 3))
    features = {"image": image, "label": tfds.features.ClassLabel(num_classes=10)}
    prepare(tmp_path, name="imagenette", config="160px-v2", features=features)
    with pytest.raises(ValueError, match="which configuration of imagenette, one of 160px-v2"):
        load("imagenette", tmp_path, test_split="test")
    prepare(tmp_path, name="imagenette", config="full-size-v2", features=features, sizes=[(4, 5, 3), (6, 4, 3)])
    data = load("imagenette", tmp_path, test_split="test")
    assert data.image_size == 224 and data.spec.image_shape == (224, 224, 3) and len(data.train) == 2
    assert list(data.spec.mean) == pytest.approx([0.485, 0.456, 0.406])


@pytest.mark.parametrize("encoded", [False, True], ids=["decoded", "encoded"])
def test_a_share_of_the_training_set_is_taken_and_the_test_set_left_whole(tmp_path, encoded):
    prepare(tmp_path, sizes=[(4, 5, 3)] * 20, labels=[0, 1] * 10)
    options = {"size": 4} if encoded else {}
    shares = [load("tiny", tmp_path, examples_per_class=n, seed=3, **options) for n in (2, 5)]
    assert [share.train.labels.tolist().count(1) for share in shares] == [2, 5]
    assert [len(share.train) for share in shares] == [4, 10] and len(shares[0].test) == 20
    if not encoded:
        small, large = ({image[0, 0, 0] for image in share.train.images} for share in shares)
        assert small < large
    same = load("tiny", tmp_path, fraction=0.2, seed=3, **options).train.labels
    np.testing.assert_array_equal(same, shares[0].train.labels)


def test_bad_records_are_skipped_and_counted_on_demand_also_from_the_cache(tmp_path):
    prepare(tmp_path, labels=[0, 1, 0, -1, 0, 1])
    for _ in range(2):
        data = load("tiny", tmp_path, skip_corrupt=True)
        assert data.train.labels.tolist() == [0, 1, 0, 0, 1] and data.train.images[3, 0, 0, 0] == 4
        assert len(data.skipped) == 2 and "tiny/train, example 3, has the label -1" in data.skipped[0]


def test_nothing_is_downloaded_unless_it_is_said_and_then_tfds_prepares_it(tmp_path, monkeypatch):
    """With a data set whose code needs no network."""
    import tensorflow_datasets as tfds

    encode = True

    class GreySquares(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            image = tfds.features.Image(shape=(4, 4, 1))
            features = {"image": image, "label": tfds.features.ClassLabel(num_classes=3)}
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(6), "test": self._generate_examples(3)}

        def _generate_examples(self, number):
            for i in range(number):
                png = io.BytesIO(encoded(np.full((4, 4), 10 * (i % 3), np.uint8)))
                yield i, {"image": png if encode else np.zeros((4, 4, 1), np.uint8), "label": i % 3}

    with pytest.raises(FileNotFoundError, match="is not prepared"):
        load("grey_squares", tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(tfds, "builder", lambda name, **options: GreySquares(**options))
    data = load("grey_squares", tmp_path, download=True)
    assert sorted(data.train.labels.tolist()) == [0, 0, 1, 1, 2, 2] and len(data.test) == 3
    np.testing.assert_array_equal(data.train.images[:, 0, 0, 0], 10 * data.train.labels)

    encode = False  # which leaves it to TFDS, which leaves it to TensorFlow
    with pytest.raises(ImportError, match="preparing 'grey_squares' takes TensorFlow"):
        load("grey_squares", tmp_path / "else", download=True)

    def fail(name, **options):
        raise RuntimeError("the host is gone")

    monkeypatch.setattr(tfds, "builder", fail)
    with pytest.raises(OSError, match=r"'other' could not be prepared in .*: RuntimeError: the host is gone"):
        load("other", tmp_path, download=True)


def test_damaged_records_and_descriptions_are_named(tmp_path):
    prepare(tmp_path, sizes=[(40, 50, 3)] * 8)
    (shard,) = tmp_path.glob("tiny/1.0.0/tiny-train*")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 8] = b"damaged!"
    shard.write_bytes(content)
    with pytest.raises(CorruptImageError, match=r"tiny/train, example \d, cannot be read"):
        load("tiny", tmp_path)
    with pytest.raises(ValueError, match=r"no image of 'tiny/train' is left: 8 were skipped, the first: .* Corrupted"):
        load("tiny", tmp_path, skip_corrupt=True)  # so small a file is damaged as a whole
    (tmp_path / "tiny" / "1.0.0" / "dataset_info.json").write_text("{")
    with pytest.raises(ValueError, match=r"tiny/1\.0\.0 cannot be read as a data set of TFDS"):
        load("tiny", tmp_path)


def test_a_share_knows_no_label_that_is_no_class(tmp_path):
    prepare(tmp_path, labels=[0, 1, 0, -1, 0, 1])
    with pytest.raises(CorruptImageError, match="example 3 of 'tiny' has a label that is no class: -1"):
        load("tiny", tmp_path, image_size=4, examples_per_class=1)
    assert (
        load("tiny", tmp_path, image_size=4, examples_per_class=2, skip_corrupt=True).train.labels.tolist().count(1)
        == 2
    )
