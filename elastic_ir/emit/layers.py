"""Layers of a module brought to the configuration that the graph gives them.

Where a pass has cut channels or folded a norm, the source's own class is kept and its standard layers are changed in
place: their sizes, a bias more, or an identity where a norm was. Only layers of ``torch.nn`` are ever changed.
"""

from __future__ import annotations

import torch
from torch import nn

from elastic_ir.graph import Graph

#: Attributes that are nothing but sizes; the tensors that have them are assigned afterwards.
_SIZES = ("in_channels", "out_channels", "groups", "in_features", "out_features", "num_features")


def conform_layers(module: nn.Module, graph: Graph) -> None:
    """Give every layer the sizes, the bias and the kind that its node has."""
    for node in graph:
        if node.kind != "module" or not node.op.startswith("nn."):
            continue
        layer = module.get_submodule(node.scope)
        if node.op == "nn.Identity" and isinstance(layer, nn.modules.batchnorm._BatchNorm):
            identity = nn.Identity()
            identity.training = layer.training
            module.set_submodule(node.scope, identity)
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
