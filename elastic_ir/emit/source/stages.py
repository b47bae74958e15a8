"""Stages and containers as constructor calls: a stage's blocks are a comprehension over their number."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from elastic_ir.emit.source.expr import Expr, binary, call, change, group, index, lit, literal, raw
from elastic_ir.emit.source.merge import Join, Mismatch, Parameter
from elastic_ir.emit.source.signatures import same
from elastic_ir.emit.source.tree import Part, Path, Tree
from elastic_ir.errors import StructureError
from elastic_ir.ir.numbering import is_index, split_number
from elastic_ir.ir.structure import Stage

#: For a container's path, its stages: the children of the entry and of each free block, by name.
Plan = dict[Path, list[tuple[list[str], list[list[str]]]]]
Items = list[tuple[str, Expr]]


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
        if len(above) == 1 and stage.blocks:
            entry = stage.entry.children if stage.entry is not None else []
            names = [[child.path.rpartition(".")[2] for child in block]
                     for block in (entry, *(block.children for block in stage.blocks))]  # fmt: skip
            plan.setdefault(above.pop(), []).append((names[0], names[1:]))
    return plan


class Containers:
    """Constructor calls of containers; ``make`` gives those of their children."""

    def __init__(self, plan: Plan, make: Callable[[Part], Expr]) -> None:
        self.plan, self.make = plan, make

    def call(self, part: Part, name: str) -> Expr:
        """A container's constructor; its children's names are kept where they are not just numbers."""
        items = self._items(part)
        exprs = tuple(expr for _, expr in items)
        if not all(map(is_index, part.children)):
            table = Expr("dict", None, exprs, tuple(key for key, _ in items))
            return call(name, table if name == "nn.ModuleDict" else call("OrderedDict", table))
        return call(name, group("list", exprs)) if name == "nn.ModuleList" else call(name, *exprs)

    def _items(self, part: Part) -> Items:
        """A container's children by name; a stage is one item, or those of its entry and one of its blocks."""
        found = self.plan.get(part.path, ()) if part.kind == "sequential" or part.loop else ()
        starts = {[*entry, *blocks[0]][0]: (entry, blocks) for entry, blocks in found}
        names = list(part.children)
        items: Items = []
        while names:
            entry, blocks = starts.get(names[0], ([], []))
            members = [*entry, *(child for block in blocks for child in block)]
            whole = members and names[: len(members)] == members
            stage = self._stage(part, entry, blocks) if whole else None
            items += stage or [(names[0], self.make(part.children[names[0]]))]
            names = names[len(members) if stage else 1 :]
        return items

    def _stage(self, part: Part, entry: list[str], blocks: list[list[str]]) -> Items | None:
        """A stage's blocks in a comprehension; None where they differ in more than numbers."""
        if len(set(map(len, blocks))) > 1:
            return None
        made = [[Expr("field", owner, (self.make(part.children[name]),))
                 for owner, name in zip(blocks[0], block, strict=True)] for block in blocks]  # fmt: skip
        try:
            joined = Join(made, optional=False)
        except Mismatch:
            return None
        first = [self.make(part.children[name]) for name in entry]
        count = Expr("count", len(blocks) + bool(entry))
        if all(map(is_index, part.children)):
            number = binary("-", count, lit(1)) if entry else count
            block, variable = _template(joined, raw("i")), "i" if joined.holes else "_"
            text = f"*[{{1}} for {variable} in range({{0}})]"
            if len(blocks[0]) > 1:
                text = f"*[layer for {variable} in range({{0}}) for layer in {{1}}]"
            items = [*first, Expr("text", text, (number, block))]
            return [("*", Expr("stage", None, (group("list", items),)))]
        names = [*entry, *(child for block in blocks for child in block)]
        prefix, digits = split_number(names[0]) or ("", "0")
        low, width = int(digits), 1 if is_index(digits) else len(digits)
        numbered = names == [f"{prefix}{low + i:0{width}}" for i in range(len(names))]
        if not numbered or max(len(entry), len(blocks[0])) > 1:
            return None
        padding = f":0{width}" if width > 1 else ""
        least = low + len(entry)
        begin = f"{least}, " if least else ""
        text = f'{{{{f"{prefix}{{{{i{padding}}}}}": {{1}} for i in range({begin}{{0}})}}}}'
        block = _template(joined, binary("-", raw("i"), lit(least)) if least else raw("i"))
        end = binary("+", count, lit(low)) if low else count
        return [*zip(entry, first, strict=True), ("**", Expr("text", text, (end, block)))]


def _template(joined: Join, at: Expr) -> Expr:
    """The layers of one block; where blocks differ, by the block's number ``at``."""

    def fill(node: Expr) -> Expr | None:
        return _value_at(joined.holes[node.value], at) if node.kind == "hole" else None

    layers = [change(line.parts[0], fill) for line in joined.templates]
    return layers[0] if len(layers) == 1 else group("tuple", layers)


def _value_at(hole: Parameter, at: Expr) -> Expr:
    """What a block takes: of values in turn, or of a list with one for each."""
    values = hole.values
    for period in range(2, len(values) // 2 + 1):
        if len(values) % period == 0 and all(same(a, values[i % period]) for i, a in enumerate(values)):
            return index(literal(tuple(values[:period])), binary("%", at, lit(period)))
    return index(Expr("series", tuple(values), (), (hole.role,)), at)
