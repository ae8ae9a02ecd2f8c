"""`python -m dropcluster_jax`: the command."""

from dropcluster_jax.cli import main

main()
