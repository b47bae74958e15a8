"""Long skips: whether what was emitted reads every block where the plan reads it.

A forward may take a skip by a block's number (``if i == 3: skips.append(x)``). Cloned blocks shift the numbers, and
such a forward would then read another block than the plan says, without any error. Where something besides the next
block reads a block, the emitted module is therefore traced again and compared with the plan.
"""

from __future__ import annotations

import hashlib

from torch import nn

from elastic_ir.ir.graph import Argument, Graph, Node, Value, map_argument
from elastic_ir.ir.structure import Container


def has_long_skips(graph: Graph, touched: list[Container]) -> bool:
    """Whether a block of one of these containers is read by anything besides the block after it.

    The last block of a stage may be read by one module outside, and by the network's output.
    """
    owner: dict[Node, int] = {}
    stages = graph.structure.stages
    for number, block in enumerate(block for stage in stages for block in stage.all_blocks):
        owner.update(dict.fromkeys(block.nodes, number))
    users = graph.users()
    for stage in stages:
        if stage.container not in touched or not all(block.nodes for block in stage.all_blocks):
            continue
        for block in stage.all_blocks:
            number = owner[block.nodes[0]]
            last = block is stage.all_blocks[-1]
            places: set[int | str] = set()
            for node in block.nodes:
                for reader in users.get(node.output, ()) if node.output.is_tensor else ():
                    if owner.get(reader) != number and not (last and reader.kind == "output"):
                        places.add(owner.get(reader, reader.scope if reader.kind != "output" else "output"))
            if len(places) > 1:
                return True
    return False


def follows_plan(module: nn.Module, graph: Graph, *, exact: bool = False) -> bool:
    """Whether a module, traced as its source was, computes its outputs from the same weights in the same way.

    ``exact`` compares the constants in the calls too. Where it cannot be traced again, it is not known to follow the
    plan.
    """
    try:
        found = graph.origin.retrace(module, graph.info.frontend)
    except Exception:  # a tracer may raise anything
        return False
    return _wiring(found, exact) == _wiring(graph, exact)


def _wiring(graph: Graph, exact: bool) -> list[str]:
    """A hash of each output's history: operations, weights by name, and what reads what; literals if wanted."""
    digests: dict[Value, str] = {}
    ends = []
    for node in graph:
        text = [node.name if node.kind == "input" else node.op, *node.weight_names()]
        text += [digests[value] for value in node.operands()]
        if exact:
            text.append(repr(map_argument((node.args, node.kwargs), _plain)))
        digests[node.output] = hashlib.sha256("\n".join(text).encode()).hexdigest()
        if node.kind == "output":
            ends.append(digests[node.output])
    return ends


def _plain(leaf: Argument) -> Argument:
    return "value" if isinstance(leaf, Value) else leaf
