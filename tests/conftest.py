"""What all tests share: checked shapes, virtual devices, the compilation cache, real CIFAR-10 where it is at hand."""

import os
import pathlib

# Before JAX looks: eight virtual CPU devices for the tests across devices; and machine code that is made fast rather
# than fast, as compiling takes most of the tests' time.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
    ]
)
# In the environment, so that commands that tests start share it. All of it: tests compile many small programs, and many
# of them twice.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(pathlib.Path(__file__).parents[1] / ".cache" / "jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

from jaxtyping import install_import_hook

# Every shape in a signature is checked whenever the function is called or traced.
_HOOK = install_import_hook(
    ["dropcluster_jax.clustering", "dropcluster_jax.masking", "dropcluster_jax.data"], "shape_checker.check"
)

import jax
import jaxtyping
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# No deadline: how long compilation takes says nothing about the property. No database: the same examples everywhere.
settings.register_profile(
    "laws",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("laws")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What starts processes takes longest and comes first, or one worker would wait for the other at the end."""
    longest = ("test_processes", "test_killed", "test_cli")
    items.sort(key=lambda item: item.path.stem not in longest)


@pytest.fixture(autouse=True, scope="session")
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory):
    """Decoded images are kept among the tests' files, not in the home folder; workers share them."""
    base = tmp_path_factory.getbasetemp()
    os.environ["XDG_CACHE_HOME"] = str((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache")


@pytest.fixture(autouse=True, scope="module")
def _programs_are_let_go():
    """Each compiled program takes some of the mappings of memory that a process may have, 65,530 on Linux."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") > 25_000:
        jax.clear_caches()


@pytest.fixture(autouse=True)
def _shapes_unchecked(request: pytest.FixtureRequest):
    """Tests marked `bad_input` meet the library's own errors, as users do who have no shape checker."""
    unchecked = request.node.get_closest_marker("bad_input") is not None
    jaxtyping.config.update("jaxtyping_disable", unchecked)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def tfds_dir() -> str:
    """The TFDS `data_dir` with CIFAR-10, named by the environment variable TFDS_DATA_DIR."""
    path = os.environ.get("TFDS_DATA_DIR")
    # Data sets are not part of the repository, and tests download nothing.
    if not path or not (pathlib.Path(path) / "cifar10").is_dir():
        pytest.skip("TFDS_DATA_DIR names no folder with cifar10 prepared by TFDS")
    return path


@pytest.fixture(scope="session")
def cifar10_images(tfds_dir: str) -> np.ndarray:
    """The first 128 training images of CIFAR-10, float32 in [0, 1], `(128, 32, 32, 3)`."""
    import tensorflow_datasets as tfds

    source = tfds.data_source("cifar10", data_dir=tfds_dir, split="train[:128]")
    return np.stack([source[i]["image"] for i in range(len(source))]).astype(np.float32) / 255


@pytest.fixture(scope="session")
def cifar10_features(cifar10_images: np.ndarray) -> jax.Array:
    """Real features: a random 3x3 convolution of real images and a ReLU, `(128, 32, 32, 8)`."""
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
