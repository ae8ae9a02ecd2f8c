"""What is installed is the package, whole and alone."""

import importlib.metadata
import pathlib
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest

import dropcluster_jax

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel and the source archive, made by the project's own build backend."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", out], cwd=ROOT, check=True, capture_output=True)
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


def test_the_wheel_holds_the_package_and_nothing_else(built):
    with zipfile.ZipFile(built[0]) as wheel:
        names = set(wheel.namelist())
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "dropcluster_jax").rglob("*.py")}
    about = f"dropcluster_jax-{dropcluster_jax.__version__}.dist-info"
    described = {f"{about}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")}
    assert names == package | {"dropcluster_jax/py.typed"} | described


def test_the_source_archive_holds_what_it_takes_to_test_and_to_build(built):
    with tarfile.open(built[1]) as archive:
        top = {name.split("/")[1] for name in archive.getnames() if "/" in name}
    assert top == {
        *("dropcluster_jax", "tests", "experiments", "benchmarks", "docs"),
        *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "LICENSE", "PKG-INFO"),
        *("pyproject.toml", "constraints.txt", "Makefile", "mkdocs.yml", ".gitignore"),
    }


def test_the_description_names_extras_python_and_the_command():
    about = importlib.metadata.metadata("dropcluster-jax")
    assert about["Version"] == dropcluster_jax.__version__
    assert set(about.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])
    (command,) = importlib.metadata.entry_points(group="console_scripts", name="dropcluster")
    assert command.load() is __import__("dropcluster_jax.cli", fromlist=["main"]).main


def test_every_extra_that_an_error_names_is_there():
    source = "".join(path.read_text() for path in (ROOT / "dropcluster_jax").rglob("*.py"))
    named = set(re.findall(r"dropcluster-jax\[([a-z]+)\]", source)) | set(
        re.findall(r'extra\("\w+", "(\w+)"\)', source)
    )
    assert {"train", "plot", "tensorboard"} <= named <= set(PROJECT["optional-dependencies"])


def test_the_citation_names_this_version_and_the_paper():
    text = (ROOT / "CITATION.cff").read_text()
    assert re.search(rf"^version: {re.escape(dropcluster_jax.__version__)}$", text, re.MULTILINE)
    assert "arXiv:2002.02997" in text and re.search(r"^cff-version: 1\.2\.0$", text, re.MULTILINE)
