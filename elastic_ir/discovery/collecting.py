"""Collectors: what reads a value of every block in turn, as a list of hidden states does, and grows with the stack."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from elastic_ir.ir.graph import Node, Value


def collects(node: Node, value: Value) -> bool:
    """Whether a node reads a value as an item of a list."""
    return any(value in items for items in _lists(node))


def collects_all(node: Node, values: Sequence[Value]) -> bool:
    """Whether a node reads values one behind the other in a list, each once."""
    wanted = list(values)
    for items in _lists(node):
        if wanted[0] in items:
            at = items.index(wanted[0])
            if items[at : at + len(wanted)] == wanted and all(items.count(value) == 1 for value in wanted):
                return True
    return False


def _lists(node: Node) -> Iterator[list[Any]]:
    """The lists and tuples among a node's arguments; its operands themselves are none."""
    waiting: list[Any] = [*node.args, *node.kwargs.values()]
    while waiting:
        item = waiting.pop()
        if isinstance(item, (list, tuple)):
            yield list(item)
            waiting += item
        elif isinstance(item, dict):
            waiting += item.values()
