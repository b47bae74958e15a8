"""Classes of emitted source: modules of one structure share one, and what differs between them are its arguments.

Classes are built from the innermost modules outwards, so that a block's constructor call is known when its stage is
joined.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from elastic_ir.emit.source.expressions.expr import IDENTITY, Expr, call, change, lit, plain, walk
from elastic_ir.emit.source.merge import Join, Parameter, Parameters, Row, Sizes, clusters, unused
from elastic_ir.emit.source.reading.layers import constructor, zeros
from elastic_ir.emit.source.reading.tree import Part, Tree
from elastic_ir.emit.source.stages import Plan, items_of
from elastic_ir.emit.source.values import value_of
from elastic_ir.ir.numbering import is_index


@dataclass
class Entry:
    """One line of a constructor: an attribute of that name, or a call that stands by itself."""

    name: str
    expr: Expr
    alone: bool = False


@dataclass
class Definition:
    """A class, or a function that makes a stage's blocks."""

    name: str
    parameters: list[Parameter]
    entries: list[Entry]
    part: Part | None = None  #: an instance, whose inputs give types; None for a function
    statements: Sequence[Any] = ()
    returns: Expr = field(default_factory=lambda: Expr("tuple"))


class Builder:
    """Definitions of a tree's modules, the inner ones first."""

    def __init__(self, tree: Tree, plan: Plan) -> None:
        self.tree, self.plan = tree, plan
        self.definitions: list[Definition] = []
        self.names: set[str] = {"F", "nn", "torch", "Tensor", "math", "OrderedDict", "stochastic_depth"}
        self.sizes: Sizes = set()

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
        return self._stages([self._entries(root)])[0]

    # -- constructors ----------------------------------------------------------------------------------------------

    def make(self, part: Part) -> Expr:
        """The constructor call of a part."""
        if part.make is not None:
            return part.make
        if part.kind == "parameters":
            return self._parameters(part)
        kinds = {"sequential": "nn.Sequential", "list": "nn.ModuleList"}
        return self._container(part, kinds.get(part.kind, "nn.ModuleDict"))

    def _container(self, part: Part, name: str) -> Expr:
        """A container's constructor; its children's names are kept where they are not just numbers."""
        items = items_of(part, self.plan, self.make, self.sizes)
        numbered = all(is_index(child) for child in part.children)
        names = () if numbered else tuple(key for key, _ in items)
        return Expr("container", name, tuple(expr for _, expr in items), names)

    def _parameters(self, part: Part) -> Expr:
        """What holds weights that another module's forward reads."""
        shapes = {role: weight.shape for role, weight in part.weights.items()}
        if set(shapes) <= {"weight", "bias"} and len(shapes.get("weight", ())) == 2:
            rows, columns = shapes["weight"]
            return constructor("nn.Linear", in_features=columns, out_features=rows, bias="bias" in shapes)
        if all(weight.is_parameter for weight in part.weights.values()):
            made = tuple(call("nn.Parameter", zeros(shape)) for shape in shapes.values())
            return call("nn.ParameterDict", Expr("dict", None, made, tuple(shapes)))
        part.kind = "class"
        self._level([part])
        assert part.make is not None
        return part.make

    def _entries(self, part: Part) -> list[Entry]:
        if part.kind == "sequential":
            return [Entry("", self._container(part, "super().__init__"), alone=True)]
        entries: list[Entry] = []
        if part.base is not None:
            entries.append(Entry("", part.base, alone=True))
        for role, weight in part.weights.items() if part.base is None else ():
            made = zeros(weight.shape, weight.dtype) if weight.persistent else value_of(weight)
            if weight.persistent and weight.is_parameter:
                entries.append(Entry(role, call("nn.Parameter", made)))
            else:
                options = {} if weight.persistent else {"persistent": lit(False)}
                register = call("self.register_buffer", lit(role), made, **options)
                entries.append(Entry(role, register, alone=True))
        for name, child in part.children.items():
            if child.kind != "class" or child.body is not None or child.weights or child.children:
                entries.append(Entry(name, self.make(child)))
        return entries

    # -- classes ---------------------------------------------------------------------------------------------------

    def _level(self, parts: list[Part]) -> None:
        """One class for all parts of one name that join."""
        lists = self._stages([self._entries(part) for part in parts])
        rows = [_row(part, entries) for part, entries in zip(parts, lists, strict=True)]
        keys = [(self._base_name(part), *_outline(part, entries))
                for part, entries in zip(parts, lists, strict=True)]  # fmt: skip

        def join(some: Sequence[Row], key: Any) -> Join:
            owners = [name or "base" for name, _ in key[2]]
            return Join(some, owners + [""] * (len(some[0]) - len(owners)), self.sizes)

        found = clusters(rows, keys, join)
        # of classes with one name the largest gets the plain one
        found.sort(key=lambda some: (keys.index(keys[some[0]]), -len(some)))
        for members in found:
            joined = join([rows[i] for i in members], keys[members[0]])
            self._define([parts[i] for i in members], lists[members[0]], joined)

    def _define(self, parts: list[Part], first: list[Entry], joined: Join) -> None:
        body = parts[0].body
        found = Parameters(joined, {entry.name for entry in first})
        made = [found.fill(template) for template in joined.templates]
        entries = [Entry(e.name, expr, e.alone) for e, expr in zip(first, made, strict=False)]
        entries, statements = without_empty(entries, made[len(first) :])
        flags = {p.name: Expr("param", p.name) for p in found.found if p.stored} | found.flags
        at = bool(parts[0].base)
        entries[at:at] = [Entry(name, expr) for name, expr in flags.items()]
        results = [made_keys for made_keys, _ in body.statements] if body is not None else []
        lines = list(zip(results, statements, strict=False))  # none in a sequence
        name = self._fresh(self._base_name(parts[0]), parts)
        returns = body.returns if body is not None else Expr("tuple")
        calls = self._declare(
            Definition(name, found.found, entries, parts[0], lines, returns), found, len(parts)
        )
        for part, made_by in zip(parts, calls, strict=True):
            part.make = made_by

    def _declare(self, definition: Definition, found: Parameters, count: int) -> list[Expr]:
        """Take a definition in; the calls that make its instances."""
        self.names.add(definition.name)
        self.definitions.append(definition)
        self.sizes |= {(definition.name, p.name) for p in found.found if p.size}
        names = tuple(p.name for p in found.found)
        return [Expr("new", definition.name, found.values(index), names) for index in range(count)]

    # -- stages ----------------------------------------------------------------------------------------------------

    def _stages(self, lists: list[list[Entry]]) -> list[list[Entry]]:
        """Stages of one form become calls of one function."""
        nodes = [node for entries in lists for entry in entries for node in walk(entry.expr)]
        containers = [node for node in nodes if node.kind == "container" and not node.names]
        stages = [part for node in containers for part in node.parts if part.kind == "stage"]

        def join(rows: Sequence[Row], _: object = "") -> Join:
            return Join(rows, ["stage"], self.sizes, optional=False)

        calls: dict[Expr, Expr] = {}
        for members in clusters([[stage] for stage in stages], [""] * len(stages), join):
            if len(members) > 1:
                found = Parameters(join([[stages[i]] for i in members]))
                template = found.fill(found.joined.templates[0])
                block = next((node.value for node in walk(template.parts[2]) if node.kind == "new"), "")
                name = unused(["make_stage", f"make_{snake(block.removeprefix('nn.'))}_stage"], self.names)
                made = self._declare(
                    Definition(name, found.found, [Entry("", template)]), found, len(members)
                )
                calls |= {
                    stages[i]: Expr("text", "*{}", (each,)) for i, each in zip(members, made, strict=True)
                }
        if not calls:
            return lists
        return [[Entry(e.name, change(e.expr, calls.get), e.alone) for e in entries] for entries in lists]

    # -- names -----------------------------------------------------------------------------------------------------

    def _base_name(self, part: Part) -> str:
        if part.hint:
            return part.hint
        steps = [step for step in part.path if not is_index(step)]
        name = camel(re.sub(r"\d+$", "", steps[-1])) if steps else "Block"
        if is_index(part.path[-1]):
            name = name[:-1] if name.endswith("s") and len(name) > 3 else name
            if name in ("Layer", "Stage", "Feature", "Trunk") and part.path[:-1] in self.plan:
                name = "Block"
        return name or "Block"

    def _fresh(self, name: str, parts: list[Part]) -> str:
        """A class name that is not taken, which says where its instances are if another class has the plain one."""
        usable = name.isidentifier() and name.isascii() and not keyword.iskeyword(name)
        name = name[:1].upper() + name[1:] if usable else "Block"
        options = [name]
        entries = {(*path, entry[0]) for path, stages in self.plan.items() for entry, _ in stages if entry}
        if all(part.path in entries for part in parts):
            options += [f"{name}Entry", f"Downsample{name}"]
        elif len(parts) == 1:
            kind = (parts[0].hint, parts[0].kind)
            alike = [part.path for part in self.tree.parts.values() if (part.hint, part.kind) == kind]
            alike.sort(key=lambda path: self.tree.runs.get(path, [(0, 0)])[0][0])
            if parts[0].path in (alike[0], alike[-1]):
                options.append(f"{'First' if parts[0].path == alike[0] else 'Last'}{name}")
        options += [f"{camel(step)}{name}" for step in parts[0].path if not step[:1].isdigit()]
        return unused([*options, name], self.names)


def without_empty(entries: list[Entry], statements: list[Expr]) -> tuple[list[Entry], list[Expr]]:
    """A module without the layers that do nothing in either mode: identities, and dropouts of nothing."""
    idle = {entry.name for entry in entries if entry.expr == IDENTITY or _drops_nothing(entry.expr)}
    idle -= {
        node.value[0]
        for expr in statements
        for node in walk(expr)
        if node.kind in ("attr", "loop") and node.value
    }

    def skip(node: Expr) -> Expr | None:
        if node.kind == "self" and len(node.value) == 1 and node.value[0] in idle and len(node.parts) == 1:
            return change(node.parts[0], skip)
        return None

    return [e for e in entries if e.name not in idle], [change(expr, skip) for expr in statements]


def _drops_nothing(expr: Expr) -> bool:
    rate = dict(zip(expr.names, map(plain, expr.parts), strict=False)).get("p")
    return expr.kind == "new" and bool(re.fullmatch(r"nn\.Dropout\dd|nn\.Dropout", expr.value)) and rate == 0


def _row(part: Part, entries: list[Entry]) -> list[Expr]:
    """What makes a module: the constructor's expressions, then the forward's."""
    lines = part.body.statements if part.body is not None and part.kind != "sequential" else ()
    return [*(entry.expr for entry in entries), *(expr for _, expr in lines)]


def _outline(part: Part, entries: list[Entry]) -> tuple[Any, ...]:
    """What modules of one class have in common besides expressions: names, results, and the number of inputs."""
    body = part.body
    made = [(entry.name, entry.alone) for entry in entries]
    if body is None or part.kind == "sequential":
        return part.kind, made
    return part.kind, made, [results for results, _ in body.statements], body.returns, len(body.inputs)


def camel(name: str) -> str:
    """``patch_embed`` as ``PatchEmbed``."""
    return "".join(word[:1].upper() + word[1:] for word in re.split(r"[^A-Za-z0-9]+", name))


def snake(name: str) -> str:
    """``BasicBlock`` as ``basic_block``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
