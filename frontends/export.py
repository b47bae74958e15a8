"""Reading a module through ``torch.export`` (non-strict), for what symbolic tracing cannot follow.

An exported program bakes in the mode it was exported in and refuses ``.train()``; it is evidence about structure
and never what is emitted. It works on the meta device without allocating weights.
"""

from __future__ import annotations

import inspect
import operator
import re
from typing import Any

import torch
from torch import fx, nn
from torch.export.graph_signature import InputKind
from torch.utils import _pytree

from elastic_ir.frontends.fx import _argument
from elastic_ir.ir.example_inputs import Inputs
from elastic_ir.ir.graph import Graph, Literal, Node, TensorType, Value, WeightRef
from elastic_ir.ir.info import GraphInfo
from elastic_ir.ir.naming import name_nodes
from elastic_ir.ir.operations import operation_of, recurrent_layers
from elastic_ir.safety.registered import without_cache
from elastic_ir.tensors.torch_bridge import dtype_name
from elastic_ir.tensors.weights import Weight, Weights

_CONSTANT_LIMIT = 256  #: numbers of a constant tensor that are kept with the graph


def read_export(model: nn.Module, inputs: Inputs, weights: dict[str, Weight]) -> Graph:
    """A module in evaluation as a graph of ATen operations; raises whatever torch.export raises."""
    with without_cache(model), torch.no_grad():
        program = torch.export.export(model, inputs.args, dict(inputs.kwargs), strict=False)
    graph = Graph(type(model).__name__, GraphInfo("export"))
    graph.weights = Weights(weights)
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    values: dict[fx.Node, Any] = {}
    given = _given(program, model, inputs)
    for node, leaf in given:
        if leaf is not None:
            values[leaf] = node.output
        graph.append(node)
    for source in program.graph.nodes:
        if source in values:
            continue
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
            node = Node("output", "output", (_result(program, source, values),), kind="output")
        else:
            _operation(source, program.graph_module, values, graph)
            continue
        _set_type(node, source)
        graph.append(node)
        values[source] = node.output
    name_nodes(graph)
    return graph


def _operation(source: fx.Node, owner: fx.GraphModule, values: dict[fx.Node, Any], graph: Graph) -> None:
    """Append an operation; one that runs a region (``no_grad``, autocast switched off) is replaced by the region's."""
    first = source.args[0] if source.args else None
    if source.op == "get_attr" and all(_region(user) is source for user in source.users):
        return
    if source.target is operator.getitem and isinstance(values.get(first), tuple):  # type: ignore[arg-type]
        values[source] = values[first][source.args[1]]  # type: ignore[index]
        return
    if isinstance(first, fx.Node) and _gives_back(source, first):
        values[source] = values[first]
        return
    region = _region(source)
    if region is None:
        node = _call(source, values)
        if recurrent_layers(node) or operation_of(node).family in ("view", "reshape"):
            from elastic_ir.frontends.recurrent import Call, layers_of_operation, open_layers

            open_layers(node)
            call = Call(source, graph, source.meta.get("val"), node.scope.rpartition(".")[0])
            layers = layers_of_operation(call, node)
            if layers is not None:
                values[source] = layers
                return
        _set_type(node, source)
        graph.append(node)
        values[source] = node.output
        return
    body = owner.get_submodule(str(region.target))
    given = iter(source.args[source.args.index(region) + 1 :])
    for inner in body.graph.nodes:  # type: ignore[union-attr]
        if inner.op == "placeholder":
            item = next(given)
            values[inner] = values[item] if isinstance(item, fx.Node) else item
        elif inner.op == "output":
            values[source] = _argument(tuple(inner.args[0]), values)
        else:
            _operation(inner, body, values, graph)  # type: ignore[arg-type]


def _gives_back(source: fx.Node, given: fx.Node) -> bool:
    """Whether a cast returns the very tensor that it is given, of that dtype already.

    An export then lets all that follows read the cast, so that a residual stream would seem to leave its block twice.
    """
    if str(source.target).rpartition(".")[0] not in ("aten.to", "aten.type_as") or "copy" in source.kwargs:
        return False
    before, after = given.meta.get("val"), source.meta.get("val")
    return (
        isinstance(before, torch.Tensor)
        and isinstance(after, torch.Tensor)
        and (before.dtype, before.device, before.stride()) == (after.dtype, after.device, after.stride())
        and not any(isinstance(item, bool) and item for item in source.args[2:])
    )


def _region(source: fx.Node) -> fx.Node | None:
    """The submodule that a node runs, where what runs it does nothing to its values."""
    grad = torch.ops.higher_order.wrap_with_set_grad_enabled
    autocast = (
        torch.ops.higher_order.wrap_with_autocast
    )  # its device, dtype, whether it is on, its cache, what it runs
    if source.target is grad:
        return source.args[1]  # type: ignore[return-value]
    return source.args[4] if source.target is autocast and source.args[2] is False else None  # type: ignore[return-value]


def _set_type(node: Node, source: fx.Node) -> None:
    result = source.meta.get("val")
    if isinstance(result, torch.Tensor):
        node.output.type = TensorType(tuple(int(n) for n in result.shape), dtype_name(result.dtype))
    else:
        node.output.is_tensor = False


def _given(program: Any, model: nn.Module, inputs: Inputs) -> list[tuple[Node, fx.Node | None]]:
    """The network's arguments as its forward has them, and what is taken out of those that are nests of tensors.

    An export flattens them; each node here comes with the export's placeholder that it stands for. Nothing where an
    argument is a nest of anything but tuples, lists and dictionaries.
    """
    own = {spec.arg.name for spec in program.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT}
    flat = [source for source in program.graph.nodes if source.op == "placeholder" and source.name in own]
    if len(flat) != program.call_spec.in_spec.num_leaves:
        return []
    args, kwargs = _pytree.tree_unflatten(flat, program.call_spec.in_spec)
    if all(isinstance(item, fx.Node) for item in (*args, *kwargs.values())):
        return []  # their placeholders have their names
    named = dict(zip(_positional(model, len(args)), args, strict=True)) | kwargs
    made: list[tuple[Node, fx.Node | None]] = []
    inner: list[tuple[Node, fx.Node | None]] = []
    for name, item in named.items():
        node = Node(name, "input", kind="input")
        if isinstance(item, fx.Node):
            _set_type(node, item)
            made.append((node, item))
            continue
        node.output.is_tensor = False
        made.append((node, None))
        if not _taken_out(item, node, inner):
            return []
    return made + inner


def _positional(model: nn.Module, count: int) -> list[str]:
    """Names for positional arguments: those of the forward."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [name for name, p in inspect.signature(model.forward).parameters.items() if p.kind in kinds][
        :count
    ]
    return names + [f"args_{place}" for place in range(len(names), count)]


def _taken_out(item: Any, owner: Node, made: list[tuple[Node, fx.Node | None]]) -> bool:
    """Whether a nest is one of tuples, lists and dictionaries; a node for each thing in it is put behind ``made``."""
    if type(item) not in (tuple, list, dict):
        return False
    for key, part in item.items() if isinstance(item, dict) else enumerate(item):
        if type(key) not in (str, int):
            return False
        node = Node(f"{owner.name}_{key}", "operator.getitem", (owner.output, key), kind="function")
        leaf = isinstance(part, fx.Node)
        if leaf:
            _set_type(node, part)
        else:
            node.output.is_tensor = False
        made.append((node, part if leaf else None))
        if not leaf and not _taken_out(part, node, made):
            return False
    return True


def _result(program: Any, source: fx.Node, values: dict[fx.Node, Any]) -> Any:
    """What the network returns: as its forward nests it, or flat where that is a class's instance."""
    flat = [_argument(item, values) for item in source.args[0]]  # type: ignore[union-attr]  # an export's is a tuple
    made: Any = None
    spec = program.call_spec.out_spec
    if len(flat) == spec.num_leaves and _is_plain(spec):
        made = _pytree.tree_unflatten(flat, spec)
    elif flat:
        made = flat[0] if len(flat) == 1 else tuple(flat)
    return made


def _is_plain(spec: Any) -> bool:
    """Whether a nest is one of tuples, lists and dictionaries by strings."""
    if spec.is_leaf():
        return True
    keys = spec.context if spec.type is dict else []
    plain = spec.type in (tuple, list, dict) and all(type(key) is str for key in keys)
    return plain and all(map(_is_plain, spec.children()))


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
    name = "operator.getitem" if source.target is operator.getitem else str(source.target)
    if (
        source.op == "get_attr"
    ):  # a region, numbered through the network: blocks of one kind each have their own
        name = "region"
    return Node(source.name, name, args, kwargs, kind="function", scope=scope)
