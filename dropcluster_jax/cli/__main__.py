"""`python -m dropcluster_jax.cli`."""

from dropcluster_jax.cli import main

main()
