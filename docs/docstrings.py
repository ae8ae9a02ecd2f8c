"""How the site reads the library's docstrings and classes."""

import re
from typing import Any

import griffe


class AsWritten(griffe.Extension):
    """Teach the parser what it does not know by itself."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Read `Example` as the section `Examples`, and references as a paragraph instead of a box."""
        if not obj.docstring:
            return
        text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
        obj.docstring.value = re.sub(
            r"^References:\n((?:    .*\n?)+)",
            lambda match: "**References:** " + " ".join(match[1].split()) + "\n",
            text,
            flags=re.MULTILINE,
        )

    def on_class_instance(self, *, cls: griffe.Class, **_: Any) -> None:
        """A module of Flax Linen is a dataclass, and has the signature of one."""
        if "nn.Module" in map(str, cls.bases):
            dataclass = griffe.ExprName("dataclasses.dataclass")
            cls.decorators.append(griffe.Decorator(dataclass, lineno=None, endlineno=None))
