"""Compiled programs are kept on disk from one run to the next."""

import warnings

import jax

from dropcluster_jax.data.cache import cache_root


def keep_compiled() -> None:
    """Let JAX keep what it compiles under `~/.cache/dropcluster-jax`, unless the user has chosen a place."""
    # An entry that another run is still writing, or was killed while writing, is compiled anew.
    warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")
    if not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(cache_root() / "compiled"))
