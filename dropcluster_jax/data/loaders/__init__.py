"""Loaders, which deliver the examples of a dataset to the devices."""

from dropcluster_jax.data.loaders.grain import GrainLoader
from dropcluster_jax.data.loaders.in_memory import InMemoryLoader
from dropcluster_jax.data.loaders.loader import Batch, BatchIterator, Loader
from dropcluster_jax.data.loaders.make_loader import LoaderName, make_loader

__all__ = ["Batch", "BatchIterator", "GrainLoader", "InMemoryLoader", "Loader", "LoaderName", "make_loader"]
