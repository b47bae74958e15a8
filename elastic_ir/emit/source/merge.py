"""Joining expressions that differ in numbers only: the numbers become holes, and holes become parameters.

Equal numbers share a parameter, and a size that is always the same multiple of another is computed from it, so that a
bottleneck takes its channels once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from elastic_ir.emit.source.expressions.expr import IDENTITY, Expr, lit, raw
from elastic_ir.emit.source.expressions.print import same

#: Whether an argument of an emitted class is a size, by the names of both.
Sized: TypeAlias = Callable[[str, str], bool]

MISSING = object()  #: no value in this instance, where an optional part is absent
_SIZES = {
    "in_channels", "out_channels", "num_features", "in_features", "out_features", "normalized_shape", "num_channels",
    "num_embeddings", "embedding_dim", "embed_dim", "num_heads", "num_groups", "groups", "size", "kernel_size",
}  # fmt: skip
_NORMAL = {"stride": 1, "dilation": 1, "groups": 1, "output_padding": 0}


class Mismatch(Exception):
    """Expressions that differ in more than numbers."""


@dataclass
class Hole:
    """A place where instances differ. ``role`` is the argument's name, ``owner`` whose argument it is."""

    role: str
    owner: str
    values: list[Any]
    forced: str = ""  #: "count" or "series": a parameter even where all instances agree
    forward: bool = False
    size: bool = False


@dataclass
class Parameter:
    """A constructor parameter, with its value in each instance."""

    name: str
    values: list[Any]
    hole: Hole
    default: Any = MISSING
    stored: bool = False  #: whether the forward reads it

    @property
    def annotation(self) -> str:
        known = [value for value in self.values if value is not MISSING]
        kinds = {type(value) for value in known}
        if self.hole.forced == "series":
            return "Sequence[float]" if isinstance(known[0][0], float) else "Sequence[int]"
        if kinds == {tuple}:
            inner = {type(item) for value in known for item in value}
            return f"tuple[{inner.pop().__name__ if len(inner) == 1 else 'float'}, ...]"
        if type(None) in kinds:
            return " | ".join(sorted(kind.__name__ for kind in kinds - {type(None)})) + " | None"
        if kinds <= {int, float}:
            return "float" if float in kinds else "int"
        return " | ".join(sorted(kind.__name__ if kind is not tuple else "tuple[int, ...]" for kind in kinds))


@dataclass
class Joined:
    """The outcome: one template for all instances, its holes, and the presence of optional parts."""

    templates: list[Expr]
    holes: list[Hole] = field(default_factory=list)
    presence: list[tuple[str, list[bool]]] = field(default_factory=list)


def join(instances: Sequence[Sequence[Expr]], owners: Sequence[str], sized: Sized) -> Joined:
    """One template for the instances' expressions, place by place; Mismatch where structure differs.

    ``sized(class, argument)`` says whether an argument of an emitted class is a size. Owner "" is the forward.
    """
    joined = Joined([])
    for place, owner in enumerate(owners):
        column: list[Expr | None] = [instance[place] for instance in instances]
        joined.templates.append(_join(column, "", owner, joined, sized))
    return joined


def _join(
    column: list[Expr | None],
    role: str,
    owner: str,
    joined: Joined,
    sized: Sized,
    size: bool = False,
) -> Expr:
    known = [expr for expr in column if expr is not None]
    first = known[0]
    if all(expr.kind == "lit" for expr in known):
        values = [expr.value if expr is not None else MISSING for expr in column]
        if all(same(first.value, expr.value) for expr in known) and (
            MISSING not in values or not joined.presence
        ):
            return first
        if any(isinstance(expr.value, str) for expr in known) and role == "":
            raise Mismatch
        plain = {type(expr.value) for expr in known}
        if plain <= {int, float, bool, type(None), tuple, str}:
            return _hole(joined, Hole(role, owner, values, forward=not owner, size=size or role in _SIZES))
    listed = all(
        expr.kind in ("list", "tuple") and all(part.kind == "lit" for part in expr.parts) for expr in known
    )
    if not owner and listed and len(first.parts) > 1 and any(expr != first for expr in known):
        tuples = [
            tuple(part.value for part in expr.parts) if expr is not None else MISSING for expr in column
        ]
        return _hole(joined, Hole(role or "values", owner, tuples, forward=True))
    if first.kind in ("count", "series") and all(expr.kind == first.kind for expr in known):
        values = [expr.value if expr is not None else MISSING for expr in column]
        return _hole(joined, Hole(role, owner, values, first.kind))
    head = (first.kind, first.value, first.names, len(first.parts))
    if all((expr.kind, expr.value, expr.names, len(expr.parts)) == head for expr in known):
        parts = []
        for index in range(len(first.parts)):
            inner = [expr.parts[index] if expr is not None else None for expr in column]
            parts.append(_join(inner, *_context(first, index, role, owner, sized, joined)))
        return Expr(first.kind, first.value, tuple(parts), first.names)
    others = [expr if expr is not None and expr != IDENTITY else None for expr in column]
    if owner and IDENTITY in known and any(others):
        joined.presence.append((owner, [expr is None or expr != IDENTITY for expr in column]))
        present = Expr("presence", len(joined.presence) - 1)
        return Expr("ternary", None, (present, _join(others, role, owner, joined, sized), IDENTITY))
    raise Mismatch


def _context(
    expr: Expr, index: int, role: str, owner: str, sized: Sized, joined: Joined
) -> tuple[str, str, Joined, Sized, bool]:
    """Role and owner of an expression's part."""
    name = expr.names[index] if expr.names else ""
    size = False
    if expr.kind == "new":
        return name, owner, joined, sized, name in _SIZES or sized(expr.value, name)
    if expr.kind in ("call", "method") and (name == "" or name in _SIZES):
        size = expr.value in ("torch.zeros", "view", "reshape", "expand", "split", "chunk", "repeat")
        return name or ("size" if size else _role(expr, index) or role), owner, joined, sized, size
    if expr.kind == "binary":
        return (
            {"*": "scale", "/": "scale", "+": "offset", "-": "offset"}.get(expr.value, role),
            owner,
            joined,
            sized,
            False,
        )
    if expr.kind == "ternary" and index == 0:
        return "residual", owner, joined, sized, False
    return name or role, owner, joined, sized, size


def _role(expr: Expr, index: int) -> str:
    """What a positional argument of a function is called."""
    from elastic_ir.emit.source.reading import calls

    if expr.kind == "method":
        return {"permute": "axis", "transpose": "axis", "flatten": "axis"}.get(expr.value, "")
    known = {"torch.permute": ("input", "dims"), "stochastic_depth": ("x", "p", "mode", "training"),
             "torch.roll": ("input", "shifts", "dims")}  # fmt: skip
    names = known.get(expr.value) or list(calls.parameters(expr.value)) if expr.kind == "call" else ()
    return names[index] if index < len(names) else ""


def _hole(joined: Joined, hole: Hole) -> Expr:
    joined.holes.append(hole)
    return Expr("hole", len(joined.holes) - 1)


def parameters(holes: Sequence[Hole]) -> tuple[list[Parameter], dict[int, Expr]]:
    """The parameters that the holes need, and each hole's expression in them."""
    found: list[Parameter] = []
    filled: dict[int, Expr] = {}
    order = sorted(
        range(len(holes)), key=lambda n: MISSING in holes[n].values
    )  # what all instances have comes first
    for number in order:
        hole = holes[number]
        known = [value for value in hole.values if value is not MISSING]
        constant = not hole.forced and all(same(value, known[0]) for value in known)
        filled[number] = _known(hole, found) or (lit(known[0]) if constant else _new(hole, found))
        if hole.forward:
            for parameter in found:
                if filled[number] == Expr("param", parameter.name):
                    parameter.stored = True
    return found, filled


def _known(hole: Hole, found: list[Parameter]) -> Expr | None:
    for parameter in found:
        alike = (parameter.hole.size and hole.size) or (
            parameter.hole.role == hole.role
            and parameter.hole.forced == hole.forced
            and hole.forced != "count"
        )
        if alike and _agree(hole.values, parameter.values):
            parameter.values = [
                b if a is MISSING else a for a, b in zip(parameter.values, hole.values, strict=True)
            ]
            return Expr("param", parameter.name)
    if not hole.size or hole.forced:
        return None
    for parameter in found:
        pairs = [
            (a, b)
            for a, b in zip(hole.values, parameter.values, strict=True)
            if a is not MISSING and b is not MISSING
        ]
        if not parameter.hole.size or len({b for _, b in pairs}) < 2 or hole.forward or not all(
            type(a) is int and type(b) is int and a > 0 and b > 0 for a, b in pairs
        ):  # fmt: skip
            continue
        ratios = {a // b if a % b == 0 else 0 for a, b in pairs}
        if len(ratios) == 1 and (k := ratios.pop()) > 1:
            return Expr("binary", "*", (lit(k), Expr("param", parameter.name)))
        ratios = {b // a if b % a == 0 else 0 for a, b in pairs}
        if len(ratios) == 1 and (k := ratios.pop()) > 1:
            return Expr("binary", "//", (Expr("param", parameter.name), lit(k)))
    return None


def _agree(left: list[Any], right: list[Any]) -> bool:
    pairs = [(a, b) for a, b in zip(left, right, strict=True) if a is not MISSING and b is not MISSING]
    return bool(pairs) and all(same(a, b) for a, b in pairs)


def _new(hole: Hole, found: list[Parameter]) -> Expr:
    parameter = Parameter(_name(hole, found), list(hole.values), hole)
    known = [value for value in hole.values if value is not MISSING]
    if hole.role in _NORMAL and any(same(value, _NORMAL[hole.role]) for value in known):
        parameter.default = _NORMAL[hole.role]
    if all(isinstance(value, bool) for value in known):
        parameter.default = False
    found.append(parameter)
    return Expr("param", parameter.name)


_RENAMED = {
    "num_features": "channels", "normalized_shape": "dim", "num_channels": "channels", "embed_dim": "dim",
    "in_features": "in_features", "p": "rate", "": "value", "size": "dim", "negative_slope": "slope",
}  # fmt: skip


def _name(hole: Hole, found: list[Parameter]) -> str:
    """A name that no other parameter has: the argument's own, then one that says whose it is."""
    taken = {parameter.name for parameter in found}
    forced = {"count": "depth", "series": f"{hole.role or 'value'}s"}.get(hole.forced)
    base = forced or _RENAMED.get(hole.role, hole.role)
    names = [base]
    if base in ("out_channels", "out_features", "in_channels", "in_features"):
        names.append(base.replace("out_", "hidden_").replace("in_", "hidden_"))
    owner = hole.owner.strip("_")
    if hole.forward and hole.size:
        names = ["size"]
    if owner:
        names.append(f"{owner}_{base}")
    for name in names:
        if name not in taken:
            return name
    number = 2
    while f"{names[-1]}{number}" in taken:
        number += 1
    return f"{names[-1]}{number}"


def fill(template: Expr, filled: dict[int, Expr], conditions: Sequence[str]) -> Expr:
    """A template with its holes as parameters and its optional parts under their conditions."""
    if template.kind == "hole":
        return filled[template.value]
    if template.kind == "presence":
        return raw(conditions[template.value])
    parts = tuple(fill(part, filled, conditions) for part in template.parts)
    return Expr(template.kind, template.value, parts, template.names)


def condition(
    values: list[bool], found: list[Parameter], otherwise: str, computed: Sequence[tuple[str, list[Any]]] = ()
) -> str:
    """What tells whether an optional part is there: a stride or a change of channels, else a parameter of its own.

    ``computed`` are sizes that are computed from parameters, with their values.
    """
    whole = [p for p in found if MISSING not in p.values]
    strides = [p for p in whole if p.hole.role == "stride"]
    sizes = [
        (p.name, p.values)
        for p in whole
        if p.hole.size and not p.hole.forced and p.hole.role != "kernel_size"
    ]
    sizes += [item for item in computed if item not in sizes]
    tests: list[tuple[str, list[bool], str]] = []
    pairs = [(a, b) for i, a in enumerate(sizes) for b in sizes[i + 1 :] if b[0] != a[0]]
    for stride in strides[:1]:
        changed = [value not in (1, MISSING) for value in stride.values]
        for a, b in pairs:
            both = [s or o for s, o in zip(changed, _differ(a[1], b[1]), strict=True)]
            tests.append(
                (f"{stride.name} != 1 or {a[0]} != {b[0]}", both, f"{stride.name} == 1 and {a[0]} == {b[0]}")
            )
        tests.append((f"{stride.name} != 1", changed, f"{stride.name} == 1"))
    for a, b in pairs:
        tests.append((f"{a[0]} != {b[0]}", _differ(a[1], b[1]), f"{a[0]} == {b[0]}"))
    for text, outcome, opposite in tests:
        if outcome == values:
            return text
        if outcome == [not value for value in values]:
            return opposite
    if not otherwise:
        return ""
    name = otherwise
    while any(p.name == name for p in found):
        name += "_"
    found.append(Parameter(name, list(values), Hole(name, "", list(values)), default=False))
    return name


def _differ(left: Sequence[Any], right: Sequence[Any]) -> list[bool]:
    return [x is not MISSING and y is not MISSING and x != y for x, y in zip(left, right, strict=True)]


def computed_sizes(holes: Sequence[Hole], filled: dict[int, Expr]) -> list[tuple[str, list[Any]]]:
    """Sizes that are computed from parameters (``4 * channels``), with their values."""
    from elastic_ir.emit.source.expressions.print import Printer

    return [
        (Printer().flat(filled[number]), hole.values)
        for number, hole in enumerate(holes)
        if filled[number].kind == "binary" and MISSING not in hole.values
    ]
