"""Containers and stages as text would have them: calls of nn.Sequential, lists, and comprehensions over the blocks."""

from __future__ import annotations

from typing import Any

from elastic_ir.emit.source.expressions.expr import Expr, change, raw
from elastic_ir.emit.source.expressions.print import Printer
from elastic_ir.errors import EmitError
from elastic_ir.ir.numbering import is_index, split_number


def printable(expr: Expr) -> Expr:
    """Containers and stages as calls, lists and comprehensions."""

    def shown(node: Expr) -> Expr | None:
        return _container(node) if node.kind == "container" else None

    return change(expr, shown)


def _container(node: Expr) -> Expr:
    if node.names:
        return _named(node)
    items: list[Expr] = []
    for part in node.parts:
        items += stage_items(part) if part.kind == "stage" else [printable(part)]
    if node.value == "nn.ModuleList":
        return Expr("call", node.value, (listed(items),), ("",))
    return Expr("call", node.value, tuple(items), ("",) * len(items))


def listed(items: list[Expr]) -> Expr:
    """A list; of nothing but one unpacked list, that list."""
    if len(items) == 1 and items[0].kind == "star" and items[0].parts[0].kind in ("comprehension", "new"):
        return items[0].parts[0]
    return Expr("list", None, tuple(items))


def _named(node: Expr) -> Expr:
    """Children with names of their own, in an OrderedDict or a ModuleDict."""
    names: list[str] = []
    parts: list[Expr] = []
    stars: list[Expr] = []
    for name, part in zip(node.names, node.parts, strict=True):
        if part.kind != "stage":
            names.append(name)
            parts.append(printable(part))
            continue
        found = split_number(name)
        if found is None or len(part.parts[0].parts) > 1 or len(part.parts[2].parts) > 1:
            raise EmitError(
                f"the stage that starts at {name!r} is not numbered, so it cannot be written as a loop"
            )
        prefix, base = found[0], int(found[1])
        padding = "" if is_index(found[1]) else f":0{len(found[1])}"
        entry = len(part.parts[0].parts)
        if entry:
            names.append(name)
            parts.append(printable(part.parts[0].parts[0]))
        first = base + entry
        count = _flat_count(part.parts[1], base)
        clause = f"for i in range({first}, {count})" if first else f"for i in range({count})"
        inner = _stepped(printable(part.parts[2].parts[0]), f"i - {first}" if first else "i")
        pair = Expr("pair", f'f"{prefix}{{i{padding}}}"', (inner,))
        stars.append(Expr("comprehension", ("{}", (clause,)), (pair,)))
        names.append("**")
        parts.append(Expr("star", "**", (stars[-1],)))
    if parts and len(parts) == 1 and stars:
        table = stars[0]
    else:
        table = Expr("dict", None, tuple(parts), tuple(names))
    if node.value == "nn.ModuleDict":
        return Expr("call", node.value, (table,), ("",))
    return Expr("call", node.value, (Expr("call", "OrderedDict", (table,), ("",)),), ("",))


def _flat_count(count: Expr, more: int) -> str:
    text = Printer().flat(count)
    if not more:
        return text
    return str(int(text) + more) if text.isdigit() else f"{text} + {more}"


def stage_items(stage: Expr) -> list[Expr]:
    """A stage as items of a list: its entry, and its blocks in a comprehension."""
    entry, count, blocks = stage.parts
    items = [printable(part) for part in entry.parts]
    text = Printer().flat(count)
    inner = [printable(part) for part in blocks.parts]
    stepped = [_stepped(part, "i") for part in inner]
    variable = "_" if stepped == inner else "i"
    if items:
        text = str(int(text) - 1) if text.isdigit() else f"{text} - 1"
    clauses: list[Any] = [f"for {variable} in range({text})"]
    if len(stepped) > 1:
        clauses.append(("for layer in ", Expr("tuple", None, tuple(stepped))))
        made = raw("layer")
    else:
        made = stepped[0]
    return [*items, Expr("star", "*", (Expr("comprehension", ("[]", tuple(clauses)), (made,)),))]


def _stepped(expr: Expr, index: str) -> Expr:
    def step(node: Expr) -> Expr | None:
        if node.kind == "cycle":
            return Expr(
                "index",
                None,
                (Expr("tuple", None, node.parts), raw(f"{_grouped(index)} % {len(node.parts)}")),
            )
        if node.kind == "each":
            return Expr("index", None, (node.parts[0], raw(index)))
        return None

    return change(expr, step)


def _grouped(text: str) -> str:
    return text if text.isidentifier() else f"({text})"
