"""Joining lines that differ in numbers only: the numbers become holes, and holes become parameters.

Equal numbers share a parameter, and a size that is always the same multiple of another is computed from it, so that a
bottleneck takes its channels once.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from types import NoneType
from typing import Any

from elastic_ir.emit.source.expr import IDENTITY, OPAQUE, Expr, binary, change, lit, plain, raw
from elastic_ir.emit.source.signatures import positional, same
from elastic_ir.emit.source.text import Printer

Row = Sequence[Expr]

MISSING = object()  #: no value in this instance, where an optional part is absent
_SIZES = {
    "in_channels", "out_channels", "num_features", "in_features", "out_features", "normalized_shape", "num_channels",
    "num_embeddings", "embedding_dim", "embed_dim", "num_heads", "num_groups", "groups", "size", "kernel_size",
}  # fmt: skip
_SHAPED = ("torch.zeros", "view", "reshape", "expand", "split", "chunk", "repeat")
_NORMAL = {"stride": 1, "dilation": 1, "groups": 1, "output_padding": 0}
#: What parameters are called, where that is not the argument's name.
_RENAMED = {
    "num_features": "channels", "normalized_shape": "dim", "num_channels": "channels", "embed_dim": "dim",
    "p": "rate", "": "value", "size": "dim", "negative_slope": "slope",
}  # fmt: skip
_OPERANDS = {"*": "scale", "/": "scale", "+": "offset", "-": "offset"}


class Mismatch(Exception):
    """Lines that differ in more than numbers."""


@dataclass
class Parameter:
    """A place where instances differ, with the value of each; a constructor parameter, once it has a name."""

    role: str  #: the name of the argument that stands there
    owner: str  #: the attribute whose argument it is, "" in a forward
    values: list[Any]
    kind: str = (
        "lit"  #: of the values, as expressions; a count or a series is a parameter even where all agree
    )
    name: str = ""
    default: Any = MISSING
    stored: bool = False  #: whether the forward reads it

    @property
    def known(self) -> list[Any]:
        return [value for value in self.values if value is not MISSING]

    @property
    def annotation(self) -> str:
        if self.kind == "series":
            return f"Sequence[{_type_of(self.known[0][:1])}]"
        return _type_of(self.known)


def _type_of(values: Sequence[Any]) -> str:
    """The annotation of what has these values."""
    kinds = {type(value) for value in values}
    if float in kinds:
        kinds.discard(int)
    items = [item for value in values if isinstance(value, tuple) for item in value]
    texts = sorted(
        f"tuple[{_type_of(items)}, ...]" if kind is tuple else kind.__name__ for kind in kinds - {NoneType}
    )
    return " | ".join([*texts, *(["None"] if NoneType in kinds else [])])


class Join:
    """One template for the lines of several instances, place by place; Mismatch where structure differs.

    With ``optional`` a layer may be an identity in some instances.
    """

    def __init__(self, rows: Sequence[Row], optional: bool = True) -> None:
        self.optional = optional
        self.holes: list[Parameter] = []
        self.owner = ""  #: the attribute that the line at hand assigns
        if len({len(row) for row in rows}) > 1:
            raise Mismatch
        self.templates = [self._join(column, "") for column in zip(*rows, strict=True)]

    def _join(self, column: Sequence[Expr | None], role: str) -> Expr:
        known = [expr for expr in column if expr is not None]
        first, kinds = known[0], {expr.kind for expr in known}
        equal = all(expr.kind == first.kind and same(first.value, expr.value) for expr in known)
        if first.kind in ("field", "set", "return"):
            self.owner = (first.value or "base") if first.kind == "field" else ""
        if kinds <= {"lit", "size"}:
            if equal and None not in column:
                return first
            if role == "" and any(isinstance(expr.value, str) for expr in known):
                raise Mismatch
            return self._hole(column, role, "size" if "size" in kinds or role in _SIZES else "lit")
        if kinds in ({"count"}, {"series"}, {"flag"}):
            return self._hole(column, "".join(first.names) or role, first.kind)
        listed = kinds <= {"list", "tuple"} and all(plain(expr) is not OPAQUE for expr in known)
        if not self.owner and listed and len(first.parts) > 1 and any(expr != first for expr in known):
            return self._hole(column, role or "values")
        if equal and {(expr.names, len(expr.parts)) for expr in known} == {(first.names, len(first.parts))}:
            parts = []
            for index in range(len(first.parts)):
                inner = [expr.parts[index] if expr is not None else None for expr in column]
                parts.append(self._join(inner, _role(first, index, role)))
            return replace(first, parts=tuple(parts))
        others = [expr if expr != IDENTITY else None for expr in column]
        if self.optional and self.owner and IDENTITY in known and any(others):
            present = [Expr("flag", expr != IDENTITY) for expr in column]
            flag = self._hole(present, f"has_{self.owner}", "flag")
            return Expr("ternary", None, (flag, self._join(others, role), IDENTITY))
        raise Mismatch

    def _hole(self, column: Sequence[Expr | None], role: str, kind: str = "lit") -> Expr:
        values = [MISSING if expr is None else plain(expr) for expr in column]
        self.holes.append(Parameter(role, self.owner, values, kind))
        return Expr("hole", len(self.holes) - 1)


def _role(expr: Expr, index: int, role: str) -> str:
    """What an expression's part is called; ``role`` is what the expression is called."""
    name = expr.names[index] if expr.names else ""
    if expr.kind in ("call", "method") and not name:
        return "size" if expr.value in _SHAPED else positional(expr.kind, expr.value, index) or role
    if expr.kind == "binary":
        return _OPERANDS.get(expr.value, role)
    return name if expr.kind == "new" else name or role


def clusters(rows: Sequence[Row], keys: Sequence[Any], optional: bool = True) -> list[list[int]]:
    """The numbers of the rows that have one key and join, in the order of each first one."""
    found: list[list[int]] = []
    for number, row in enumerate(rows):
        for members in found:
            known = [rows[member] for member in members if keys[member] == keys[number]]
            if known and (row in known or _joins([*known, row], optional)):
                members.append(number)
                break
        else:
            found.append([number])
    return found


def _joins(rows: Sequence[Row], optional: bool) -> bool:
    try:
        return bool(Join(rows, optional))
    except Mismatch:
        return False


class Parameters:
    """The parameters of one class or function, and its lines with them in the place of holes."""

    def __init__(self, joined: Join) -> None:
        self.found: list[Parameter] = []
        self.taken = {line.value for line in joined.templates if line.kind == "field"}
        holes = joined.holes
        self.filled = [lit(None)] * len(holes)
        # what all instances have comes first
        for number in sorted(range(len(holes)), key=lambda n: MISSING in holes[n].values):
            hole = holes[number]
            constant = hole.kind not in ("count", "series") and all(
                same(value, hole.known[0]) for value in hole.known
            )
            self.filled[number] = self._known(hole) or (lit(hole.known[0]) if constant else self._new(hole))
            if not hole.owner:
                for parameter in self.found:
                    parameter.stored |= self.filled[number] == Expr("param", parameter.name)
        #: sizes that are computed from parameters, ``4 * channels``
        self.computed = [
            (Printer().text(self.filled[number]), hole.values) for number, hole in enumerate(holes)
            if self.filled[number].kind == "binary" and MISSING not in hole.values
        ]  # fmt: skip
        tests = {p.name: self._test(p.values) for p in self.found if p.kind == "flag"}
        #: attributes that the forward reads, and their values
        self.stored = {p.name: raw(tests.get(p.name) or p.name) for p in self.found if p.stored}
        self.found = [p for p in self.found if not tests.get(p.name)]
        self.found.sort(key=lambda p: p.default is not MISSING)

        def fill(node: Expr) -> Expr | None:
            """What stands in the place of a hole."""
            if node.kind == "param" and node.value not in self.stored and tests.get(node.value):
                return raw(tests[node.value])
            return change(self.filled[node.value], fill) if node.kind == "hole" else None

        self.lines = [change(template, fill) for template in joined.templates]

    def values(self, index: int) -> tuple[Expr, ...]:
        """The arguments of one instance."""
        found = []
        for p in self.found:
            value = p.values[index]
            if value is MISSING:
                value = p.default if p.default is not MISSING else p.known[0]
            found.append(Expr("lit" if p.kind == "flag" else p.kind, value))
        return tuple(found)

    def _known(self, hole: Parameter) -> Expr | None:
        """A parameter that has the hole's values, or of which they are a multiple or a part."""
        for p in self.found:
            named = hole.kind in ("lit", "flag") and p.role == hole.role
            pairs = (
                _pairs(hole, p) if p.kind == hole.kind and (named or hole.kind in ("size", "series")) else []
            )
            if pairs and all(same(a, b) for a, b in pairs):
                p.values = [b if a is MISSING else a for a, b in zip(p.values, hole.values, strict=True)]
                return Expr("param", p.name)
        if hole.kind != "size" or not hole.owner:
            return None
        for p in self.found:
            pairs = _pairs(hole, p)
            whole = all(type(a) is int and type(b) is int and a > 0 and b > 0 for a, b in pairs)
            if p.kind != "size" or len({b for _, b in pairs}) < 2 or not whole:
                continue
            for sign, ratios in (("*", {a / b for a, b in pairs}), ("//", {b / a for a, b in pairs})):
                ratio = ratios.pop()
                if not ratios and ratio > 1 and ratio.is_integer():
                    sides = (lit(int(ratio)), Expr("param", p.name))
                    return binary(sign, *(sides if sign == "*" else reversed(sides)))
        return None

    def _new(self, hole: Parameter) -> Expr:
        made = replace(hole, name=self._name(hole), values=list(hole.values))
        if hole.role in _NORMAL and any(same(value, _NORMAL[hole.role]) for value in hole.known):
            made.default = _NORMAL[hole.role]
        if all(isinstance(value, bool) for value in hole.known):
            made.default = False
        self.found.append(made)
        return Expr("param", made.name)

    def _name(self, hole: Parameter) -> str:
        """A name that no other parameter has: the argument's own, then one that says whose it is."""
        base = _RENAMED.get(hole.role, hole.role)
        base = {"count": "depth", "series": f"{base.removesuffix('s')}s"}.get(hole.kind, base)
        names = [base]
        if base in ("out_channels", "out_features", "in_channels", "in_features"):
            names.append(base.replace("out_", "hidden_").replace("in_", "hidden_"))
        if not hole.owner and hole.kind == "size":
            names = ["size"]
        if hole.owner.strip("_"):
            names.append(f"{hole.owner.strip('_')}_{base}")
        return unused(names, self.taken | {p.name for p in self.found})

    def _test(self, values: list[bool]) -> str:
        """A comparison of parameters, a stride or a change of channels, that has these outcomes; "" without one."""
        whole = [p for p in self.found if MISSING not in p.values]
        sizes = [(p.name, p.values) for p in whole if p.kind == "size" and p.role != "kernel_size"]
        sizes += [item for item in self.computed if item not in sizes]
        tests = [(f"{a} {{0}} {b}", list(map(operator.ne, left, right)))
                 for (a, left), (b, right) in itertools.combinations(sizes, 2) if a != b]  # fmt: skip
        for stride in [p for p in whole if p.role == "stride"][:1]:
            moved = [value != 1 for value in stride.values]
            both = [
                (f"{stride.name} {{0}} 1 {{1}} {text}", list(map(operator.or_, moved, outcome)))
                for text, outcome in tests
            ]
            tests = [*both, (f"{stride.name} {{0}} 1", moved), *tests]
        for text, outcome in tests:
            if outcome == values:
                return text.format("!=", "or")
            if outcome == [not value for value in values]:
                return text.format("==", "and")
        return ""


def singular(name: str) -> str:
    """``layers`` as ``layer``."""
    return name[:-1] if name.endswith("s") and len(name) > 3 else name


def unused(names: Sequence[str], taken: Collection[str]) -> str:
    """The first of some names that is not taken, else the last with the next free number."""
    numbered = (f"{names[-1]}{number}" for number in itertools.count(2))
    return next(name for name in itertools.chain(names, numbered) if name not in taken)


def _pairs(hole: Parameter, parameter: Parameter) -> list[tuple[Any, Any]]:
    """The values of both in the instances that have them."""
    pairs = zip(hole.values, parameter.values, strict=True)
    return [(a, b) for a, b in pairs if a is not MISSING and b is not MISSING]
