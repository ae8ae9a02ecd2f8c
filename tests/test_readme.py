"""The README's code runs, and all commands in the README and the docs parse."""

import pathlib
import re
import shlex

from dropcluster_jax.cli.parser import parse

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [README, *(path.read_text() for path in sorted((ROOT / "docs").rglob("*.md")))]


def documented_commands() -> list[str]:
    """The `dropcluster` command lines of all pages, without redirections and environment variables."""
    joined = "\n".join(PAGES).replace("\\\n", " ")
    lines = re.findall(
        r"^ *\"?(?:srun |[A-Z_]+=\S+ )*dropcluster "
        r"((?:train|data|evaluate|clusters|plot|runs|presets)\b[^\n\"&]*)",
        joined,
        re.MULTILINE,
    )
    return [re.sub(r"\$\w+", "1", line) for line in lines if "..." not in line]


COMMANDS = documented_commands()


def test_code_blocks_run_in_order():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2
    namespace: dict[str, object] = {"__name__": "readme"}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)


def test_commands_parse():
    assert len(COMMANDS) >= 20
    offenders = []
    for line in COMMANDS:
        words = shlex.split(line, comments=True)
        if "--help" not in words:
            try:
                parse(words)
            except SystemExit:
                offenders.append(line)
    assert not offenders, "\n".join(offenders)


def test_readme_starts_with_a_description_and_an_image():
    assert re.match(r"# dropcluster-jax\n\n[^#!]+\n\n!\[[^]]+\]\(\S+\)\n", README)


def test_continuous_integration_runs_the_test_command_of_the_readme():
    assert re.search(r"^make test\b", README, re.MULTILINE)
    assert re.search(r"^make test$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
