"""The text of a forward: what is used once stands where it is used, and names are handed on as an engineer would.

Expressions are only moved where the order of evaluation stays what it was, so operations in place and random numbers
come out as in the graph.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from elastic_ir.emit.source.expr import Expr, index, lit, locals_of, substitute, walk
from elastic_ir.emit.source.merge import singular, unused
from elastic_ir.emit.source.text import Printer, attribute, identifier
from elastic_ir.emit.source.tree import Body, Part
from elastic_ir.ir.graph import Node, Value
from elastic_ir.ir.numbering import is_index

#: Shapes of a forward's values by their numbers: empty if it is not known, None for what is not a tensor.
Shapes = Mapping[Any, tuple[int, ...] | None]

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
#: Measures an expression before its values have names.
_SAMPLE = Printer(defaultdict(lambda: "xxxxx"), "self.")


def fold(lines: Sequence[Expr], shapes: Shapes) -> list[Expr]:
    """Lines with single uses written into their users, in an unchanged order of evaluation."""
    lines = _unpack(_without_aliases(lines), shapes)
    uses = Counter(locals_of(*lines))
    done: list[Expr] = []
    pending: list[Expr] = []  # what is used once, and not yet written
    pure: dict[Any, Expr] = {}
    for line in lines:
        expr = substitute(line.parts[0], pure)
        key = line.value[0] if line.kind == "set" and len(line.value) == 1 else None
        if key is not None and _is_pure(expr) and (uses[key] == 1 or expr.kind == "getattr"):
            pure[key] = expr
            continue
        compound = expr.kind in ("loop", "ternary")
        expr = expr if compound else _with_pending(expr, pending)
        waits = key is not None and uses[key] == 1 and not compound
        if not waits or {each.value[0] for each in pending} & set(locals_of(expr)):
            done += pending
            pending = []
        (pending if waits else done).append(replace(line, parts=(expr,)))
    kinds = [line.parts[0].kind for line in done[-2:]]
    if kinds == ["ternary", "local"] and done[-1].parts[0].value in done[-2].value:
        done[-2:] = [replace(done[-1], parts=done[-2].parts)]
    return done


def _without_aliases(lines: Sequence[Expr]) -> list[Expr]:
    """Lines without those that only give a value another number."""
    found: list[Expr] = []
    aliases: dict[Any, Expr] = {}
    for line in lines:
        expr = _simplified(substitute(line.parts[0], aliases))
        if line.kind == "set" and expr.kind == "local":
            aliases[line.value[0]] = expr
        else:
            found.append(replace(line, parts=(expr,)))
    return found


def _simplified(expr: Expr) -> Expr:
    """An expression whose condition is known, or that drops nothing, as what is left of it."""
    if expr.kind == "ternary" and expr.parts[0].kind == "lit":
        return expr.parts[1] if expr.parts[0].value else expr.parts[2]
    nothing = expr.kind == "call" and expr.value == "F.dropout" and expr.parts[1:2] == (lit(0.0),)
    return expr.parts[0] if nothing else expr


def _with_pending(expr: Expr, pending: list[Expr]) -> Expr:
    """An expression with the last pending ones put into it, as many as keep it readable."""
    waiting = [line.value[0] for line in pending]
    wanted = [key for key in locals_of(expr) if key in waiting]
    while wanted:
        if waiting[-len(wanted) :] == wanted:
            made = substitute(expr, {line.value[0]: line.parts[0] for line in pending[-len(wanted) :]})
            calls = sum(node.kind in _CALLS and not _is_pure(node) for node in walk(made))
            if calls <= _FOLD_CALLS and len(_SAMPLE.text(made)) <= _FOLD_WIDTH:
                del pending[-len(wanted) :]
                return made
        wanted = wanted[1:]  # the later ones may still be put in
    return expr


def _is_pure(expr: Expr) -> bool:
    """A look at a shape, which may stand anywhere."""
    if expr.kind == "getattr":
        return expr.value in ("shape", "dtype", "device", "ndim") and expr.parts[0].kind in ("local", "attr")
    if expr.kind == "index":
        return _is_pure(expr.parts[0]) and expr.parts[1].kind == "lit"
    size = expr.kind == "method" and expr.value in ("size", "dim") and expr.parts[0].kind == "local"
    return size and all(part.kind == "lit" for part in expr.parts[1:])


def _unpack(lines: Sequence[Expr], shapes: Shapes) -> list[Expr]:
    """``q, k, v = ...`` where a value is only ever indexed by 0, 1, 2 right after it was made."""
    uses = Counter(locals_of(*lines))
    found: list[Expr] = []
    rest = list(lines)
    while rest:
        line = rest.pop(0)
        if line.kind == "set" and len(line.value) == 1:
            (key,), expr, count = line.value, line.parts[0], 0
            while rest[count].kind == "set" and rest[count].parts[0] == index(Expr("local", key), lit(count)):
                count += 1
            last = str(expr.value).rpartition(".")[2] if expr.kind in ("method", "call") else ""
            splits = (shapes.get(key) or ())[:1] == (count,) or last in ("unbind", "chunk")
            if count >= 2 and splits and uses[key] == count:
                line = replace(line, value=tuple(made.value[0] for made in rest[:count]))
                del rest[:count]
        found.append(line)
    return found


class Forward:
    """The text of one forward; ``lines`` are the part's with parameters in them."""

    def __init__(self, part: Part, lines: Sequence[Expr]) -> None:
        assert part.body is not None
        inputs = _inputs(part, part.body)
        values = part.body.values
        self.shapes = dict(enumerate(map(_shape, values)))
        self.names: dict[Any, str] = dict(enumerate(inputs))
        self.body = fold(lines, self.shapes)
        #: for each value the place of the last line that reads it
        self.last = {key: place for place, line in enumerate(self.body) for key in locals_of(line)}
        self.printer = Printer(self.names, "self.")
        given = ", ".join(["self", *(f"{name}: {kind}" for name, kind in inputs.items())])
        self.head = f"def forward({given}) -> {_returned(lines[-1].parts[0], values)}:"

    def lines(self) -> list[str]:
        """The body as text."""
        found: list[str] = []
        for place, line in enumerate(self.body):
            expr = line.parts[0]
            if expr.kind == "loop":
                found += self._loop(place, line.value[0], expr)
            elif line.kind == "return":
                found.append(f"return {self.printer.text(expr)}")
            else:
                names, text = self._new_names(place, line.value, expr), self.printer.text(expr)
                found.append(f"{', '.join(names)} = {text}" if set(names) != {"_"} else text)
                self.names.update(zip(line.value, names, strict=True))
        return found

    def _loop(self, place: int, key: Any, expr: Expr) -> list[str]:
        carry = expr.names.index("carry")
        given = [self.printer.text(part) for part in expr.parts]
        (name,) = self._new_names(place, [key], replace(expr, parts=(expr.parts[carry],)))
        item = singular(expr.value[-1].rstrip("0123456789_"))
        item = "block" if item == expr.value[-1] != "layer" else item
        while item in self._live(place) or item == name:
            item += "_"
        self.names[key] = name
        start = [f"{name} = {given[carry]}"] if given[carry] != name else []
        given[carry] = name
        head = f"for {item} in {attribute(expr.value)}:"
        return [*start, head, f"    {name} = {item}({', '.join(given)})"]

    def _live(self, place: int) -> set[str]:
        """Names that are read after a line."""
        return {name for key, name in self.names.items() if self.last.get(key, -1) > place}

    def _new_names(self, place: int, keys: Sequence[Any], expr: Expr) -> list[str]:
        """What the results of a line are called; "_" where nothing reads them."""
        live = self._live(place) | _RESERVED
        size = self._size(expr)
        wanted = [size or _hint(expr)] * len(keys)
        if len(keys) == 3:
            wanted = ["q", "k", "v"]
        elif len(keys) == 1 and not size and wanted[0] not in _KEPT:
            for used in locals_of(expr):
                name = self.names[used]
                passed = self.last[used] == place and self.shapes.get(used) is not None
                if passed and name not in live | _KEPT:
                    wanted = [name]
                    break
        names: list[str] = []
        for key, name in zip(keys, wanted, strict=True):
            names.append(_free(name, live | {*names}) if key in self.last else "_")
        return names

    def _size(self, expr: Expr) -> str:
        """What a size is called; "" for other values."""
        if expr.kind in ("index", "method") and _is_pure(expr) and len(expr.parts) == 2:
            owner, axis = expr.parts[0], expr.parts[1].value
            shape = self.shapes.get(locals_of(owner)[0]) if locals_of(owner) else ()
            axes = _AXES.get(len(shape or ()), ())
            return axes[axis] if isinstance(axis, int) and -len(axes) <= axis < len(axes) else "size"
        reads = locals_of(expr)
        looks = sum(node.kind == "getattr" and node.value == "shape" for node in walk(expr))
        sizes = all(self.shapes.get(key) is None for key in reads) or looks >= len(reads)
        return "size" if expr.kind in ("binary", "unary") and reads and sizes else ""


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


# -- types -------------------------------------------------------------------------------------------------------------


def input_name(node: Node) -> str:
    """The name of the network's input. Raises EmitError."""
    return identifier(node.op if node.op != "input" else node.name, "the input")


def _inputs(part: Part, body: Body) -> dict[str, str]:
    """The names of a forward's inputs, and their types."""
    found: dict[str, str] = {}
    for key in body.inputs:
        kind = "int" if _shape(key) is None else "Tensor"
        if not isinstance(key, Value):  # a weight of another module
            wanted = str(key[-1]) if str(key[-1]).isidentifier() else "weight"
            wanted = "index" if wanted.startswith("_tensor_constant") else wanted
        elif key.node.kind == "input" and (found or not part.path):
            wanted = input_name(key.node)
        elif not found:
            wanted = "x"
        elif key.type is not None and key.type.dtype == "bool":
            wanted = "mask"
        else:
            wanted = "size" if kind == "int" else "y"
        found[unused([wanted], {*found, "F", "nn", "torch", "self"})] = kind
    return found


def _shape(key: Any) -> tuple[int, ...] | None:
    """The shape of a value or weight; empty where it is not known, None for what is not a tensor."""
    if not isinstance(key, Value):
        return ()
    return key.type.shape if key.type is not None else () if key.is_tensor else None


def _returned(expr: Expr, values: Sequence[Any]) -> str:
    """The type that a forward returns."""
    if expr.kind in ("tuple", "list", "dict"):
        kinds = {_returned(part, values) for part in expr.parts}
        inner = kinds.pop() if len(kinds) == 1 else "object"
        return {"tuple": f"tuple[{inner}, ...]", "list": f"list[{inner}]", "dict": f"dict[str, {inner}]"}[
            expr.kind
        ]
    key = values[expr.value] if expr.kind == "local" else None
    if not isinstance(key, Value) or _shape(key) is not None:
        return "Tensor"
    return "int" if key.node.kind == "function" and "getattr" in key.node.op else "tuple[Tensor, ...]"
