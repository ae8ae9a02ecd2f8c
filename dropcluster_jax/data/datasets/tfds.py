"""Images that TFDS has prepared on disk, read without TensorFlow.

Nothing is downloaded unless it is asked for. What fits one array is decoded once and then read from the cache
(`dropcluster_jax.cache`).
"""

import difflib
import os
import re
import shlex
from typing import Any

import numpy as np

from dropcluster_jax._optional import optional_import
from dropcluster_jax.cache import cached, fingerprint
from dropcluster_jax.data.dataset import DATASETS, Dataset
from dropcluster_jax.data.datasets.splits import no_split
from dropcluster_jax.data.examples import ArrayExamples, RecordExamples, decode_all, unequal

# For datasets of `DATASETS` whose test split is not called "test", or that have several configurations.
_TEST_SPLITS = {"imagenette": "validation", "imagenet2012": "validation"}
_DEFAULT_CONFIGS = {"imagenette": "full-size-v2"}


def load_tfds(
    name: str,
    data_dir: str | os.PathLike[str] | None,
    *,
    train_split: str | None,
    test_split: str | None,
    image_size: int | None,
    skip_corrupt: bool,
    download: bool,
) -> Dataset:
    """The images decoded into memory; with an `image_size`, given or known, encoded as they lie there."""
    with optional_import("tensorflow-datasets"):
        import tensorflow_datasets as tfds

    dataset, _, _ = _parse(name)
    known = DATASETS.get(dataset)
    mean_std = None if known is None else (known.mean, known.std)
    # From the files alone: `tfds.data_source(name)` goes by the code of the data set, wants the version that
    # stands there, and would download it.
    folder = _find_prepared(name, data_dir, download)
    try:
        builder = tfds.builder_from_directory(folder)
    except Exception as error:  # whatever a damaged description raises
        raise ValueError(f"{folder} cannot be read as a data set of TFDS: {error}") from error
    features: Any = builder.info.features
    image, label = (dict(features).get(key) for key in ("image", "label"))
    if not (isinstance(image, tfds.features.Image) and image.np_dtype == np.uint8):
        raise ValueError(f'{name!r} must have a feature "image", a uint8 image, but has {_describe(features)}')
    if not (isinstance(label, tfds.features.ClassLabel) and label.num_classes):
        raise ValueError(f'{name!r} must have a feature "label", one class of several, but has {_describe(features)}')
    classes = tuple(label.names)
    if known is not None and len(classes) != known.num_classes:
        raise ValueError(f"{name!r} has {known.num_classes} classes, what is prepared as such has {len(classes)}")
    shape: Any = image.shape
    channels = shape[-1] or 3
    if channels not in (1, 3):
        raise ValueError(f"the images of {name!r} must have 1 or 3 channels, got {channels}")

    if known is not None:
        if known.encoded and image_size is None:
            image_size = known.image_shape[0]
    if test_split is None:
        test_split = _TEST_SPLITS.get(dataset, "test")
    train = _open_split(name, builder, "train_split", "train" if train_split is None else train_split)
    test = _open_split(name, builder, "test_split", test_split)
    if image_size is not None:
        return Dataset(name, train, test, classes, image_size, test_split, mean_std)
    (train, bad), (test, also_bad) = (_decode(part, channels, len(classes), skip_corrupt) for part in (train, test))
    if train.shape != test.shape:
        raise unequal(name, [train.shape, test.shape])
    return Dataset(name, train, test, classes, None, test_split, mean_std, (*bad, *also_bad))


def _parse(name: str) -> tuple[str, str | None, str | None]:
    """The data set, its configuration and its version."""
    match = re.fullmatch(r"(\w+)(?:/([^/:]+))?(?::(\d+\.\d+\.\d+))?", name)
    if match is None:
        raise ValueError(
            f'name must be "digits", folder:PATH, npz:PATH, or NAME[/CONFIG][:VERSION] of a TFDS data set, got {name!r}'
        )
    dataset, config, version = match.groups()
    return dataset, config, version


def is_prepared(name: str, data_dir: str | os.PathLike[str] | None) -> bool:
    """Whether TFDS has prepared a data set in a folder, or where `load` would look without one.

    Raises:
        FileNotFoundError: `data_dir` is given, and no folder.
    """
    root, found_by = _root(data_dir)
    if data_dir is not None and not root.is_dir():
        raise FileNotFoundError(f"{found_by} must be a folder that holds data sets, and {root} is none")
    return _newest(root, name) is not None


def _root(data_dir: str | os.PathLike[str] | None) -> tuple[Any, str]:
    """Where data sets are looked for, and what says so."""
    from etils import epath  # comes with TFDS; also reads gs://

    if data_dir is not None:
        found_by = "data_dir"
    elif os.environ.get("TFDS_DATA_DIR"):
        data_dir, found_by = os.environ["TFDS_DATA_DIR"], "the environment variable TFDS_DATA_DIR"
    else:
        data_dir, found_by = "~/tensorflow_datasets", "the default of data_dir"
    return epath.Path(data_dir).expanduser(), found_by


def _find_prepared(name: str, data_dir: str | os.PathLike[str] | None, download: bool) -> Any:
    """The folder `data_dir/NAME[/CONFIG]/VERSION` that holds the data set."""
    root, found_by = _root(data_dir)
    if found_by != "the default of data_dir" and not root.is_dir() and not download:
        raise FileNotFoundError(f"{found_by} must be a folder that holds data sets, and {root} is none")

    found = _newest(root, name)
    if found is None and download:
        _download(name, root)
        found = _newest(root, name)
    if found is None:
        # The file format is not the default, and the only one but Parquet that is read without TensorFlow.
        command = f"tfds build {shlex.quote(name)} --data_dir {shlex.quote(str(root))} --file_format array_record"
        meant = difflib.get_close_matches(name, DATASETS, n=1)
        hint = f"did you mean {meant[0]!r}? " if meant and name not in DATASETS else ""
        raise FileNotFoundError(
            f"{name!r} is not prepared in {root} ({found_by}): {hint}`{command}` prepares it, or --data.download, "
            'where TensorFlow is installed; "digits" is embedded and needs no files'
        )
    return found


def _newest(root: Any, name: str) -> Any:
    """The folder of the newest version, or of the one that `name` says; None where there is none."""
    dataset, config, version = _parse(name)
    folder = root / dataset / config if config else root / dataset
    versions = [
        info.parent
        for info in folder.glob("*/dataset_info.json")
        if re.fullmatch(r"\d+\.\d+\.\d+", info.parent.name) and version in (None, info.parent.name)
    ]
    if versions:
        return max(versions, key=lambda path: tuple(map(int, path.name.split("."))))
    configs = sorted({info.parent.parent.name for info in folder.glob("*/*/dataset_info.json")})
    if _DEFAULT_CONFIGS.get(dataset) in configs:
        return _newest(root, name.replace(dataset, f"{dataset}/{_DEFAULT_CONFIGS[dataset]}", 1))
    if configs:
        raise ValueError(f"name must say which configuration of {dataset}, one of {', '.join(configs)}; got {name!r}")
    return None


def _download(name: str, root: Any) -> None:
    """Download and prepare, by TFDS's own code of the data set."""
    import tensorflow_datasets as tfds

    try:
        tfds.builder(name, data_dir=root, file_format="array_record").download_and_prepare()
    except ImportError as error:
        raise ImportError(
            f"preparing {name!r} takes TensorFlow, with which TFDS encodes images: pip install tensorflow"
        ) from error
    except Exception as error:  # whatever the code of a data set raises: no network, a changed file, no space
        reason = str(error).strip().splitlines() or [""]
        raise OSError(f"{name!r} could not be prepared in {root}: {type(error).__name__}: {reason[0]}") from error


def _open_split(name: str, builder: Any, argument: str, split: str) -> RecordExamples:
    """The examples of one split, encoded."""
    import tensorflow_datasets as tfds

    try:
        info = builder.info.splits[split]
        if info.num_examples < 1:
            raise ValueError("it is empty")
        source = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    except NotImplementedError as error:  # what TFDS raises for formats that only TensorFlow reads
        raise ValueError(
            f"{name!r} is prepared as {builder.info.file_format.value}, which only TensorFlow reads: prepare "
            "it by `tfds build` with `--file_format array_record`"
        ) from error
    except ValueError as error:
        sizes = {part: info.num_examples for part, info in builder.info.splits.items()}
        raise no_split(name, argument, split, sizes, str(error).splitlines()[0]) from error
    key = (builder.info.full_name, split, *(fingerprint(path) for path in info.filepaths))
    return RecordExamples(f"{name}/{split}", source, key)


def _decode(
    records: RecordExamples, channels: int, num_classes: int, skip_corrupt: bool
) -> tuple[ArrayExamples, list[str]]:
    """The examples in memory, decoded, or from the cache."""

    def decoded() -> dict[str, np.ndarray]:
        arrays, skipped = decode_all(records.name, records, channels, num_classes, skip_corrupt)
        return {"images": arrays.images, "labels": arrays.labels, "skipped": np.array(skipped, str)}

    found = cached("images", [records.key, channels, num_classes, skip_corrupt], decoded)
    return ArrayExamples(found["images"], found["labels"]), found["skipped"].tolist()


def _describe(features: Any) -> str:
    return " ".join(", ".join(f"{key!r}: {feature}" for key, feature in sorted(features.items())).split())
