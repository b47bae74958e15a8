"""The text of a forward: what is used once stands where it is used, and names are handed on as an engineer would.

Expressions are only moved where the order of evaluation stays what it was, so operations in place and random numbers
come out as in the graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any

from elastic_ir.emit.source.expressions.expr import Expr, change, index, lit, locals_of, walk
from elastic_ir.emit.source.expressions.print import Printer, attribute
from elastic_ir.emit.source.merge import unused
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
    uses = Counter(key for expr in (*(expr for _, expr in statements), returns) for key in locals_of(expr))
    done: list[Line] = []
    pending: list[tuple[Any, Expr]] = []  # used once, and not yet written
    pure: dict[Any, Expr] = {}

    def flush() -> None:
        done.extend(((key,), expr) for key, expr in pending)
        pending.clear()

    def merged(expr: Expr) -> Expr:
        """The expression with the last pending ones put into it, as many as keep it readable."""
        waiting = [key for key, _ in pending]
        wanted = [key for key in locals_of(expr) if key in waiting]
        while wanted:
            if waiting[-len(wanted) :] == wanted:
                made = _put(expr, dict(pending[-len(wanted) :]))
                if _small(made):
                    del pending[-len(wanted) :]
                    return made
            wanted = wanted[1:]  # the later ones may still be put in
        return expr

    for results, expr in statements:
        expr = _put(expr, pure)
        if expr.kind == "ternary" and expr.parts[0].kind == "lit":
            expr = expr.parts[1] if expr.parts[0].value else expr.parts[2]
        if expr.kind == "call" and expr.value == "F.dropout" and expr.parts[1:2] == (Expr("lit", 0.0),):
            expr = expr.parts[0]
        key = results[0]
        single = len(results) == 1
        if expr.kind == "local" or (single and _is_pure(expr) and (uses[key] == 1 or expr.kind == "getattr")):
            pure[key] = expr
            if expr.kind == "local":
                uses[expr.value] += uses[key] - 1
            continue
        compound = expr.kind in ("loop", "ternary")
        expr = expr if compound else merged(expr)
        if compound or {key for key, _ in pending} & set(locals_of(expr)):
            flush()
        if single and uses[key] == 1 and not compound:
            pending.append((key, expr))
            continue
        flush()
        done.append((tuple(results), expr))
    returns = merged(_put(returns, pure))
    flush()
    if done and done[-1][1].kind == "ternary" and returns == Expr("local", done[-1][0][0]):
        returns = done.pop()[1]
    return done, returns


def _put(expr: Expr, table: dict[Any, Expr]) -> Expr:
    """An expression with others in the place of some of its values."""
    return change(expr, lambda leaf: table.get(leaf.value) if leaf.kind == "local" else None)


def _is_pure(expr: Expr) -> bool:
    """A look at a shape, which may stand anywhere."""
    if expr.kind == "getattr":
        return expr.value in ("shape", "dtype", "device", "ndim") and expr.parts[0].kind in ("local", "attr")
    if expr.kind == "index":
        return expr.parts[0].kind == "getattr" and _is_pure(expr.parts[0]) and expr.parts[1].kind == "lit"
    size = expr.kind == "method" and expr.value in ("size", "dim") and expr.parts[0].kind == "local"
    return size and all(part.kind == "lit" for part in expr.parts[1:])


def _small(expr: Expr) -> bool:
    calls = sum(node.kind in _CALLS and not _is_pure(node) for node in walk(expr))
    text = Printer(local=lambda _: "xxxxx", parameter=lambda name: f"self.{name}").flat(expr)
    return calls <= _FOLD_CALLS and len(text) <= _FOLD_WIDTH


def unpack(
    statements: Sequence[Line], returns: Expr, shapes: Callable[[Any], tuple[int, ...] | None]
) -> list[Line]:
    """``q, k, v = ...`` where a value is only ever indexed by 0, 1, 2 right after it was made."""
    uses = Counter(key for expr in (*(expr for _, expr in statements), returns) for key in locals_of(expr))
    found: list[Line] = []
    rest = list(statements)
    while rest:
        results, expr = rest.pop(0)
        value, count = Expr("local", results[0]), 0
        while count < len(rest) and rest[count][1] == index(value, lit(count)):
            count += 1
        last = str(expr.value).rpartition(".")[2] if expr.kind in ("method", "call") else ""
        splits = (shapes(results[0]) or ())[:1] == (count,) or last in ("unbind", "chunk")
        if len(results) == 1 and count >= 2 and splits and uses[results[0]] == count:
            results = tuple(made[0] for made, _ in rest[:count])
            del rest[:count]
        found.append((results, expr))
    return found


class Forward:
    """Lines of one forward. ``inputs`` are its values' keys with the names they get, in the order of the signature."""

    def __init__(
        self, inputs: Sequence[tuple[Any, str]], statements: Sequence[Line], returns: Expr,
        shapes: Callable[[Any], tuple[int, ...] | None],
    ) -> None:  # fmt: skip
        self.names: dict[Any, str] = dict(inputs)
        self.shapes = shapes
        self.statements, self.returns = fold(statements, returns, shapes)
        expressions = [*(expr for _, expr in self.statements), self.returns]
        #: for each value the place of the last statement that reads it
        self.last = {key: place for place, expr in enumerate(expressions) for key in locals_of(expr)}
        self.printer = Printer(local=lambda key: self.names[key], parameter=lambda name: f"self.{name}")

    def lines(self, indent: int) -> list[str]:
        """The body, indented."""
        found: list[str] = []
        for place, (results, expr) in enumerate(self.statements):
            if expr.kind == "loop":
                found += self._loop(place, results, expr, indent)
                continue
            names: list[str] = []
            for key in results:
                names.append(self._name(place, key, expr, len(results), {*names} - {"_"}))
            head = ", ".join(names) + " = " if any(key in self.last for key in results) else ""
            found += self.printer.lines(head, expr, indent)
            self.names.update(zip(results, names, strict=True))
        return [*found, *self.printer.lines("return ", self.returns, indent)]

    def _loop(self, place: int, results: tuple[Any, ...], expr: Expr, indent: int) -> list[str]:
        pad, carry = " " * indent, expr.names.index("carry")
        start = expr.parts[carry]
        name = self._name(place, results[0], Expr("loop", expr.value, (start,)))
        same = start.kind == "local" and self.names[start.value] == name
        found = [] if same else self.printer.lines(f"{name} = ", start, indent)
        item = expr.value[-1].rstrip("0123456789_")
        item = item[:-1] if item.endswith("s") and len(item) > 2 else item if item == "layer" else "block"
        while item in self._live(place) or item == name:
            item += "_"
        given = [name if at == carry else self.printer.flat(part) for at, part in enumerate(expr.parts)]
        found.append(f"{pad}for {item} in {attribute(expr.value)}:")
        found.append(f"{pad}    {name} = {item}({', '.join(given)})")
        self.names[results[0]] = name
        return found

    def _live(self, place: int) -> set[str]:
        """Names that are read after a statement."""
        return {name for key, name in self.names.items() if self.last.get(key, -1) > place}

    def _name(
        self, place: int, key: Any, expr: Expr, count: int = 1, beside: Collection[str] = frozenset()
    ) -> str:
        """What a value is called; ``beside`` are the names of the statement's other results."""
        if key not in self.last:
            return "_"
        live = self._live(place) | _RESERVED | set(beside)
        if count == 3:
            free = not (live - set(beside)) & {"q", "k", "v"}
            return "qkv"[len(beside)] if free else _free(f"part{len(beside)}", live)
        size = self._size(expr)
        hint = size or _hint(expr)
        if count == 1 and not size and hint not in _KEPT:
            for used in locals_of(expr):
                name = self.names[used]
                passed = self.last[used] == place and name not in live and self.shapes(used) is not None
                if passed and name not in _KEPT and not name.startswith("part"):
                    return name
        return _free(hint, live)

    def _size(self, expr: Expr) -> str:
        """What a size is called; "" for other values."""
        axis: Any = None
        shape: tuple[int, ...] | None = ()
        if expr.kind == "index" and _is_pure(expr) and expr.parts[0].value == "shape":
            shape, axis = self.shapes(expr.parts[0].parts[0].value), expr.parts[1].value
        elif expr.kind == "method" and expr.value == "size" and len(expr.parts) == 2:
            shape, axis = self.shapes(expr.parts[0].value), expr.parts[1].value
        else:
            reads = locals_of(expr)
            looks = sum(node.kind == "getattr" and node.value == "shape" for node in walk(expr))
            sizes = all(self.shapes(key) is None for key in reads) or looks >= len(reads)
            return "size" if expr.kind in ("binary", "unary") and reads and sizes else ""
        axes = _AXES.get(len(shape or ()), ())
        return axes[axis] if isinstance(axis, int) and -len(axes) <= axis < len(axes) else "size"


def _hint(expr: Expr) -> str:
    """What the result of an expression is called."""
    while expr.kind in ("method", "index"):
        expr = expr.parts[0]
    if expr.kind == "self" and expr.value and not is_index(expr.value[-1]):
        name = str(expr.value[-1])
        short = name.removesuffix("_proj")
        return short if short in ("query", "key", "value", "q", "k", "v", "qkv") else "out"
    return "x" if expr.kind == "call" and expr.value == "super().forward" else "out"


def _free(wanted: str, live: Collection[str]) -> str:
    spare = _SPARE if wanted in (*_SPARE, "x") else ()
    return unused([wanted, *spare, wanted], live)
