"""Datasets, loaders, augmentation and corruptions.

`load` opens a dataset and `make_loader` yields its batches, from device memory or streamed by Grain. `random_flip`,
`random_shift`, `random_cutout`, `random_resized_crop`, `mixup`, `cutmix` and `normalize` are JAX functions for the
training step. `corrupt` and `corrupted_test` corrupt test images to measure robustness. Datasets and streaming need
the extra `train`.
"""

from dropcluster_jax.data.augment import normalize, random_cutout, random_flip, random_resized_crop, random_shift
from dropcluster_jax.data.config import DataConfig
from dropcluster_jax.data.corrupted import corrupted_test
from dropcluster_jax.data.corruptions import CORRUPTIONS, corrupt
from dropcluster_jax.data.dataset import DATASETS, Dataset, DatasetSpec
from dropcluster_jax.data.decoding import CorruptImageError
from dropcluster_jax.data.examples import ArrayExamples
from dropcluster_jax.data.loaders import BatchIterator, GrainLoader, InMemoryLoader, Loader, make_loader
from dropcluster_jax.data.mixing import cutmix, mixup
from dropcluster_jax.data.opening import load
from dropcluster_jax.data.subsets import stratified_split, stratified_subset

__all__ = [
    "CORRUPTIONS",
    "DATASETS",
    "ArrayExamples",
    "BatchIterator",
    "CorruptImageError",
    "DataConfig",
    "Dataset",
    "DatasetSpec",
    "GrainLoader",
    "InMemoryLoader",
    "Loader",
    "corrupt",
    "corrupted_test",
    "cutmix",
    "load",
    "make_loader",
    "mixup",
    "normalize",
    "random_cutout",
    "random_flip",
    "random_resized_crop",
    "random_shift",
    "stratified_split",
    "stratified_subset",
]
