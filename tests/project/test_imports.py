"""Imports go one way: no circle among files, no package that imports one above it, no drawing that imports training.

Imports are read from the source. Those inside functions count, and so do names for `import_module`: strings, and
f-strings that begin with a package, which stand for all modules in it. Blocks under `if TYPE_CHECKING:` do not count:
nothing executes them.
"""

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"fastgan": ROOT / "fastgan", "fastgan_kernels": ROOT / "kernels"}

COMPILED = {"fastgan_kernels._C"}  # the extension

# From bottom to top. A package, or a module of fastgan/ itself, imports only from lower lines, never from its own.
LAYERS = (
    ("fastgan_kernels", "cores", "errors", "version"),
    ("environment",),
    ("distributed", "examples", "files", "options", "ops", "paths", "progress", "transparency"),
    ("effective",),
    ("layers", "patching", "penalties"),
    ("augment", "losses", "models"),
    ("data",),
    ("interop", "metrics"),
    ("runs",),
    ("editing",),
    ("projection", "sampler", "studies", "training"),
    ("export", "figures", "sharing", "tuning", "view"),
    ("fastgan",),  # fastgan/__init__.py, which exports names of other packages
    ("cli",),
    ("commands",),
)

# `python -m fastgan.NAME`: a few lines that call fastgan.cli.
COMMANDS = ("dataset", "directions", "doctor", "evaluate", "generate", "project", "share", "train")

# Modules that read finished trainings.
WITHOUT_TRAINING = (
    "fastgan.sampler",
    "fastgan.studies",
    "fastgan.directions",
    "fastgan.generate",
    "fastgan.project",
    "fastgan.evaluate",
    "fastgan.export.__main__",
    "fastgan.view.__main__",
)


def find_modules(folders: dict[str, Path]) -> dict[str, Path]:
    """Module names and their files."""
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


def imports_of(source: str, module: str, is_package: bool, modules: set[str], by_choice: bool = True) -> set[str]:
    """The members of `modules` that a file imports.

    `from a import b` is `a.b` if that is a module, else `a`. `import_module(f"a.{name}")` is every module directly
    below `a`, unless `by_choice` is false.
    """
    found, commands = set(), set()
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
        elif isinstance(node, ast.Tuple | ast.List):  # `python -m NAME` is another process
            options = [each.value if isinstance(each, ast.Constant) else None for each in node.elts]
            commands |= {id(name) for option, name in zip(options, node.elts[1:], strict=False) if option == "-m"}
        elif id(node) in commands:
            continue
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            name = node.args[0]
            if isinstance(name, ast.JoinedStr) and by_choice:
                package = ast.unparse(name)[2:-1].replace("{__name__}", module).partition(".{")[0]
                found |= {each for each in modules if each.rpartition(".")[0] == package}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value:
            found.add(node.value)  # a name for import_module
    return found & modules - {module}


@cache
def import_graph(by_choice: bool = True) -> dict[str, set[str]]:
    """The project's modules, each with those that it imports. by_choice: see `imports_of`."""
    paths = find_modules(FOLDERS)
    names = {*paths, *COMPILED}
    return {
        module: imports_of(path.read_text(), module, path.name == "__init__.py", names, by_choice) - COMPILED
        for module, path in paths.items()
    }


def executed_by(module: str) -> dict[str, str]:
    """Modules that are executed once `module` has done all its imports, each with the one that imports it."""
    graph = import_graph(by_choice=False)  # `fastgan NAME` imports fastgan.cli.NAME alone
    importer, waiting = {module: ""}, [module]
    while waiting:
        current = waiting.pop()
        parents = {current.rsplit(".", depth)[0] for depth in range(1, current.count("."))}  # not the outermost
        for each in sorted(graph[current] | parents):
            if each not in importer:
                importer[each] = current
                waiting.append(each)
    return importer


def package_of(module: str) -> str:
    """Member of LAYERS that a module belongs to."""
    package, *names = module.split(".")
    if package != "fastgan":
        return package
    if not names:
        return "fastgan"
    return "commands" if names[0] in COMMANDS or names[-1] == "__main__" else names[0]


def test_no_circle_among_files():
    try:
        TopologicalSorter(import_graph()).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def test_every_package_has_its_layer():
    known = {package for layer in LAYERS for package in layer}
    assert {package_of(module) for module in import_graph()} == known


@pytest.mark.parametrize("package", [package for layer in LAYERS for package in layer])
def test_a_package_imports_only_from_layers_below(package):
    levels = {each: level for level, layer in enumerate(LAYERS) for each in layer}
    wrong = [
        f"{module} imports {imported}"
        for module, imports in import_graph().items()
        for imported in sorted(imports)
        if package_of(module) == package != package_of(imported) and levels[package_of(imported)] >= levels[package]
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("module", WITHOUT_TRAINING)
def test_readers_of_finished_trainings_do_not_import_training(module):
    importer = executed_by(module)
    for name in sorted(importer):
        if package_of(name) == "training":
            way = [name]
            while importer[way[-1]]:
                way.append(importer[way[-1]])
            pytest.fail(" -> ".join(reversed(way)))


# The reader itself ---------------------------------------------------------------------------------------------------

MODULES = {"p", "p.a", "p.b", "p.sub", "p.sub.c"}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import p.a", {"p.a"}),
        ("import p.a as x, os", {"p.a"}),
        ("from p import a, __version__", {"p.a", "p"}),
        ("from p.sub import c", {"p.sub.c"}),
        ("from p.sub.c import name", {"p.sub.c"}),
        ("from . import c", {"p.sub.c"}),
        ("from .c import name", {"p.sub.c"}),
        ("from .. import a", {"p.a"}),
        ("from ..b import name", {"p.b"}),
        ("def f():\n    from p import a", {"p.a"}),
        ("import_module('p.b')", {"p.b"}),
        ("import_module(f'{__name__}.{name}')", {"p.sub.c"}),
        ("importlib.import_module(f'p.{name}')", {"p.a", "p.b"}),
        ("LAZY = {'name': 'p.sub.c'}", {"p.sub.c"}),
        ("run([sys.executable, '-m', 'p.a', 'p.b'])", {"p.b"}),
        ("if TYPE_CHECKING:\n    from p import a\nelse:\n    from p import b", {"p.b"}),
        ("if typing.TYPE_CHECKING:\n    from p import a", set()),
        ("import os\nfrom pathlib import Path", set()),
    ],
)
def test_imports_are_found(source, expected):
    assert imports_of(source, "p.sub", is_package=True, modules=MODULES) == expected


def test_relative_imports_of_a_file_start_at_its_package():
    assert imports_of("from . import b", "p.a", is_package=False, modules=MODULES) == {"p.b"}
