"""Forwards made alike, so that one class serves more blocks: loops over lists, optional layers and additions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

from elastic_ir.emit.source.expr import IDENTITY, Expr, group, lit, substitute, walk
from elastic_ir.emit.source.reading.tree import Body, Part, Tree, numbered


def roll_loops(tree: Tree) -> None:
    """Where a forward calls the children of a list one after the other, each on what the one before gave: a loop."""
    for part in tree.parts[()].below():
        if part.body is not None and part.kind == "class":
            for found in _lists(part):
                part.body = _rolled(part.body, part, found) or part.body


def _lists(part: Part) -> list[Part]:
    inlined = [child for child in part.children.values() if child.inlined]
    return [each for child in inlined for each in ([child] if child.kind == "list" else _lists(child))]


def _rolled(body: Body, part: Part, container: Part) -> Body | None:
    """A body with a list's calls as one loop, None where they are not one."""
    below = container.path[len(part.path) :]
    places = [
        place for place, line in enumerate(body.lines)
        if any(leaf.kind in ("self", "attr") and leaf.value[: len(below)] == below for leaf in walk(line))
    ]  # fmt: skip
    lines = [body.lines[place] for place in places]
    if (
        len(lines) < 2
        or len(lines) != len(container.children)
        or any(len(line.value or ()) != 1 for line in lines)
    ):
        return None
    made = [Expr("local", line.value[0]) for line in lines]
    call = lines[0].parts[0]
    marks = tuple("carry" if argument == made[0] else "" for argument in lines[1].parts[0].parts)
    if any(call.names) or marks.count("carry") != 1 or len(marks) != len(call.parts):
        return None
    at, first = marks.index("carry"), places[0]
    for name, line, given in zip(container.children, lines, [call.parts[at], *made], strict=False):
        parts = (*call.parts[:at], given, *call.parts[at + 1 :])
        if line.parts != (Expr("self", (*below, name), parts, call.names),):
            return None
    rest = [line for place, line in enumerate(body.lines) if place not in places]
    if places[-1] - first != len(places) - 1 or any(leaf in made[:-1] for leaf in walk(*rest)):
        return None
    container.loop = True
    loop = replace(lines[-1], parts=(Expr("loop", below, call.parts, marks),))
    return replace(body, lines=(*rest[:first], loop, *rest[first:]))


def offer_identities(tree: Tree) -> None:
    """Let blocks of one class share a forward where one only has a layer more, or an addition, than the other.

    The layer is an ``nn.Identity`` where it is missing (a downsampling shortcut), the addition is made if a flag says
    so (a residual connection that only some blocks have).
    """
    groups: dict[tuple[Any, ...], dict[Any, list[Part]]] = {}
    for part in tree.parts[()].below():
        if part.kind == "class" and part.body is not None and part.hint and part.base is None:
            kind = (len(part.body.inputs), part.hint, frozenset(part.weights))
            groups.setdefault(kind, {}).setdefault(part.lines, []).append(part)
    for (inputs, *_), kinds in groups.items():
        ordered = sorted(kinds.values(), key=lambda parts: -len(parts[0].lines))
        for more, less in permutations(ordered, 2) if len(kinds) < 6 else ():
            longer, shorter = more[0].lines, less[0].lines
            if 0 < len(longer) - len(shorter) <= 3:
                extra = _extra(longer, shorter, inputs, less[0].children)
                if extra is not None:
                    _share(less, more, extra)


def _extra(
    lines: Sequence[Expr], wanted: Sequence[Expr], inputs: int, children: Collection[str]
) -> dict[int, int] | None:
    """The results of the lines that are not among those wanted, each with the value that stands for it there.

    None where that is not how they differ. ``children`` are those of the module of the lines wanted.
    """
    found = numbered(range(inputs), lines)
    if len(found) == len(wanted):
        return {} if found == wanted else None
    line = next(line for line, ours, theirs in zip(lines, found, wanted, strict=False) if ours != theirs)
    expr = line.parts[0]
    layer = expr.kind == "self" and len(expr.value) == len(expr.parts) == 1 and expr.value[0] not in children
    addition = expr.kind == "binary" and expr.value == "+"
    if len(line.value) == 1 and (layer or addition) and all(part.kind == "local" for part in expr.parts):
        for operand in reversed(expr.parts):
            rest = [substitute(each, {line.value[0]: operand}) for each in lines if each is not line]
            others = _extra(rest, wanted, inputs, children)
            if others is not None:
                return {line.value[0]: operand.value} | others
    return None


def _share(less: list[Part], more: list[Part], extra: dict[int, int]) -> None:
    """Give both kinds the longer forward, with identities and flags where the shorter one has less."""
    body = more[0].body
    assert body is not None
    for parts, has in ((less, False), (more, True)):
        lines, missing = [], []
        for line in body.lines:
            operand = extra.get(line.value[0]) if line.kind == "set" else None
            expr = line.parts[0]
            if operand is not None and expr.kind == "binary":
                line = replace(line, parts=(group("ternary", (lit(has), expr, Expr("local", operand))),))
            elif operand is not None and not has:
                missing.append(expr.value[0])
            lines.append(line)
        for part in parts:
            part.body = replace(body, lines=tuple(lines))
            absent = {name: Part((*part.path, name), kind="identity", make=IDENTITY) for name in missing}
            children = part.children | absent
            order = [name for name in more[0].children if name in children]
            part.children = {name: children[name] for name in dict.fromkeys([*order, *children])}
