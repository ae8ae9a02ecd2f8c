"""The configuration of a dataset: which one it is, and how it is read."""

import dataclasses
import os
import pathlib
from typing import Literal

LoaderName = Literal["auto", "memory", "grain"]


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The dataset and how it is read; see `load` and `make_loader`."""

    name: str = "digits"
    """Dataset: digits (bundled with scikit-learn), the name of a prepared TFDS dataset, folder:PATH or npz:PATH."""
    dir: str | None = None
    """TFDS data directory, local or at gs://. Default: $TFDS_DATA_DIR, otherwise ~/tensorflow_datasets. For folder:PATH
    and npz:PATH, the folder that a relative PATH starts from. Default: the current one."""
    train_split: str | None = None
    """Split to train on, or a slice of it, e.g. "train[:45000]"."""
    test_split: str | None = None
    """Split to evaluate on, or a slice of it; for folders with several test folders, the name of one."""
    test_fraction: float | None = None
    """Fraction of each class to evaluate on, for folders and archives without a test split. Default: 0.2."""
    validation_fraction: float = 0.0
    """Fraction of each training class to hold out; held-out images are never trained on."""
    validation_seed: int = 0
    """Selects the images to hold out."""
    evaluate_on: Literal["test", "validation"] = "test"
    """Images to evaluate on during training: the test split, or held-out training images."""
    fraction: float | None = None
    """Train on this fraction of each class."""
    examples_per_class: int | None = None
    """Train on this number of images of each class."""
    seed: int = 0
    """Selects the training subset; smaller subsets are contained in larger ones."""
    image_size: int | None = None
    """Side in pixels to which encoded images are cropped each time they are read. Default: that of the preset, if it
    has one; otherwise all images are decoded once."""
    skip_corrupt: bool = False
    """Leave out and list images that cannot be decoded or are of an unsupported kind, instead of stopping. All images
    are checked once."""
    loader: LoaderName = "auto"
    """Keep all images on the device (memory), stream them (grain), or choose by size (auto)."""
    workers: int = 0
    """Reader processes of the grain loader. Default: threads."""

    @property
    def kind(self) -> str:
        """The kind of dataset: digits, folder, npz or tfds."""
        prefix = self.name.partition(":")[0]
        return prefix if prefix in ("folder", "npz") or self.name == "digits" else "tfds"

    @property
    def path(self) -> pathlib.Path:
        """The path of an archive or image folder, which may have been moved into `dir`.

        An absolute path is only looked up in `dir` if it does not exist.
        """
        path = self.name.partition(":")[2]
        if not path:
            raise ValueError(f"name must include a path, {self.name.rstrip(':')}:PATH, got {self.name!r}")
        base = os.path.expanduser(self.dir or "")
        stored = pathlib.Path(base, os.path.expanduser(path))
        return pathlib.Path(base, stored.name) if self.dir is not None and not stored.exists() else stored
