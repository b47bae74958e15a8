"""Reading a module through ``torch.export`` (non-strict), for what symbolic tracing cannot follow.

An exported program bakes in the mode it was exported in and refuses ``.train()``; it is evidence about structure
and never what is emitted. It works on the meta device without allocating weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn

from elastic_ir.frontends.fx import _argument
from elastic_ir.frontends.shapes import Inputs
from elastic_ir.graph import Graph, Literal, Node, TensorType, Value, WeightRef
from elastic_ir.naming import name_nodes
from elastic_ir.torch_bridge import dtype_name
from elastic_ir.weights import Weight

_CONSTANT_LIMIT = 256  #: numbers of a constant tensor that are kept with the graph


def read_export(model: nn.Module, inputs: Inputs, weights: dict[str, Weight]) -> Graph:
    """A module as a graph of ATen operations; raises whatever torch.export raises."""
    with _eval_without_cache(model), torch.no_grad():
        program = torch.export.export(model, inputs.args, dict(inputs.kwargs), strict=False)
    graph = Graph(type(model).__name__)
    graph.weights = dict(weights)
    graph.metadata["frontend"] = "export"
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    values: dict[fx.Node, Any] = {}
    for source in program.graph.nodes:
        if source.op == "placeholder":
            name = names.get(source.name)
            if name is not None and name in graph.weights:
                values[source] = WeightRef(name)
                continue
            node = Node(source.name, "input", kind="input")
            if source.name in signature.inputs_to_lifted_tensor_constants:
                constant = program.constants.get(signature.inputs_to_lifted_tensor_constants[source.name])
                node = Node(source.name, "constant", _literal(constant), kind="constant")
        elif source.op == "output":
            node = Node("output", "output", tuple(_argument(a, values) for a in source.args), kind="output")
        else:
            node = _call(source, values)
        result = source.meta.get("val")
        if isinstance(result, torch.Tensor):
            node.output.type = TensorType(tuple(int(n) for n in result.shape), dtype_name(result.dtype))
        else:
            node.output.is_tensor = False
        graph.append(node)
        values[source] = node.output
    name_nodes(graph)
    return graph


def _literal(constant: Any) -> tuple[Literal, ...]:
    """A small constant tensor as an argument; nothing for what is too large to be part of the program."""
    if not isinstance(constant, torch.Tensor) or constant.is_meta or constant.numel() > _CONSTANT_LIMIT:
        return ()
    return (
        Literal(
            dtype_name(constant.dtype), tuple(constant.shape), tuple(constant.detach().flatten().tolist())
        ),
    )


def _call(source: fx.Node, values: dict[fx.Node, Value]) -> Node:
    def argument(item: Any) -> Any:
        try:
            return _argument(item, values)
        except TypeError:
            return repr(type(item).__name__)  # submodules of control flow: kept as evidence, never emitted

    stack = source.meta.get("nn_module_stack") or {}
    scope = str(next(reversed(stack.values()))[0]) if stack else ""
    scope = re.sub(r"@\d+", "", scope)
    args = tuple(argument(item) for item in source.args)
    kwargs = {key: argument(item) for key, item in source.kwargs.items()}
    return Node(source.name, str(source.target), args, kwargs, kind="function", scope=scope)


@contextmanager
def _eval_without_cache(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and no key-value cache object among the outputs, for the length of an export."""
    flags = {child: child.training for child in model.modules()}
    found: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    configs = {id(config): config for config in found if hasattr(config, "use_cache")}
    caches = {key: config.use_cache for key, config in configs.items()}
    try:
        model.eval()
        for config in configs.values():  # an encoder and a decoder have one each
            config.use_cache = False
        yield
    finally:
        for key, config in configs.items():
            config.use_cache = caches[key]
        for child, flag in flags.items():
            child.training = flag
