"""Classes of emitted source: modules of one structure share one, and what differs between them are its arguments.

Classes are built from the innermost modules outwards, so that a block's constructor call is known when its stage is
joined. The network's own is the last: the counts of its stages, rates and the number of classes are its arguments.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, permutations
from typing import Any

from elastic_ir.emit.source.expr import IDENTITY, Expr, call, change, group, lit, plain, raw, substitute, walk
from elastic_ir.emit.source.layers import constructor, value_of, zeros
from elastic_ir.emit.source.merge import Join, Parameter, Parameters, Row, clusters, singular, unused
from elastic_ir.emit.source.stages import Containers, Plan
from elastic_ir.emit.source.tree import Part, Tree, numbered
from elastic_ir.ir.numbering import is_index


@dataclass
class Definition:
    """A class, or a function that returns a stage's blocks."""

    name: str
    parameters: list[Parameter]
    lines: list[Expr]  #: of the constructor, or the function's
    forward: list[Expr] = field(default_factory=list)
    part: Part | None = None  #: an instance, whose inputs give types; None for a function


#: Layers that may be a network's last one with weights.
_WEIGHTED = ("nn.Linear", "nn.Conv2d", "nn.LayerNorm", "nn.BatchNorm2d")


class Builder:
    """Definitions of a tree's modules, the inner ones first."""

    def __init__(self, tree: Tree, plan: Plan) -> None:
        self.tree, self.plan = tree, plan
        self.definitions: list[Definition] = []
        self.names: set[str] = {"F", "nn", "torch", "Tensor", "math", "OrderedDict", "stochastic_depth"}
        self.containers = Containers(plan, self.make)

    def build(self) -> Row:
        """Define all classes but the network's own, whose lines are returned."""
        root = self.tree.parts[()]
        root.kind = "sequential" if root.kind == "sequential" else "class"
        for part in root.below():
            if part.kind == "parameters":  # weights that another module's forward reads
                part.make = _linear(part)
                part.kind = "class" if part.make is None else "leaf"
        own = [part for part in root.below() if part.path and _has_class(part)]
        for _, level in groupby(sorted(own, key=_height), key=_height):
            self._define(list(level))
        return self._share_stages([self._row(root)])[0]

    # -- constructors ----------------------------------------------------------------------------------------------

    def make(self, part: Part) -> Expr:
        """The constructor call of a part."""
        if part.make is not None:
            return part.make
        kinds = {"sequential": "nn.Sequential", "list": "nn.ModuleList"}
        return self.containers.call(part, kinds.get(part.kind, "nn.ModuleDict"))

    def _row(self, part: Part) -> Row:
        """What makes a module: the lines of its constructor, then its forward's."""
        if part.kind == "sequential":
            return [Expr("field", "", (self.containers.call(part, "super().__init__"),))]
        made: list[tuple[str, Expr]] = [("", part.base)] if part.base is not None else []
        for role, weight in part.weights.items() if part.base is None else ():
            value = zeros(weight.shape, weight.dtype) if weight.persistent else value_of(weight)
            if weight.is_parameter:
                made.append((role, call("nn.Parameter", value)))
            else:
                options = {} if weight.persistent else {"persistent": lit(False)}
                made.append(("", call("self.register_buffer", lit(role), value, **options)))
        for name, child in part.children.items():
            if child.kind != "class" or child.body is not None or child.weights or child.children:
                made.append((name, self.make(child)))
        return [*(Expr("field", name, (expr,)) for name, expr in made), *part.lines]

    # -- classes ---------------------------------------------------------------------------------------------------

    def _define(self, parts: list[Part]) -> None:
        """One class for all parts of one name that join."""
        rows = self._share_stages([self._row(part) for part in parts])
        keys = [(self._base_name(part), part.kind, part.body and len(part.body.inputs)) for part in parts]
        found = clusters(rows, keys)
        # of classes with one name the largest gets the plain one
        found.sort(key=lambda some: (keys.index(keys[some[0]]), -len(some)))
        for members in found:
            some, name = [parts[i] for i in members], keys[members[0]][0]
            made = Parameters(Join([rows[i] for i in members]))
            lines = without_empty(made.lines)
            fields = [line for line in lines if line.kind == "field"]
            at = bool(some[0].base)
            fields[at:at] = [Expr("field", name, (expr,)) for name, expr in made.stored.items()]
            forward = [line for line in lines if line.kind != "field"]
            definition = Definition(self._fresh(name, some), made.found, fields, forward, some[0])
            for part, make in zip(some, self._declare(definition, made, len(some)), strict=True):
                part.make = make

    def _declare(self, definition: Definition, made: Parameters, count: int) -> list[Expr]:
        """Take a definition in; the calls that make its instances."""
        self.names.add(definition.name)
        self.definitions.append(definition)
        names = tuple(p.name for p in made.found)
        return [Expr("new", definition.name, made.values(index), names) for index in range(count)]

    def _share_stages(self, rows: list[Row]) -> list[Row]:
        """Stages of one form become calls of one function."""
        stages = [node for row in rows for node in walk(*row) if node.kind == "stage"]
        lists = [[Expr("field", "stage", stage.parts)] for stage in stages]
        calls: dict[Expr, Expr] = {}
        for members in clusters(lists, [""] * len(lists), optional=False):
            if len(members) > 1:
                made = Parameters(Join([lists[i] for i in members], optional=False))
                blocks = made.lines[0].parts[0]
                block = next((node.value for node in walk(blocks.parts[-1]) if node.kind == "new"), "")
                name = unused(["make_stage", f"make_{snake(block.removeprefix('nn.'))}_stage"], self.names)
                definition = Definition(name, made.found, [Expr("return", None, (blocks,))])
                found = self._declare(definition, made, len(members))
                calls |= {
                    stages[i]: Expr("stage", None, (new,)) for i, new in zip(members, found, strict=True)
                }
        return [[change(line, calls.get) for line in row] for row in rows] if calls else rows

    # -- names -----------------------------------------------------------------------------------------------------

    def _base_name(self, part: Part) -> str:
        if part.hint:
            return part.hint
        step = next((step for step in reversed(part.path) if not is_index(step)), "block")
        name = re.sub(r"\d+$", "", step)
        return camel(singular(name) if is_index(part.path[-1]) else name) or "Block"

    def _fresh(self, name: str, parts: list[Part]) -> str:
        """A class name that is not taken, which says where its instances are if another class has the plain one."""
        name = class_name(name, "Block")
        options = [name]
        entries = {(*path, entry[0]) for path, stages in self.plan.items() for entry, _ in stages if entry}
        if all(part.path in entries for part in parts):
            options += [f"{name}Entry", f"Downsample{name}"]
        elif len(parts) == 1:
            kind = (parts[0].hint, parts[0].kind)
            alike = [part for part in self.tree.parts.values() if (part.hint, part.kind) == kind]
            if parts[0] in (alike[0], alike[-1]):
                options.append(f"{'First' if parts[0] is alike[0] else 'Last'}{name}")
        options += [f"{camel(step)}{name}" for step in parts[0].path if not step[:1].isdigit()]
        return unused([*options, name], self.names)


def _linear(part: Part) -> Expr | None:
    """A linear layer that has a part's weights; None where there is none."""
    shapes = {role: weight.shape for role, weight in part.weights.items()}
    if not set(shapes) <= {"weight", "bias"} or len(shapes.get("weight", ())) != 2:
        return None
    rows, columns = shapes["weight"]
    return constructor("nn.Linear", in_features=columns, out_features=rows, bias="bias" in shapes)


def _has_class(part: Part) -> bool:
    return part.kind == "class" or (part.kind == "sequential" and bool(part.hint))


def _height(part: Part) -> int:
    """How many classes stand below each other inside a part."""
    return max((_height(child) + _has_class(child) for child in part.children.values()), default=0)


def without_empty(lines: Sequence[Expr]) -> list[Expr]:
    """A module's lines without the layers that do nothing in either mode: identities, and dropouts of nothing."""
    idle = {line.value for line in lines if line.kind == "field" and _does_nothing(line.parts[0])}
    idle -= {node.value[0] for node in walk(*lines) if node.kind in ("attr", "loop") and node.value}

    def skip(node: Expr) -> Expr | None:
        if node.kind == "self" and len(node.value) == 1 and node.value[0] in idle and len(node.parts) == 1:
            return change(node.parts[0], skip)
        return None

    return [change(line, skip) for line in lines if line.kind != "field" or line.value not in idle]


def _does_nothing(expr: Expr) -> bool:
    rate = dict(zip(expr.names, map(plain, expr.parts), strict=False)).get("p")
    dropout = expr.kind == "new" and re.fullmatch(r"nn\.Dropout\dd|nn\.Dropout", expr.value)
    return expr == IDENTITY or (bool(dropout) and rate == 0)


# -- forwards made alike -----------------------------------------------------------------------------------------------


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
                flag = Expr("flag", has, (), ("residual",))
                line = replace(line, parts=(group("ternary", (flag, expr, Expr("local", operand))),))
            elif operand is not None and not has:
                missing.append(expr.value[0])
            lines.append(line)
        for part in parts:
            part.body = replace(body, lines=tuple(lines))
            absent = {name: Part((*part.path, name), kind="identity", make=IDENTITY) for name in missing}
            children = part.children | absent
            order = [name for name in more[0].children if name in children]
            part.children = {name: children[name] for name in dict.fromkeys([*order, *children])}


# -- the network's own class -------------------------------------------------------------------------------------------


def define_network(name: str, root: Part, row: Row) -> Definition:
    """The definition of the network from the lines of its constructor and its forward."""
    found = Parameters(Join([row]))
    for p in found.found:
        p.default = p.values[0]
    counts = [p for p in found.found if p.kind == "count"]
    series = [p for p in found.found if p.kind == "series"]
    given, total, texts = list(counts), "depth", {}
    if len(counts) > 1:
        total = "sum(depths)"
        texts = {p.name: f"depths[{place}]" for place, p in enumerate(counts)}
        given = [_argument("depths", tuple(p.default for p in counts), "count")]
    fields = [line for line in found.lines if line.kind == "field"]
    forward = [line for line in found.lines if line.kind != "field"]
    layer = _last_linear(fields, forward, root)
    if layer is not None:
        at = layer.names.index("out_features")
        given.append(_argument("num_classes", layer.parts[at].value))
        parts = (*layer.parts[:at], raw("num_classes"), *layer.parts[at + 1 :])
        made = replace(layer, parts=parts)
        fields[-1] = change(fields[-1], lambda node: made if node is layer else None)
    even = _even_rates([p.default for p in series], [p.default for p in counts])
    if even is not None:
        given.append(_argument("drop_rate", even))
        rates = raw(f"[drop_rate * i / max({total} - 1, 1) for i in range({total})]")
        fields = [Expr("set", ("rates",), (rates,)), *fields]
        for place, p in enumerate(series):
            part = f"[sum(depths[:{place}]) : sum(depths[:{place + 1}])]" if len(counts) > 1 else ""
            texts[p.name] = f"rates{part}"
    else:
        given += series

    def named(node: Expr) -> Expr | None:
        return raw(texts[node.value]) if node.kind == "param" and node.value in texts else None

    lines = without_empty([change(line, named) for line in [*fields, *forward]])
    cut = len(lines) - len(forward)
    return Definition(name, given, lines[:cut], lines[cut:], root)


def _argument(name: str, value: Any, kind: str = "lit") -> Parameter:
    return Parameter("", "", [value], kind, name=name, default=value)


def _even_rates(series: list[Any], counts: list[int]) -> float | None:
    """The last of the blocks' rates where they rise evenly from 0 over all stages (Huang et al. 2016, section 3)."""
    values = [value for part in series for value in part]
    floats = all(isinstance(value, float) for value in values)
    if len(values) < 3 or [len(part) for part in series] != counts or not floats:
        return None
    last = float(values[-1])
    even = all(abs(v - last * place / (len(values) - 1)) <= 1e-6 * last for place, v in enumerate(values))
    return last if even and last > 0 else None


def _last_linear(fields: Sequence[Expr], forward: Sequence[Expr], root: Part) -> Expr | None:
    """The network's last layer, where that is a linear one."""
    if not fields:
        return None
    called = [node.value[0] for node in walk(*forward) if node.kind in ("self", "loop")]
    ends = root.kind == "sequential" or (called[-1:] == [fields[-1].value] and called.count(called[-1]) == 1)
    last = fields[-1].parts[0]
    while last.kind == "call" and len(last.parts) == 1:
        last = last.parts[0]
    layers = [
        node for node in (last.parts if last.kind in ("call", "dict") else (last,))
        if node.kind != "new" or node.value in _WEIGHTED or not node.value.startswith("nn.")
    ]  # fmt: skip
    return layers[-1] if ends and layers and layers[-1].value == "nn.Linear" else None


# -- names -------------------------------------------------------------------------------------------------------------


def class_name(text: str, default: str) -> str:
    """A text as a class's name, the default if it cannot be one."""
    usable = text.isidentifier() and text.isascii() and not keyword.iskeyword(text)
    return text[:1].upper() + text[1:] if usable else default


def camel(name: str) -> str:
    """``patch_embed`` as ``PatchEmbed``."""
    return "".join(word[:1].upper() + word[1:] for word in re.split(r"[^A-Za-z0-9]+", name))


def snake(name: str) -> str:
    """``BasicBlock`` as ``basic_block``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
