"""Module scopes for the nodes of an ONNX graph: from what an exporter wrote, or else from the flow of data.

PyTorch's exporters leave the path of the module that ran a node: the newer one in the node's metadata, the older one in
its name (``/layer1/layer1.0/conv1/Conv``). Where a file has neither, its weights may still be named after modules.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from elastic_ir.ir.graph import Graph, Node
from elastic_ir.onnx_model import module_scopes, path_step

if TYPE_CHECKING:
    import onnx

_ENOUGH = 0.9  #: the share of layers whose scope has to be known
_NUMBER = re.compile(r"(^|[._a-z])\d+($|\.)")


#: Sets the scope of every node; False where it cannot.
Scoping: TypeAlias = "Callable[[Graph, onnx.ModelProto, list[tuple[int, Node]]], bool]"


def by_regions(graph: Graph, model: onnx.ModelProto, nodes: list[tuple[int, Node]]) -> bool:
    """As the data flows; the file's names are not looked at."""
    from elastic_ir.discovery.regions import scope_regions  # the last resort

    return scope_regions(graph)


def _from_metadata(graph: Graph, proto: onnx.NodeProto, node: Node) -> str | None:
    """As PyTorch's exporter noted at the node."""
    names = module_scopes(proto)
    if names is None:
        return None
    return names[-2] if len(names) > 1 else ""  # the last is the operation's own name


def _from_node_name(graph: Graph, proto: onnx.NodeProto, node: Node) -> str | None:
    """As PyTorch's older exporter named the node."""
    if not proto.name.startswith("/"):
        return None
    path: list[str] = []
    for part in proto.name.split("/")[1:-1]:
        path += path_step(path, part)
    return ".".join(path)


def _from_weights(graph: Graph, proto: onnx.NodeProto, node: Node) -> str | None:
    """After the weights that the node reads."""
    names = [name for name in node.weight_names() if "." in name and graph.weights[name].is_parameter]
    return names[0].rpartition(".")[0] if names else None


def _by(scope_of: Callable[[Graph, onnx.NodeProto, Node], str | None]) -> Scoping:
    """The scoping that asks for each node by itself."""
    return lambda graph, model, nodes: _assign(
        graph, {node: scope_of(graph, model.graph.node[index], node) for index, node in nodes}
    )


SCOPINGS: tuple[Scoping, ...] = (_by(_from_metadata), _by(_from_node_name), _by(_from_weights), by_regions)


def _enough(graph: Graph, scopes: dict[Node, str | None]) -> bool:
    """Whether most layers have a path, and some path a number: only then do containers show."""
    layers = [
        scope
        for node, scope in scopes.items()
        if any(graph.weights[name].prunable for name in node.weight_names())
    ]
    known = [scope for scope in layers if scope]
    return len(known) >= max(1, _ENOUGH * len(layers)) and any(_NUMBER.search(scope) for scope in known)


def _assign(graph: Graph, scopes: dict[Node, str | None]) -> bool:
    """Set what is known; the rest (an optimiser's nodes) lies in the innermost module that all its neighbours share."""
    if not _enough(graph, scopes):
        return False
    for node, scope in scopes.items():
        node.scope = scope or ""
    users = graph.users()
    unknown = [node for node, scope in scopes.items() if scope is None]
    known = {node for node, scope in scopes.items() if scope is not None}
    for nodes in (unknown, reversed(unknown)):
        for node in nodes:
            near = [v.node.scope for v in node.operands() if v.node in known]
            near += [reader.scope for reader in users.get(node.output, ()) if reader in known]
            if near and node not in known:
                node.scope = _shared(near)
                known.add(node)
    for node in graph:
        if node.op == "operator.getitem":
            node.scope = node.operands()[0].node.scope
    return True


def _shared(paths: list[str]) -> str:
    """The longest path that all lie in."""
    first = paths[0].split(".")
    length = len(first)
    for path in paths[1:]:
        names = path.split(".")
        length = next(
            (i for i in range(min(length, len(names))) if names[i] != first[i]), min(length, len(names))
        )
    return ".".join(first[:length])
