"""Expressions of emitted source: what a statement or a constructor is made of, before it is text.

They are plain trees, so that two blocks can be compared, and joined where they differ in numbers only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Expr:
    """A tree. ``kind`` says what ``value`` and ``parts`` mean; ``names`` are the parts' keywords ("" for none).

    ======== ============================== =========================================
    kind     value                          parts
    ======== ============================== =========================================
    lit      a plain value
    count    the blocks of a stage
    raw      text that stands as it is
    local    a value of the forward
    attr     a path below ``self``
    self     a path below ``self``          arguments of its call
    call     a function's text              arguments, with names
    method   a method's name                the object, then arguments, with names
    new      a class                        constructor arguments, with names
    binary   an operator                    two operands
    unary    an operator                    one operand
    index                                   object and index
    getattr  an attribute's name            object
    tuple, list, dict, slice                items (names are a dict's keys)
    stage                                   entry (a tuple), count, blocks (a tuple)
    each     one value for each block
    cycle    values that blocks take in turn
    loop     a path below ``self``          arguments; the name "carry" marks the one handed on
    cond     a boolean's text               the module if it is true, and if not
    ======== ============================== =========================================
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


def walk(expr: Expr) -> Iterator[Expr]:
    """The tree's nodes, parents first, parts in the order they are evaluated."""
    yield expr
    for part in expr.parts:
        yield from walk(part)


def change(expr: Expr, function: Callable[[Expr], Expr | None]) -> Expr:
    """The tree with each node replaced by what the function gives for it; None keeps a node and visits its parts."""
    found = function(expr)
    if found is not None:
        return found
    if not expr.parts:
        return expr
    return Expr(expr.kind, expr.value, tuple(change(part, function) for part in expr.parts), expr.names)


def locals_of(expr: Expr) -> list[Any]:
    """The values that an expression reads, in order, with repetitions."""
    return [node.value for node in walk(expr) if node.kind == "local"]


def literal(item: Any) -> Expr:
    """Nested plain data as an expression."""
    if isinstance(item, Expr):
        return item
    if isinstance(item, (tuple, list)):
        return Expr(
            "tuple" if isinstance(item, tuple) else "list", None, tuple(literal(part) for part in item)
        )
    if isinstance(item, dict):
        return Expr("dict", None, tuple(literal(part) for part in item.values()), tuple(item))
    if isinstance(item, slice):
        return Expr("slice", None, tuple(literal(part) for part in (item.start, item.stop, item.step)))
    return lit(item)
