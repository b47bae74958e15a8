"""Module scopes for the nodes of an ONNX graph: from what an exporter wrote, or else from the flow of data.

PyTorch's exporters leave the path of the module that ran a node: the newer one in the node's metadata, the older one in
its name (``/layer1/layer1.0/conv1/Conv``). Where a file has neither, its weights may still be named after modules.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from elastic_ir.ir.graph import Graph, Node, Value
from elastic_ir.onnx_model import module_scopes, path_step

if TYPE_CHECKING:
    import onnx

#: Operators that state a value in another form for who reads it; a quantiser's tools name them after what they read.
_QUANTISERS = frozenset(("onnx.QuantizeLinear", "onnx.DequantizeLinear", "onnx.DynamicQuantizeLinear"))
_ENOUGH = 0.9  #: the share of layers whose scope has to be known
_STATED = 0.4  #: the share of nodes whose scope has to be stated for others to be told from theirs
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
    if not proto.name.startswith("/") or node.op in _QUANTISERS:
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
    """Whether most layers have a path, and some path a number: only then do containers show.

    A layer's weight may be read by a node that makes it ready, of which the file says nothing (a quantiser's); if most
    of the file's nodes have a path, the layer is where that node turns out to be.
    """
    layers = [node for node in scopes if any(graph.weights[name].layer for name in node.weight_names())]
    stated = sum(scope is not None for scope in scopes.values()) > _STATED * len(scopes)
    known = [path for node in layers if (path := node.scope if stated else scopes[node])]
    return len(known) >= max(1, _ENOUGH * len(layers)) and any(_NUMBER.search(path) for path in known)


def _assign(graph: Graph, scopes: dict[Node, str | None]) -> bool:
    """Set what is known; the rest (an optimiser's nodes) lies in the innermost module that all its neighbours share."""
    for node, scope in scopes.items():
        node.scope = scope or ""
    users = graph.users()
    known = {node for node, scope in scopes.items() if scope is not None}
    for node, scope in scopes.items():
        readers = users.get(node.output, ())
        if scope is None and readers and all(reader.kind == "output" for reader in readers):
            scopes[node] = ""  # it gives a result the name of an output, which says nothing of what it reads
    unknown = [node for node, scope in scopes.items() if scope is None]
    quantisers = [node for node in reversed(unknown) if node.op in _QUANTISERS]
    for nodes in (quantisers, unknown, reversed(unknown)):
        for node in nodes:
            near = [reader.scope for reader in _readers(node, users) if reader in known]
            if nodes is not quantisers:
                near += [v.node.scope for v in node.operands() if v.node in known]
            if near and node not in known:
                node.scope = _shared(near)
                known.add(node)
    if not _enough(graph, scopes):
        return False
    for node in graph:
        if node.op == "operator.getitem":
            node.scope = node.operands()[0].node.scope
    return True


def _readers(node: Node, users: dict[Value, list[Node]]) -> list[Node]:
    """The nodes that read a node's results, not those that take them apart."""
    found: list[Node] = []
    for reader in users.get(node.output, ()):
        found += users.get(reader.output, ()) if reader.op == "operator.getitem" else [reader]
    return found


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
