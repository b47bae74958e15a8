"""Joining expressions that differ in numbers only: the numbers become holes, and holes become parameters.

Equal numbers share a parameter, and a size that is always the same multiple of another is computed from it, so that a
bottleneck takes its channels once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from elastic_ir.emit.source.expressions.expr import (
    IDENTITY,
    OPAQUE,
    Expr,
    binary,
    change,
    lit,
    plain,
    raw,
)
from elastic_ir.emit.source.expressions.print import Printer
from elastic_ir.emit.source.expressions.signatures import same

#: The arguments of emitted classes and functions that are sizes, by the names of both.
Sizes = set[tuple[str, str]]
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


class Mismatch(Exception):
    """Expressions that differ in more than numbers."""


@dataclass
class Parameter:
    """A place where instances differ, with the value of each; a constructor parameter, once it has a name."""

    role: str  #: the name of the argument that stands there
    owner: str  #: the attribute whose argument it is, "" in a forward
    values: list[Any]
    forced: str = ""  #: "count" or "series": a parameter even where all instances agree
    size: bool = False
    name: str = ""
    default: Any = MISSING
    stored: bool = False  #: whether the forward reads it

    @property
    def known(self) -> list[Any]:
        return [value for value in self.values if value is not MISSING]

    @property
    def annotation(self) -> str:
        kinds = {type(value) for value in self.known}
        if self.forced == "series":
            return "Sequence[float]" if isinstance(self.known[0][0], float) else "Sequence[int]"
        if kinds == {tuple}:
            inner = {type(item) for value in self.known for item in value}
            return f"tuple[{inner.pop().__name__ if len(inner) == 1 else 'float'}, ...]"
        if type(None) in kinds:
            return " | ".join(sorted(kind.__name__ for kind in kinds - {type(None)})) + " | None"
        if kinds <= {int, float}:
            return "float" if float in kinds else "int"
        return " | ".join(sorted(kind.__name__ if kind is not tuple else "tuple[int, ...]" for kind in kinds))


class Join:
    """One template for the expressions of several instances, place by place; Mismatch where structure differs.

    ``owners`` names each place's attribute, "" in a forward. With ``optional`` a layer may be an identity in some
    instances.
    """

    def __init__(
        self, rows: Sequence[Row], owners: Sequence[str], sizes: Sizes, optional: bool = True
    ) -> None:
        self.sizes, self.optional = sizes, optional
        self.holes: list[Parameter] = []
        self.presence: list[tuple[str, list[bool]]] = []  #: where optional layers are
        self.templates: list[Expr] = []
        for self.owner, *column in zip(owners, *rows, strict=True):
            self.templates.append(self._join(column, "", False))

    def _join(self, column: Sequence[Expr | None], role: str, size: bool) -> Expr:
        known = [expr for expr in column if expr is not None]
        first, kinds = known[0], {expr.kind for expr in known}
        equal = all(expr.kind == first.kind and same(first.value, expr.value) for expr in known)
        if kinds == {"lit"}:
            if equal and (None not in column or not self.presence):
                return first
            if role == "" and any(isinstance(expr.value, str) for expr in known):
                raise Mismatch
            return self._hole(column, role, size=size or role in _SIZES)
        if kinds in ({"count"}, {"series"}):
            return self._hole(column, role, forced=first.kind)
        listed = kinds <= {"list", "tuple"} and all(plain(expr) is not OPAQUE for expr in known)
        if not self.owner and listed and len(first.parts) > 1 and any(expr != first for expr in known):
            return self._hole(column, role or "values")
        if equal and {(expr.names, len(expr.parts)) for expr in known} == {(first.names, len(first.parts))}:
            parts = []
            for index in range(len(first.parts)):
                inner = [expr.parts[index] if expr is not None else None for expr in column]
                parts.append(self._join(inner, *self._context(first, index, role)))
            return replace(first, parts=tuple(parts))
        others = [expr if expr != IDENTITY else None for expr in column]
        if self.optional and self.owner and IDENTITY in known and any(others):
            self.presence.append((self.owner, [expr != IDENTITY for expr in column]))
            present = Expr("presence", len(self.presence) - 1)
            return Expr("ternary", None, (present, self._join(others, role, False), IDENTITY))
        raise Mismatch

    def _hole(
        self, column: Sequence[Expr | None], role: str, *, forced: str = "", size: bool = False
    ) -> Expr:
        values = [
            MISSING if expr is None else plain(expr) if expr.kind in ("list", "tuple") else expr.value
            for expr in column
        ]
        self.holes.append(Parameter(role, self.owner, values, forced, size))
        return Expr("hole", len(self.holes) - 1)

    def _context(self, expr: Expr, index: int, role: str) -> tuple[str, bool]:
        """What an expression's part is called, and whether it is a size."""
        name = expr.names[index] if expr.names else ""
        if expr.kind == "new":
            return name, name in _SIZES or (expr.value, name) in self.sizes
        if expr.kind in ("call", "method") and (name == "" or name in _SIZES):
            size = expr.value in _SHAPED
            return name or ("size" if size else _positional(expr, index) or role), size
        if expr.kind == "binary":
            return {"*": "scale", "/": "scale", "+": "offset", "-": "offset"}.get(expr.value, role), False
        return "residual" if expr.kind == "ternary" and index == 0 else name or role, False


def _positional(expr: Expr, index: int) -> str:
    """What a positional argument of a function or method is called."""
    if expr.kind == "method":
        return "axis" if expr.value in ("permute", "transpose", "flatten") else ""
    known = {"torch.permute": ("input", "dims"), "stochastic_depth": ("x", "p", "mode", "training"),
             "torch.roll": ("input", "shifts", "dims")}  # fmt: skip
    names = known.get(expr.value, ())
    return names[index] if index < len(names) else ""


def clusters(
    rows: Sequence[Row], keys: Sequence[Any], join: Callable[[list[Row], Any], Join]
) -> list[list[int]]:
    """The numbers of the rows that have one key and join, in the order of each first one."""
    found: list[list[int]] = []
    for number, row in enumerate(rows):
        for members in found:
            known = [rows[member] for member in members]
            try:
                if keys[number] != keys[members[0]]:
                    continue
                if row not in known:
                    join([*known, row], keys[number])
                members.append(number)
                break
            except Mismatch:
                continue
        else:
            found.append([number])
    return found


class Parameters:
    """The parameters of one class or function, and what fills the holes of its templates."""

    def __init__(self, joined: Join, taken: Collection[str] = ()) -> None:
        self.joined = joined
        self.found: list[Parameter] = []
        self.taken = set(taken)
        self.filled = [lit(None)] * len(joined.holes)
        self.flags: dict[str, Expr] = {}  #: attributes that follow from parameters
        holes = joined.holes
        # what all instances have comes first
        for number in sorted(range(len(holes)), key=lambda n: MISSING in holes[n].values):
            hole = holes[number]
            constant = not hole.forced and all(same(value, hole.known[0]) for value in hole.known)
            self.filled[number] = self._known(hole) or (lit(hole.known[0]) if constant else self._new(hole))
            if not hole.owner:
                for parameter in self.found:
                    parameter.stored |= self.filled[number] == Expr("param", parameter.name)
        #: sizes that are computed from parameters, ``4 * channels``
        self.computed = [
            (Printer().flat(self.filled[number]), hole.values) for number, hole in enumerate(holes)
            if self.filled[number].kind == "binary" and MISSING not in hole.values
        ]  # fmt: skip
        self.present = [self._presence(owner, values) for owner, values in joined.presence]
        for flag in [p for p in self.found if p.stored and p.role == "residual"]:
            others = [p for p in self.found if p is not flag]
            test = self._test([bool(value) for value in flag.values], others)
            if test:
                self.found, self.flags[flag.name] = others, raw(test)
        self.found.sort(key=lambda p: p.default is not MISSING)

    def fill(self, template: Expr) -> Expr:
        """A template with its holes as parameters and its optional parts under their conditions."""

        def filled(node: Expr) -> Expr | None:
            found: dict[str, Sequence[Expr]] = {"presence": self.present, "hole": self.filled}
            return found[node.kind][node.value] if node.kind in found else None

        return change(template, filled)

    def values(self, index: int) -> tuple[Expr, ...]:
        """The arguments of one instance."""
        found = []
        for p in self.found:
            value = p.values[index]
            if value is MISSING:
                value = p.default if p.default is not MISSING else p.known[0]
            found.append(Expr(p.forced or "lit", value))
        return tuple(found)

    def _known(self, hole: Parameter) -> Expr | None:
        """A parameter that has the hole's values, or of which they are a multiple or a part."""
        for p in self.found:
            role = p.forced == hole.forced != "count" and (p.role == hole.role or hole.forced == "series")
            pairs = list(_pairs(hole.values, p.values))
            if ((p.size and hole.size) or role) and pairs and all(same(a, b) for a, b in pairs):
                p.values = [b if a is MISSING else a for a, b in zip(p.values, hole.values, strict=True)]
                return Expr("param", p.name)
        if not hole.size or hole.forced or not hole.owner:
            return None
        for p in self.found:
            pairs = list(_pairs(hole.values, p.values))
            whole = all(type(a) is int and type(b) is int and a > 0 and b > 0 for a, b in pairs)
            if not p.size or len({b for _, b in pairs}) < 2 or not whole:
                continue
            for operator, ratios in (("*", {a / b for a, b in pairs}), ("//", {b / a for a, b in pairs})):
                ratio = ratios.pop()
                if not ratios and ratio > 1 and ratio.is_integer():
                    sides = (lit(int(ratio)), Expr("param", p.name))
                    return binary(operator, *(sides if operator == "*" else reversed(sides)))
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
        base = {"count": "depth", "series": f"{base.removesuffix('s')}s"}.get(hole.forced, base)
        names = [base]
        if base in ("out_channels", "out_features", "in_channels", "in_features"):
            names.append(base.replace("out_", "hidden_").replace("in_", "hidden_"))
        if not hole.owner and hole.size:
            names = ["size"]
        if hole.owner.strip("_"):
            names.append(f"{hole.owner.strip('_')}_{base}")
        taken = self.taken | {p.name for p in self.found}
        return unused(names, taken)

    def _presence(self, owner: str, values: list[bool]) -> Expr:
        """When an optional layer is there: by a stride or a change of channels, else by a parameter of its own."""
        test = self._test(values, self.found)
        if not test:
            test = unused([f"has_{owner}"], {p.name for p in self.found})
            self.found.append(Parameter(test, "", list(values), name=test, default=False))
        return raw(test)

    def _test(self, values: list[bool], given: Sequence[Parameter]) -> str:
        """A comparison of parameters that has these outcomes, "" where there is none."""
        whole = [p for p in given if MISSING not in p.values]
        sizes = [(p.name, p.values) for p in whole if p.size and not p.forced and p.role != "kernel_size"]
        sizes += [item for item in self.computed if item not in sizes]
        pairs = [(a, b) for i, a in enumerate(sizes) for b in sizes[i + 1 :] if b[0] != a[0]]
        differ = [(f"{a} {{}} {b}", [x != y for x, y in zip(left, right, strict=True)])
                  for (a, left), (b, right) in pairs]  # fmt: skip
        tests = []
        for stride in [p for p in whole if p.role == "stride"][:1]:
            alone = (f"{stride.name} {{}} 1", [value != 1 for value in stride.values])
            tests += [(f"{alone[0]} {{}} {text}", [a or b for a, b in zip(alone[1], outcome, strict=True)])
                      for text, outcome in differ]  # fmt: skip
            tests.append(alone)
        for text, outcome in tests + differ:
            if outcome == values:
                return text.format("!=", "or", "!=")
            if outcome == [not value for value in values]:
                return text.format("==", "and", "==")
        return ""


def unused(names: Sequence[str], taken: Collection[str]) -> str:
    """The first of some names that is not taken, else the last with the next free number."""
    for name in names:
        if name not in taken:
            return name
    number = 2
    while f"{names[-1]}{number}" in taken:
        number += 1
    return f"{names[-1]}{number}"


def _pairs(left: Iterable[Any], right: Iterable[Any]) -> Iterable[tuple[Any, Any]]:
    pairs = zip(left, right, strict=True)
    return ((a, b) for a, b in pairs if a is not MISSING and b is not MISSING)
