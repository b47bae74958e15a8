"""Reading a module through ``torch.fx``: symbolic tracing, then shapes by running it on fake tensors."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.node import _get_qualified_name

from elastic_ir.ir.example_inputs import Inputs, map_tensors
from elastic_ir.ir.graph import Argument, Graph, Node, Symbol, TensorType, WeightRef, map_argument
from elastic_ir.ir.info import GraphInfo
from elastic_ir.ir.naming import name_nodes
from elastic_ir.tensors.torch_bridge import device_of, dtype_name, lazy_of
from elastic_ir.tensors.weights import Storage, Weight, Weights, computes_weights


def read_fx(model: nn.Module, inputs: Inputs, weights: dict[str, Weight], *, sealed: bool = False) -> Graph:
    """A module as a graph; raises whatever torch.fx raises where it cannot trace.

    Modules of torch are one node each, but for those that hold layers (:func:`holds_layers`); ``sealed`` takes these as
    one node too.
    """
    bound = set(inputs.kwargs)
    signature = inspect.signature(model.forward)
    concrete = {
        name: parameter.default
        for index, (name, parameter) in enumerate(signature.parameters.items())
        if parameter.default is not inspect.Parameter.empty
        and name not in bound
        and index >= len(inputs.args)
    }
    traced = (fx.Tracer() if sealed else _Opening()).trace(model, concrete_args=concrete or None)
    results = propagate(model, traced, inputs)
    graph = Graph(type(model).__name__, GraphInfo("fx"))
    graph.weights = Weights(weights)
    values: dict[fx.Node, Any] = {}  # a value, a weight, or a nest of values
    modules = dict(model.named_modules(remove_duplicate=False))
    program = False
    if isinstance(model, fx.GraphModule):
        from elastic_ir.frontends import graph_modules  # rarely needed

        program = graph_modules.is_exported(model.graph)
        values = sizes = graph_modules.PrivateSizes(graph)

    has_recurrent = any(isinstance(module, nn.RNNBase) for module in modules.values())

    def zeros(constant: fx.Node) -> bool:
        weight = graph.weights.get(str(constant.target))
        return weight is not None and not weight.persistent and _holds_zeros(model, constant)

    for source in traced.nodes:
        reference = _weight_reference(source, model, graph)
        if reference is not None:
            values[source] = reference  # read as an argument, not as a value
            continue
        nest = values.get(source.args[0]) if source.target is operator.getitem else None
        if isinstance(nest, tuple):
            values[source] = nest[source.args[1]]
            continue
        name = _defaulted(source, concrete, signature)
        if name is not None:
            if source.users:
                node = Node(source.name, "constant", (_plain(concrete[name]),), kind="constant")
                node.output.is_tensor = False
                values[source] = graph.append(node).output
            continue
        if getattr(source.target, "__name__", "") == "_assert_is_none":  # of an argument that is left out
            continue
        result = results.get(source)
        convert = functools.partial(_convert, source, values, modules, graph)
        if program:
            if graph_modules.computes_size(source.target) and isinstance(result, int | float):
                sizes.put_off(source, convert)
                continue
            sizes.scope = _scope(source, modules)
        node = convert()
        if has_recurrent:
            from elastic_ir.frontends.recurrent import Call, layers_of_module, open_layers

            open_layers(node)
        if has_recurrent and source.op == "call_module":
            call = Call(source, graph, result, node.scope.rpartition(".")[0])
            nest = layers_of_module(call, modules[str(source.target)], node, zeros)
            if nest is not None:
                values[source] = nest
                continue
        if isinstance(result, torch.Tensor):
            node.output.type = TensorType(tuple(result.shape), dtype_name(result.dtype))
        else:
            node.output.is_tensor = source not in results
        graph.append(node)
        values[source] = node.output
    name_nodes(graph)
    if isinstance(model, fx.GraphModule):
        for node in graph:
            node.scope = node.scope or graph_modules.owner_of(node)
        graph.modules = graph_modules.modules_of(model, graph)
        if program:
            graph.info = GraphInfo("export")
            graph.weights = Weights(graph_modules.with_prunable(graph.weights, graph))
    return graph


def read_sealed(model: nn.Module, inputs: Inputs, weights: dict[str, Weight]) -> Graph:
    """As :func:`read_fx`, with every module of torch one node, whatever it holds."""
    return read_fx(model, inputs, weights, sealed=True)


def is_torchs(module: nn.Module) -> bool:
    """Whether torch.fx takes a module as one of torch's own, which it does not trace into."""
    return fx.Tracer().is_leaf_module(module, "")


def holds_layers(module: nn.Module) -> bool:
    """Whether a module of torch is a network rather than a layer: more than one module inside has parameters.

    So are torch's transformers and their layers; an attention with its output projection is one layer. What
    parametrizes a weight (weight norm, low rank) is part of the layer.
    """
    weighted = 0
    for path, part in module.named_modules():
        if path and "parametrizations" not in path.split("."):
            weighted += any(True for _ in part.parameters(recurse=False))
    return weighted > 1


class _Opening(fx.Tracer):
    """Traces into torch's own modules where they hold layers, which the usual tracer takes as one call.

    GraphModules are run node by node, so that the scopes of their first trace stay.
    """

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) and not holds_layers(m)

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        function, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        return (self._replayed if isinstance(self.root, fx.GraphModule) else function), args

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if isinstance(m, fx.GraphModule):
            forward = functools.partial(self._replayed, m)
        return super().call_module(m, forward, args, kwargs)

    def _replayed(self, module: fx.GraphModule, *args: Any, **kwargs: Any) -> Any:
        from elastic_ir.frontends.graph_modules import Replay

        return Replay(module, self).run(*args, **kwargs)


def _weight_reference(source: fx.Node, model: nn.Module, graph: Graph) -> WeightRef | None:
    """A ``get_attr`` node as a weight reference; other tensors become transient buffers."""
    if source.op != "get_attr":
        return None
    name = str(source.target)
    if name not in graph.weights:
        value: Any = operator.attrgetter(name)(model)
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"attribute {name} is read as a value and is not a tensor")
        graph.weights[name] = Weight(name, Storage(lazy_of(value)), name, False, False)
    return WeightRef(name)


def _defaulted(source: fx.Node, concrete: dict[str, Any], signature: inspect.Signature) -> str | None:
    """The argument that a placeholder stands for where it is left at its default; fx numbers what is in such a one."""
    if source.op != "placeholder":
        return None
    target = str(source.target).lstrip("*")
    name = target if target in signature.parameters else target.removesuffix("_1")
    return name if name in concrete else None


def _holds_zeros(model: nn.Module, source: fx.Node) -> bool:
    """Whether a constant of the forward is nothing but zeros."""
    held: Any = model
    for part in str(source.target).split("."):
        held = getattr(held, part)
    return isinstance(held, torch.Tensor) and not held.is_meta and not bool(held.any())


def _convert(
    source: fx.Node, values: dict[fx.Node, Any], modules: dict[str, nn.Module], graph: Graph
) -> Node:
    def argument(item: Any) -> Any:
        return _argument(item, values)

    args = tuple(argument(item) for item in source.args)
    kwargs = {key: argument(item) for key, item in source.kwargs.items()}
    scope = _scope(source, modules)
    if source.op == "placeholder":
        return Node(str(source.target), "input", kind="input")
    if source.op == "output":
        return Node("output", "output", args, kwargs, kind="output")
    if source.op == "call_module":
        path = str(source.target)
        module = modules[path]
        path = _scope(source, modules, path)
        weights = {
            role: f"{path}.{role}"
            for role, tensor in (*module.named_parameters(), *module.named_buffers())
            if f"{path}.{role}" in graph.weights and tensor is not None
        }
        return Node(
            source.name, class_name(module), args, kwargs, kind="module", attributes=configuration(module),
            weights=weights, scope=path,
        )  # fmt: skip
    if source.op == "call_method":
        return Node(source.name, f"method.{source.target}", args, kwargs, kind="method", scope=scope)
    assert callable(source.target)
    return Node(source.name, function_name(source.target), args, kwargs, kind="function", scope=scope)


def function_name(function: Callable[..., Any]) -> str:
    """A function's importable name; torch's built-in ones under ``torch.``, operators under ``operator.``."""
    if isinstance(function, OpOverload):
        return str(function)
    name = str(_get_qualified_name(function))
    return name.replace("_operator.", "operator.").replace("torch._C._nn.", "torch._C._nn.")


def class_name(module: nn.Module) -> str:
    """``nn.Conv2d`` for torch's own layers, the full name for others."""
    kind = type(module)
    if computes_weights(module):
        from elastic_ir.tickets.parametrizations import parametrized_class

        kind = parametrized_class(module)
    if kind.__module__.startswith("torch.nn") and getattr(nn, kind.__name__, None) is kind:
        return f"nn.{kind.__name__}"
    return f"{kind.__module__}.{kind.__qualname__}"


def configuration(module: nn.Module) -> dict[str, Any]:
    """What a leaf module was built with, read back from its attributes by its constructor's parameter names."""
    found: dict[str, Any] = {}
    names = list(inspect.signature(type(module).__init__).parameters)
    if isinstance(module, nn.RNNBase):
        from elastic_ir.ir.recurrent import options

        names = list(options(class_name(module))) or names
    for name in names:
        if name in ("self", "device", "dtype", "args", "kwargs") or not hasattr(module, name):
            continue
        value = getattr(module, name)
        if isinstance(value, torch.Tensor) or (name in module._parameters):
            value = value is not None
        try:
            found[name] = _plain(value)
        except TypeError:
            continue
    if isinstance(module, nn.MultiheadAttention):
        found["bias"] = module.in_proj_bias is not None
        found["add_bias_kv"] = module.bias_k is not None
    if computes_weights(module):
        from elastic_ir.tickets.parametrizations import parametrizations_of

        found.update(parametrizations_of(module))
    return found


def _scope(source: fx.Node, modules: dict[str, nn.Module], leaf: str | None = None) -> str:
    """The path of the module that ran a node, as its callers know it.

    fx names a module by the first of its paths, which is another block's where one object (an activation or a
    position encoding given to every block) stands in many places; so each caller is asked for its own name of it.
    """
    stack = [str(path) for path, _ in (source.meta.get("nn_module_stack") or {}).values()]
    if leaf is not None and (not stack or stack[-1] != leaf):
        stack.append(leaf)
    path = ""
    for first in stack:
        head = f"{path}." if path else ""
        if first.startswith(head) or path not in modules:
            path = first
            continue
        names = (
            name
            for name, child in modules[path].named_modules(remove_duplicate=False)
            if child is modules[first]
        )
        name = next(names, None)
        path = first if name is None else head + name
    return path


def _plain(item: Any) -> Any:
    """Plain data as an IR argument: torch's named constants by name; TypeError for anything else."""
    return map_argument(item, _constant)


def _constant(leaf: Any) -> Argument:
    if leaf is None or isinstance(leaf, (bool, int, float, complex, str)):
        return leaf
    if isinstance(leaf, (torch.dtype, torch.memory_format, torch.layout)):
        return Symbol(str(leaf))
    if isinstance(leaf, torch.device):
        return Symbol(f"device.{leaf}")
    if leaf is Ellipsis:
        return Symbol("...")
    if isinstance(leaf, FakeTensor):
        raise TypeError("a tensor constant stands in the graph")
    raise TypeError(f"{type(leaf).__name__} is not plain data")


def _argument(item: Any, values: dict[fx.Node, Any]) -> Any:
    return map_argument(item, lambda leaf: values[leaf] if isinstance(leaf, fx.Node) else _constant(leaf))


# -- shapes: the graph is run on fake tensors, each layer once for each form of its input ------------------------------

# Deep networks apply the same layer to the same shape over and over, and what torch does to find the shape of a batch
# norm's result costs more than the rest of tracing. A layer of torch.nn whose settings, weights and input have the form
# of one that was run gives what that one gave.

_PLAIN = (bool, int, float, str, type(None))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


class Form(NamedTuple):
    """All of a tensor that decides what a layer makes of it, but its values."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Form:
        return cls(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)


def propagate(model: nn.Module, traced: fx.Graph, inputs: Inputs) -> dict[fx.Node, Any]:
    """Each node's result on fake tensors, in evaluation: shapes without arithmetic, and without allocating weights."""
    mode = None if device_of(model).type == "meta" else FakeTensorMode(allow_non_fake_inputs=True)

    def fake(item: Any) -> Any:
        return map_tensors(item, mode.from_tensor) if mode is not None else item

    names = [n.target for n in traced.nodes if n.op == "placeholder"]
    given = [fake(item) for item in inputs.args]
    given += [fake(inputs.kwargs[name]) if name in inputs.kwargs else None for name in names[len(given) :]]
    recorder = _Recorder(model, traced)
    with torch.no_grad(), mode if mode is not None else nullcontext():
        recorder.run(*given)
    return {
        node: value for node, value in recorder.results.items() if value is not None or node.op != "output"
    }


class _Recorder(fx.Interpreter):
    """Runs nodes one after another and keeps what each gives."""

    def __init__(self, model: nn.Module, traced: fx.Graph) -> None:
        super().__init__(model, garbage_collect_values=True, graph=traced)
        self.results: dict[fx.Node, Any] = {}
        self._settings: dict[
            int, Any
        ] = {}  # of a layer, by its id: what it is and what it holds, None if not plain
        #: The form of what a layer gave, by its settings and its input's form; None where it gave its input back.
        self._given: dict[Any, Form | None] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.results[n] = super().run_node(n)
        return self.results[n]

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The layer's result; of one that is like another on a like input, by that one's."""
        layer: nn.Module = self.fetch_attr(target)
        plain = len(args) == 1 and not kwargs and _is_strided(args[0])
        settings = self._settings_of(layer) if plain else None
        if settings is None:
            return super().call_module(target, args, kwargs)
        key = settings, Form.of(args[0])
        if key in self._given:
            form = self._given[key]
            return (
                args[0]
                if form is None
                else torch.empty_strided(*form[:2], dtype=form.dtype, device=form.device)
            )
        made = super().call_module(target, args, kwargs)
        if type(made) is type(args[0]):
            self._given[key] = None if made is args[0] else Form.of(made)
        return made

    def _settings_of(self, layer: nn.Module) -> Any:
        if id(layer) not in self._settings:
            self._settings[id(layer)] = _settings_of(layer)
        return self._settings[id(layer)]


def _settings_of(layer: nn.Module) -> Any:
    """All that decides what a layer of torch does to a tensor's form; None where it may do anything else."""
    kind = type(layer)
    if getattr(nn, kind.__name__, None) is not kind or layer._modules or any(map(vars(layer).get, _HOOKS)):
        return None
    found: list[Any] = [kind]
    for name, value in vars(layer).items():
        if name.startswith("_"):
            continue  # tables of its own, and what its settings lead to
        parts = value if type(value) is tuple else (value,)
        if not all(isinstance(part, _PLAIN) for part in parts):
            return None
        found.append((name, value))
    for table in (layer._parameters, layer._buffers):
        for name, held in table.items():
            if held is not None and not _is_strided(held):
                return None
            found.append((name, type(held), None if held is None else Form.of(held)))
    return tuple(found)


def _is_strided(item: object) -> bool:
    """Whether it is a tensor whose form its shape and strides are; a sparse one has no strides."""
    return isinstance(item, torch.Tensor) and item.layout is torch.strided
