"""GraphModules as sources: what ``torch.fx`` or ``torch.export`` has traced, with the scopes of that first trace.

The forward of a GraphModule is generated code without modules, so tracing it again loses which module ran what. Its own
graph is therefore run node by node under the tracer, and each node gets the scope that it was recorded with. A graph
that was built by hand has no scopes; there the layers' paths are all that is known.
"""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import fx, nn
from torch._ops import OpOverload

from elastic_ir.ir.operations import layer_of
from elastic_ir.tensors.weights import Weight

if TYPE_CHECKING:
    from elastic_ir.ir.graph import Graph, Node

_GUARDS = "_guards_fn"  #: by this name torch.export checks the inputs of what it has made


class Replay(fx.Interpreter):
    """Runs a GraphModule's nodes under a tracer, in the scopes that they were recorded with."""

    def __init__(self, module: fx.GraphModule, tracer: fx.Tracer) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.tracer = tracer
        self.around = OrderedDict(tracer.module_stack)
        path = "" if module is tracer.root else tracer.path_of_module(module)
        self.head = f"{path}." if path else ""

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """What the module returns; keyword arguments stand behind the positional ones, as in its signature."""
        try:
            return super().run(*args, *kwargs.values())
        finally:
            self.tracer.module_stack = self.around

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "call_module" and n.target == _GUARDS and not n.users:
            return None
        stack = OrderedDict(self.around)
        for key, (path, kind) in (n.meta.get("nn_module_stack") or {}).items():
            stack[self.head + str(key)] = (self.head + _plain_path(path), kind)
        self.tracer.module_stack = stack
        return super().run_node(n)


def _plain_path(path: str) -> str:
    """A module's path without the number that torch.export gives to its second call."""
    return path.partition("@")[0]


class PrivateSizes(dict[Any, Any]):
    """What stands for each value of an export, with sizes that are computed anew wherever they are read.

    torch.export computes a size of open extents once, in the first block that needs it, and all others read it there:
    no two blocks would be equal.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        self.scope = ""  #: of whoever reads
        self.computed: dict[Any, Callable[[], Node]] = {}

    def put_off(self, key: Any, make: Callable[[], Node]) -> None:
        """Let a size be computed by a node of its own for each reader."""
        self.computed[key] = make

    def __missing__(self, key: Any) -> Any:
        if key not in self.computed:
            raise KeyError(key)
        node = self.computed[key]()
        node.scope, node.output.is_tensor = self.scope, False
        return self.graph.append(node).output


def computes_size(target: object) -> bool:
    """Whether a function of an export computes a number from numbers, where its result is one."""
    return (
        str(getattr(target, "__module__", "")).removeprefix("_") == "operator"
        and target is not operator.getitem
    )


def is_exported(graph: fx.Graph) -> bool:
    """Whether a graph consists of ATen's operations, as ``torch.export`` makes it."""
    return any(isinstance(node.target, OpOverload) for node in graph.nodes)


def with_prunable(weights: dict[str, Weight], nodes: Iterable[Node]) -> dict[str, Weight]:
    """Weights with those marked prunable that belong to convolutions and linear layers, whose classes are gone.

    As :func:`elastic_ir.tensors.weights.is_prunable` tells by classes: all called weight but tables and norms, and the
    input projections of fused attention.
    """
    applied: set[str] = set()
    others: set[str] = set()
    for node in nodes:
        layer = layer_of(node)
        if layer is not None and layer.weight is not None:
            applied.add(layer.weight)
        elif "embedding" in node.op or "norm" in node.op:
            for name in node.weight_names():  # of tied ones an export names one, wherever it is used
                own = f"{node.scope}.{name.rpartition('.')[2]}"
                tied = own in weights and weights[own].storage is weights[name].storage
                others.add(own if tied else name)

    def prunable(weight: Weight) -> bool:
        name = weight.name.rpartition(".")[2]
        fused = name.endswith("_proj_weight") and weight.name in applied
        return (
            weight.is_parameter
            and 2 <= len(weight.shape) <= 5
            and (fused or (name == "weight" and weight.name not in others))
        )

    found = {name: prunable(weight) for name, weight in weights.items()}
    return {
        name: replace(weight, prunable=found[name], layer=found[name] or weight.layer)
        for name, weight in weights.items()
    }


def owner_of(node: Node) -> str:
    """The module whose weights a node reads: where no scope was recorded, that is whose forward it would be in."""
    owners = {name.rpartition(".")[0] for name in node.weight_names()}
    return owners.pop() if len(owners) == 1 else ""


def modules_of(module: nn.Module, nodes: Iterable[Node]) -> dict[str, list[str]]:
    """The children of each module by its path: those that are left in the GraphModule, and those that scopes name."""
    listed = {path: list(part._modules) for path, part in module.named_modules()}
    for node in nodes:
        path = node.scope
        while path:
            owner, _, name = path.rpartition(".")
            children = listed.setdefault(owner, [])
            if name not in children:
                children.append(name)
            path = owner
    return {
        path: [name for name in names if name != _GUARDS] for path, names in listed.items() if path != _GUARDS
    }
