"""The import order: cli -> frontends, passes, emit -> IR; and rooms that do not need torch do not import it.

Most tests read imports from the source with ``ast``, so that a wrong import is reported with file and line. A few start
Python and check which modules are imported in the end.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: The rooms from the bottom up. A module may import from its own room and from the rooms in earlier lines; rooms in the
#: same line do not import each other. A room is a folder, or a file beside the folders.
ORDER = (
    ("version", "lazy_names"),
    ("errors",),
    ("choices", "extras"),
    ("safety",),
    ("user_functions", "tensors"),
    ("ir",),
    ("formats", "onnx_model", "discovery", "tickets", "zoo"),
    ("analysis",),
    ("rewrite",),
    ("channels", "plans"),
    ("checkpoints",),
    ("passes", "frontends", "emit", "pictures"),
    ("api", "face"),
    ("training",),
    ("cli",),
)
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
#: The order of folders inside a room, from the bottom up; "" stands for its files.
INNER = {
    "passes": (("infra",), ("depth", "growth", "sparsity", "cleanup"), ("",)),
    "frontends": (("onnx",), ("",)),
    "training": (("items",), ("",), ("pruning",), ("studies",), ("reports",)),
}
#: The exceptions: (module, higher room that it imports), allowed only inside a function.
EXCEPTIONS = {
    ("elastic_ir", "api"),  # the public names are its functions
    ("elastic_ir.ir.graph", "discovery"),  # graph.stages
    ("elastic_ir.passes.infra.pipeline", "emit"),  # a pipeline runs the result of each pass
}

#: Rooms whose import does not load torch, directly or indirectly.
WITHOUT_TORCH = set(LEVEL) - {"tickets", "zoo", "frontends", "emit", "training"}
#: Exceptions in these rooms, files that handle PyTorch modules: scores and scales, descriptions, pickles of modules.
TORCH_FILES = {
    f"elastic_ir.{folder}.{name}"
    for folder, names in (
        ("analysis", ("gradinit",)),
        ("analysis.pruning", ("scores", "flops")),
        ("formats.pickles", ("module", "rebuild")),
    )
    for name in names
}
TORCH = {"torch", "torchvision", "timm", "transformers"}
#: Packages that only the command line may import.
TERMINAL = {"click", "rich"}


@dataclass(frozen=True)
class Import:
    """One import of one module: its line, and whether it runs when its file is imported."""

    target: str
    line: int
    at_import: bool


def sources() -> dict[str, Path]:
    """Every file of the distribution by its module name; the links in elastic_ir/ are resolved to their folders."""
    found: dict[str, Path] = {}
    for folder, package in (
        ("elastic_ir", "elastic_ir"),
        ("passes", "elastic_ir.passes"),
        ("frontends", "elastic_ir.frontends"),
        ("cli", "elastic_ir.cli"),
    ):
        base = ROOT / folder
        for path in sorted(base.rglob("*.py")):
            parts = path.relative_to(base).with_suffix("").parts
            if (base / parts[0]).is_symlink():
                continue
            found[".".join([package, *(part for part in parts if part != "__init__")])] = path
    return found


SOURCES = sources()


def room(module: str) -> str | None:
    """The room of a module of the project; None for any other module."""
    first, *rest = module.split(".")
    if first != "elastic_ir":
        return None
    if not rest:
        return "face"
    return "cli" if rest[0] == "__main__" else rest[0]


def inner_level(module: str) -> int | None:
    """The level of a module inside its room; None if the room has no inner order."""
    _, *rest = module.split(".")
    floors = INNER.get(rest[0]) if len(rest) > 1 else None  # its own __init__ may import all of it
    if floors is None:
        return None
    name = rest[1]
    inside = {folder: level for level, folders in enumerate(floors) for folder in folders}
    return inside.get(name, inside[""])


def may_import(module: str, target: str) -> bool:
    """Whether the order of the rooms allows a module of the project to import another."""
    own, other = room(module), room(target)
    assert own is not None and other is not None
    if (module, other) in EXCEPTIONS:
        return True
    if own != other:
        return LEVEL[other] < LEVEL[own]
    mine, theirs = inner_level(module), inner_level(target)
    return mine is None or theirs is None or theirs <= mine


def imports(path: Path, module: str) -> Iterator[Import]:
    """All imports of a file, at any depth."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    yield from _walk(ast.parse(path.read_text("utf-8")), package, at_import=True)


def _walk(node: ast.AST, package: str, at_import: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(alias.name, node.lineno, at_import)
    elif isinstance(node, ast.ImportFrom):
        base = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
        stem = ".".join([*base, *([node.module] if node.module else [])])
        for alias in node.names:
            # `from elastic_ir import errors` imports a module, `from elastic_ir import Graph` a name of the package
            inner = f"{stem}.{alias.name}"
            yield Import(inner if inner in SOURCES else stem, node.lineno, at_import)
    elif isinstance(node, ast.If) and _for_type_checkers(node.test):
        for statement in node.body:
            yield from _walk(statement, package, at_import=False)
        for statement in node.orelse:
            yield from _walk(statement, package, at_import)
    else:
        inside = at_import and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from _walk(child, package, inside)


def _for_type_checkers(test: ast.expr) -> bool:
    name = test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", None)
    return name == "TYPE_CHECKING"


def complaints(module: str) -> list[str]:
    """The forbidden imports of a module, one line each."""
    path, own = SOURCES[module], room(module)
    assert own is not None
    found = []
    for item in imports(path, module):
        where = f"{path.relative_to(ROOT)}:{item.line}"
        top = item.target.split(".")[0]
        if top == "elastic_ir" and not may_import(module, item.target):
            found.append(f"{where}: {own} imports {item.target} ({room(item.target)})")
        if top in TORCH and item.at_import and own in WITHOUT_TORCH and module not in TORCH_FILES:
            found.append(f"{where}: {own} imports {item.target} at import; move it into the function")
        if top in TERMINAL and own != "cli":
            found.append(f"{where}: only the command line may import {top}")
        if top in ("passes", "frontends", "cli"):
            found.append(f"{where}: import elastic_ir.{item.target}")
    return list(dict.fromkeys(found))  # a line that imports several names is reported once


@pytest.mark.parametrize("module", SOURCES)
def test_a_module_imports_only_what_its_room_may(module: str) -> None:
    assert not complaints(module)


def test_every_room_is_read() -> None:
    """Guards against a reader that finds no imports and therefore reports nothing."""
    assert {room(module) for module in SOURCES} == set(LEVEL)
    assert "elastic_ir.discovery" in SOURCES
    assert any(item.target == "torch" and item.at_import for item in _zoo_imports())


def _zoo_imports() -> list[Import]:
    return list(imports(SOURCES["elastic_ir.zoo.vgg"], "elastic_ir.zoo.vgg"))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import torch.nn", [("torch.nn", True)]),
        ("from torch import nn", [("torch", True)]),
        ("try:\n import torch\nexcept ImportError: pass", [("torch", True)]),
        ("class A:\n import torch", [("torch", True)]),
        ("class A:\n def f(self):\n  import torch", [("torch", False)]),
        ("async def f():\n if 1:\n  import torch", [("torch", False)]),
        ("if TYPE_CHECKING:\n import torch\nelse:\n import numpy", [("torch", False), ("numpy", True)]),
        ("if typing.TYPE_CHECKING:\n import torch", [("torch", False)]),
        ("from elastic_ir import errors", [("elastic_ir.errors", True)]),
        ("from elastic_ir import Graph", [("elastic_ir", True)]),
        ("from . import api", [("elastic_ir.api", True)]),
        ("from .errors import PlanError", [("elastic_ir.errors", True)]),
    ],
)
def test_the_reader_of_imports(source: str, expected: list[tuple[str, bool]]) -> None:
    found = _walk(ast.parse(source), "elastic_ir", at_import=True)
    assert [(item.target, item.at_import) for item in found] == expected


def python(code: str, *arguments: str) -> str:
    """Run code in a separate Python process, from the root; returns its standard output."""
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


NO_TORCH = f"; assert not {TORCH!r} & set(sys.modules), sorted({TORCH!r} & set(sys.modules))"


def test_importing_the_package_loads_no_torch() -> None:
    python("import sys, elastic_ir" + NO_TORCH)


@pytest.mark.slow
def test_importing_all_that_needs_no_torch_loads_none() -> None:
    """Not even indirectly, through other imports."""
    modules = [
        name
        for name in SOURCES
        if room(name) in WITHOUT_TORCH and name not in TORCH_FILES and not name.endswith("__main__")
    ]
    python(f"import sys, {', '.join(modules)}" + NO_TORCH)


@pytest.mark.parametrize("command", [[], ["inspect"], ["stretch"], ["squeeze"], ["diff"], ["passes"]])
def test_help_loads_no_torch(command: list[str]) -> None:
    code = """
import contextlib, sys
from elastic_ir.cli import main
with contextlib.suppress(SystemExit):
    main()
"""
    out = python(code + NO_TORCH.removeprefix("; "), *command, "--help")
    assert "Usage:" in out


def test_a_bare_checkpoint_is_stretched_without_torch(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from elastic_ir.zoo import cifar_resnet

    source, target = tmp_path / "small.safetensors", tmp_path / "deep.safetensors"
    save_file(cifar_resnet(14, width=4).state_dict(), source)
    python(
        "import sys, elastic_ir as eir;"
        "graph = eir.stretch(eir.load(sys.argv[1]), to_stages=(3, 3, 3));"
        "eir.save(graph, sys.argv[2])" + NO_TORCH,
        str(source),
        str(target),
    )
    cifar_resnet(20, width=4).load_state_dict(load_file(target))


def test_commands_print_by_one_function_that_shows_names_as_text() -> None:
    """Names from files may contain escape sequences; ``tables.say`` and its relatives, and errors, escape them."""
    allowed = {"tables.py", "app.py"}
    found = [
        p.name for p in sorted((ROOT / "cli").glob("*.py")) if re.search(r"\b(?:echo|print)\(", p.read_text())
    ]
    assert set(found) <= allowed
