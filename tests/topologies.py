"""Marks for tests that compile for devices that are not present."""

import importlib.util
import os

import pytest


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the parent of a submodule is missing
        return False


needs_libtpu = pytest.mark.skipif(
    not _is_installed("libtpu"), reason="libtpu is not installed: `make test-tpu` installs it"
)
needs_cuda_plugin = pytest.mark.skipif(
    not _is_installed("jax_plugins.xla_cuda12") or os.environ.get("JAX_PLATFORMS") != "cpu",
    reason='needs pip install "dropcluster-jax[cuda]" and JAX_PLATFORMS=cpu',
)
