"""Data for training: where images come from, how they become batches, and how batches are varied.

`load` reads a data set into memory; `training_batches`, `evaluation_batches` and `probe_batch` cut it into
batches of NumPy arrays; `random_flip`, `random_shift` and `normalize` are JAX functions for the training
step. Only `load` needs more than NumPy and JAX: scikit-learn or TFDS, `pip install "dropcluster-jax[train]"`.
"""

from dropcluster_jax.data.augment import normalize, random_flip, random_shift
from dropcluster_jax.data.pipeline import evaluation_batches, probe_batch, training_batches
from dropcluster_jax.data.sources import Dataset, load

__all__ = [
    "Dataset",
    "evaluation_batches",
    "load",
    "normalize",
    "probe_batch",
    "random_flip",
    "random_shift",
    "training_batches",
]
