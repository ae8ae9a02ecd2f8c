"""The wheel and the source archive contain the package and its metadata."""

import importlib.metadata
import pathlib
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from typing import get_args

import pytest
from packaging.requirements import Requirement

import dropcluster_jax
from dropcluster_jax._optional import Extra, install_command
from dropcluster_jax.cli import main

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """Paths of the wheel and the source archive, built with the project's build backend."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", out], cwd=ROOT, check=True, capture_output=True)
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


def test_wheel_contains_only_the_package(archives):
    with zipfile.ZipFile(archives[0]) as wheel:
        names = set(wheel.namelist())
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "dropcluster_jax").rglob("*.py")}
    info = f"dropcluster_jax-{dropcluster_jax.__version__}.dist-info"
    metadata = {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")}
    assert names == package | {"dropcluster_jax/py.typed"} | metadata


def test_source_archive_contains_everything_needed_to_build_and_test(archives):
    with tarfile.open(archives[1]) as archive:
        top = {name.split("/")[1] for name in archive.getnames() if "/" in name}
    assert top == {
        *("dropcluster_jax", "tests", "experiments", "benchmarks", "docs"),
        *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "LICENSE", "PKG-INFO"),
        *("pyproject.toml", "constraints.txt", "Makefile", "mkdocs.yml", ".gitignore"),
    }


def test_metadata_contains_the_version_extras_and_command():
    metadata = importlib.metadata.metadata("dropcluster-jax")
    assert metadata["Version"] == dropcluster_jax.__version__
    assert set(metadata.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])
    (command,) = importlib.metadata.entry_points(group="console_scripts", name="dropcluster")
    assert command.load() is main


def test_install_commands_name_the_requirements_of_extras():
    """Not dropcluster-jax itself, which is not on PyPI."""
    for extra in get_args(Extra):
        names = [Requirement(line).name for line in PROJECT["optional-dependencies"][extra]]
        assert names and "dropcluster-jax" not in names
    assert install_command("plot") == 'pip install "matplotlib>=3.9"'


def test_citation_file_contains_the_version_and_the_paper():
    text = (ROOT / "CITATION.cff").read_text()
    assert re.search(rf"^version: {re.escape(dropcluster_jax.__version__)}$", text, re.MULTILINE)
    assert "arXiv:2002.02997" in text and re.search(r"^cff-version: 1\.2\.0$", text, re.MULTILINE)
