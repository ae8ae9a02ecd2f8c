"""Data for training: where images come from, how they get to the device, and how they are varied.

`load` opens a data set; `open_road` gives its batches, from arrays on the device or streamed by Grain; `random_flip`,
`random_shift`, `random_cutout`, `random_resized_crop`, `mixup`, `cutmix` and `normalize` are JAX functions for the
training step; `corrupt` makes test images worse. Files, data sets and streams need `pip install
"dropcluster-jax[train]"`.
"""

from dropcluster_jax.data.augment import normalize, random_cutout, random_flip, random_resized_crop, random_shift
from dropcluster_jax.data.corrupted import corrupted_test
from dropcluster_jax.data.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS, corrupt
from dropcluster_jax.data.dataset import KNOWN, Dataset
from dropcluster_jax.data.decoding import BadImageError
from dropcluster_jax.data.examples import ArrayExamples
from dropcluster_jax.data.mixing import cutmix, mixup
from dropcluster_jax.data.roads import Batches, DeviceRoad, Road, StreamRoad, open_road
from dropcluster_jax.data.shares import balanced_share
from dropcluster_jax.data.sources import load
from dropcluster_jax.data.sources.fake import fake_data

__all__ = [
    "CORRUPTIONS",
    "EXTRA_CORRUPTIONS",
    "KNOWN",
    "ArrayExamples",
    "BadImageError",
    "Batches",
    "Dataset",
    "DeviceRoad",
    "Road",
    "StreamRoad",
    "balanced_share",
    "corrupt",
    "corrupted_test",
    "cutmix",
    "fake_data",
    "load",
    "mixup",
    "normalize",
    "open_road",
    "random_cutout",
    "random_flip",
    "random_resized_crop",
    "random_shift",
]
