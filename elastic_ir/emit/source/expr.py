"""Expressions and lines of emitted source, before they are text.

They are plain trees, so that two blocks can be compared, and joined where they differ in numbers only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Expr:
    """A tree. ``kind`` says what ``value`` and ``parts`` mean; ``names`` are the parts' keywords ("" for none).

    ========= ============================= =========================================
    kind      value                         parts
    ========= ============================= =========================================
    lit       a plain value
    size      one that sizes a tensor
    count     the blocks of a stage
    series    one value for each block      (its name is what they are)
    flag      whether something is there    (its name says what)
    raw       text that stands as it is
    param     a constructor parameter
    hole      a number of a join
    local     a value of the forward
    attr      a path below ``self``
    self      a path below ``self``         arguments of its call
    call      a function's text             arguments, with names
    method    a method's name               the object, then arguments, with names
    new       a class                       constructor arguments, with names
    binary    an operator                   two operands
    unary     an operator                   one operand
    index                                   object and index
    getattr   an attribute's name           object
    tuple, list, dict, slice                items (names are a dict's keys)
    text      a template for ``format``     what fills it
    stage                                   a list of blocks, or a call that makes it
    ternary                                 a condition, what holds if it is true, and if not
    loop      a path below ``self``         arguments; the name "carry" marks the one handed on
    field     an attribute, "" for none     what a line of a constructor assigns
    set       the values of a forward       what a line of a forward assigns
    return                                  what a forward returns
    ========= ============================= =========================================
    """

    kind: str
    value: Any = None
    parts: tuple[Expr, ...] = ()
    names: tuple[str, ...] = ()


IDENTITY = Expr("new", "nn.Identity")


def lit(value: Any) -> Expr:
    return Expr("lit", value)


def raw(text: str) -> Expr:
    return Expr("raw", text)


def call(function: str, *args: Expr, **options: Expr) -> Expr:
    """A call of a function by its text."""
    return Expr("call", function, (*args, *options.values()), ("",) * len(args) + tuple(options))


def method(name: str, *args: Expr, **options: Expr) -> Expr:
    """A call of a method; the object is the first argument."""
    return replace(call(name, *args, **options), kind="method")


def index(owner: Expr, at: Expr) -> Expr:
    return Expr("index", None, (owner, at))


def binary(operator: str, left: Expr, right: Expr) -> Expr:
    return Expr("binary", operator, (left, right))


def group(kind: str, parts: Sequence[Expr]) -> Expr:
    """A tuple or a list."""
    return Expr(kind, None, tuple(parts))


def walk(*exprs: Expr) -> Iterator[Expr]:
    """The nodes of trees, parents first, parts in the order they are evaluated."""
    for expr in exprs:
        yield expr
        yield from walk(*expr.parts)


def change(expr: Expr, function: Callable[[Expr], Expr | None]) -> Expr:
    """The tree with each node replaced by what the function gives for it; None keeps a node and visits its parts."""
    found = function(expr)
    if found is not None:
        return found
    return replace(expr, parts=tuple(change(part, function) for part in expr.parts)) if expr.parts else expr


def locals_of(*exprs: Expr) -> list[Any]:
    """The values that expressions read, in order, with repetitions."""
    return [node.value for node in walk(*exprs) if node.kind == "local"]


def substitute(expr: Expr, table: Mapping[Any, Expr]) -> Expr:
    """An expression with others in the place of some of its values."""
    return change(expr, lambda leaf: table.get(leaf.value) if leaf.kind == "local" else None)


def literal(item: Any, leaf: Callable[[Any], Expr] = lit) -> Expr:
    """Nested plain data as an expression; ``leaf`` converts what is not a tuple, list, dictionary or slice."""
    if isinstance(item, Expr):
        return item
    if isinstance(item, (tuple, list)):
        return group("tuple" if isinstance(item, tuple) else "list", [literal(part, leaf) for part in item])
    if isinstance(item, dict):
        return Expr("dict", None, tuple(literal(part, leaf) for part in item.values()), tuple(item))
    if isinstance(item, slice):
        return group("slice", [literal(part, leaf) for part in (item.start, item.stop, item.step)])
    return leaf(item)


OPAQUE = object()  #: stands for what is not plain data


def plain(expr: Expr) -> Any:
    """The data that an expression writes; OPAQUE where it is computed."""
    if expr.kind in ("lit", "size", "count", "series", "flag"):
        return expr.value
    if expr.kind in ("tuple", "list"):
        items = [plain(part) for part in expr.parts]
        return OPAQUE if OPAQUE in items else tuple(items)
    return OPAQUE
