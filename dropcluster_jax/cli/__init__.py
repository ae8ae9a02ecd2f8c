"""The `dropcluster` command."""

from dropcluster_jax.cli.main import main

__all__ = ["main"]
