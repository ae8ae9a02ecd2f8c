"""Shared setup: virtual devices, compilation cache, shape checks, and CIFAR-10 fixtures."""

import os
import pathlib
import signal

import jaxlib.version

# Set before JAX is imported: eight virtual CPU devices for tests across devices, and minimal optimization, because
# compilation dominates the run time of the tests. TEST_OPTIMIZED=1 tests programs as users compile them.
flags = [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8"]
if os.environ.get("TEST_OPTIMIZED") != "1":
    flags += ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
    flags += ["--xla_cpu_parallel_codegen_split_count=1"]
    if jaxlib.version.__version_info__ < (0, 11):  # The older code generator compiles twice as fast.
        flags += ["--xla_cpu_use_fusion_emitters=false"]
os.environ["XLA_FLAGS"] = " ".join(flags)
# Set in the environment so that subprocesses share the cache. Even fast compilations are cached: tests compile many
# small programs, often more than once.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(pathlib.Path(__file__).parents[1] / ".cache" / "jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it in background jobs

from jaxtyping import install_import_hook

# Checks the shapes in signatures whenever a function is called or traced.
_HOOK = install_import_hook(
    ["dropcluster_jax.clustering", "dropcluster_jax.masking", "dropcluster_jax.data"], "shape_checker.check"
)

import jax
import jaxtyping
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# No deadline, because the first example includes compilation. No database, so that examples are the same everywhere.
settings.register_profile(
    "properties",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("properties")

# The endings of the names of doctests that train a network or compile large programs.
SLOW_DOCTESTS = ("load.load_run", "trainer.train", "augment.random_resized_crop", "mixing.cutmix")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks slow doctests, and runs the slowest files first, so that no worker waits for another at the end."""
    slowest = ("test_processes", "test_killed", "test_object_storage", "test_train")
    items.sort(key=lambda item: item.path.stem not in slowest)
    for item in items:  # A doctest cannot have marks of its own.
        if item.nodeid.endswith(SLOW_DOCTESTS):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True, scope="session")
def _temporary_cache(tmp_path_factory: pytest.TempPathFactory):
    """Puts the dataset cache into pytest's temporary folder, shared by all workers."""
    base = tmp_path_factory.getbasetemp()
    os.environ["XDG_CACHE_HOME"] = str((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache")


@pytest.fixture(autouse=True, scope="module")
def _clear_jax_caches():
    """Clears JAX's caches when the process approaches Linux's default limit of 65,530 memory mappings.

    Every compiled CPU program holds several mappings, and XLA crashes when they run out; see
    https://github.com/jax-ml/jax/issues/27201.
    """
    yield
    maps = pathlib.Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") > 25_000:
        jax.clear_caches()


@pytest.fixture(autouse=True)
def _disable_shape_checks(request: pytest.FixtureRequest):
    """Disables shape checks in tests marked `bad_input`, so that the library raises its own errors."""
    disabled = request.node.get_closest_marker("bad_input") is not None
    jaxtyping.config.update("jaxtyping_disable", disabled)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def tfds_dir() -> str:
    """The TFDS `data_dir` given by the environment variable TFDS_DATA_DIR; skips the test if it lacks CIFAR-10."""
    path = os.environ.get("TFDS_DATA_DIR")
    if not path or not (pathlib.Path(path) / "cifar10").is_dir():
        pytest.skip("TFDS_DATA_DIR does not contain cifar10 prepared by TFDS")
    return path


@pytest.fixture(scope="session")
def cifar10_images(tfds_dir: str) -> np.ndarray:
    """The first 128 training images of CIFAR-10, float32 in [0, 1], `(128, 32, 32, 3)`."""
    import tensorflow_datasets as tfds

    source = tfds.data_source("cifar10", data_dir=tfds_dir, split="train[:128]")
    return np.stack([source[i]["image"] for i in range(len(source))]).astype(np.float32) / 255


@pytest.fixture(scope="session")
def cifar10_features(cifar10_images: np.ndarray) -> jax.Array:
    """ReLU of a random 3x3 convolution of real images, `(128, 32, 32, 8)`."""
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 3, 8)) * (2 / 27) ** 0.5
    return jax.nn.relu(
        jax.lax.conv_general_dilated(
            cifar10_images - cifar10_images.mean((0, 1, 2)),
            kernel,
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
    )
