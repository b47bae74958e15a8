"""Expressions as text, laid out as ruff and black lay code out: on one line where it fits, else split at brackets."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from elastic_ir.emit.source.expressions.expr import Expr, plain
from elastic_ir.emit.source.expressions.signatures import REQUIRED, is_default, parameters
from elastic_ir.ir.numbering import is_index

WIDTH = 100
_BINDING = {
    "or": 1, "!=": 3, "==": 3, "<": 3, "<=": 3, ">": 3, ">=": 3, "|": 4, "^": 5, "&": 6,
    "+": 8, "-": 8, "*": 9, "/": 9, "//": 9, "%": 9, "@": 9, "**": 11,
}  # fmt: skip
_SIGN, _ATOM = 10, 20
#: Arguments that are written without their names though they have defaults.
_LEADING = ("weight", "bias", "running_mean", "running_var", "normalized_shape", "pad", "p", "attn_mask")


def number(value: Any) -> str:
    """A plain value as Python text."""
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if isinstance(value, tuple):
        inner = ", ".join(map(number, value))
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, list):
        return f"[{', '.join(map(number, value))}]"
    if isinstance(value, str):
        text = repr(value)  # black's quotes: double, unless more of them would have to be escaped
        body = text[1:-1]
        return f'"{body}"' if text[0] == "'" and '"' not in body else text
    return repr(value).replace("e+", "e")  # 1e+38


class Printer:
    """Text of expressions in one function; ``local`` and ``parameter`` give names, ``defaults`` a class's arguments."""

    def __init__(
        self,
        local: Callable[[Any], str] = str,
        parameter: Callable[[str], str] = str,
        defaults: Callable[[str], Mapping[str, Any]] = parameters,
    ) -> None:
        self.local, self.parameter, self.defaults = local, parameter, defaults

    def flat(self, expr: Expr) -> str:
        """An expression on one line."""
        return self._flat(expr)[0]

    def lines(self, head: str, expr: Expr, indent: int = 0) -> list[str]:
        """``head`` and the expression, indented, on as few lines as black would use."""
        return wrap(f"{' ' * indent}{head}{self.flat(expr)}")

    def _under(self, expr: Expr, binding: int) -> str:
        text, own = self._flat(expr)
        return text if own >= binding else f"({text})"

    def _flat(self, expr: Expr) -> tuple[str, int]:
        """An expression on one line, and how strongly it binds."""
        kind, value, parts = expr.kind, expr.value, expr.parts
        if kind == "local":
            return self.local(value), _ATOM
        if kind in ("lit", "count", "series"):
            negative = isinstance(value, (int, float)) and not isinstance(value, bool) and value < 0
            return number(value), _SIGN if negative else _ATOM
        if kind == "raw":
            return value, _ATOM if re.fullmatch(r"[\w.\[\]()]+", value) else 0
        if kind == "param":
            return self.parameter(value), _ATOM
        if kind == "attr":
            return attribute(value), _ATOM
        if kind == "binary":
            own, power = _BINDING[value], value == "**"
            left, right = self._under(parts[0], own + power), self._under(parts[1], own + 1)
            close = power and all(re.fullmatch(r"[\w.]+", side) for side in (left, right))
            return f"{left}**{right}" if close else f"{left} {value} {right}", own
        if kind == "unary":
            return f"{value}{self._under(parts[0], _SIGN)}", _SIGN
        if kind == "index":
            return f"{self._under(parts[0], _ATOM)}[{self._subscript(parts[1])}]", _ATOM
        if kind == "getattr":
            return f"{self._under(parts[0], _ATOM)}.{value}", _ATOM
        if kind == "ternary":
            return "{1} if {0} else {2}".format(*map(self.flat, parts)), 0
        if kind == "text":
            return value.format(*map(self.flat, parts)), _ATOM
        if kind == "method":
            return f"{self._under(parts[0], _ATOM)}.{value}({self._items(parts[1:], expr.names[1:])})", _ATOM
        if kind in ("new", "call"):
            return f"{value}({self._arguments(expr)})", _ATOM
        if kind == "dict":
            keys = ["**" if name == "**" else f"{number(name)}: " for name in expr.names]
            return (
                f"{{{', '.join(key + self.flat(part) for key, part in zip(keys, parts, strict=True))}}}",
                _ATOM,
            )
        items = self._items(parts, expr.names)
        if kind == "tuple":
            return f"({items},)" if len(parts) == 1 else f"({items})", _ATOM
        if kind == "list":
            return f"[{items}]", _ATOM
        head = attribute(value) if kind == "self" else {"slice": "slice"}[kind]
        return f"{head}({items})", _ATOM

    def _subscript(self, expr: Expr) -> str:
        if expr.kind == "tuple" and expr.parts:
            return ", ".join(map(self._subscript, expr.parts)) + ("," if len(expr.parts) == 1 else "")
        if expr.kind != "slice":
            return self.flat(expr)
        none = Expr("lit")
        start, stop, step = ("" if part == none else self.flat(part) for part in expr.parts)
        if all(re.fullmatch(r"-?[\w]*", part) for part in (start, stop, step)):
            return f"{start}:{stop}" + (f":{step}" if step else "")
        found = f"{start} :" if start else ":"  # black's way with what is neither a name nor a number
        return found + (f" {stop}" if stop else "") + (f" : {step}" if step else "")

    def _items(self, parts: Sequence[Expr], names: Sequence[str]) -> str:
        names = names or ("",) * len(parts)
        return ", ".join(
            f"{name}={self.flat(part)}" if name else self.flat(part)
            for name, part in zip(names, parts, strict=True)
        )

    def _arguments(self, expr: Expr) -> str:
        """Arguments of a call without those at their defaults; required ones stand without their names, as usual."""
        accepted = self.defaults(expr.value)
        leading = ("p",) if expr.kind == "new" else _LEADING
        shown, names = [], []
        ordered = True
        for name, part in zip(expr.names, expr.parts, strict=True):
            value = part.value if part.kind in ("count", "series") else plain(part)
            if name in accepted and is_default(value, accepted[name]):
                ordered = False
                continue
            ordered = ordered and (not name or name in leading or accepted.get(name) is REQUIRED)
            shown.append(part)
            names.append("" if ordered else name)
        return self._items(shown, names)


# -- lines -------------------------------------------------------------------------------------------------------------

_STRING = re.compile(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'')
_HEAD = re.compile(r"\s*(?:return |else |[\w.,: |\[\]~]*?\w\]? ?=(?!=) ?|~+: )?")


def wrap(line: str) -> list[str]:
    """A line of code on as few lines as black would use, split at its brackets."""
    if len(line) <= WIDTH:
        return [line]
    outer = _outline(line)
    indent = len(line) - len(line.lstrip())
    pad, inner = " " * indent, " " * (indent + 4)
    start, comma = _HEAD.match(outer).end(), "," * outer.endswith(",")  # type: ignore[union-attr]
    choice = outer[start:].find(" if ")
    if choice >= 0 and " else " in outer:
        body = line[start : len(line) - len(comma)]
        other = outer.index(" else ")
        pieces = [body[:choice], line[start + choice + 1 : other], body[other - start + 1 :]]
        made = [inner + body] if len(inner + body) <= WIDTH else [w for p in pieces for w in wrap(inner + p)]
        return [f"{line[:start]}(", *made, f"{pad}){comma}"]
    definition = line.lstrip().startswith("def ")
    opening = outer.find("(") if definition else max(map(outer.rfind, "([{"))
    closing = min((at for at in (outer.find(sign, opening) for sign in ")]}") if at >= 0), default=-1)
    if opening < 0 or closing == opening + 1:
        return [line]
    body = line[opening + 1 : closing].removesuffix(",")
    head, tail = line[: opening + 1], pad + line[closing:]
    clauses = " for " in _outline(body)
    literal = not definition and not re.match(r"[\w)\]]", line[opening - 1 :])
    if len(inner + body) <= WIDTH and (clauses or not literal):
        return [head, inner + body, tail]
    pieces = list(_split(body, " for ", "for ") if clauses else _split(body, ", "))
    made = [each for piece in pieces for each in wrap(inner + piece + ("" if clauses else ","))]
    return [head, *made, tail]


def _outline(text: str) -> str:
    """A text of the same length with ``~`` for what stands in its strings and brackets."""
    found, depth = [], 0
    for letter in _STRING.sub(lambda match: "~" * len(match[0]), text):
        depth -= letter in ")]}"
        found.append("~" if depth else letter)
        depth += letter in "([{"
    return "".join(found)


def _split(text: str, separator: str, lead: str = "") -> Iterator[str]:
    """The pieces of a text between separators that stand in no bracket; all but the first begin with ``lead``."""
    start, outer = 0, _outline(text)
    while (end := outer.find(separator, start)) >= 0:
        yield (lead if start else "") + text[start:end]
        start = end + len(separator)
    yield (lead if start else "") + text[start:]


def attribute(path: Sequence[str]) -> str:
    """A path below ``self``: ``self.layers[0].weight``."""
    return "self" + "".join(f"[{step}]" if is_index(step) else f".{step}" for step in path)
