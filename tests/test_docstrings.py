"""Every public name says what it is: what it takes and gives, its errors, and an example that runs."""

import ast
import dataclasses
import functools
import importlib
import inspect
import pathlib
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "dropcluster_jax"
# Every Linen module has these, from Flax.
FIELDS_OF_FLAX = {"parent", "name"}


def public() -> dict[str, Any]:
    """The functions and classes of ours in every `__all__`, by where they are defined; what else is there is data."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if re.search(r"^__all__ = ", path.read_text(), re.MULTILINE):
            dotted = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
            module = importlib.import_module(dotted)
            for name in module.__all__:
                thing = getattr(module, name)
                if inspect.isclass(thing) or inspect.isroutine(inspect.unwrap(thing)):
                    found[f"{thing.__module__}.{thing.__qualname__}"] = thing
    return found


def methods_of(cls: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties that we wrote, here or in a base class; calls too."""
    seen = set()
    for base in cls.__mro__:
        if base.__module__.startswith("dropcluster_jax"):
            for name, member in vars(base).items():
                if isinstance(member, property):
                    member = member.fget
                elif isinstance(member, functools.cached_property):
                    member = member.func
                is_public = not name.startswith("_") or name == "__call__"
                if is_public and name not in seen and inspect.isfunction(inspect.unwrap(member)):
                    seen.add(name)
                    yield name, member


PUBLIC = public()
CLASSES = {name: thing for name, thing in PUBLIC.items() if inspect.isclass(thing)}
FUNCTIONS = {name: thing for name, thing in PUBLIC.items() if name not in CLASSES}
METHODS = {f"{name}.{method}": (cls, function) for name, cls in CLASSES.items() for method, function in methods_of(cls)}


def entries(thing: Any, *titles: str) -> set[str]:
    """What the sections of these titles have entries for: `name: text`, or `name, name: text`."""
    lines = inspect.cleandoc(thing.__doc__ or "").splitlines()
    found, inside = set(), False
    for line in lines:
        if line and not line.startswith(" "):
            inside = line.removesuffix(":") in titles and line.endswith(":")
        elif inside and (entry := re.match(r" {4}([\w.]+(?:, [\w.]+)*): \S", line)):
            found |= set(entry[1].split(", "))
    return found


def has_section(thing: Any, title: str) -> bool:
    return re.search(rf"^{title}:\n +\S", inspect.cleandoc(thing.__doc__ or ""), re.MULTILINE) is not None


def parameters(function: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(inspect.unwrap(function)).parameters) - {"self", "cls"}


def fields(cls: type) -> set[str]:
    """What makes an instance: the fields of a dataclass, tuple or Linen module, or the arguments of our `__init__`."""
    if dataclasses.is_dataclass(cls):
        return {field.name for field in dataclasses.fields(cls) if field.init} - FIELDS_OF_FLAX
    if hasattr(cls, "_fields"):
        return set(cls._fields)
    written = inspect.isfunction(cls.__init__) and not getattr(cls, "_is_protocol", False)
    return parameters(cls.__init__) if written and cls.__init__.__module__ == cls.__module__ else set()


def tree(thing: Any) -> ast.FunctionDef | ast.ClassDef:
    node = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(thing)))).body[0]
    assert isinstance(node, ast.FunctionDef | ast.ClassDef)
    return node


def raised(node: ast.AST) -> set[str]:
    """The errors that stand behind a `raise` in a function, or in one within it."""
    calls = [each.exc for each in ast.walk(node) if isinstance(each, ast.Raise) and isinstance(each.exc, ast.Call)]
    return {call.func.id for call in calls if isinstance(call.func, ast.Name) and call.func.id[0].isupper()}


def constructors(cls: type) -> list[ast.stmt]:
    """What we wrote of how an instance comes to be."""
    return [node for node in tree(cls).body if getattr(node, "name", None) in ("__init__", "__post_init__")]


def test_there_is_something_to_look_at():
    names = {"dropcluster_jax.masking.drop_block.drop_block", "dropcluster_jax.training.steps.make_steps"}
    assert names <= set(FUNCTIONS) and "dropcluster_jax.linen.DropCluster.__call__" in METHODS


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_names_its_arguments_its_result_and_its_errors(name):
    function = FUNCTIONS[name]
    assert function.__doc__, "no docstring"
    assert parameters(function) == entries(function, "Args")
    assert raised(tree(function)) <= entries(function, "Raises")
    gives = inspect.signature(inspect.unwrap(function)).return_annotation
    assert gives in (None, "None") or has_section(function, "Returns"), "no Returns section"


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_names_its_fields_and_its_errors(name):
    cls = CLASSES[name]
    assert cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}("), "no docstring"
    assert fields(cls) <= entries(cls, "Args", "Attributes")
    for constructor in constructors(cls):
        assert raised(constructor) <= entries(cls, "Raises")


@pytest.mark.parametrize("name", METHODS)
def test_a_method_names_its_arguments_and_its_errors(name):
    cls, method = METHODS[name]
    assert method.__doc__, "no docstring"
    assert parameters(method) == entries(method, "Args")
    # What a call raises may stand with the class: of a layer, most of it comes from the fields.
    assert raised(tree(method)) <= entries(method, "Raises") | (entries(cls, "Raises") if "__call__" in name else set())


@pytest.mark.parametrize("name", PUBLIC)
def test_there_is_an_example(name):
    assert re.search(r"^ +>>> ", PUBLIC[name].__doc__ or "", re.MULTILINE), "no example"
