"""Datasets: digits, TFDS, image folders, NumPy archives and random images."""

from dropcluster_jax.data.datasets.fake import fake_data
from dropcluster_jax.data.datasets.load import load

__all__ = ["fake_data", "load"]
