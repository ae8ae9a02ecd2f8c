"""Import rules: modules import only from lower layers, and importing the package is cheap and has no side effects."""

import ast
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "dropcluster_jax"

# The modules and subpackages that each may import.
ALLOWED = {
    "_optional": set(),
    "cache": set(),
    "sharding": set(),
    "testing": set(),
    "uncertainty": set(),
    "clustering": set(),
    "masking": {"clustering", "sharding"},
    "linen": {"clustering", "masking"},
    "nnx": {"clustering", "masking", "uncertainty"},
    "models": {"clustering", "masking", "linen", "_optional"},
    "data": {"cache", "sharding", "_optional"},
    "viz": {"clustering", "_optional"},
    "training": {"clustering", "masking", "linen", "models", "sharding"},
    "runs": {
        *("clustering", "masking", "linen", "models", "training", "data", "viz"),
        *("cache", "sharding", "_optional", "__version__"),
    },
    "cli": {"data", "training", "runs", "cache", "__version__", "_optional"},
    "__main__": {"cli"},
    "__init__": {"clustering", "masking", "uncertainty"},
}
JAX_ONLY = ("clustering", "masking", "sharding", "uncertainty")
APPLICATION_DEPENDENCIES = {"tensorflow_datasets", "tensorflow", "grain", "matplotlib", "sklearn", "tyro"}


def component(path: pathlib.Path) -> str:
    """The subpackage or top-level module that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: pathlib.Path) -> set[str]:
    """Dotted names of everything that a file imports, at any level; `from a import b` yields `a.b`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names}
    return names


def modules_after(statement: str) -> set[str]:
    """The modules that are loaded after a statement runs in a new process."""
    code = f"import sys; {statement}; print(*sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(process.stdout.split())


def test_modules_import_only_lower_layers():
    offenders = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = component(path)
        for imported in imports(path):
            root, _, target = imported.partition(".")
            allowed = root != "experiments" and (
                root != "dropcluster_jax" or target.split(".")[0] in ALLOWED[name] | {name}
            )
            if not root or not allowed:  # an empty root is a relative import
                offenders.append(f"{path.relative_to(ROOT)}: {imported}")
    assert not offenders, "\n".join(offenders)


def test_every_component_has_a_rule():
    assert {component(path) for path in PACKAGE.rglob("*.py")} == set(ALLOWED)


def test_the_core_depends_on_jax_only():
    offenders = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if component(path) in JAX_ONLY:
            roots = {name.split(".")[0] for name in imports(path)}
            external = roots - set(sys.stdlib_module_names) - {"dropcluster_jax", "jax", "jaxtyping", "numpy"}
            offenders += [f"{path.relative_to(ROOT)}: {root}" for root in external]
    assert not offenders, "\n".join(offenders)


def test_init_files_only_reexport():
    offenders = []
    for path in sorted(PACKAGE.rglob("__init__.py")):
        docstring, *statements = ast.parse(path.read_text()).body
        assert isinstance(docstring, ast.Expr), f"{path.relative_to(ROOT)} has no docstring"
        for node in statements:
            assigned = [ast.unparse(target) for target in node.targets] if isinstance(node, ast.Assign) else []
            if not isinstance(node, ast.ImportFrom) and assigned not in (["__all__"], ["__version__"]):
                offenders.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not offenders, "\n".join(offenders)


def test_importing_the_package_loads_only_jax_and_the_core():
    modules = modules_after("import dropcluster_jax")
    assert not modules & {"flax", "optax", "orbax", "rich", "tensorboardX", *APPLICATION_DEPENDENCIES}
    components = {name.split(".")[1] for name in modules if name.startswith("dropcluster_jax.")}
    assert components == set(JAX_ONLY)


def test_importing_the_training_package_loads_no_application_dependencies():
    modules = modules_after("import dropcluster_jax.training, dropcluster_jax.models")
    assert not modules & {"dropcluster_jax.data", "dropcluster_jax.runs", "dropcluster_jax.viz"}
    assert not modules & APPLICATION_DEPENDENCIES


def test_importing_the_package_initializes_no_backend():
    code = "import dropcluster_jax, jax; jax.config.update('jax_num_cpu_devices', 3); print(jax.device_count('cpu'))"
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert process.stdout == "3\n", process.stderr
