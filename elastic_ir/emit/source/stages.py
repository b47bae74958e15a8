"""Stages in source: runs of blocks as one expression with a count, and lists that a forward runs through in a loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from elastic_ir.emit.source.expressions.expr import IDENTITY, Expr, lit, walk
from elastic_ir.emit.source.expressions.print import same
from elastic_ir.emit.source.merge import Joined, Mismatch, Sized, join
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


def items_of(part: Part, plan: Plan, make: Callable[[Part], Expr], sized: Sized) -> list[tuple[str, Expr]]:
    """A container's children as named expressions; a stage is one ``stage`` expression under its first child's name."""
    starts: dict[str, tuple[list[str], list[list[str]]]] = {}
    if part.kind == "sequential" or part.loop:
        for entry, blocks in plan.get(part.path, ()):
            starts[[*entry, *blocks[0]][0]] = (entry, blocks)
    names = list(part.children)
    items: list[tuple[str, Expr]] = []
    at = 0
    while at < len(names):
        name = names[at]
        found = starts.get(name)
        if found is not None:
            entry, blocks = found
            members = [*entry, *(child for block in blocks for child in block)]
            if names[at : at + len(members)] == members:
                stage = _stage(part, entry, blocks, make, sized)
                if stage is not None:
                    items.append((name, stage))
                    at += len(members)
                    continue
        items.append((name, make(part.children[name])))
        at += 1
    return items


def _stage(
    part: Part,
    entry: list[str],
    blocks: list[list[str]],
    make: Callable[[Part], Expr],
    sized: Sized,
) -> Expr | None:
    made = [tuple(make(part.children[name]) for name in block) for block in blocks]
    try:
        joined = join(made, list(blocks[0]), sized)
    except (Mismatch, IndexError):
        return None
    if joined.presence or len({len(block) for block in made}) != 1:
        return None

    def fill(expr: Expr) -> Expr:
        if expr.kind == "hole":
            return _series(joined, expr.value)
        return Expr(expr.kind, expr.value, tuple(fill(part) for part in expr.parts), expr.names)

    first = Expr("tuple", None, tuple(make(part.children[name]) for name in entry))
    count = Expr("count", len(blocks) + bool(entry))
    return Expr("stage", None, (first, count, Expr("tuple", None, tuple(map(fill, joined.templates)))))


def _series(joined: Joined, number: int) -> Expr:
    """What a hole takes block by block: values in turn, or a list."""
    hole = joined.holes[number]
    values = hole.values
    for period in range(2, len(values) // 2 + 1):
        if len(values) % period == 0 and all(same(a, values[i % period]) for i, a in enumerate(values)):
            return Expr("cycle", None, tuple(lit(value) for value in values[:period]))
    return Expr("each", None, (Expr("series", tuple(values)),), (hole.role,))


def roll_loops(tree: Tree) -> None:
    """Where a forward calls the children of a list one after the other, each on what the one before gave: a loop."""
    for part in tree.parts[()].below():
        if part.body is not None and part.kind == "class":
            for found in _lists(part):
                part.body = _rolled(part.body, part, found) or part.body


def _lists(part: Part) -> list[Part]:
    found = []
    for child in part.children.values():
        if child.inlined:
            found += [child] if child.kind == "list" else _lists(child)
    return found


def _rolled(body: Body, part: Part, container: Part) -> Body | None:
    below = container.path[len(part.path) :]
    wanted = [(*below, name) for name in container.children]
    if len(wanted) < 2:
        return None
    touching = [
        index for index, (_, expr) in enumerate(body.statements)
        if any(leaf.kind in ("self", "attr") and leaf.value[: len(below)] == below for leaf in walk(expr))
    ]  # fmt: skip
    if len(touching) != len(wanted) or touching != list(range(touching[0], touching[0] + len(wanted))):
        return None
    calls = [body.statements[index] for index in touching]
    if any(expr.kind != "self" or expr.value != path for (_, expr), path in zip(calls, wanted, strict=True)):
        return None
    if any(len(results) != 1 or len(expr.parts) != len(calls[0][1].parts) for results, expr in calls):
        return None
    marks: list[str] = []
    for place, argument in enumerate(calls[0][1].parts):
        later = [expr.parts[place] for _, expr in calls[1:]]
        if all(each == Expr("local", calls[index][0][0]) for index, each in enumerate(later)):
            marks.append("carry")
        elif all(each == argument for each in later):
            marks.append("")
        else:
            return None
    if marks.count("carry") != 1 or any(set(e.names) - {""} for _, e in calls):
        return None
    inner = {results[0] for results, _ in calls[:-1]}
    rest = [expr for index, (_, expr) in enumerate(body.statements) if index not in touching] + [body.returns]
    if any(leaf.kind == "local" and leaf.value in inner for expr in rest for leaf in walk(expr)):
        return None
    container.loop = True
    loop = (calls[-1][0], Expr("loop", below, calls[0][1].parts, tuple(marks)))
    statements = (*body.statements[: touching[0]], loop, *body.statements[touching[-1] + 1 :])
    return Body(body.inputs, statements, body.returns, body.values)


def offer_identities(tree: Tree) -> None:
    """Let blocks of one class share a forward where one only has a layer more, or an addition, than the other.

    The layer is an ``nn.Identity`` where it is missing (a downsampling shortcut), the addition is made if a flag says
    so (a residual connection that only some blocks have).
    """
    groups: dict[str, list[Part]] = {}
    for part in tree.parts[()].below():
        if part.kind == "class" and part.body is not None and part.hint and part.base is None:
            groups.setdefault(part.hint, []).append(part)
    for parts in groups.values():
        kinds: dict[Any, list[Part]] = {}
        for part in parts:
            assert part.body is not None
            kinds.setdefault((part.body.statements, part.body.returns, tuple(part.weights)), []).append(part)
        if 1 < len(kinds) < 6:
            _offer(list(kinds.values()))


def _offer(kinds: list[list[Part]]) -> None:
    ordered = sorted(kinds, key=lambda parts: -len(parts[0].body.statements))  # type: ignore[union-attr]
    for more in ordered:
        for less in ordered:
            if less is more:
                continue
            a, b = less[0].body, more[0].body
            assert a is not None and b is not None
            if (a.statements, a.returns) == (b.statements, b.returns) or len(a.inputs) != len(b.inputs):
                continue
            if (
                not 0 < len(b.statements) - len(a.statements) <= 3
                or less[0].weights.keys() != more[0].weights.keys()
            ):
                continue
            places, keys = list(range(len(b.statements))), list(range(len(b.values)))
            removed = _explain(b, places, keys, a, set(less[0].children))
            if removed is not None:
                _share(less, more, b, removed)


def _explain(
    b: Body, places: list[int], keys: list[int], a: Body, children: set[str]
) -> list[tuple[int, int]] | None:
    """Which statements of ``b`` may be left out to give ``a``, and which value stands for each of their results.

    None where that is not how they differ. ``places`` and ``keys`` are the statements' and the values' first numbers.
    """
    if len(b.statements) == len(a.statements):
        return [] if (b.statements, b.returns) == (a.statements, a.returns) else None
    for index, (results, expr) in enumerate(b.statements):
        if len(results) != 1:
            continue
        layer = (
            expr.kind == "self"
            and len(expr.value) == 1
            and len(expr.parts) == 1
            and expr.parts[0].kind == "local"
        )
        addition = expr.kind == "binary" and expr.value == "+" and all(p.kind == "local" for p in expr.parts)
        if not (layer or addition) or (layer and expr.value[0] in children):
            continue
        for operand in reversed(expr.parts):
            statements, returns = _without(b, index, operand.value)
            rest = Body(b.inputs, statements, returns, b.values)
            left = [*keys[: results[0]], *keys[results[0] + 1 :]]
            found = _explain(rest, [*places[:index], *places[index + 1 :]], left, a, children)
            if found is not None:
                return [(places[index], keys[operand.value]), *found]
    return None


def _share(less: list[Part], more: list[Part], b: Body, removed: list[tuple[int, int]]) -> None:
    """Give both kinds the longer forward, with identities and flags where the shorter one has less."""
    for parts, has in ((less, False), (more, True)):
        lines = list(b.statements)
        for index, operand in removed:
            results, expr = lines[index]
            if expr.kind == "binary":
                lines[index] = (results, Expr("ternary", None, (lit(has), expr, Expr("local", operand))))
        for part in parts:
            part.body = Body(part.body.inputs if part.body else (), tuple(lines), b.returns, b.values)
            for index, _ in removed:
                expr = b.statements[index][1]
                if expr.kind == "self" and not has:
                    name = expr.value[0]
                    part.children[name] = Part((*part.path, name), kind="identity", make=IDENTITY)
            order = [n for n in more[0].children if n in part.children]
            part.children = {
                n: part.children[n] for n in [*order, *(n for n in part.children if n not in order)]
            }


def _without(body: Body, index: int, operand: int) -> tuple[Any, Any]:
    """A body's statements and result without one of its statements, whose result an operand stands for."""
    gone = body.statements[index][0][0]

    def number(old: int) -> int:
        old = operand if old == gone else old
        return old - (old > gone)

    def renumber(expr: Expr) -> Expr:
        if expr.kind == "local":
            return Expr("local", number(expr.value))
        return Expr(expr.kind, expr.value, tuple(renumber(part) for part in expr.parts), expr.names)

    statements = tuple(
        (tuple(number(r) for r in results), renumber(expr))
        for place, (results, expr) in enumerate(body.statements)
        if place != index
    )
    return statements, renumber(body.returns)
