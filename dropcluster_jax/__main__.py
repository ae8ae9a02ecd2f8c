"""Runs the command: `python -m dropcluster_jax`."""

from dropcluster_jax.cli import main

main()
