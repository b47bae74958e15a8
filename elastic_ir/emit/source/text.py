"""Expressions as text: Python's own parser and unparser set parentheses, and long lines split as ruff and black do."""

from __future__ import annotations

import ast
import keyword
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from elastic_ir.emit.source.expr import Expr, plain
from elastic_ir.emit.source.signatures import REQUIRED, is_default, parameters
from elastic_ir.errors import EmitError
from elastic_ir.ir.numbering import is_index

WIDTH = 100
#: Arguments that are written without their names though they have defaults.
_LEADING = ("weight", "bias", "running_mean", "running_var", "normalized_shape", "pad", "p", "attn_mask")
_TIGHT = "\0"  #: stands before an exponent that is written without spaces; no text has it otherwise


def identifier(name: str, what: str) -> str:
    """A name that may stand in source text; EmitError for anything else."""
    if not name.isidentifier() or not name.isascii() or keyword.iskeyword(name):
        raise EmitError(f"{what} {name!r} is not a name in Python, so it cannot be written as source")
    return name


def attribute(path: Sequence[str]) -> str:
    """A path below ``self``: ``self.layers[0].weight``."""
    return "self" + "".join(f"[{step}]" if is_index(step) else f".{step}" for step in path)


def tidy(text: str) -> str:
    """An expression's text as black would have it, on one line."""
    tree = _Style().visit(ast.parse(text, mode="eval"))
    return ast.unparse(tree).replace(f" ** {_TIGHT}", "**")


class _Style(ast.NodeTransformer):
    """What black writes otherwise than ``ast.unparse``, which prints any text that stands as the name of a variable."""

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        text = ast.unparse(node)
        if isinstance(node.value, str):
            return ast.Name(text if '"' in text else f'"{text[1:-1]}"')
        return ast.Name(text.replace("e+", "e"))

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.expr:
        return ast.Name(ast.unparse(node).replace("'", '"'))

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Name(f'float("{node.id}")') if node.id in ("inf", "nan") else node

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        self.generic_visit(node)
        left, right = ast.unparse(node.left), ast.unparse(node.right)
        if isinstance(node.op, ast.Pow) and re.fullmatch(r"[\w.]+ -?[\w.]+", f"{left} {right}"):
            node.right = ast.Name(_TIGHT + right)
        elif isinstance(node.op, ast.Div) and isinstance(node.right, ast.BinOp) and _TIGHT not in right:
            node.right = ast.Name(f"({right})")  # around a power too, which needs none
        return node

    def visit_Slice(self, node: ast.Slice) -> ast.expr:
        self.generic_visit(node)
        parts = [ast.unparse(part) if part else "" for part in (node.lower, node.upper, node.step)]
        text = " ".join(filter(None, [parts[0], ":", parts[1], parts[2] and f": {parts[2]}"]))
        simple = all(re.fullmatch(r"-?\w*", part) for part in parts)
        return ast.Name(text.replace(" ", "") if simple else text.replace(": :", "::"))


#: Expressions by their kinds, with all the parentheses that they may need.
_FORMS = {
    "lit": "({value!r})", "size": "({value!r})", "count": "({value!r})", "series": "({value!r})", "raw": "({value})",
    "param": "{owner}{value}", "attr": "{path}", "self": "{path}({all})", "call": "{value}({all})",
    "new": "{value}({all})", "method": "{0}.{value}({rest})", "getattr": "{0}.{value}", "index": "{0}[{1}]",
    "unary": "({value}{0})", "binary": "({0} {value} {1})", "ternary": "({1} if {0} else {2})", "stage": "*{0}",
    "tuple": "({items})", "list": "[{all}]", "dict": "{{{all}}}", "slice": "slice({all})",
}  # fmt: skip


class Printer:
    """Text of expressions in one function.

    ``names`` are those of its values, ``owner`` stands before parameters, ``defaults`` gives a class's arguments.
    """

    def __init__(
        self,
        names: Mapping[Any, str] | None = None,
        owner: str = "",
        defaults: Callable[[str], Mapping[str, Any]] = parameters,
    ) -> None:
        self.names = {} if names is None else names
        self.owner, self.defaults = owner, defaults

    def text(self, expr: Expr) -> str:
        """An expression on one line."""
        return tidy(self._rough(expr))

    def _rough(self, expr: Expr) -> str:
        """An expression with all the parentheses that it may need."""
        kind, value = expr.kind, expr.value
        if kind in ("new", "call"):
            parts = self._arguments(expr)
        else:
            lead = "{!r}: " if kind == "dict" else "{}="
            leads = [name if name in ("", "**") else lead.format(name) for name in expr.names]
            parts = self._items(expr.parts, leads)
        if kind == "local":
            return self.names[value]
        if kind == "text":
            return str(value).format(*parts)
        if kind == "index":
            parts[1] = self._subscript(expr.parts[1])
        if kind in ("list", "dict") and len(parts) == 1 and parts[0].startswith("*"):
            return parts[0].lstrip("*")  # of nothing but one that is unpacked, what that unpacks
        given = {
            "value": value, "owner": self.owner, "path": attribute(value) if kind in ("attr", "self") else "",
            "all": ", ".join(parts), "rest": ", ".join(parts[1:]), "items": "".join(f"{part}, " for part in parts),
        }  # fmt: skip
        return _FORMS[kind].format(*parts, **given)

    def _subscript(self, expr: Expr) -> str:
        if expr.kind == "tuple" and expr.parts:
            return "".join(f"{self._subscript(part)}, " for part in expr.parts)
        if expr.kind == "slice":
            return ":".join("" if part == Expr("lit") else self._rough(part) for part in expr.parts)
        return self._rough(expr)

    def _items(self, parts: Sequence[Expr], leads: Sequence[str]) -> list[str]:
        """Arguments or items; a stage that is a list stands as what the list holds."""
        found = []
        for part, lead in zip(parts, leads or [""] * len(parts), strict=True):
            if part.kind == "stage" and part.parts[0].kind == "list":
                found += self._items(part.parts[0].parts, ())
            else:
                found.append(lead + self._rough(part))
        return found

    def _arguments(self, expr: Expr) -> list[str]:
        """Arguments of a call without those at their defaults; required ones stand without their names, as usual."""
        accepted = self.defaults(expr.value)
        leading = ("p",) if expr.kind == "new" else _LEADING
        shown, leads = [], []
        ordered = True
        for name, part in zip(expr.names, expr.parts, strict=True):
            if name in accepted and is_default(plain(part), accepted[name]):
                ordered = False
                continue
            ordered = ordered and (not name or name in leading or accepted.get(name) is REQUIRED)
            shown.append(part)
            leads.append("" if ordered or not name else f"{name}=")
        return self._items(shown, leads)


# -- lines -------------------------------------------------------------------------------------------------------------

_STRING = re.compile(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'')
_HEAD = re.compile(r"\s*(?:return |else |[\w.,: |\[\]~]*?\w\]? ?=(?!=) ?|~+: )?")


def wrap(line: str) -> list[str]:
    """A line of code on as few lines as black would use, split at its brackets."""
    if len(line) <= WIDTH:
        return [line]
    outer = _outline(line)
    pad = " " * (len(line) - len(line.lstrip()))
    start = _HEAD.match(outer).end()  # type: ignore[union-attr]
    if re.search(" if .* else ", outer[start:]):
        body, comma = line[start:].removesuffix(","), "," * line.endswith(",")
        return [f"{line[:start]}(", *_inside(pad, body, " (?=if |else )"), f"{pad}){comma}"]
    definition = line.lstrip().startswith("def ")
    opening = outer.find("(") if definition else max(map(outer.rfind, "([{"))
    closing = min((at for at in (outer.find(sign, opening) for sign in ")]}") if at >= 0), default=-1)
    if opening < 0 or closing == opening + 1:
        return [line]
    body = line[opening + 1 : closing].removesuffix(",")
    literal = not definition and not re.match(r"[\w)\]]", line[opening - 1 :])
    clauses = " for " in _outline(body)
    made = _inside(pad, body, " (?=for )") if clauses else _inside(pad, body, "(?<=,) ", ",", not literal)
    return [line[: opening + 1], *made, pad + line[closing:]]


def _inside(pad: str, body: str, separator: str, last: str = "", whole: bool = True) -> list[str]:
    """What stands in brackets: on one line, if it may and fits, else in pieces, with ``last`` behind them."""
    inner = f"{pad}    "
    if whole and len(inner + body) <= WIDTH:
        return [inner + body]
    cuts = [match.start() for match in re.finditer(separator, _outline(body))]
    pieces = [body[low:high].lstrip() for low, high in pairwise([0, *cuts, len(body)])]
    pieces[-1] += last
    return [each for piece in pieces for each in wrap(inner + piece)]


def _outline(text: str) -> str:
    """A text of the same length with ``~`` for what stands in its strings and brackets."""
    found, depth = [], 0
    for letter in _STRING.sub(lambda match: "~" * len(match[0]), text):
        depth -= letter in ")]}"
        found.append("~" if depth else letter)
        depth += letter in "([{"
    return "".join(found)
