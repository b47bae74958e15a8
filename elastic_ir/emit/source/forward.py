"""The text of a forward: what is used once stands where it is used, and names are handed on as an engineer would.

Expressions are only moved where the order of evaluation stays what it was, so operations in place and random numbers
come out as in the graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from elastic_ir.emit.source.expressions.expr import Expr, change, locals_of, walk
from elastic_ir.emit.source.expressions.print import Printer, attribute
from elastic_ir.ir.numbering import is_index

_CALLS = ("call", "self", "method")
_FOLD_WIDTH = 84
_FOLD_CALLS = 3
_AXES = {
    4: ("batch", "channels", "height", "width"),
    3: ("batch", "length", "channels"),
    2: ("batch", "channels"),
    5: ("batch", "channels", "frames", "height", "width"),
}
_SPARE = ("out", "y", "z", "h", "u", "v")
_KEPT = {"q", "k", "v", "query", "key", "value", "mask"}  #: names that say what a value is, not handed on
_RESERVED = {"F", "nn", "torch", "Tensor", "math", "self"}

Line = tuple[tuple[Any, ...], Expr]


def fold(
    statements: Sequence[Line],
    returns: Expr,
    shapes: Callable[[Any], tuple[int, ...] | None] = lambda _: None,
) -> tuple[list[Line], Expr]:
    """Statements with single uses written into their users, in an unchanged order of evaluation."""
    statements = unpack(statements, returns, shapes)
    uses = Counter(key for _, expr in statements for key in locals_of(expr)) + Counter(locals_of(returns))
    done: list[Line] = []
    pending: list[tuple[Any, Expr]] = []
    pure: dict[Any, Expr] = {}

    def flush() -> None:
        done.extend(((key,), expr) for key, expr in pending)
        pending.clear()

    def settled(expr: Expr) -> Expr:
        return change(expr, lambda leaf: pure.get(leaf.value) if leaf.kind == "local" else None)

    def merged(expr: Expr, last: bool = False) -> Expr:
        """The expression with pending ones put into it, or everything pending flushed."""
        waiting = [key for key, _ in pending]
        wanted = [key for key in locals_of(expr) if key in waiting]
        if not wanted:
            return expr
        while wanted:
            if waiting[-len(wanted) :] == wanted:
                table = dict(pending[-len(wanted) :])
                made = change(expr, lambda leaf, t=table: t.get(leaf.value) if leaf.kind == "local" else None)  # type: ignore[misc]
                if _small(made, last):
                    del pending[-len(wanted) :]
                    return made
            if len(wanted) == 1:
                break
            wanted = wanted[1:]  # the later ones may still be put in
        return expr

    for results, expr in statements:
        expr = settled(expr)
        if expr.kind == "ternary" and expr.parts[0].kind == "lit":
            expr = expr.parts[1] if expr.parts[0].value else expr.parts[2]
        if expr.kind == "call" and expr.value == "F.dropout" and expr.parts[1:2] == (Expr("lit", 0.0),):
            expr = expr.parts[0]
        if expr.kind == "local":
            pure[results[0]] = expr
            uses[expr.value] += uses[results[0]] - 1
            continue
        if len(results) == 1 and _is_pure(expr) and (uses[results[0]] == 1 or expr.kind == "getattr"):
            pure[results[0]] = expr
            continue
        if expr.kind in ("loop", "ternary"):
            flush()
        else:
            expr = merged(expr)
            unmerged = {key for key, _ in pending} & set(locals_of(expr))
            if unmerged:
                flush()
        if len(results) == 1 and uses[results[0]] == 1 and expr.kind not in ("loop", "ternary"):
            pending.append((results[0], expr))
            continue
        flush()
        done.append((tuple(results), expr))
    returns = settled(returns)
    returns = merged(returns, last=True)
    flush()
    if done and done[-1][1].kind == "ternary" and returns == Expr("local", done[-1][0][0]):
        returns = done.pop()[1]
    return done, returns


def _is_pure(expr: Expr) -> bool:
    """A look at a shape, which may stand anywhere."""
    if expr.kind == "getattr":
        return expr.value in ("shape", "dtype", "device", "ndim") and expr.parts[0].kind in ("local", "attr")
    if expr.kind == "index":
        return expr.parts[0].kind == "getattr" and _is_pure(expr.parts[0]) and expr.parts[1].kind == "lit"
    if expr.kind == "method":
        return expr.value in ("size", "dim") and expr.parts[0].kind == "local" and (
            all(part.kind == "lit" for part in expr.parts[1:])
        )  # fmt: skip
    return False


def _small(expr: Expr, last: bool = False) -> bool:
    calls = sum(1 for node in walk(expr) if node.kind in _CALLS and not _is_pure(node))
    text = Printer(local=lambda _: "xxxxx", parameter=lambda n: f"self.{n}").flat(expr)
    return calls <= _FOLD_CALLS and len(text) <= _FOLD_WIDTH


def unpack(
    statements: Sequence[Line],
    returns: Expr,
    shapes: Callable[[Any], tuple[int, ...] | None] = lambda _: None,
) -> list[Line]:
    """``q, k, v = ...`` where a value is only ever indexed by 0, 1, 2 right after it was made."""
    found: list[Line] = []
    at = 0
    while at < len(statements):
        results, expr = statements[at]
        count = 0
        while (
            len(results) == 1
            and at + 1 + count < len(statements)
            and statements[at + 1 + count][1]
            == Expr("index", None, (Expr("local", results[0]), Expr("lit", count)))
        ):
            count += 1
        shape = shapes(results[0]) if len(results) == 1 else None
        last = str(expr.value).rpartition(".")[2] if expr.kind in ("method", "call") else ""
        splits = (shape is not None and shape[:1] == (count,)) or last in ("unbind", "chunk")
        if count >= 2 and splits:
            reads = sum(locals_of(e).count(results[0]) for _, e in statements) + locals_of(returns).count(
                results[0]
            )
            if reads == count:
                made = tuple(statements[at + 1 + index][0][0] for index in range(count))
                found.append((made, expr))
                at += 1 + count
                continue
        found.append((results, expr))
        at += 1
    return found


class Forward:
    """Lines of one forward. ``inputs`` are its values' keys with the names they get, in the order of the signature."""

    def __init__(
        self, inputs: Sequence[tuple[Any, str]], statements: Sequence[Line], returns: Expr,
        shapes: Callable[[Any], tuple[int, ...] | None],
    ) -> None:  # fmt: skip
        self.names: dict[Any, str] = {}
        self.shapes = shapes
        self.taken: dict[str, Any] = {}
        self.statements, self.returns = fold(statements, returns, shapes)
        self.last: dict[Any, int] = {}
        for place, (_, expr) in enumerate(self.statements):
            for key in locals_of(expr):
                self.last[key] = place
        for key in locals_of(self.returns):
            self.last[key] = len(self.statements)
        self.inputs = [name for _, name in inputs]
        for key, name in inputs:
            self.names[key] = name
        self.printer = Printer(local=lambda key: self.names[key], parameter=lambda name: f"self.{name}")

    def ranks(self, key: Any) -> int | None:
        shape = self.shapes(key)
        return len(shape) if shape is not None else None

    def lines(self, indent: int) -> list[str]:
        """The body, indented."""
        found: list[str] = []
        for place, (results, expr) in enumerate(self.statements):
            if expr.kind == "loop":
                found += self._loop(place, results, expr, indent)
                continue
            used = [key for key in results if key in self.last]
            if not used:
                found += self.printer.lines("", expr, indent)
                continue
            head_of: list[str] = []
            for index, key in enumerate(results):
                head_of.append(self._name(place, key, expr, index, len(results), frozenset(head_of) - {"_"}))
            lines = self.printer.lines(", ".join(head_of) + " = ", expr, indent)
            self.names.update(zip(results, head_of, strict=True))
            found += lines
        return [*found, *self.printer.lines("return ", self.returns, indent)]

    def _loop(self, place: int, results: tuple[Any, ...], expr: Expr, indent: int) -> list[str]:
        pad = " " * indent
        carry = expr.names.index("carry")
        start = expr.parts[carry]
        name = self._name(place, results[0], Expr("loop", expr.value, (start,)))
        found = []
        if not (start.kind == "local" and self.names[start.value] == name):
            found += self.printer.lines(f"{name} = ", start, indent)
        item = expr.value[-1].rstrip("0123456789_")
        item = item[:-1] if item.endswith("s") and len(item) > 2 else "block" if item != "layer" else item
        while item in self._live(place) or item == name:
            item += "_"
        given = [name if mark == "carry" else self.printer.flat(part) for part, mark in
                 zip(expr.parts, expr.names, strict=True)]  # fmt: skip
        found.append(f"{pad}for {item} in {attribute(expr.value)}:")
        found.append(f"{pad}    {name} = {item}({', '.join(given)})")
        self.names[results[0]] = name
        return found

    def _live(self, place: int) -> set[str]:
        """Names that are read after a statement."""
        return {name for key, name in self.names.items() if self.last.get(key, -1) > place}

    def _name(
        self,
        place: int,
        key: Any,
        expr: Expr,
        index: int = 0,
        count: int = 1,
        beside: frozenset[str] = frozenset(),
    ) -> str:
        live = self._live(place) | _RESERVED | beside
        if key not in self.last:
            return "_"
        if count == 3:
            free = not (live - beside) & {"q", "k", "v"}
            return ("q", "k", "v")[index] if free else self._free(f"part{index}", live)
        size = self._size(expr)
        if size:
            return self._free(size, live)
        if count == 1:
            hint = self._hint(expr)
            for used in () if hint in _KEPT else locals_of(expr):
                name = self.names[used]
                if name in _KEPT or name.startswith("part"):
                    continue
                if self.last[used] == place and name not in live and self.ranks(used) is not None:
                    return name
        return self._free(self._hint(expr), live)

    def _size(self, expr: Expr) -> str:
        """What a size is called; "" for what is none."""
        if expr.kind == "index" and _is_pure(expr) and expr.parts[0].value == "shape":
            rank = self.ranks(expr.parts[0].parts[0].value)
            axis = expr.parts[1].value
        elif expr.kind == "method" and expr.value == "size" and len(expr.parts) == 2:
            rank, axis = self.ranks(expr.parts[0].value), expr.parts[1].value
        else:
            reads = locals_of(expr)
            shapes = sum(node.kind == "getattr" and node.value == "shape" for node in walk(expr))
            plain = expr.kind in ("binary", "unary") and reads and all(
                self.ranks(key) is None or shapes >= len(reads) for key in reads
            )  # fmt: skip
            return "size" if plain else ""
        axes = _AXES.get(rank or 0)
        return axes[axis] if axes and isinstance(axis, int) and -len(axes) <= axis < len(axes) else "size"

    def _hint(self, expr: Expr) -> str:
        while expr.kind in ("method", "index"):
            expr = expr.parts[0]
        if expr.kind == "self" and expr.value and not is_index(expr.value[-1]):
            name = str(expr.value[-1])
            known = {
                "query": "query",
                "key": "key",
                "value": "value",
                "q": "q",
                "k": "k",
                "v": "v",
                "qkv": "qkv",
            }
            short = name.removesuffix("_proj")
            return known.get(short, "out")
        if expr.kind == "call" and expr.value == "super().forward":
            return "x"
        return "out"

    def _free(self, wanted: str, live: set[str]) -> str:
        if wanted not in live:
            return wanted
        if wanted in _SPARE or wanted == "x":
            for name in _SPARE:
                if name not in live:
                    return name
        number = 2
        while f"{wanted}{number}" in live:
            number += 1
        return f"{wanted}{number}"
