"""Datasets prepared by TFDS, read from disk without TensorFlow. Nothing is downloaded."""

import os
import re
import shlex
from typing import Any

import numpy as np

from dropcluster_jax._optional import optional_import
from dropcluster_jax.cache import file_stamp
from dropcluster_jax.data.config import DataConfig
from dropcluster_jax.data.dataset import DATASETS, Dataset
from dropcluster_jax.data.examples import RecordExamples

# Datasets of `DATASETS` whose test split is not named "test", or that have several configurations.
_TEST_SPLITS = {"imagenette": "validation", "imagenet2012": "validation"}
_DEFAULT_CONFIGS = {"imagenette": "full-size-v2"}


def load_tfds(config: DataConfig) -> Dataset:
    """Opens a prepared dataset; its images stay encoded."""
    with optional_import("tensorflow-datasets"):
        import tensorflow_datasets as tfds

    name = config.name
    dataset, _, _ = _parse_name(name)
    spec = DATASETS.get(dataset)
    # From the files alone: `tfds.data_source(name)` requires the version of the installed TFDS and would download it.
    folder = _find(name, config.dir)
    try:
        builder = tfds.builder_from_directory(folder)
    except Exception as error:  # Undocumented: UnicodeDecodeError, JSONDecodeError, ParseError of Protocol Buffers, ...
        raise ValueError(f"{folder} cannot be read as a TFDS dataset: {error}") from error
    classes, channels = _check_features(name, builder.info.features)
    if spec is not None and len(classes) != spec.num_classes:
        raise ValueError(f"{name!r} has {spec.num_classes} classes, but the dataset in {folder} has {len(classes)}")

    splits = {
        "train_split": "train" if config.train_split is None else config.train_split,
        "test_split": _TEST_SPLITS.get(dataset, "test") if config.test_split is None else config.test_split,
    }
    train, test = (
        _open_split(name, builder, argument, split, channels, len(classes)) for argument, split in splits.items()
    )
    image_size = config.image_size
    if image_size is None and spec is not None and spec.encoded:
        image_size = spec.image_shape[0]
    mean_std = (spec.mean, spec.std) if spec is not None and len(spec.mean) == channels else None
    return Dataset(name, train, test, classes, image_size, splits["test_split"], mean_std)


def is_prepared(name: str, data_dir: str | os.PathLike[str] | None) -> bool:
    """Returns whether TFDS has prepared a dataset in `data_dir`, by default where `load` looks for it."""
    return _newest_version(_data_dir(data_dir), name) is not None


def split_error(name: str, argument: str, split: str, reason: str) -> ValueError:
    """Returns the error for a split that the dataset does not have."""
    return ValueError(f"{argument} must be a split of {name!r} or a slice of one, got {split!r}: {reason}")


def _parse_name(name: str) -> tuple[str, str | None, str | None]:
    """Splits a name into dataset, configuration and version."""
    match = re.fullmatch(r"(\w+)(?:/([^/:]+))?(?::(\d+\.\d+\.\d+))?", name)
    if match is None:
        raise ValueError(
            f"name must be 'digits', folder:PATH, npz:PATH, or NAME[/CONFIG][:VERSION] of a TFDS dataset, got {name!r}"
        )
    dataset, config, version = match.groups()
    return dataset, config, version


def _data_dir(data_dir: str | os.PathLike[str] | None) -> Any:
    """Returns the folder of prepared datasets, which must exist unless it is the default one."""
    from etils import epath  # A dependency of TFDS that also reads Google Cloud Storage.

    setting = data_dir or os.environ.get("TFDS_DATA_DIR")
    root = os.fspath(setting or "~/tensorflow_datasets")
    if root.startswith("gs://"):
        with optional_import("gcsfs", "gcs"):
            import gcsfs  # noqa: F401
    elif "://" in root:  # ArrayRecord files are read by C++ code, which knows no other object stores.
        raise ValueError(f"dir or TFDS_DATA_DIR must be a local folder or gs://..., got {root}")
    path = epath.Path(root).expanduser()
    if setting and not path.is_dir():
        raise FileNotFoundError(f"dir or TFDS_DATA_DIR must be a folder, got {path}")
    return path


def _find(name: str, data_dir: str | None) -> Any:
    """Returns the folder `data_dir/NAME[/CONFIG]/VERSION` of a dataset."""
    root = _data_dir(data_dir)
    folder = _newest_version(root, name)
    if folder is None:
        # Besides Parquet, ArrayRecord is the only format that TFDS reads without TensorFlow. It is not the default.
        command = f"tfds build {shlex.quote(name)} --data_dir {shlex.quote(str(root))} --file_format array_record"
        raise FileNotFoundError(
            f"{name!r} is not prepared in {root} (dir or TFDS_DATA_DIR): prepare it with `{command}`, or choose one of "
            f"{', '.join(DATASETS)}, folder:PATH and npz:PATH; digits needs no files"
        )
    return folder


def _newest_version(root: Any, name: str) -> Any:
    """Returns the folder of the version in `name`, by default of the newest; None if there is none."""
    dataset, config, version = _parse_name(name)
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
        return _newest_version(root, name.replace(dataset, f"{dataset}/{_DEFAULT_CONFIGS[dataset]}", 1))
    if configs:
        raise ValueError(f"name must include a configuration of {dataset}, one of {', '.join(configs)}; got {name!r}")
    return None


def _check_features(name: str, features: Any) -> tuple[tuple[str, ...], int]:
    """Checks that a dataset contains labeled images and returns its class names and the number of channels."""
    import tensorflow_datasets as tfds

    image: Any = dict(features).get("image")
    label: Any = dict(features).get("label")
    is_image = isinstance(image, tfds.features.Image) and image.np_dtype == np.uint8
    if not (is_image and isinstance(label, tfds.features.ClassLabel) and label.num_classes):
        present = " ".join(", ".join(f"{key!r}: {feature}" for key, feature in sorted(features.items())).split())
        raise ValueError(f'{name!r} must have the features "image", uint8, and "label", a class, but has {present}')
    shape: Any = image.shape
    channels = shape[-1] or 3
    if channels not in (1, 3):
        raise ValueError(f"the images of {name!r} must have 1 or 3 channels, got {channels}")
    return tuple(label.names), channels


def _open_split(name: str, builder: Any, argument: str, split: str, channels: int, num_classes: int) -> RecordExamples:
    import tensorflow_datasets as tfds

    try:
        info = builder.info.splits[split]
        if info.num_examples < 1:
            raise ValueError("it is empty")
        source = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    except NotImplementedError as error:  # TFDS reads this file format with TensorFlow.
        raise ValueError(
            f"{name!r} is prepared as {builder.info.file_format.value}, which needs TensorFlow: prepare it again with "
            "`tfds build --file_format array_record`"
        ) from error
    except ValueError as error:
        raise split_error(name, argument, split, str(error).splitlines()[0]) from error
    files = (builder.info.full_name, split, *(file_stamp(path) for path in info.filepaths))
    return RecordExamples(f"{name}/{split}", source, files, channels, num_classes, np.arange(len(source)))
