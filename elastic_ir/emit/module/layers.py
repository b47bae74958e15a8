"""Layers of a module brought to the configuration that the graph gives them.

Where a pass has cut channels, folded a norm or put another activation, the source's own class is kept and its standard
layers are changed in place: their sizes, a bias more, or a layer of another kind. Only layers of ``torch.nn`` are ever
changed.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from elastic_ir.emit.module.attributes import submodule
from elastic_ir.errors import EmitError
from elastic_ir.ir.functions import resolve_symbol
from elastic_ir.ir.graph import Graph, Node, Symbol
from elastic_ir.ir.recurrent import fold, options
from elastic_ir.safety.guard import guarded
from elastic_ir.tensors.weights import computes_weights

#: Attributes that are nothing but sizes; the tensors that have them are assigned afterwards.
_SIZES = ("in_channels", "out_channels", "groups", "in_features", "out_features", "num_features")


def conform_layers(module: nn.Module, graph: Graph) -> None:
    """Give every layer the sizes, the bias and the kind that its node has."""
    for node in fold(graph):
        if node.kind != "module" or not node.op.startswith("nn."):
            continue
        layer = submodule(module, node.scope)
        if layer is None:  # a pass has given the node a module of its own, which the source's class has not
            continue
        if _differs(layer, node):
            made = build_layer(node)
            made.train(layer.training)
            for name, buffer in layer._buffers.items():  # what a pass has hung on it
                if name not in made._buffers and f"{node.scope}.{name}" in graph.weights:
                    persistent = graph.weights[f"{node.scope}.{name}"].persistent
                    made.register_buffer(name, buffer, persistent=persistent)
            module.set_submodule(node.scope, made)
            continue
        for name in _SIZES:
            wanted = node.attributes.get(name)
            if wanted is not None and getattr(layer, name, wanted) != wanted:
                setattr(layer, name, wanted)
        bias = node.weights.get("bias")
        if bias is not None and "bias" in layer._parameters and layer._parameters["bias"] is None:
            beside = layer._parameters["weight"]
            assert beside is not None
            weight = graph.weights[bias]
            empty = torch.empty(weight.shape, dtype=getattr(torch, weight.dtype), device=beside.device)
            layer._parameters["bias"] = nn.Parameter(empty, requires_grad=beside.requires_grad)


def _class_of(layer: nn.Module) -> type[nn.Module]:
    """A layer's class, before it was parametrized."""
    if not computes_weights(layer):
        return type(layer)
    from elastic_ir.tickets.parametrizations import parametrized_class

    return parametrized_class(layer)


def _differs(layer: nn.Module, node: Node) -> bool:
    """Whether a layer is of another kind than its node, or set up otherwise in more than sizes and a bias."""
    if _class_of(layer) is not getattr(nn, node.op.removeprefix("nn."), None):
        return True
    for name, wanted in node.attributes.items():
        here = getattr(layer, name, wanted)
        plain = isinstance(wanted, (bool, int, float, str, tuple)) and isinstance(here, type(wanted))
        if plain and name not in (*_SIZES, "bias") and here != wanted:
            return True
    return False


def build_layer(node: Node) -> nn.Module:
    """A layer of ``torch.nn`` on the meta device, built from what its node records; EmitError for any other class."""
    kind, recorded = recorded_layer(node, "built from the file")
    options = {
        key: resolve_symbol(value.name) if isinstance(value, Symbol) else value
        for key, value in recorded.items()
    }
    with guarded(f"node %{node.name}: {node.op}"), torch.device("meta"):
        made = kind(**options)
        computed = node.attributes.get("parametrizations")
        if isinstance(computed, dict):
            from elastic_ir.tickets.parametrizations import parametrize

            try:
                parametrize(made, computed)
            except ValueError as error:
                raise EmitError(
                    f"node %{node.name}: {error}, a class that a file does not bring along, so the layer cannot be "
                    "built from the file; give the network by --arch SOURCE (arch=...)"
                ) from error
        return made


def recorded_layer(node: Node, use: str) -> tuple[type[nn.Module], dict[str, Any]]:
    """The class of a leaf's node and what its constructor is given; EmitError for what is not a layer of torch.nn.

    ``use`` says in the message what the layer cannot be: ``"built from the file"``.
    """
    kind = getattr(nn, node.op.removeprefix("nn."), None) if node.op.startswith("nn.") else None
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise EmitError(f"node %{node.name}: {node.op} is not a layer of torch.nn, so it cannot be {use}")
    accepted = options(node.op) or inspect.signature(kind.__init__).parameters
    return kind, {key: value for key, value in node.attributes.items() if key in accepted}
