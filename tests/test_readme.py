"""What README shows runs as it stands, and its commands parse."""

import pathlib
import re
import shlex

import pytest
import tyro

from dropcluster_jax.training.config import PRESETS, TrainConfig

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()


def test_the_code_runs_from_top_to_bottom():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 6
    names: dict[str, object] = {"__name__": "readme"}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)


@pytest.mark.parametrize("line", re.findall(r"^dropcluster train (.*)$", README, re.MULTILINE))
def test_its_commands_are_understood(line):
    preset, *options = shlex.split(line, comments=True)
    if "--help" not in options:
        assert isinstance(tyro.cli(TrainConfig, default=PRESETS[preset][1], args=options), TrainConfig)


def test_it_opens_with_the_two_commands():
    assert re.search(r"^# dropcluster-jax\n\n```\nmake train .*\nmake test ", README)
