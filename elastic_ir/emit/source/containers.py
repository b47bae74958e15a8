"""Containers and stages as text would have them: calls of nn.Sequential, lists, and comprehensions over the blocks."""

from __future__ import annotations

from elastic_ir.emit.source.expressions.expr import Expr, binary, call, change, group, index, lit, raw
from elastic_ir.errors import EmitError
from elastic_ir.ir.numbering import is_index, split_number


def printable(expr: Expr) -> Expr:
    """Containers and stages as calls, lists and comprehensions."""
    return change(expr, lambda node: _container(node) if node.kind == "container" else None)


def _container(node: Expr) -> Expr:
    if node.names:
        table = _table(node)
        return call(node.value, table if node.value == "nn.ModuleDict" else call("OrderedDict", table))
    items: list[Expr] = []
    for part in node.parts:
        items += stage_items(part) if part.kind == "stage" else [printable(part)]
    return call(node.value, listed(items)) if node.value == "nn.ModuleList" else call(node.value, *items)


def listed(items: list[Expr]) -> Expr:
    """A list; of nothing but one unpacked list, that list."""
    unpacked = len(items) == 1 and items[0].kind == "text" and items[0].value == "*{}"
    return items[0].parts[0] if unpacked else group("list", items)


def _table(node: Expr) -> Expr:
    """Children by names of their own, as a dictionary."""
    names: list[str] = []
    parts: list[Expr] = []
    for name, part in zip(node.names, node.parts, strict=True):
        if part.kind != "stage":
            names.append(name)
            parts.append(printable(part))
            continue
        entry, count, blocks = part.parts
        found = split_number(name)
        if found is None or len(entry.parts) > 1 or len(blocks.parts) > 1:
            raise EmitError(
                f"the stage that starts at {name!r} is not numbered, so it cannot be written as a loop"
            )
        names += [name] * len(entry.parts) + ["**"]
        parts += map(printable, entry.parts)
        prefix, base = found[0].replace("{", "{{").replace("}", "}}"), int(found[1])
        first = base + len(entry.parts)
        padding = "" if is_index(found[1]) else f":0{len(found[1])}"
        start = f"{first}, " if first else ""
        template = f'{{{{f"{prefix}{{{{i{padding}}}}}": {{}} for i in range({start}{{}})}}}}'
        made = _stepped(printable(blocks.parts[0]), _minus(raw("i"), first))
        parts.append(Expr("text", template, (made, _minus(count, -base))))
    return parts[0] if names == ["**"] else Expr("dict", None, tuple(parts), tuple(names))


def stage_items(stage: Expr) -> list[Expr]:
    """A stage as items of a list: its entry, and its blocks in a comprehension."""
    entry, count, blocks = stage.parts
    inner = [printable(part) for part in blocks.parts]
    stepped = [_stepped(part, raw("i")) for part in inner]
    variable = "_" if stepped == inner else "i"
    number = _minus(count, 1 if entry.parts else 0)
    if len(stepped) > 1:
        template = f"[layer for {variable} in range({{}}) for layer in {{}}]"
        made = Expr("text", template, (number, group("tuple", stepped)))
    else:
        made = Expr("text", f"[{{}} for {variable} in range({{}})]", (stepped[0], number))
    return [*map(printable, entry.parts), Expr("text", "*{}", (made,))]


def _minus(count: Expr, less: int) -> Expr:
    return binary("-" if less > 0 else "+", count, lit(abs(less))) if less else count


def _stepped(expr: Expr, at: Expr) -> Expr:
    """A block of a stage, with what differs from block to block taken by its number."""

    def step(node: Expr) -> Expr | None:
        if node.kind == "cycle":
            return index(group("tuple", node.parts), binary("%", at, lit(len(node.parts))))
        return index(node.parts[0], at) if node.kind == "each" else None

    return change(expr, step)
