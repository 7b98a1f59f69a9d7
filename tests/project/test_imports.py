"""Imports go one way: no circle among files, no layer that imports one above it, no drawing that imports training.

Imports are read from the source, those inside functions and those by name (`import_module("fastgan.sampler")`, tables of
names) included. Blocks under `if TYPE_CHECKING:` are not: nothing executes them.
"""

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"fastgan": ROOT / "fastgan", "fastgan_kernels": ROOT / "kernels"}


def find_modules(folders: dict[str, Path]) -> dict[str, Path]:
    """Files by the name of their module."""
    found = {}
    for package, folder in folders.items():
        for path in sorted(folder.rglob("*.py")):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def executed_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below `node`, except those under `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            children = child.orelse
        else:
            children = [child]
        for each in children:
            yield each
            yield from executed_nodes(each)


def imports_of(source: str, module: str, is_package: bool, modules: set[str]) -> set[str]:
    """The members of `modules` that a file imports. `from a import b` is `a.b` if that is a module, else `a`."""
    found = set()
    for node in executed_nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            base = parts[: len(parts) - node.level + is_package] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner in modules else base)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value:
            found.add(node.value)  # a name for import_module
    return found & modules - {module}


@cache
def import_graph() -> dict[str, set[str]]:
    """The project's modules, each with those that it imports."""
    paths = find_modules(FOLDERS)
    return {
        module: imports_of(path.read_text(), module, path.name == "__init__.py", set(paths))
        for module, path in paths.items()
    }


def executed_by(module: str) -> dict[str, str]:
    """Modules that are executed once `module` has done all its imports, each with the one that imports it."""
    graph, importer, waiting = import_graph(), {module: ""}, [module]
    while waiting:
        current = waiting.pop()
        parents = {current.rsplit(".", depth)[0] for depth in range(1, current.count("."))}  # not the outermost
        for each in sorted(graph[current] | parents):
            if each not in importer:
                importer[each] = current
                waiting.append(each)
    return importer
