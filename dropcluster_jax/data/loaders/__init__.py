"""Loaders, which deliver the examples of a dataset to the devices."""

from dropcluster_jax.data.loaders.choice import make_loader
from dropcluster_jax.data.loaders.grain import GrainLoader
from dropcluster_jax.data.loaders.in_memory import InMemoryLoader
from dropcluster_jax.data.loaders.loader import Batch, BatchIterator, Loader

__all__ = ["Batch", "BatchIterator", "GrainLoader", "InMemoryLoader", "Loader", "make_loader"]
