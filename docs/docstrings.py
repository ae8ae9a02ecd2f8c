"""A griffe extension that adapts the library's docstrings and classes to mkdocstrings."""

import re
from typing import Any

import griffe


class DocstringStyle(griffe.Extension):
    """Renders `Example` and `References` sections, and gives Flax Linen modules their constructor."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Renames the section `Example` to `Examples` and turns `References` into a paragraph."""
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
        """Marks Linen modules as dataclasses, which they become when they are defined."""
        if "nn.Module" in map(str, cls.bases):
            dataclass = griffe.ExprName("dataclasses.dataclass")
            cls.decorators.append(griffe.Decorator(dataclass, lineno=None, endlineno=None))
