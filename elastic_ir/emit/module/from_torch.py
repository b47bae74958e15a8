"""Emission to a ``torch.fx.GraphModule`` from the nodes, for networks whose class cannot be used.

Leaf modules are copies of the live ones, or are built anew from their recorded configuration, so a graph that was
read from a file needs neither its class nor a pickle. Functions are looked up by name, and only pure ones are found.
"""

from __future__ import annotations

import keyword
from typing import Any

import torch
from torch import fx, nn

from elastic_ir.emit.module.attributes import copied, set_layers, submodule
from elastic_ir.errors import EmitError
from elastic_ir.ir.functions import CHECKS, attribute_read, method_allowed, resolve_function, resolve_symbol
from elastic_ir.ir.graph import FRESH, Argument, Graph, Literal, Node, Symbol, Value, WeightRef, map_argument
from elastic_ir.ir.naming import outward, rename_path
from elastic_ir.ir.operations import recurrent_layers
from elastic_ir.tensors.weights import Weight

#: Batch norms as calls, by operation: their arguments in order.
_NORM_ARGUMENTS = {
    "torch.nn.functional.batch_norm": (
        "input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    "aten.batch_norm.default": (
        "input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps"),
}  # fmt: skip
_QUOTES = frozenset('"\\\r\n')  #: what would end a name's string in the source text that fx writes


def build_graph_module(graph: Graph, live: nn.Module | None) -> fx.GraphModule:
    """The graph as a GraphModule; its tensors are placeholders that the caller assigns. Raises EmitError."""
    trusted = live is not None and not graph.origin.from_file
    if not trusted:
        _check_texts(graph)
    if any(recurrent_layers(node) for node in graph):
        from elastic_ir.ir.recurrent import fold

        graph = fold(graph)
    root = nn.Module()
    made = fx.Graph()
    values: dict[Value, fx.Node] = {}
    origins = {weight.name: weight.origin for weight in graph.weights.values() if not weight.source}
    for weight in graph.weights.values():
        _ensure(root, weight)
    built: set[str] = set()
    for node in graph:
        if node.op in CHECKS:
            continue
        norm = _norm(node, graph)
        if norm is not None:
            path, layer = norm
            if path not in built:
                built.add(path)
                layer._modules.update(root.get_submodule(path)._modules)
                _mount(root, path, layer)
            given = node.args[0] if node.args else node.kwargs["input"]
            assert isinstance(given, Value)
            values[node.output] = made.call_module(path, (values[given],))
            continue
        values[node.output] = _emit(node, made, values, trusted, root)
        if isinstance(values[node.output], fx.Node):  # for who runs it node by node
            values[node.output].meta["values"] = [node.name]
        if node.kind == "module" and node.scope not in built:
            built.add(node.scope)
            _mount(root, node.scope, _leaf(node, live, origins, graph))
    # a buffer that a pass has hung on a leaf, which brings its own only
    for weight in graph.weights.values():
        _ensure(root, weight)
    module = fx.GraphModule(root, made, class_name=graph.name)
    # fx copies all buffers as persistent ones
    module._non_persistent_buffers_set |= root._non_persistent_buffers_set & module._buffers.keys()
    # fx takes over what its nodes read; a counter beside the statistics of a norm is in the state dict all the same
    held = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    held |= {name for name, _ in module.named_buffers(remove_duplicate=False)}
    for weight in graph.weights.values():
        if weight.persistent and weight.name not in held:
            _ensure(module, weight)
    _restore_flags(module, graph, live if live is not None else graph.origin.described)
    return module


def _check_texts(graph: Graph) -> None:
    """EmitError for a graph from a file whose names are not names: fx writes them into source text and runs that."""
    for name in (*graph.weights, *(node.scope for node in graph)):
        if _QUOTES & set(name):
            raise EmitError(f"the graph in the file has the name {name!r}, which cannot be emitted")
    for node in graph:
        names = list(node.kwargs)
        if node.kind == "input":
            names.append(node.op.removeprefix("*").removeprefix("*"))
        if node.kind == "method" and not method_allowed(node.op.removeprefix("method.")):
            raise EmitError(f"node %{node.name} calls {node.op}, which a file may not name")
        for name in names:
            if not name.isidentifier() or keyword.iskeyword(name):
                raise EmitError(f"node %{node.name} has the name {name!r}, which is not a name in Python")


#: Tracing bakes the mode it saw into these; as modules they follow the module's mode again.
_DROPOUTS = {
    "torch.nn.functional.dropout": nn.Dropout,
    "torch.nn.functional.dropout1d": nn.Dropout1d,
    "torch.nn.functional.dropout2d": nn.Dropout2d,
    "torch.nn.functional.dropout3d": nn.Dropout3d,
    "torch.nn.functional.alpha_dropout": nn.AlphaDropout,
    "aten.dropout.default": nn.Dropout,
    "aten.feature_dropout.default": nn.Dropout2d,
    "aten.alpha_dropout.default": nn.AlphaDropout,
}


def _dropout(
    node: Node, args: tuple[Any, ...], kwargs: dict[str, Any], made: fx.Graph, root: nn.Module
) -> fx.Node:
    """A functional dropout as a call of a module of its own, which has no weights and so changes no name."""
    rate = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
    path = f"_mode_{node.name}"
    root.add_module(path, _DROPOUTS[node.op](rate))
    return made.call_module(path, (args[0] if args else kwargs["input"],))


_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def _norm(node: Node, graph: Graph) -> tuple[str, nn.Module] | None:
    """A functional batch norm that is a module's own (timm's norms with an activation), as that module, and its path.

    The call has the mode in it that was traced, and leaves the count of batches alone; a module follows the mode.
    None where the statistics do not belong to a module, or something differs from ``nn.BatchNorm2d``.
    """
    if node.op not in _NORM_ARGUMENTS:
        return None
    given = {**dict(zip(_NORM_ARGUMENTS[node.op], node.args, strict=False)), **node.kwargs}
    mean, value = given.get("running_mean"), given.get("input")
    if not isinstance(mean, WeightRef) or not isinstance(value, Value) or value.type is None:
        return None
    path = mean.name.rpartition(".")[0]
    roles = {role: f"{path}.{role}" for role in ("running_mean", "running_var", "weight", "bias")}
    momentum, eps = given.get("momentum"), given.get("eps", 1e-5)
    if not (isinstance(momentum, float) and momentum > 0 and isinstance(eps, float)):
        return None
    kind = _NORMS.get(len(value.type.shape))
    named = all(given.get(role) == WeightRef(name) for role, name in roles.items())
    if not (path and kind and named and f"{path}.num_batches_tracked" in graph.weights):
        return None
    features = graph.weights[roles["running_mean"]].shape[0]
    return path, kind(features, eps=eps, momentum=momentum, device="meta")


def _restore_flags(module: fx.GraphModule, graph: Graph, source: nn.Module | None) -> None:
    """What the source has set: modes (a frozen norm stays frozen), what is trained, what a state dict leaves out."""
    for path, part in module.named_modules():
        twin = submodule(source, _origin_path(path, graph)) if source is not None else None
        twin = source if twin is None else twin  # a container that the source does not have under this name
        part.training = twin.training if twin is not None else True
    for name, weight in graph.weights.items():
        owner, _, role = name.rpartition(".")
        holder = submodule(module, owner)
        if holder is None:
            continue
        if not weight.persistent and role in holder._buffers:  # fx copies such buffers as persistent ones
            holder._non_persistent_buffers_set.add(role)
        origin, _, part_role = weight.origin.rpartition(".")
        twin = submodule(source, origin) if source is not None else None
        theirs = twin._parameters.get(part_role) if twin is not None else None
        own = holder._parameters.get(role)
        if theirs is not None and own is not None and own.requires_grad != theirs.requires_grad:
            own.requires_grad_(theirs.requires_grad)


def _emit(node: Node, made: fx.Graph, values: dict[Value, fx.Node], trusted: bool, root: nn.Module) -> Any:
    def change(leaf: Argument) -> Any:
        if isinstance(leaf, Value):
            return values[leaf]
        if isinstance(leaf, WeightRef):
            return made.get_attr(leaf.name)
        if isinstance(leaf, Literal):
            return made.get_attr(_literal(node, leaf, root))
        return resolve_symbol(leaf.name) if isinstance(leaf, Symbol) else leaf

    args, kwargs = map_argument(node.args, change), map_argument(node.kwargs, change)
    if node.kind == "input":
        return made.placeholder(node.op if node.op != "input" else node.name)
    if node.kind == "output":
        return made.output(args[0])
    if node.kind == "module":
        return made.call_module(node.scope, args, kwargs)
    if node.kind == "method":
        return made.call_method(node.op.removeprefix("method."), args, kwargs)
    if node.kind == "constant":
        if not args:
            raise EmitError(
                f"node %{node.name} is a constant tensor that is too large to be kept with the graph"
            )
        return args[0]  # a plain value stands for itself
    if node.op in _DROPOUTS:
        return _dropout(node, args, kwargs, made, root)
    function = resolve_function(node.op, trusted)
    if function is getattr:
        attribute_read(node)
    return made.call_function(function, args, kwargs)


def _literal(node: Node, literal: Literal, root: nn.Module) -> str:
    """The name of a buffer outside the state dict that holds a constant tensor of the program."""
    name = f"_constant_{node.name}"
    tensor = torch.tensor(literal.values, dtype=getattr(torch, literal.dtype)).reshape(literal.shape)
    root.register_buffer(name, tensor, persistent=False)
    return name


def _leaf(node: Node, live: nn.Module | None, origins: dict[str, str], graph: Graph) -> nn.Module:
    """A leaf module without meaningful tensors: a copy of the live one, or one built from its configuration."""
    if live is not None and node.origin != FRESH:
        named = (origins[name][: -len(role) - 1] for role, name in node.weights.items() if name in origins)
        path = next(named, None)
        if path is None:  # without weights, or of another network, whose layers are like those of its place
            path = _origin_path(node.scope, graph)
        module = live.get_submodule(path)
        memo: dict[int, Any] = {id(t): t for t in (*module.parameters(), *module.buffers())}
        twin = copied(module, memo)
        if isinstance(twin, nn.RNNBase):
            set_layers(twin, node.scope, graph)
        return twin
    from elastic_ir.emit.module.layers import build_layer  # its class is not at hand

    return build_layer(node)


def _origin_path(path: str, graph: Graph) -> str:
    """Where a module without weights stood in the source."""
    containers = graph._structure.containers if graph._structure is not None else ()
    for level in (containers, *reversed(graph.earlier)):
        path = rename_path(path, {child.path: child.origin for box in level for child in box.children})
    return path


def _parent(root: nn.Module, path: str) -> tuple[nn.Module, str]:
    module = root
    *parents, last = path.split(".")
    for name in parents:
        if name not in module._modules:
            module.add_module(name, nn.Module())
        module = module.get_submodule(name)
    return module, last


def _mount(root: nn.Module, path: str, leaf: nn.Module) -> None:
    parent, name = _parent(root, path)
    parent._modules[name] = leaf


def _ensure(root: nn.Module, weight: Weight) -> None:
    """Register a weight at its path, so that the module tree has the order of the state dict."""
    parent, role = _parent(root, weight.name)
    if parent._parameters.get(role) is not None or parent._buffers.get(role) is not None:
        return
    empty = torch.empty(weight.shape, dtype=getattr(torch, weight.dtype), device="meta")
    if weight.is_parameter:
        parent.register_parameter(role, nn.Parameter(empty, requires_grad=empty.is_floating_point()))
    else:
        parent.register_buffer(role, empty, persistent=weight.persistent)


def order(module: nn.Module, graph: Graph) -> None:
    """Put what fx lists in the order it runs into the order of the state dict, which optimizers go by."""
    place: dict[str, int] = {}
    for index, name in enumerate(graph.weights):
        for path in outward(name):
            place.setdefault(path, index)
    for path, part in list(module.named_modules()):
        head = f"{path}." if path else ""
        tables: tuple[dict[str, Any], ...] = (part._modules, part._parameters, part._buffers)
        for table in tables:
            fresh = sorted(table, key=lambda role, head=head: place.get(head + role, len(place)))  # type: ignore[misc]
            values = {role: table[role] for role in fresh}
            table.clear()
            table.update(values)
