"""Second lists of the same blocks that would keep their length: those that hold some of the blocks, or each twice.

A list that holds every block once grows with the stack (:mod:`elastic_ir.discovery.registered_twice`). Where another
one has a part of them, nothing shows which of the new blocks the native network has in it.
"""

from __future__ import annotations

from elastic_ir.errors import EmitError
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.naming import head_in
from elastic_ir.ir.structure import Container
from elastic_ir.plans.keep_beside import is_kept


def refuse_aliases(graph: Graph, touched: list[Container]) -> None:
    """EmitError where another numbered list holds the source's blocks of a changed container, and would stay.

    ``--keep-beside NAME`` says of such a list that it stays as it is.
    """
    ties = graph.info.ties
    known = {box.child_path(number) for box in touched for number in range(box.source_count)}
    for container in touched:
        head = f"{container.path}." if container.path else ""
        blocks = {container.child_path(number): number for number in range(container.source_count)}
        found: dict[str, dict[str, int]] = {}  # a list's path: its numbers, and the block under each
        for pair in ties.items():
            for inside, outside in (pair, pair[::-1]):
                block = head_in(inside, set(blocks))
                if block is None or (head and outside.startswith(head)) or head_in(outside, known):
                    continue
                parts = outside.split(".")
                for place, part in enumerate(parts):
                    if part.isdigit():
                        found.setdefault(".".join(parts[:place]), {})[part] = blocks[block]
        for path, numbers in found.items():
            if len(set(numbers.values())) < max(2, len(numbers)):
                continue  # the numbers are others', such as those of the layers in a block
            if not is_kept(graph.edits.keep_beside, path):
                raise EmitError(
                    f"{path!r} holds the blocks of {container.label!r} a second time, and would keep its "
                    f"{len(numbers)}; the network's own class expects the new ones there too (--keep-beside {path} "
                    "says that it stays)"
                )
