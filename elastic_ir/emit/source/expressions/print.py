"""Expressions as text, laid out as ruff and black lay code out: on one line where it fits, else split at brackets."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from elastic_ir.emit.source.expressions.expr import Expr
from elastic_ir.ir.numbering import is_index

WIDTH = 100
_BINDING = {
    "or": 1, "!=": 3, "==": 3, "<": 3, "<=": 3, ">": 3, ">=": 3, "|": 4, "^": 5, "&": 6,
    "+": 8, "-": 8, "*": 9, "/": 9, "//": 9, "%": 9, "@": 9, "**": 11,
}  # fmt: skip
_ATOM = 20
#: Constructor arguments that are written without their names.
_POSITIONAL = {
    "in_channels", "out_channels", "kernel_size", "num_features", "in_features", "out_features", "normalized_shape",
    "num_embeddings", "embedding_dim", "embed_dim", "num_heads", "num_groups", "num_channels", "p", "output_size",
}  # fmt: skip


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
    return repr(value)


class Printer:
    """Text of expressions in one function; ``local`` and ``parameter`` give names, ``defaults`` a class's arguments."""

    def __init__(
        self,
        local: Callable[[Any], str] = str,
        parameter: Callable[[str], str] = str,
        defaults: Callable[[str], dict[str, Any]] = lambda _: {},
    ) -> None:
        self.local, self.parameter, self.defaults = local, parameter, defaults

    # -- one line --------------------------------------------------------------------------------------------------

    def flat(self, expr: Expr) -> str:
        """An expression on one line."""
        return self._flat(expr)[0]

    def _under(self, expr: Expr, binding: int) -> str:
        text, own = self._flat(expr)
        return text if own >= binding else f"({text})"

    def _flat(self, expr: Expr) -> tuple[str, int]:
        kind, value, parts = expr.kind, expr.value, expr.parts
        if kind == "local":
            return self.local(value), _ATOM
        if kind in ("lit", "count", "series"):
            negative = isinstance(value, (int, float)) and not isinstance(value, bool) and value < 0
            return number(value), 10 if negative else _ATOM
        if kind == "raw":
            return value, _ATOM if re.fullmatch(r"[\w.\[\]()]+", value) else 0
        if kind == "param":
            return self.parameter(value), _ATOM
        if kind == "attr":
            return attribute(value), _ATOM
        if kind == "binary":
            own = _BINDING[value]
            left, right = self._under(parts[0], own), self._under(parts[1], own + 1)
            if value == "**":
                left = self._under(parts[0], own + 1)
                simple = all(re.fullmatch(r"[\w.]+", side) for side in (left, right))
                return (f"{left}**{right}" if simple else f"{left} ** {right}"), own
            return f"{left} {value} {right}", own
        if kind == "unary":
            return f"{value}{self._under(parts[0], 10)}", 10
        if kind == "index":
            return f"{self._under(parts[0], _ATOM)}[{self._subscript(parts[1])}]", _ATOM
        if kind == "getattr":
            return f"{self._under(parts[0], _ATOM)}.{value}", _ATOM
        if kind == "ternary":
            return f"{self.flat(parts[1])} if {self.flat(parts[0])} else {self.flat(parts[2])}", 0
        if kind == "cond":
            return f"{self.flat(parts[0])} if {value} else {self.flat(parts[1])}", 0
        opening, items, closing = self.bracketed(expr)
        if kind == "tuple" and len(items) == 1:
            items = [f"{items[0]},"]
        if _is_comprehension(expr):
            return f"{opening}{' '.join(items)}{closing}", _ATOM
        return f"{opening}{', '.join(items)}{closing}", _ATOM

    def _subscript(self, expr: Expr) -> str:
        if expr.kind == "tuple" and expr.parts:
            return ", ".join(self._subscript(part) for part in expr.parts) + (
                "," if len(expr.parts) == 1 else ""
            )
        if expr.kind == "slice":
            start, stop, step = ("" if _none(part) else self.flat(part) for part in expr.parts)
            plain = all(re.fullmatch(r"-?[\w]*", part) for part in (start, stop, step))
            if plain:
                return f"{start}:{stop}" + (f":{step}" if step else "")
            found = f"{start} :" if start else ":"  # black's way with what is no name and no number
            found += f" {stop}" if stop else ""
            return found + (f" : {step}" if step else "")
        return self.flat(expr)

    # -- brackets --------------------------------------------------------------------------------------------------

    def bracketed(self, expr: Expr) -> tuple[str, list[str], str]:
        """What stands before an expression's last bracket, its items on one line each, and the closing bracket."""
        opening, items, closing = self._open(expr)
        return (
            opening,
            [head + (self.flat(item) if isinstance(item, Expr) else item) for head, item in items],
            closing,
        )

    def _open(self, expr: Expr) -> tuple[str, list[tuple[str, Expr | str]], str]:
        kind, value, parts = expr.kind, expr.value, expr.parts
        if kind == "call":
            return f"{value}(", self._arguments(parts, expr.names), ")"
        if kind == "self":
            return f"{attribute(value)}(", self._arguments(parts, expr.names), ")"
        if kind == "method":
            names = expr.names[1:]
            return f"{self._under(parts[0], _ATOM)}.{value}(", self._arguments(parts[1:], names), ")"
        if kind == "new":
            return f"{value}(", self._constructor(expr), ")"
        if kind == "super":
            return "super().__init__(", self._constructor(expr), ")"
        if kind in ("lit", "series") and isinstance(value, (tuple, list)):
            return self._open(
                Expr(
                    "tuple" if isinstance(value, tuple) else "list",
                    None,
                    tuple(Expr("lit", v) for v in value),
                )
            )
        if kind in ("tuple", "list"):
            opening, closing = ("(", ")") if kind == "tuple" else ("[", "]")
            return opening, [("", part) for part in parts], closing
        if kind == "dict":
            keys = ["" if name == "**" else f"{number(name)}: " for name in expr.names]
            return "{", list(zip(keys, parts, strict=True)), "}"
        if kind == "slice":
            return "slice(", [("", part) for part in parts], ")"
        if kind == "comprehension":  # value: the brackets and the for clauses
            brackets, clauses = value
            looped = [clause if isinstance(clause, tuple) else ("", clause) for clause in clauses]
            return brackets[0], [("", parts[0]), *looped], brackets[1]
        if kind == "pair":  # a dict comprehension's element
            return "", [("", f"{value}: {self.flat(parts[0])}")], ""
        if kind == "star":
            opening, items, closing = self._open(parts[0])
            return value + opening, items, closing
        raise ValueError(f"{kind} has no brackets")

    def _arguments(self, parts: Sequence[Expr], names: Sequence[str]) -> list[tuple[str, Expr | str]]:
        names = names or ("",) * len(parts)
        return [(f"{name}=" if name else "", part) for name, part in zip(names, parts, strict=True)]

    def _constructor(self, expr: Expr) -> list[tuple[str, Expr | str]]:
        defaults = self.defaults(expr.value)
        shown: list[tuple[str, Expr | str]] = []
        ordered = True
        for name, part in zip(expr.names, expr.parts, strict=True):
            if (
                part.kind in ("lit", "count", "series")
                and name in defaults
                and same(defaults[name], part.value)
            ):
                ordered = False
                continue
            plain = ordered and (
                name in _POSITIONAL or (not expr.value.startswith("nn.") and name not in defaults)
            )
            ordered = ordered and plain
            shown.append(("" if plain or not name else f"{name}=", part))
        return shown

    # -- lines -----------------------------------------------------------------------------------------------------

    def lines(self, head: str, expr: Expr, tail: str = "", indent: int = 0) -> list[str]:
        """``head`` + the expression + ``tail``, indented, on as few lines as black would use."""
        pad = " " * indent
        text = f"{pad}{head}{self.flat(expr)}{tail}"
        if len(text) <= WIDTH:
            return [text]
        if expr.kind == "cond":
            return self._conditional(head, expr, tail, indent)
        try:
            opening, items, closing = self._open(expr)
        except ValueError:
            return [text]
        if not items:
            return [text]
        flat = [before + (self.flat(item) if isinstance(item, Expr) else item) for before, item in items]
        inner = " " * (indent + 4)
        comprehension = _is_comprehension(expr)
        joined = (" " if comprehension else ", ").join(flat)
        if len(inner) + len(joined) <= WIDTH and (comprehension or _joinable(expr)):
            return [f"{pad}{head}{opening}", inner + joined, f"{pad}{closing}{tail}"]
        result = [f"{pad}{head}{opening}"]
        for (before, item), line in zip(items, flat, strict=True):
            comma = "" if comprehension else ","
            if isinstance(item, Expr):
                result += self.lines(before, item, comma, indent + 4)
            else:
                result.append(inner + line + comma)
        return [*result, f"{pad}{closing}{tail}"]

    def _conditional(self, head: str, expr: Expr, tail: str, indent: int) -> list[str]:
        pad, inner = " " * indent, indent + 4
        whole = f"{' ' * inner}{self.flat(expr)}"
        if len(whole) <= WIDTH:
            return [f"{pad}{head}(", whole, f"{pad}){tail}"]
        yes = self.lines("", expr.parts[0], "", inner)
        no = self.lines("else ", expr.parts[1], "", inner)
        return [f"{pad}{head}(", *yes, f"{' ' * inner}if {expr.value}", *no, f"{pad}){tail}"]


def _is_comprehension(expr: Expr) -> bool:
    return expr.kind == "comprehension" or (expr.kind == "star" and expr.parts[0].kind == "comprehension")


def _joinable(expr: Expr) -> bool:
    """Whether black puts all items on one line of their own; those of a literal are put on a line each."""
    inner = expr.parts[0] if expr.kind == "star" else expr
    return inner.kind in ("call", "self", "method", "new", "super")


def attribute(path: Sequence[str]) -> str:
    """A path below ``self``: ``self.layers[0].weight``."""
    return "self" + "".join(f"[{step}]" if is_index(step) else f".{step}" for step in path)


def same(left: Any, right: Any) -> bool:
    """Equal, and of one type: True is not 1."""
    return type(left) is type(right) and bool(left == right)


def _none(expr: Expr) -> bool:
    return expr.kind == "lit" and expr.value is None
