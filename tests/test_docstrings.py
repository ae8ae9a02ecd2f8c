"""Public names have docstrings, which describe only parameters that exist."""

import functools
import importlib
import inspect
import pathlib
import re

PACKAGE = pathlib.Path(__file__).parents[1] / "dropcluster_jax"


def public_members():
    """All functions and classes in an `__all__` of the package, and the public methods of the classes, by name."""
    members = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        dotted = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        if not re.search(r"^__all__ = ", path.read_text(), re.MULTILINE):
            continue
        module = importlib.import_module(dotted)
        for member in (getattr(module, name) for name in module.__all__):
            if inspect.isclass(member) or inspect.isroutine(inspect.unwrap(member)):
                name = f"{member.__module__}.{member.__qualname__}"
                members |= {name: member, **(methods(name, member) if inspect.isclass(member) else {})}
    return members


def methods(name, cls):
    """Public methods, properties and `__call__` of a class, including those inherited from classes of the package."""
    functions = {}
    for base in reversed([base for base in cls.__mro__ if base.__module__.startswith("dropcluster_jax")]):
        for attribute, member in vars(base).items():
            if isinstance(member, property):
                member = member.fget
            elif isinstance(member, functools.cached_property):
                member = member.func
            elif isinstance(member, classmethod | staticmethod):
                member = member.__func__
            is_public = not attribute.startswith("_") or attribute == "__call__"
            if is_public and inspect.isfunction(inspect.unwrap(member)):
                functions[f"{name}.{attribute}"] = member
    return functions


PUBLIC = public_members()


def test_public_members_are_found():
    assert {"dropcluster_jax.training.steps.make_steps", "dropcluster_jax.linen.DropCluster.__call__"} <= set(PUBLIC)


def test_everything_public_has_a_docstring():
    # Dataclasses and named tuples without a docstring get their signature as one.
    missing = [name for name, member in PUBLIC.items() if not re.match(r"(?!\w+\()\S", inspect.getdoc(member) or "")]
    assert not missing, "\n".join(missing)


def test_described_parameters_exist():
    offenders = []
    for name, member in PUBLIC.items():
        sections = re.split(r"^(\w+):\n", inspect.getdoc(member) or "", flags=re.MULTILINE)
        if "Args" in sections:
            entry = r"^ {4}(\*{0,2}\w+(?:, \*{0,2}\w+)*):"
            described = re.findall(entry, sections[sections.index("Args") + 1], re.MULTILINE)
            names = set(", ".join(described).replace("*", "").split(", "))
            function = member.__init__ if inspect.isclass(member) else inspect.unwrap(member)
            unknown = names - set(inspect.signature(function).parameters)
            offenders += [f"{name}: {parameter}" for parameter in unknown]
    assert not offenders, "\n".join(offenders)
