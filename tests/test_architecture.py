"""The floors of the house: an import goes down, never up; and importing the package costs and does little."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "dropcluster_jax"

# What each room of the package may import of the others.
BELOW = {
    "clustering": set(),
    "masking": {"clustering"},
    "testing": set(),
    "uncertainty": set(),
    "linen": {"clustering", "masking"},
    "nnx": {"clustering", "masking"},
    "models": {"clustering", "masking", "linen"},
    "extras": set(),
    "data": {"extras"},
    "viz": {"clustering", "extras"},
    "training": {"clustering", "masking", "linen", "models", "data", "viz", "extras"},
    "cli": {"training", "data"},
    "__main__": {"cli"},
    "__init__": {"clustering", "masking", "uncertainty"},
}
LOWER_FLOORS_USE = {"jax", "jaxtyping", "numpy"}


def imports_of(path: pathlib.Path) -> set[str]:
    """Dotted names of all modules that a file imports, wherever in it; `from dropcluster_jax import x` counts as x."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room_of(path: pathlib.Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    room = room_of(path)
    assert room in BELOW, f"{room} has no floor yet: say here what it may import"
    for name in imports_of(path):
        if name.startswith("dropcluster_jax."):
            other = name.split(".")[1]
            # Names of the top level come from the two lowest floors.
            assert other == room or other in BELOW[room] or other not in BELOW, f"{path} imports {name}"


@pytest.mark.parametrize("room", ["clustering", "masking"])
def test_the_lower_floors_use_jax_alone(room):
    for path in (PACKAGE / room).rglob("*.py"):
        outside = {name.split(".")[0] for name in imports_of(path)} - {"dropcluster_jax"} - set(sys.stdlib_module_names)
        assert outside <= LOWER_FLOORS_USE


def modules_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(finished.stdout.split())


def test_importing_the_package_imports_nothing_but_jax():
    modules = modules_after("import dropcluster_jax")
    heavy = {
        "flax",
        "optax",
        "tensorflow_datasets",
        "tensorflow",
        "grain",
        "orbax",
        "matplotlib",
        "tensorboardX",
        "sklearn",
        "tyro",
    }
    assert not modules & heavy and "dropcluster_jax.masking" in modules


def test_importing_the_package_does_no_work():
    """No backend is started: the devices can still be configured after the import."""
    code = (
        "import dropcluster_jax, jax; jax.config.update('jax_num_cpu_devices', 3); assert jax.device_count('cpu') == 3"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"JAX_PLATFORMS": "cpu"},
        check=False,
    )
    assert finished.returncode == 0, finished.stderr


def test_the_training_loop_needs_jax_flax_optax_and_numpy_alone():
    modules = modules_after("import dropcluster_jax.training, dropcluster_jax.models")
    assert not modules & {"tensorflow_datasets", "tensorflow", "grain", "matplotlib", "sklearn", "tyro"}
