"""The documentation's code runs, its links resolve, and it covers all public names."""

import importlib
import json
import pathlib
import re

import matplotlib
import pytest
from topologies import needs_libtpu

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
NOTEBOOKS = sorted(DOCS.rglob("*.ipynb"))
MODULES = ("clustering", "masking", "linen", "nnx", "models", "data", "training", "runs", "viz")


def code_blocks(path: pathlib.Path) -> list[str]:
    """The Python code of a page or a notebook, without IPython magics."""
    if path.suffix == ".md":
        return re.findall(r"^```python\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)
    cells = json.loads(path.read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return [re.sub(r"^%.*$", "", source, flags=re.MULTILINE) for source in sources]


# The code in scaling.md consists of fragments that do not run on their own.
RUNNABLE = [path for path in (*PAGES, *NOTEBOOKS) if code_blocks(path) and path.name != "scaling.md"]


def documented_objects() -> set[int]:
    """The ids of the objects that the API reference shows: `::: NAME`, for modules their `__all__` or `members`.

    Constants have no docstring and need a directive of their own.
    """
    ids: set[int] = set()
    for page in (DOCS / "api").glob("*.md"):
        for name, options in re.findall(r"^::: (\S+)\n((?: .*\n)*)", page.read_text(), re.MULTILINE):
            target = resolve(name)
            if not hasattr(target, "__all__"):
                ids.add(id(target))
                continue
            members = re.search(r" members: \[(.*)\]", options)
            names = re.findall(r"\w+", members[1]) if members else target.__all__
            objects = [getattr(target, name) for name in names]
            ids |= {id(member) for member in objects if getattr(member, "__module__", "").startswith("dropcluster_jax")}
    return ids


def resolve(name: str) -> object:
    """Returns a module or a module's attribute; a function may share its name with its module."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        module, _, attribute = name.rpartition(".")
        return getattr(resolve(module), attribute)


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=needs_libtpu if path.name == "tpu.md" else ()) for path in RUNNABLE],
    ids=lambda path: str(path.relative_to(DOCS)),
)
def test_code_blocks_run_in_order(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")
    namespace: dict[str, object] = {"__name__": "docs"}
    for block in code_blocks(path):
        exec(compile(block, path.name, "exec"), namespace)


def test_links_resolve():
    broken = []
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES):
        text = re.sub(r"^```.*?^```|`[^`\n]*`", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
        links = re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", text)
        broken += [f"{path.relative_to(ROOT)}: {link}" for link in links if not (path.parent / link).exists()]
    assert not broken, "\n".join(broken)


def test_public_names_are_in_the_api_reference():
    documented = documented_objects()
    missing = []
    for name in ("dropcluster_jax", *(f"dropcluster_jax.{name}" for name in (*MODULES, "testing", "uncertainty"))):
        module = importlib.import_module(name)
        missing += [f"{name}.{member}" for member in module.__all__ if id(getattr(module, member)) not in documented]
    assert not missing, "\n".join(missing)


def test_pages_are_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    names = [str(path.relative_to(DOCS)) for path in (*PAGES, *NOTEBOOKS)]
    assert [name for name in names if f": {name}\n" not in navigation] == []


def test_notebooks_are_stored_without_outputs():
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text())["cells"]
        assert not any(cell.get("outputs") or cell.get("execution_count") is not None for cell in cells), path.name
