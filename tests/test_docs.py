"""The pages of docs/ run as they stand, point at what exists, and leave no public name out."""

import importlib
import json
import pathlib
import re

import matplotlib
import pytest

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
NOTEBOOKS = sorted(DOCS.rglob("*.ipynb"))

# What has public names, from the ground up.
ROOMS = ("", "clustering", "masking", "linen", "nnx", "models", "data", "training", "viz", "testing", "uncertainty")


def blocks(path: pathlib.Path) -> list[str]:
    """The Python of a page or a notebook, without what only a notebook understands."""
    if path.suffix == ".md":
        return re.findall(r"^```python\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)
    cells = json.loads(path.read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return [re.sub(r"^%.*$", "", each, flags=re.MULTILINE) for each in code]


# docs/scaling.md shows what belongs into a program of the reader's own.
RUN = [path for path in (*PAGES, *NOTEBOOKS) if blocks(path) and path.name != "scaling.md"]


@pytest.mark.parametrize("path", RUN, ids=lambda path: str(path.relative_to(DOCS)))
def test_the_code_runs_from_top_to_bottom(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")
    names: dict[str, object] = {"__name__": "docs"}
    for block in blocks(path):
        exec(compile(block, path.name, "exec"), names)


@pytest.mark.parametrize("path", [ROOT / "README.md", *PAGES], ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_pictures_are_there(path):
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", text):
        assert (path.parent / link).exists(), link


def test_what_is_advised_comes_from_what_was_measured():
    """Each line of a table of choosing.md stands in the results."""
    measured = (DOCS / "results.md").read_text().splitlines()
    lines = [line for line in (DOCS / "how-to" / "choosing.md").read_text().splitlines() if line.startswith("|")]
    assert len(lines) > 20
    assert [line for line in lines if line not in measured] == []


def documented() -> set[int]:
    """The objects that the reference shows: `::: NAME`, of a module its public classes and functions, or its `members`.

    Constants, which have no docstring, are shown by themselves.
    """
    found: set[int] = set()
    for page in (DOCS / "api").glob("*.md"):
        for name, options in re.findall(r"^::: (\S+)\n((?: .*\n)*)", page.read_text(), re.MULTILINE):
            shown = resolve(name)
            members = re.search(r" members: \[(.*)\]", options)
            if hasattr(shown, "__all__"):
                chosen = re.findall(r"\w+", members[1]) if members else shown.__all__
                objects = [getattr(shown, member) for member in chosen]
                found |= {id(each) for each in objects if getattr(each, "__module__", "").startswith("dropcluster_jax")}
            else:
                found.add(id(shown))
    return found


def resolve(name: str) -> object:
    """A module, or what stands in one; a function may have the name of the module that it is in."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        module, _, attribute = name.rpartition(".")
        return getattr(resolve(module), attribute)


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_is_in_the_reference(room):
    module = importlib.import_module(f"dropcluster_jax.{room}".rstrip("."))
    shown = documented()
    assert [name for name in module.__all__ if id(getattr(module, name)) not in shown] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_kept_without_outputs(path):
    notebook = json.loads(path.read_text())
    assert notebook["nbformat"] == 4
    for cell in notebook["cells"]:
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None


def test_there_is_something_to_try():
    assert len(RUN) >= 8
    assert len(NOTEBOOKS) == 2
