"""Calls of recurrent modules, read layer by layer: an ``nn.LSTM`` of n layers becomes n nodes of one layer each.

What a call returns is put together from the layers' results: the output of the last one, and the states of all behind
one another. Initial states of zeros are left to the layers. Any other ones are there once for each layer; such a call
stays one node, since they do not grow with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from elastic_ir.ir.graph import Argument, Graph, Node, Symbol, TensorType, Value
from elastic_ir.ir.recurrent import MODULES, numbered
from elastic_ir.tensors.torch_bridge import dtype_name

#: ATen's calls, and at which of their arguments weights, layers and directions stand.
_ATEN = {"aten.lstm.input", "aten.gru.input", "aten.rnn_tanh.input", "aten.rnn_relu.input"}
_WEIGHTS, _LAYERS, _DROPOUT, _BIDIRECTIONAL = 2, 4, 5, 7
#: What leaves zeros zeros, and makes none of them out of a value.
_KEEPS = {
    "to",
    "float",
    "double",
    "half",
    "type",
    "type_as",
    "cuda",
    "contiguous",
    "detach",
    "clone",
    "requires_grad_",
}
_KEEPS_IN_ATEN = {"to", "_to_copy", "clone", "detach", "detach_", "alias", "contiguous", "lift_fresh_copy"}
#: What gives a tensor another shape.
_SHAPED = {"method.view", "method.reshape", "torch.reshape", "aten.view.default", "aten.reshape.default"}
_ZEROS = {torch.zeros, torch.zeros_like}


@dataclass(frozen=True)
class Call:
    """One call of a recurrent module in a graph that is being built."""

    source: fx.Node
    graph: Graph
    result: Any  #: what it gave on example inputs: a tensor, and its states, nested as the module nests them
    scope: str  #: where the states of all layers are put together


def layers_of_module(call: Call, module: nn.Module, node: Node, zeros: Callable[[fx.Node], bool]) -> Any:
    """The results of a module's call whose layers are in the graph now; None where the call is to stay one node.

    ``node`` is the call as one node; ``zeros`` says of a constant whether it is nothing but zeros.
    """
    if not isinstance(module, nn.RNNBase) or type(module) not in (nn.LSTM, nn.GRU, nn.RNN):
        return None
    if not isinstance(call.result, tuple):
        return None
    given = [item for item in (*call.source.args[1:], call.source.kwargs.get("hx")) if item is not None]
    states = list(given[0]) if given and isinstance(given[0], (tuple, list)) else given
    levels = _levels(node.weights, module.num_layers)
    if not levels or not all(_is_zero(state, zeros) for state in states):
        return None
    operand = node.args[0] if node.args else node.kwargs.get("input")
    if not isinstance(operand, Value) or not operand.is_tensor:
        return None
    directions = 2 if module.bidirectional else 1
    width = (module.proj_size or module.hidden_size) * directions
    places = ((1, 0), (1, 1)) if isinstance(module, nn.LSTM) else ((1,),)
    found = _States(call, directions, places)
    for number, weights in enumerate(levels):
        attributes: dict[str, Argument] = {**node.attributes, "num_layers": 1}
        if number:
            attributes["input_size"] = width
        layer = Node(
            node.name, node.op, (operand,), kind="module", attributes=attributes, weights=weights, scope=node.scope
        )  # fmt: skip
        layer.output.is_tensor = False
        call.graph.append(layer)
        operand = _take(call, layer, call.result[0], 0, shape=call.result[0].shape)
        found.take(layer)
    if isinstance(module, nn.LSTM):
        return operand, (found.all(1, 0), found.all(1, 1))
    return operand, found.all(1)


def layers_of_operation(call: Call, node: Node) -> Any:
    """As :func:`layers_of_module` for ATen's call, whose weights are a flat list."""
    weights, count = node.args[_WEIGHTS] if len(node.args) > _BIDIRECTIONAL else None, node.args[_LAYERS:][:1]
    if node.op not in _ATEN or not isinstance(weights, list) or not isinstance(call.result, (tuple, list)):
        return None
    (layers,) = count
    bidirectional, start = bool(node.args[_BIDIRECTIONAL]), node.args[1]
    states = list(start) if isinstance(start, list) else [start]
    operand = node.args[0]
    if not isinstance(layers, int) or len(weights) % layers or not isinstance(operand, Value):
        return None
    directions, step = 1 + bidirectional, len(weights) // layers
    zeros = [_shorter(state, layers, directions) for state in states]
    if any(one is None for one in zeros):
        return None
    begin = [call.graph.append(one).output for one in zeros if one is not None]
    found = _States(call, directions, [(at,) for at in range(1, len(call.result))])
    for number in range(layers):
        args: list[Any] = list(node.args)
        args[0], args[1] = operand, begin if isinstance(start, list) else begin[0]
        args[_WEIGHTS], args[_LAYERS], args[_DROPOUT] = weights[number * step :][:step], 1, 0.0
        layer = Node(node.name, node.op, tuple(args), node.kwargs, kind="function", scope=node.scope)
        layer.output.is_tensor = False
        call.graph.append(layer)
        operand = _take(call, layer, call.result[0], 0, shape=call.result[0].shape)
        found.take(layer)
    return (operand, *(found.all(at) for at in range(1, len(call.result))))


def open_layers(node: Node) -> None:
    """Leave the number of layers open where states are given a shape: ``h.view(num_layers, directions, batch, n)``."""
    given = node.args[0] if node.args else None
    if (
        node.op not in _SHAPED
        or not isinstance(given, Value)
        or given.node.op not in ("torch.cat", "aten.cat.default")
    ):
        return
    parts = given.node.args[0]
    nested = len(node.args) == 2 and isinstance(node.args[1], (list, tuple))
    sizes = list(node.args[1] if nested else node.args[1:])  # type: ignore[arg-type]
    if not isinstance(parts, list) or not all(_is_state(part) for part in parts):
        return
    if sizes[:1] == [len(parts)] and not any(type(size) is int and size < 0 for size in sizes):
        sizes[0] = -1
        node.args = (given, sizes) if nested else (given, *sizes)


def _is_state(part: Any) -> bool:
    """Whether a value is a state that a recurrent layer gives."""
    while isinstance(part, Value) and part.node.op == "operator.getitem":
        part = part.node.args[0]
    return isinstance(part, Value) and (part.node.op in MODULES or part.node.op in _ATEN)


class _States:
    """The states that a call gives, of each layer taken right behind it, and of all put together at the end."""

    def __init__(self, call: Call, directions: int, places: Sequence[tuple[int, ...]]) -> None:
        self.call, self.directions = call, directions
        self.parts: dict[tuple[int, ...], list[Value]] = {
            index: [] for index in places if _is_read(call.source, index)
        }

    def _like(self, index: Sequence[int]) -> torch.Tensor:
        result = self.call.result
        for at in index:
            result = result[at]
        assert isinstance(result, torch.Tensor)
        return result

    def take(self, layer: Node) -> None:
        """Take those of one layer that are read."""
        for index, found in self.parts.items():
            like, node = self._like(index), layer
            for at in index[:-1]:
                node = _take(self.call, node, None, at).node
            found.append(_take(self.call, node, like, index[-1], shape=(self.directions, *like.shape[1:])))

    def all(self, *index: int) -> Value | None:
        """The states at a place in the call's result; None where nothing reads them."""
        parts = self.parts.get(index)
        if parts is None or len(parts) == 1:
            return parts[0] if parts else None
        like = self._like(index)
        joined: list[Argument] = list(parts)
        op = "torch.cat" if self.call.source.op == "call_module" else "aten.cat.default"
        node = Node("cat", op, (joined, 0), kind="function", scope=self.call.scope)
        node.output.type = TensorType(tuple(int(n) for n in like.shape), dtype_name(like.dtype))
        return self.call.graph.append(node).output


def _take(call: Call, source: Node, like: Any, at: int, shape: Sequence[int] = ()) -> Value:
    """An item of a layer's result, of the dtype of ``like``; a tuple where there is none."""
    node = Node("getitem", "operator.getitem", (source.output, at), kind="function", scope=source.scope)
    node.output.is_tensor = like is not None
    if like is not None:
        node.output.type = TensorType(tuple(int(n) for n in shape), dtype_name(like.dtype))
    return call.graph.append(node).output


def _levels(weights: Mapping[str, str], count: int) -> list[dict[str, str]]:
    """The parameters of each layer, under their names in a module of one layer; [] where they are not plain ones."""
    found: list[dict[str, str]] = [{} for _ in range(count)]
    for role, name in weights.items():
        place = numbered(role)
        if place is None or int(place.number) >= count:
            return []
        found[int(place.number)][f"{place.prefix}0{place.suffix}"] = name
    whole = all({"weight_ih_l0", "weight_hh_l0"} <= set(level) for level in found)
    return found if whole and all(set(level) == set(found[0]) for level in found) else []


def _is_zero(item: Any, zeros: Callable[[fx.Node], bool]) -> bool:
    """Whether an initial state is nothing but zeros, as a module takes where none is given."""
    while isinstance(item, fx.Node):
        if item.op == "get_attr":
            return zeros(item)
        if item.op == "call_function":
            return item.target in _ZEROS
        if item.op != "call_method":
            return False
        if item.target in ("new_zeros", "zero_"):
            return True
        if item.target not in _KEEPS:
            return False
        item = item.args[0]
    return False


def _shorter(state: Any, layers: int, directions: int) -> Node | None:
    """The node that makes one layer's initial state where ``state`` is zeros for all of them; None where it is not."""
    kind = state.type if isinstance(state, Value) else None
    node = state.node if isinstance(state, Value) else None
    while node is not None and node.op.split(".")[1:2] != ["zeros"]:
        name = node.op.split(".")[1] if node.op.startswith("aten.") and node.op.count(".") > 1 else ""
        if name in ("zeros_like", "new_zeros"):
            break
        source = node.args[0] if name in _KEEPS_IN_ATEN and node.args else None
        node = source.node if isinstance(source, Value) else None
    if node is None or kind is None or kind.shape[:1] != (layers * directions,):
        return None
    shape: list[Argument] = [directions, *kind.shape[1:]]
    options = {key: item for key, item in node.kwargs.items() if key in ("dtype", "device", "pin_memory")}
    options["dtype"] = Symbol(f"torch.{kind.dtype}")
    made = Node("zeros", "aten.zeros.default", (shape,), options, kind="function", scope=node.scope)
    made.output.type = TensorType((directions, *kind.shape[1:]), kind.dtype)
    return made


def _is_read(source: fx.Node, index: Sequence[int]) -> bool:
    """Whether anything reads a part of a call's result, by its indices there."""
    if not index:
        return bool(source.users)
    for user in source.users:
        taken = user.args[1] if len(user.args) > 1 else None
        if getattr(user.target, "__name__", "") != "getitem" or type(taken) is not int:
            return True
        if taken == index[0] and _is_read(user, index[1:]):
            return True
    return False
