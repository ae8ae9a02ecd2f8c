"""Data for training: where images come from, how they get to the device, and how they are varied.

`load` opens a data set; `make_loader` gives its batches, from arrays on the device or streamed by Grain; `random_flip`,
`random_shift`, `random_cutout`, `random_resized_crop`, `mixup`, `cutmix` and `normalize` are JAX functions for the
training step; `corrupt` makes test images worse. Files, data sets and streams need `pip install
"dropcluster-jax[train]"`.
"""

from dropcluster_jax.data.augment import normalize, random_cutout, random_flip, random_resized_crop, random_shift
from dropcluster_jax.data.corrupted import corrupted_test
from dropcluster_jax.data.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS, corrupt
from dropcluster_jax.data.dataset import DATASETS, Dataset, DatasetSpec
from dropcluster_jax.data.datasets import fake_data, load
from dropcluster_jax.data.decoding import CorruptImageError
from dropcluster_jax.data.examples import ArrayExamples
from dropcluster_jax.data.loaders import BatchIterator, GrainLoader, InMemoryLoader, Loader, make_loader
from dropcluster_jax.data.mixing import cutmix, mixup
from dropcluster_jax.data.subsets import stratified_split, stratified_subset

__all__ = [
    "CORRUPTIONS",
    "EXTRA_CORRUPTIONS",
    "DATASETS",
    "ArrayExamples",
    "CorruptImageError",
    "BatchIterator",
    "Dataset",
    "DatasetSpec",
    "InMemoryLoader",
    "Loader",
    "GrainLoader",
    "stratified_split",
    "stratified_subset",
    "corrupt",
    "corrupted_test",
    "cutmix",
    "fake_data",
    "load",
    "mixup",
    "normalize",
    "make_loader",
    "random_cutout",
    "random_flip",
    "random_resized_crop",
    "random_shift",
]
