"""Mutation testing: plants random faults one at a time, and prints the ones that no test finds.

pip install cosmic-ray
python tests/mutants.py --seed 23 --count 30 dropcluster_jax/masking --tests tests/masking tests/test_linen.py

Run this in a separate clone, because it changes the source files until it ends. A fault is a random mutation by
Cosmic Ray of a random place in the code. Annotations and errors that are raised are not mutated.
"""

import argparse
import ast
import collections
import difflib
import os
import pathlib
import random
import subprocess
import sys
import warnings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="+", type=pathlib.Path, help="files and folders to mutate")
    parser.add_argument("--tests", nargs="+", required=True, help="arguments for pytest")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--timeout", type=float, default=1200, help="seconds until a fault counts as found")
    args = parser.parse_args()

    paths = [path for module in args.modules for path in ([module] if module.is_file() else module.rglob("*.py"))]
    if fails(args.tests, args.timeout):
        parser.error("the tests fail without a fault")
    survivors = 0
    for path, code, mutant in sample(sorted(paths), args.seed, args.count):
        path.write_text(mutant)
        try:
            found = fails(args.tests, args.timeout)
        finally:
            path.write_text(code)
        survivors += not found
        lines = difflib.unified_diff(code.splitlines(), mutant.splitlines(), str(path), str(path), n=0, lineterm="")
        print("found" if found else "SURVIVED", *lines, sep="\n", flush=True)
    print(f"{args.count - survivors} of {args.count} faults found")


def sample(paths: list[pathlib.Path], seed: int, count: int) -> list[tuple[pathlib.Path, str, str]]:
    """Returns the path, the code and the mutated code of `count` faults."""
    from cosmic_ray.ast import ast_nodes, get_ast_from_path
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator, operator_names

    operators = {name: get_operator(name) for name in sorted(operator_names())}
    mutations = collections.defaultdict(list)  # by place
    for path in paths:
        excluded = excluded_spans(ast.parse(path.read_text()))
        for name, operator in operators.items():
            if not operator.arguments():
                positions = (
                    p for node in ast_nodes(get_ast_from_path(path)) for p in operator().mutation_positions(node)
                )
                for occurrence, (start, _) in enumerate(positions):
                    if not any(first <= start < last for first, last in excluded):
                        mutations[path, start].append((name, occurrence))
    rng, faults = random.Random(seed), []
    for path, start in rng.sample(sorted(mutations), len(mutations)):
        name, occurrence = rng.choice(mutations[path, start])
        code = path.read_text()
        try:
            mutant = mutate_code(code, operators[name](), occurrence)
        except AttributeError:  # Cosmic Ray cannot replace exceptions with dotted names
            continue
        if compiles(mutant) and len(faults) < count:
            faults.append((path, code, mutant))
    return faults


def compiles(code: str) -> bool:
    """Whether Python accepts the code, without warnings."""
    with warnings.catch_warnings(action="error"):
        try:
            compile(code, "mutant", "exec")
        except (SyntaxError, SyntaxWarning):
            return False
    return True


def excluded_spans(tree: ast.Module) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Returns the first and last positions of annotations, type aliases and raised errors."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Raise)]
    nodes += [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.BinOp | ast.Subscript)
    ]
    for node in ast.walk(tree):
        nodes += [child for name in ("annotation", "returns") if (child := getattr(node, name, None))]
    return [((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)) for node in nodes]


def fails(tests: list[str], timeout: float) -> bool:
    """Runs tests until the first failure."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    # Without bytecode, because Python would not notice a change of the same length within a second.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        return subprocess.run(command, env=environment, timeout=timeout, capture_output=True).returncode != 0
    except subprocess.TimeoutExpired:
        return True


if __name__ == "__main__":
    main()
