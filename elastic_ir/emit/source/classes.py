"""Classes of emitted source: modules of one structure share one, and what differs between them are its arguments.

It is worked from the innermost modules outwards, so that a block's constructor call is known when its stage is joined.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from elastic_ir.emit.source.expressions.expr import IDENTITY, Expr, change, lit, walk
from elastic_ir.emit.source.merge import (
    MISSING,
    Joined,
    Mismatch,
    Parameter,
    computed_sizes,
    condition,
    fill,
    join,
    parameters,
)
from elastic_ir.emit.source.reading.layers import constructor, zeros
from elastic_ir.emit.source.reading.tree import Part, Tree
from elastic_ir.emit.source.stages import Plan, items_of
from elastic_ir.emit.source.values import value_of
from elastic_ir.ir.numbering import is_index


@dataclass
class Entry:
    """One attribute that a constructor makes."""

    name: str
    kind: (
        str  #: module, parameter, buffer, transient (a buffer that is no part of the state dict), flag, base
    )
    expr: Expr


@dataclass
class Definition:
    """A class, or a function that makes a stage's blocks."""

    name: str
    kind: str  #: class, sequence (a class derived from nn.Sequential), function
    parameters: list[Parameter]
    entries: list[Entry]
    part: Part | None = None  #: an instance, whose inputs tell types
    statements: Sequence[Any] = ()
    returns: Expr = field(default_factory=lambda: Expr("tuple"))
    base: Expr | None = None


class Builder:
    """Definitions of a tree's modules, the inner ones first."""

    def __init__(self, tree: Tree, plan: Plan) -> None:
        self.tree, self.plan = tree, plan
        self.definitions: list[Definition] = []
        self.names: set[str] = {"F", "nn", "torch", "Tensor", "math", "OrderedDict", "stochastic_depth"}
        self.sizes: dict[tuple[str, str], bool] = {}
        self.root_entries: list[Entry] = []

    def sized(self, owner: str, argument: str) -> bool:
        return self.sizes.get((owner, argument), False)

    def build(self) -> list[Entry]:
        """Define all classes but the network's own, whose entries are returned."""
        root = self.tree.parts[()]
        root.kind = "sequential" if root.kind == "sequential" else "class"
        heights: dict[int, int] = {}
        levels: dict[int, list[Part]] = {}
        for part in root.below():
            inner = max((heights[id(child)] for child in part.children.values()), default=0)
            own = part.kind == "class" or (part.kind == "sequential" and (part.hint or not part.path))
            heights[id(part)] = inner + bool(own)
            if own and part.path:
                levels.setdefault(inner, []).append(part)
        for level in sorted(levels):
            self._level(levels[level])
        entries = self._entries(root)
        return self._stages([entries])[0]

    # -- constructors ----------------------------------------------------------------------------------------------

    def make(self, part: Part) -> Expr:
        """The constructor call of a part."""
        if part.make is not None:
            return part.make
        if part.kind == "parameters":
            return self._parameters(part)
        name = {"sequential": "nn.Sequential", "list": "nn.ModuleList"}.get(part.kind, "nn.ModuleDict")
        items = items_of(part, self.plan, self.make, self.sized)
        return container(name, items, list(part.children))

    def _parameters(self, part: Part) -> Expr:
        """What holds weights that another module's forward reads."""
        shapes = {role: weight.shape for role, weight in part.weights.items()}
        if set(shapes) <= {"weight", "bias"} and len(shapes.get("weight", ())) == 2:
            return constructor("nn.Linear", in_features=shapes["weight"][1], out_features=shapes["weight"][0],
                         bias="bias" in shapes)  # fmt: skip
        if all(weight.is_parameter for weight in part.weights.values()):
            made = tuple(Expr("call", "nn.Parameter", (zeros(s),), ("",)) for s in shapes.values())
            return Expr("call", "nn.ParameterDict", (Expr("dict", None, made, tuple(shapes)),), ("",))
        part.kind = "class"
        self._level([part])
        assert part.make is not None
        return part.make

    def _entries(self, part: Part) -> list[Entry]:
        entries: list[Entry] = []
        if part.kind == "sequential":
            items = items_of(part, self.plan, self.make, self.sized)
            return [Entry("", "sequence", container("super().__init__", items, list(part.children)))]
        if part.base is not None:
            base = Expr("new", part.base.value, part.base.parts, part.base.names)
            entries.append(Entry("", "base", base))
        else:
            for role, weight in part.weights.items():
                if not weight.persistent:
                    entries.append(Entry(role, "transient", value_of(weight)))
                elif weight.is_parameter:
                    entries.append(
                        Entry(role, "parameter", Expr("call", "nn.Parameter", (zeros(weight.shape),), ("",)))
                    )
                else:
                    entries.append(Entry(role, "buffer", zeros(weight.shape, weight.dtype)))
        for name, child in part.children.items():
            if child.kind == "class" and child.body is None and not child.weights and not child.children:
                continue  # nothing is there
            entries.append(Entry(name, "module", self.make(child)))
        return entries

    # -- classes ---------------------------------------------------------------------------------------------------

    def _level(self, parts: list[Part]) -> None:
        lists = self._stages([self._entries(part) for part in parts])
        groups: dict[Any, list[int]] = {}
        for index, (part, entries) in enumerate(zip(parts, lists, strict=True)):
            groups.setdefault((self._base_name(part), _outline(part, entries)), []).append(index)
        for (name, _), members in groups.items():
            self._class(name, [parts[i] for i in members], [lists[i] for i in members])

    def _class(self, name: str, parts: list[Part], lists: list[list[Entry]]) -> None:
        """One class for all, or, where they do not join, one for each structure."""
        try:
            self._define(name, parts, lists)
        except Mismatch:
            groups: dict[Any, list[int]] = {}
            for index, entries in enumerate(lists):
                groups.setdefault(tuple(_masked(entry.expr) for entry in entries), []).append(index)
            if len(groups) == 1:
                groups = {i: [i] for i in range(len(parts))}
            for members in sorted(groups.values(), key=lambda m: -len(m)):
                self._define(name, [parts[i] for i in members], [lists[i] for i in members])

    def _define(self, name: str, parts: list[Part], lists: list[list[Entry]]) -> None:
        first = lists[0]
        bodies = [part.body for part in parts]
        forward = [[expr for _, expr in body.statements] if body is not None else [] for body in bodies]
        sequence = parts[0].kind == "sequential"
        if sequence:
            forward = [[] for _ in parts]
        owners = [entry.name or "base" for entry in first] + [""] * len(forward[0])
        rows = [
            [entry.expr for entry in entries] + more for entries, more in zip(lists, forward, strict=True)
        ]
        joined = join(rows, owners, self.sized)
        found, filled = parameters(joined.holes)
        sizes = computed_sizes(joined.holes, filled)
        conditions = [condition(values, found, f"has_{owner}", sizes) for owner, values in joined.presence]
        made = [fill(template, filled, conditions) for template in joined.templates]
        name = self._fresh(name, parts)
        entries = [Entry(e.name, e.kind, expr) for e, expr in zip(first, made, strict=False)]
        entries, statements = without_empty(entries, made[len(first) :])
        self._rename(found, entries, statements, parts[0])
        found.sort(key=lambda p: p.default is not MISSING)
        body = bodies[0]
        lines = [] if body is None or sequence else [
            (results, expr) for (results, _), expr in zip(body.statements, statements, strict=True)
        ]  # fmt: skip
        flags = [self._flag(p, found, sizes) for p in found if p.stored and p.hole.role == "residual"]
        for flag in flags:
            if flag is not None:
                found = [p for p in found if p.name != flag.name]
        stored = [Entry(p.name, "flag", Expr("param", p.name)) for p in found if p.stored]
        stored += [flag for flag in flags if flag is not None]
        head = [entry for entry in entries if entry.kind == "base"]
        entries = [*head, *stored, *(entry for entry in entries if entry.kind != "base")]
        returns = body.returns if body is not None else Expr("tuple")
        kind = "sequence" if sequence else "class"
        self.definitions.append(
            Definition(name, kind, found, entries, parts[0], lines, returns, parts[0].base)
        )
        for parameter in found:
            self.sizes[name, parameter.name] = parameter.hole.size
        for index, part in enumerate(parts):
            values = tuple(_valued(p, index) for p in found)
            part.make = Expr("new", name, values, tuple(p.name for p in found))

    def _flag(
        self, flag: Parameter, found: list[Parameter], sizes: Sequence[tuple[str, list[Any]]]
    ) -> Entry | None:
        """A flag of a forward that follows from other parameters."""
        others = [p for p in found if p is not flag]
        text = condition([bool(value) for value in flag.values], others, "", sizes)
        return Entry(flag.name, "flag", Expr("raw", text)) if text else None

    def _rename(
        self, found: list[Parameter], entries: list[Entry], statements: list[Expr], part: Part
    ) -> None:
        """Parameters that the forward reads become attributes, and must not take the name of another one."""
        taken = {entry.name for entry in entries}
        renames = {}
        for parameter in found:
            if parameter.stored and parameter.name in taken:
                renames[parameter.name] = parameter.name = f"{parameter.name}_value"
        if renames:

            def renamed(leaf: Expr) -> Expr | None:
                return (
                    Expr("param", renames[leaf.value])
                    if leaf.kind == "param" and leaf.value in renames
                    else None
                )

            for entry in entries:
                entry.expr = change(entry.expr, renamed)
            statements[:] = [change(expr, renamed) for expr in statements]

    # -- stages ----------------------------------------------------------------------------------------------------

    def _stages(self, lists: list[list[Entry]]) -> list[list[Entry]]:
        """Stages of one form become calls of one function."""
        found: dict[Any, list[Expr]] = {}
        for entries in lists:
            for entry in entries:
                for node in walk(entry.expr):
                    if node.kind == "container" and not node.names:
                        for part in node.parts:
                            if part.kind == "stage":
                                found.setdefault(_masked(part), []).append(part)
        calls: dict[Expr, Expr] = {}
        for stages in found.values():
            if len(stages) > 1:
                self._function(stages, calls)
        if not calls:
            return lists

        def called(node: Expr) -> Expr | None:
            if node.kind == "stage" and node in calls:
                return calls[node]
            return None

        return [[Entry(e.name, e.kind, change(e.expr, called)) for e in entries] for entries in lists]

    def _function(self, stages: list[Expr], calls: dict[Expr, Expr]) -> None:
        try:
            joined: Joined = join([[stage] for stage in stages], ["stage"], self.sized)
        except Mismatch:
            return
        found, filled = parameters(joined.holes)
        if joined.presence:
            return
        template = fill(joined.templates[0], filled, [])
        found.sort(key=lambda p: p.default is not MISSING)
        block = next((node.value for node in walk(template.parts[2]) if node.kind == "new"), "")
        base = (
            "make_stage"
            if "make_stage" not in self.names
            else f"make_{snake(block.removeprefix('nn.'))}_stage"
        )
        name = base
        while name in self.names:
            name += "_"
        self.names.add(name)
        self.definitions.append(Definition(name, "function", found, [Entry("", "stage", template)]))
        for parameter in found:
            self.sizes[name, parameter.name] = parameter.hole.size
        for index, stage in enumerate(stages):
            values = tuple(_valued(p, index) for p in found)
            calls[stage] = Expr("text", "*{}", (Expr("new", name, values, tuple(p.name for p in found)),))

    # -- names -----------------------------------------------------------------------------------------------------

    def _base_name(self, part: Part) -> str:
        if part.hint:
            return part.hint
        steps = [step for step in part.path if not is_index(step)]
        name = camel(re.sub(r"\d+$", "", steps[-1])) if steps else "Block"
        if is_index(part.path[-1]):
            name = name[:-1] if name.endswith("s") and len(name) > 3 else name
            name = (
                "Block"
                if name in ("Layer", "Stage", "Feature", "Trunk") and part.path[:-1] in self.plan
                else name
            )
        return name or "Block"

    def _fresh(self, name: str, parts: list[Part]) -> str:
        usable = name.isidentifier() and name.isascii() and not keyword.iskeyword(name)
        name = name if usable else "Block"
        if not name[:1].isupper():
            name = name[:1].upper() + name[1:]
        options = [name]
        entries = {(*path, entry[0]) for path, stages in self.plan.items() for entry, _ in stages if entry}
        if all(part.path in entries for part in parts):
            options += [f"{name}Entry", f"Downsample{name}"]
        elif len(parts) == 1:
            alike = [
                p for p in self.tree.parts.values() if p.hint == parts[0].hint and p.kind == parts[0].kind
            ]
            starts = {p.path: self.tree.runs.get(p.path, [(0, 0)])[0][0] for p in alike}
            if starts and parts[0].path == min(starts, key=lambda path: starts[path]):
                options.append(f"First{name}")
            elif starts and parts[0].path == max(starts, key=lambda path: starts[path]):
                options.append(f"Last{name}")
        options += [f"{camel(step)}{name}" for step in parts[0].path if not step[:1].isdigit()]
        for option in options:
            if option not in self.names:
                self.names.add(option)
                return option
        number = 2
        while f"{name}{number}" in self.names:
            number += 1
        self.names.add(f"{name}{number}")
        return f"{name}{number}"


def without_empty(entries: list[Entry], statements: list[Expr]) -> tuple[list[Entry], list[Expr]]:
    """A module without the layers that do nothing in either mode: identities, and dropouts of nothing."""
    idle = {e.name for e in entries if e.kind == "module" and (e.expr == IDENTITY or _drops_nothing(e.expr))}

    def skip(node: Expr) -> Expr | None:
        if node.kind == "self" and len(node.value) == 1 and node.value[0] in idle and len(node.parts) == 1:
            return change(node.parts[0], skip)
        return None

    read = {
        leaf.value[0]
        for expr in statements
        for leaf in walk(expr)
        if leaf.kind in ("attr", "loop") and leaf.value
    }
    idle -= read
    return [e for e in entries if e.name not in idle], [change(expr, skip) for expr in statements]


def _drops_nothing(expr: Expr) -> bool:
    if expr.kind != "new" or expr.value not in ("nn.Dropout", "nn.Dropout1d", "nn.Dropout2d", "nn.Dropout3d"):
        return False
    rate = dict(zip(expr.names, expr.parts, strict=True)).get("p")
    return rate is not None and rate.kind == "lit" and rate.value == 0


def container(name: str, items: list[tuple[str, Expr]], children: list[str]) -> Expr:
    """A container's constructor; its children's names are kept where they are not just numbers."""
    named = not all(is_index(child) for child in children)
    return Expr(
        "container", name, tuple(expr for _, expr in items), tuple(key for key, _ in items) if named else ()
    )


def _valued(parameter: Parameter, index: int) -> Expr:
    value = parameter.values[index]
    if value is MISSING:
        value = next((v for v in parameter.values if v is not MISSING), None)
        value = parameter.default if parameter.default is not MISSING else value
    if parameter.hole.forced in ("count", "series"):
        return Expr(parameter.hole.forced, value)
    return lit(value)


def _masked(expr: Expr) -> Any:
    """An expression without its numbers."""
    if expr.kind in ("lit", "count", "series"):
        return "#" if not isinstance(expr.value, str) else expr.value
    return (expr.kind, expr.value, tuple(_masked(part) for part in expr.parts), expr.names)


def _outline(part: Part, entries: list[Entry]) -> Any:
    """What modules of one class have in common: the forward, and the attributes by name and kind."""
    body = part.body
    made = [(e.name, e.kind, _masked(e.expr) if e.kind == "sequence" else None) for e in entries]
    if body is None or part.kind == "sequential":
        return part.kind, tuple(made)
    lines = tuple((results, _masked(expr)) for results, expr in body.statements)
    return part.kind, tuple(made), lines, body.returns, len(body.inputs)


def camel(name: str) -> str:
    """``patch_embed`` as ``PatchEmbed``."""
    return "".join(word[:1].upper() + word[1:] for word in re.split(r"[^A-Za-z0-9]+", name))


def snake(name: str) -> str:
    """``BasicBlock`` as ``basic_block``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
