"""Stages in source: runs of blocks as one expression with a count, and lists that a forward runs through in a loop."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

from elastic_ir.emit.source.expressions.expr import IDENTITY, Expr, change, group, lit, walk
from elastic_ir.emit.source.expressions.signatures import same
from elastic_ir.emit.source.merge import Join, Mismatch, Parameter, Sizes
from elastic_ir.emit.source.reading.tree import Body, Part, Path, Tree
from elastic_ir.errors import StructureError
from elastic_ir.ir.structure import Stage

#: For a container's path, its stages: the children of the entry and of each free block, by name.
Plan = dict[Path, list[tuple[list[str], list[list[str]]]]]


def stages_of(tree: Tree) -> Plan:
    """Which children of which containers make stages, as discovered; nothing where nothing repeats."""
    try:
        stages: Sequence[Stage] = tree.graph.stages
    except StructureError:
        return {}
    plan: Plan = {}
    for stage in stages:
        paths = [tuple(child.path.split(".")) for block in stage.all_blocks for child in block.children]
        above = {path[:-1] for path in paths}
        if len(above) != 1 or not stage.blocks:
            continue
        entry = (
            [child.path.rpartition(".")[2] for child in stage.entry.children]
            if stage.entry is not None
            else []
        )
        blocks = [[child.path.rpartition(".")[2] for child in block.children] for block in stage.blocks]
        plan.setdefault(above.pop(), []).append((entry, blocks))
    return plan


def items_of(part: Part, plan: Plan, make: Callable[[Part], Expr], sizes: Sizes) -> list[tuple[str, Expr]]:
    """A container's children as named expressions; a stage is one ``stage`` expression under its first child's name."""
    found = plan.get(part.path, ()) if part.kind == "sequential" or part.loop else ()
    starts = {[*entry, *blocks[0]][0]: (entry, blocks) for entry, blocks in found}
    names = list(part.children)
    items: list[tuple[str, Expr]] = []
    while names:
        entry, blocks = starts.get(names[0], ([], []))
        members = [*entry, *(child for block in blocks for child in block)]
        whole = members and names[: len(members)] == members
        stage = _stage(part, entry, blocks, make, sizes) if whole else None
        items.append((names[0], stage or make(part.children[names[0]])))
        names = names[len(members) if stage else 1 :]
    return items


def _stage(
    part: Part, entry: list[str], blocks: list[list[str]], make: Callable[[Part], Expr], sizes: Sizes
) -> Expr | None:
    """A stage's blocks as one template, None where they differ in more than numbers."""
    made = [[make(part.children[name]) for name in block] for block in blocks]
    try:
        joined = Join(made, blocks[0], sizes, optional=False)
    except (Mismatch, ValueError):  # blocks of several children, and one that has another number of them
        return None
    first = group("tuple", [make(part.children[name]) for name in entry])
    filled = [change(each, lambda n: _series(joined.holes[n.value]) if n.kind == "hole" else None)
              for each in joined.templates]  # fmt: skip
    return group("stage", (first, Expr("count", len(blocks) + bool(entry)), group("tuple", filled)))


def _series(hole: Parameter) -> Expr:
    """What a hole takes block by block: values in turn, or a list."""
    values = hole.values
    for period in range(2, len(values) // 2 + 1):
        if len(values) % period == 0 and all(same(a, values[i % period]) for i, a in enumerate(values)):
            return Expr("cycle", None, tuple(map(lit, values[:period])))
    return Expr("each", None, (Expr("series", tuple(values)),), (hole.role,))


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
    lines = body.statements
    places = [
        place for place, (_, expr) in enumerate(lines)
        if any(leaf.kind in ("self", "attr") and leaf.value[: len(below)] == below for leaf in walk(expr))
    ]  # fmt: skip
    calls = [lines[place] for place in places]
    if len(calls) < 2 or places != list(range(places[0], places[0] + len(calls))):
        return None
    first = calls[0][1]
    called = [expr.value if expr.kind == "self" else None for _, expr in calls]
    plain = all(len(results) == 1 and len(expr.parts) == len(first.parts) and not any(expr.names)
                for results, expr in calls)  # fmt: skip
    if called != [(*below, name) for name in container.children] or not plain:
        return None
    made = [Expr("local", results[0]) for results, _ in calls]
    marks: list[str] = []
    for place, argument in enumerate(first.parts):
        later = [expr.parts[place] for _, expr in calls[1:]]
        if later != made[:-1] and later != [argument] * len(later):
            return None
        marks.append("carry" if later == made[:-1] else "")
    rest = [body.returns, *(expr for place, (_, expr) in enumerate(lines) if place not in places)]
    if marks.count("carry") != 1 or any(leaf in made[:-1] for expr in rest for leaf in walk(expr)):
        return None
    container.loop = True
    loop = (calls[-1][0], Expr("loop", below, first.parts, tuple(marks)))
    return replace(body, statements=(*lines[: places[0]], loop, *lines[places[-1] + 1 :]))


def offer_identities(tree: Tree) -> None:
    """Let blocks of one class share a forward where one only has a layer more, or an addition, than the other.

    The layer is an ``nn.Identity`` where it is missing (a downsampling shortcut), the addition is made if a flag says
    so (a residual connection that only some blocks have).
    """
    groups: dict[str, dict[Any, list[Part]]] = {}
    for part in tree.parts[()].below():
        if part.kind == "class" and part.body is not None and part.hint and part.base is None:
            form = (part.body.statements, part.body.returns, tuple(part.weights))
            groups.setdefault(part.hint, {}).setdefault(form, []).append(part)
    for kinds in groups.values():
        ordered = sorted(kinds.values(), key=lambda parts: -len(_body(parts[0]).statements))
        for more, less in permutations(ordered, 2) if len(kinds) < 6 else ():
            a, b = _body(less[0]), _body(more[0])
            extra = len(b.statements) - len(a.statements)
            alike = len(a.inputs) == len(b.inputs) and less[0].weights.keys() == more[0].weights.keys()
            if alike and 0 < extra <= 3:
                removed = _missing(b, a, less[0].children, list(range(len(b.values))))
                if removed is not None:
                    _share(less, more, b, removed)


def _body(part: Part) -> Body:
    assert part.body is not None
    return part.body


def _missing(
    b: Body, a: Body, children: Collection[str], keys: list[int], done: int = 0
) -> list[tuple[int, int]] | None:
    """The statements of ``b`` that ``a`` lacks, each with the value that stands for its result in ``a``.

    None where that is not how they differ. ``keys`` are the values' first numbers, ``done`` counts what was left out.
    """
    if len(b.statements) == len(a.statements):
        return [] if (b.statements, b.returns) == (a.statements, a.returns) else None
    pairs = zip(b.statements, a.statements, strict=False)
    at = next((place for place, (x, y) in enumerate(pairs) if x != y), len(a.statements))
    results, expr = b.statements[at]
    layer = expr.kind == "self" and len(expr.value) == len(expr.parts) == 1 and expr.value[0] not in children
    addition = expr.kind == "binary" and expr.value == "+"
    if len(results) == 1 and (layer or addition) and all(part.kind == "local" for part in expr.parts):
        for operand in reversed(expr.parts):
            rest = _without(b, at, operand.value)
            left = [*keys[: results[0]], *keys[results[0] + 1 :]]
            found = _missing(rest, a, children, left, done + 1)
            if found is not None:
                return [(at + done, keys[operand.value]), *found]
    return None


def _without(body: Body, index: int, operand: int) -> Body:
    """A body without one of its statements, whose result an operand stands for."""
    gone = body.statements[index][0][0]

    def number(old: int) -> int:
        old = operand if old == gone else old
        return old - (old > gone)

    def renumbered(expr: Expr) -> Expr:
        return change(expr, lambda leaf: Expr("local", number(leaf.value)) if leaf.kind == "local" else None)

    statements = tuple(
        (tuple(map(number, results)), renumbered(expr))
        for place, (results, expr) in enumerate(body.statements)
        if place != index
    )
    return replace(body, statements=statements, returns=renumbered(body.returns))


def _share(less: list[Part], more: list[Part], b: Body, removed: list[tuple[int, int]]) -> None:
    """Give both kinds the longer forward, with identities and flags where the shorter one has less."""
    for parts, has in ((less, False), (more, True)):
        lines = list(b.statements)
        missing = []
        for index, operand in removed:
            results, expr = lines[index]
            if expr.kind == "binary":
                lines[index] = (results, group("ternary", (lit(has), expr, Expr("local", operand))))
            elif not has:
                missing.append(expr.value[0])
        for part in parts:
            part.body = Body(_body(part).inputs, tuple(lines), b.returns, b.values)
            absent = {name: Part((*part.path, name), kind="identity", make=IDENTITY) for name in missing}
            children = part.children | absent
            order = [name for name in more[0].children if name in children]
            part.children = {name: children[name] for name in dict.fromkeys([*order, *children])}
