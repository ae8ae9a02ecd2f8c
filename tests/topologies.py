"""Marks for tests that compile for devices that are not present."""

import importlib.util

import pytest

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: `make test-tpu` installs it"
)
