"""Public functions and classes have complete docstrings in Google style.

A docstring that refers to another one ("See `drop_cluster`.") needs to describe only the differences.
"""

import ast
import dataclasses
import functools
import importlib
import inspect
import itertools
import pathlib
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

PACKAGE = pathlib.Path(__file__).parents[1] / "dropcluster_jax"
FLAX_FIELDS = {"parent", "name"}  # of every Linen module
OBVIOUS_PARAMETERS = 2  # functions with at most this many parameters may omit the Args and Returns sections


def public_objects() -> dict[str, Any]:
    """All functions and classes in an `__all__` of the package, except the command, by qualified name."""
    objects = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if PACKAGE / "cli" not in path.parents and re.search(r"^__all__ = ", path.read_text(), re.MULTILINE):
            dotted = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
            module = importlib.import_module(dotted)
            for name in module.__all__:
                member = getattr(module, name)
                if inspect.isclass(member) or inspect.isroutine(inspect.unwrap(member)):
                    objects[f"{member.__module__}.{member.__qualname__}"] = member
    return objects


def methods(cls: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Public methods, properties and `__call__` of a class, including those inherited from classes of the package."""
    seen = set()
    for base in cls.__mro__:
        if not base.__module__.startswith("dropcluster_jax"):
            continue
        for name, member in vars(base).items():
            if isinstance(member, property):
                member = member.fget
            elif isinstance(member, functools.cached_property):
                member = member.func
            elif isinstance(member, classmethod | staticmethod):
                member = member.__func__
            is_public = not name.startswith("_") or name == "__call__"
            if is_public and name not in seen and inspect.isfunction(inspect.unwrap(member)):
                seen.add(name)
                yield name, member


PUBLIC = public_objects()
CLASSES = {name: member for name, member in PUBLIC.items() if inspect.isclass(member)}
FUNCTIONS = {name: member for name, member in PUBLIC.items() if name not in CLASSES}
METHODS = {f"{name}.{method}": (cls, function) for name, cls in CLASSES.items() for method, function in methods(cls)}


def docstring(member: Any) -> str:
    return inspect.cleandoc(member.__doc__ or "")


def refers_to_another(member: Any) -> bool:
    return re.search(r"\bSee\s+`", docstring(member)) is not None


def has_section(member: Any, *titles: str) -> bool:
    return re.search(rf"^({'|'.join(titles)}):\n +\S", docstring(member), re.MULTILINE) is not None


def entries(member: Any, *titles: str) -> set[str]:
    """The names described in the sections with these titles: `name: Text.` or `name, name: Text.`"""
    names, inside = set(), False
    for line in docstring(member).splitlines():
        if line and not line.startswith(" "):
            inside = line.endswith(":") and line.removesuffix(":") in titles
        elif inside and (entry := re.match(r" {4}(\*{0,2}[\w.]+(?:, \*{0,2}[\w.]+)*): ?", line)):
            names |= set(entry[1].replace("*", "").split(", "))
    return names


def parameters(function: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(inspect.unwrap(function)).parameters) - {"self", "cls"}


def fields(cls: type) -> set[str]:
    """The fields of a dataclass, named tuple or Linen module, or the parameters of `__init__`."""
    if dataclasses.is_dataclass(cls):
        return {field.name for field in dataclasses.fields(cls) if field.init} - FLAX_FIELDS
    if hasattr(cls, "_fields"):
        return set(cls._fields)
    own_init = inspect.isfunction(cls.__init__) and cls.__init__.__module__ == cls.__module__
    return parameters(cls.__init__) if own_init and not getattr(cls, "_is_protocol", False) else set()


def syntax_tree(member: Any) -> Any:
    return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(member)))).body[0]


def self_explanatory_fields(cls: type) -> set[str]:
    """Fields with a docstring of their own below them, and fields that are documented dataclasses."""
    body = syntax_tree(cls).body
    with_docstring = {
        field.target.id
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }
    nested = {name for name, kind in inspect.get_annotations(cls).items() if dataclasses.is_dataclass(kind)}
    return with_docstring | nested


def is_record(cls: type) -> bool:
    """Whether a class only holds data."""
    return (dataclasses.is_dataclass(cls) or hasattr(cls, "_fields")) and not list(methods(cls))


def raised(node: ast.AST) -> set[str]:
    """The exceptions that a function raises itself, excluding those raised in nested functions."""
    names = set()
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Raise) and isinstance(child.exc, ast.Call) and isinstance(child.exc.func, ast.Name):
            names.add(child.exc.func.id)
        if not isinstance(child, ast.FunctionDef | ast.Lambda):
            names |= raised(child)
    return names


def test_public_objects_are_found():
    assert {"dropcluster_jax.masking._drop_block.drop_block", "dropcluster_jax.training.steps.make_steps"} <= set(
        FUNCTIONS
    )
    assert "dropcluster_jax.linen.DropCluster.__call__" in METHODS


def test_everything_public_has_a_docstring():
    members = {**PUBLIC, **{name: method for name, (_, method) in METHODS.items()}}
    # Dataclasses and named tuples without a docstring get their signature as one.
    missing = [name for name, member in members.items() if not re.match(r"(?!\w+\()\S", docstring(member))]
    assert not missing, "\n".join(missing)


def test_args_sections_match_the_signature():
    offenders = []
    functions = {**FUNCTIONS, **{name: method for name, (_, method) in METHODS.items()}}
    for name, function in functions.items():
        described, expected = entries(function, "Args"), parameters(function)
        if described - expected:
            offenders.append(f"{name} describes unknown {sorted(described - expected)}")
        if refers_to_another(function) or (name in METHODS and not described):
            continue
        if described != expected and (described or len(expected) > OBVIOUS_PARAMETERS):
            offenders.append(f"{name} does not describe {sorted(expected - described)}")
    assert not offenders, "\n".join(offenders)


def test_functions_describe_their_result():
    offenders = []
    for name, function in FUNCTIONS.items():
        annotation = inspect.signature(inspect.unwrap(function)).return_annotation
        described = annotation in (None, "None") or has_section(function, "Returns", "Yields")
        if not described and len(parameters(function)) > OBVIOUS_PARAMETERS and not refers_to_another(function):
            offenders.append(name)
    assert not offenders, "\n".join(offenders)


def test_classes_describe_their_fields():
    offenders = []
    for name, cls in CLASSES.items():
        missing = fields(cls) - entries(cls, "Args", "Attributes") - self_explanatory_fields(cls)
        if missing and not refers_to_another(cls) and not issubclass(cls, BaseException):
            offenders.append(f"{name}: {sorted(missing)}")
    assert not offenders, "\n".join(offenders)


def test_raised_exceptions_are_listed():
    offenders = []
    for name, function in FUNCTIONS.items():
        missing = raised(syntax_tree(function)) - entries(function, "Raises")
        offenders += [f"{name}: {error}" for error in missing if not refers_to_another(function)]
    for name, (cls, method) in METHODS.items():
        missing = raised(syntax_tree(method)) - entries(method, "Raises") - entries(cls, "Raises")
        offenders += [f"{name}: {error}" for error in missing if not refers_to_another(method)]
    for name, cls in CLASSES.items():
        constructors = [node for node in ast.iter_child_nodes(syntax_tree(cls)) if isinstance(node, ast.FunctionDef)]
        constructors = [node for node in constructors if node.name in ("__init__", "__post_init__")]
        missing = {error for node in constructors for error in raised(node)} - entries(cls, "Raises")
        offenders += [f"{name}: {error}" for error in missing if not refers_to_another(cls)]
    assert not offenders, "\n".join(offenders)


def test_functions_and_classes_have_an_example():
    offenders = []
    for name, member in PUBLIC.items():
        exempt = inspect.isclass(member) and (
            issubclass(member, BaseException) or getattr(member, "_is_protocol", False) or is_record(member)
        )
        if not exempt and not refers_to_another(member) and not re.search(r"^ +>>> ", docstring(member), re.MULTILINE):
            offenders.append(name)
    assert not offenders, "\n".join(offenders)
