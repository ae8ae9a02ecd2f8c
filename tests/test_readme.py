"""What README shows runs as it stands, and its commands parse."""

import pathlib
import re
import shlex

import pytest

from dropcluster_jax import cli
from dropcluster_jax.cli import look, train

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
LOOK = ("evaluate", "clusters", "plot", "runs", "presets")


def test_the_code_runs_from_top_to_bottom():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, object] = {"__name__": "readme"}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)


def commands() -> list[str]:
    """Of README and docs, without what a shell makes of them."""
    texts = [README, *(path.read_text() for path in sorted((ROOT / "docs").rglob("*.md")))]
    joined = "\n".join(texts).replace("\\\n", " ")
    lines = re.findall(
        rf"^ *\"?(?:srun |[A-Z_]+=\S+ )*dropcluster ((?:train|data|{'|'.join(LOOK)})\b[^\n\"&]*)", joined, re.MULTILINE
    )
    return [re.sub(r"\$\w+", "1", line) for line in lines if "..." not in line]


@pytest.mark.parametrize("line", commands())
def test_its_commands_are_understood(line, monkeypatch):
    """Up to where they would begin."""
    understood = []
    for module, name in ((train, "train"), *((look, name) for name in (*LOOK, "check"))):
        monkeypatch.setattr(module, name, lambda *values: understood.append(values))
    words = shlex.split(line, comments=True)
    if "--help" not in words:
        cli.main(words)
        assert len(understood) == 1


def test_there_are_commands_to_try():
    assert len(commands()) >= 20


def test_it_opens_with_two_sentences_a_picture_and_the_two_commands():
    assert re.search(
        r"^# dropcluster-jax\n\n[^.]*\.[^.]*\.\n\n!\[[^]]*\]\(\S+\)\n\n[^`]*`[^`]*`[^`]*```\nmake train .*\nmake test ",
        README,
    )
