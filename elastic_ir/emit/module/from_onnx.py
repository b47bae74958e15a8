"""Emission of a graph that came from ONNX to a ``torch.fx.GraphModule``: its operators as torch functions.

Nothing is folded or fused. Every weight of the graph is a parameter or buffer under its own name, so the state dict is
the graph's, clones learn apart, and tied weights stay one. onnx2torch (1.5.15) and onnx2pytorch (0.6.0) were tried and
do neither: they name weights after operators (``Conv__440.weight``), fold what feeds them into layers, and refused four
and three of the five installed networks that this one runs (weights in Constant nodes, bounds that are tensors).

The module comes in evaluation mode and computes what the file describes; after ``.train()`` batch norms use and
update their statistics, and dropouts drop.
"""

from __future__ import annotations

import keyword
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from elastic_ir.emit.module.from_torch import _QUOTES, _ensure, _parent
from elastic_ir.emit.onnx_operators import sizes
from elastic_ir.emit.onnx_operators.norms import BatchNorm, Dropout, batch_norm_training
from elastic_ir.emit.onnx_operators.table import CONTEXT, Operator, operator_for
from elastic_ir.errors import EmitError
from elastic_ir.ir.graph import Argument, Graph, Literal, Node, Symbol, Value, WeightRef
from elastic_ir.ir.naming import outward
from elastic_ir.onnx_model import OnnxSource, opsets_of

_INSTEAD = "write the network as .onnx instead"


class Constant(nn.Module):
    """A small constant of the program. As a module it stays out of the state dict, also in copies of the network."""

    value: Tensor

    def __init__(self, literal: Literal) -> None:
        super().__init__()
        tensor = torch.tensor(literal.values, dtype=getattr(torch, literal.dtype)).reshape(literal.shape)
        self.register_buffer("value", tensor, persistent=False)

    def forward(self) -> Tensor:
        """The constant, where the network is."""
        return self.value


def build_onnx_module(graph: Graph) -> fx.GraphModule:
    """The graph as a GraphModule; its tensors are placeholders that the caller assigns.

    Raises EmitError for an operator, an attribute or an operand that has no form here; it names the node.
    """
    return _Builder(graph).module()


class _Builder:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        if not isinstance(graph.origin, OnnxSource):
            raise EmitError(f"{graph.name} came from an ONNX file that is not at hand; load that file again")
        self.model = graph.origin.model
        self.opsets = opsets_of(self.model)
        self.own = {f"{item.domain}.{item.name}".removeprefix(".") for item in self.model.functions}
        self.root = nn.Module()
        self.made = fx.Graph()
        self.values: dict[Value, Any] = {}
        self.kinds: dict[Value, sizes.Kind] = {}  # of the values that are Python numbers
        self.anchor: fx.Node | None = None  # a tensor on the network's device
        self.paths: set[str] = set()  # what is taken in the tree of modules
        self.read: set[str] = set()  # the weights that some node reads as tensors
        self.numbers: set[str] = set()  # those that one reads as numbers: sizes, factors of a Resize

    def module(self) -> fx.GraphModule:
        """Weights first, in the state dict's order, then the nodes."""
        self._register()
        for node in self.graph:
            if node.kind == "input":
                self._input(node)
            elif node.kind == "output":
                self._output(node)
            elif node.op == "operator.getitem":
                source, place = node.args
                assert isinstance(source, Value) and isinstance(place, int)
                self.values[node.output] = self.made.call_function(
                    operator.getitem, (self.values[source], place)
                )
            else:
                self._operator(node)
        for name in self.numbers - self.read:  # nothing flows back into these
            if self.graph.weights[name].is_parameter:
                self.root.get_parameter(name).requires_grad_(False)
        for value, node in self.values.items():
            if isinstance(node, fx.Node):  # for who runs it node by node; an Identity is its operand's node
                node.meta.setdefault("values", []).append(value.name)
        self.root.eval()
        # so that what traces the module anew, as unpickling does, stays out of them
        for node in self.made.nodes:
            if node.op == "call_function" and node.target.__module__.startswith("elastic_ir."):
                node.meta["is_wrapped"] = True
        made = fx.GraphModule(self.root, self.made, class_name=_identifier(self.graph.name) or "Network")
        for table in ("_modules", "_parameters", "_buffers"):  # fx leaves out what no node reads
            getattr(made, table).clear()
            getattr(made, table).update(getattr(self.root, table))
        made.eval()
        return made

    def _register(self) -> None:
        for weight in self.graph.weights.values():
            if _QUOTES & set(weight.name) or not all(weight.name.split(".")):
                raise EmitError(f"the weight {weight.name!r} has a name that no module can have; {_INSTEAD}")
            try:
                _ensure(self.root, weight)
            except KeyError as error:  # torch's word for a name that is an attribute already
                raise EmitError(
                    f"the weight {weight.name!r} has a name that no module can have ({error.args[0]}); {_INSTEAD}"
                ) from error
            self.paths.update(outward(weight.name)[:-1])

    # -- values ----------------------------------------------------------------------------------------------------

    def _input(self, node: Node) -> None:
        name = _identifier(node.name) or "input"
        taken = {item.target for item in self.made.nodes if item.op == "placeholder"}
        while name in taken or keyword.iskeyword(name) or name in ("self", "torch"):
            name += "_"
        made = self.made.placeholder(name)
        self.values[node.output] = made
        self.anchor = self.anchor or made

    def _output(self, node: Node) -> None:
        (results,) = node.args
        assert isinstance(results, tuple)
        found = tuple(self._tensor(item, node, place) for place, item in enumerate(results))
        self.made.output(found[0] if len(found) == 1 else found)

    def _tensor(self, item: Argument, node: Node, place: int) -> Any:
        """An operand as a tensor."""
        if isinstance(item, Value):
            if item not in self.kinds:
                return self.values[item]
            dtype = getattr(torch, self.kinds[item][0])
            return self.made.call_function(sizes.as_tensor, (self.values[item], dtype, self._device()))
        if isinstance(item, WeightRef):
            self.read.add(item.name)
            return self.made.get_attr(item.name)
        if isinstance(item, Literal):
            path = self._mount("_literals", f"{node.name}_{place}", Constant(item))
            return self.made.call_module(path)
        if item is None:
            return None
        raise _refusal(
            node, f"reads {item.name if isinstance(item, Symbol) else item!r}, which is not a tensor"
        )

    def _device(self) -> fx.Node | None:
        if self.anchor is None and self.graph.weights:
            self.anchor = self.made.get_attr(next(iter(self.graph.weights)))
        return self.anchor

    def _mount(self, scope: str, name: str, part: nn.Module) -> str:
        """A module without weights within a scope, beside whatever has weights there; its path."""
        names = scope.split(".") if scope else []
        ends = set(self.graph.weights)
        if (
            not all(names)
            or _QUOTES & set(scope)
            or any(".".join(names[: i + 1]) in ends for i in range(len(names)))
        ):
            names = ["_modes"]
        while ".".join([*names, name]) in self.paths:
            name += "_"
        path = ".".join([*names, name])
        self.paths.add(path)
        try:
            parent, last = _parent(self.root, path)
            parent.add_module(last, part)
        except KeyError:
            return self._mount("_modes", name, part)
        return path

    # -- operators -------------------------------------------------------------------------------------------------

    def _operator(self, node: Node) -> None:
        name = node.op.removeprefix("onnx.")
        opset = self.opsets.get(name.rpartition(".")[0], self.opsets.get("", 1))
        if self._sizes(node):
            return
        form = None if name in self.own else operator_for(name, opset)
        if form is None:
            body = (
                " holds a body, of which no module can be made"
                if node.kwargs
                else " has no form in PyTorch here"
            )
            raise EmitError(f"{self.graph.name}: node %{node.name}: {name}{body}; {_INSTEAD}")
        proto = self.model.graph.node[int(node.origin)]
        outputs = 1 if node.output.is_tensor else len(proto.output)
        options = self._options(node, form)
        if form.module and self._moded(node, form, options, outputs):
            return
        if form.module:  # a batch norm that uses the batch's statistics whatever the mode
            form = Operator(batch_norm_training)
        if form.most is not None and any(item is not None for item in node.args[form.most :]):
            raise _refusal(node, f"has more than the {form.most} operands that are known here")
        if "outputs" not in form.keywords and outputs > 1:
            raise _refusal(node, "is asked for more results than it has here")
        context = {"opset": opset, "outputs": outputs}
        options |= {key: value for key, value in context.items() if key in form.keywords}
        if "like" in form.keywords:
            options["like"] = self._device()
        if "result" in form.keywords:
            options.setdefault("result", self._result(node))
        args = self._operands(node, form)
        while args and args[-1] is None:
            args.pop()
        keywords = {**form.fixed, **{form.names.get(key, key): value for key, value in options.items()}}
        self.values[node.output] = self.made.call_function(form.function, tuple(args), keywords)

    def _sizes(self, node: Node) -> bool:
        """Emit a node that follows from shapes alone as a function of Python numbers, where it is one."""
        kinds = [self._kind(item) for item in node.args if item is not None]
        fill = self._fill(node)[0] if node.op == "onnx.ConstantOfShape" else None
        found = sizes.size_node(node, kinds, fill)
        if found is None:
            return False
        function, count, options, kind = found
        args = [
            self.values[item] if isinstance(item, Value) else sizes.literal_sizes(item)
            for item in node.args[:count]
            if isinstance(item, (Value, Literal))
        ]
        if function in (sizes.shape, sizes.size):
            args = [self._tensor(node.args[0], node, 0)]
        made = self.made.call_function(function, tuple(args), options) if function is not None else args[0]
        self.values[node.output] = made
        self.kinds[node.output] = kind
        return True

    def _kind(self, item: Argument) -> sizes.Kind | None:
        if isinstance(item, Value):
            return self.kinds.get(item)
        return sizes.literal_kind(item) if isinstance(item, Literal) else None

    def _operands(self, node: Node, form: Operator) -> list[Any]:
        single = next((i for i in form.scalars if self._single(node, i, form.scalars)), None)
        found: list[Any] = []
        for place, item in enumerate(node.args):
            flat = isinstance(item, Literal) and len(item.shape) < 2
            if place == single or (place in form.plain and flat):
                assert isinstance(item, Literal)
                number = place == single or not item.shape
                found.append(item.values[0] if number else list(item.values))
            elif place in form.plain and isinstance(item, Value) and item in self.kinds:
                found.append(self.values[item])
            elif place in form.plain and isinstance(item, WeightRef) and node.op != "onnx.Clip":
                self.numbers.add(item.name)
                found.append(self.made.get_attr(item.name))
            else:
                found.append(self._tensor(item, node, place))
        return found

    def _single(self, node: Node, place: int, among: tuple[int, ...]) -> bool:
        """Whether an operand is one number beside a tensor that gives the result its rank and dtype."""
        item = node.args[place] if place < len(node.args) else None
        if not isinstance(item, Literal) or len(item.values) != 1 or item.dtype == "bool":
            return False
        ranks = []
        for other in (node.args[i] for i in range(len(node.args)) if i in among or among == (1,)):
            if isinstance(other, WeightRef):
                ranks.append(len(self.graph.weights[other.name].shape))
            elif isinstance(other, Value) and other not in self.kinds:
                ranks.append(len(other.type.shape) if other.type is not None else 0)
        return bool(ranks) and max(ranks) >= len(item.shape)

    # -- attributes ------------------------------------------------------------------------------------------------

    def _options(self, node: Node, form: Operator) -> dict[str, Any]:
        options: dict[str, Any] = {}
        for key, value in node.attributes.items():
            if node.op == "onnx.ConstantOfShape" and key == "value":
                options["value"], options["result"] = self._fill(node)
                continue
            if key in form.only and value not in form.only[key]:
                raise _refusal(node, f"has {key}={value!r}, which has no form in PyTorch here")
            if key in form.only and key not in form.keywords:
                continue
            if isinstance(value, Symbol) or (key not in form.keywords and not form.module) or key in CONTEXT:
                raise _refusal(node, f"has the attribute {key!r}, which has no form in PyTorch here")
            options[key] = value
        if node.op == "onnx.ConstantOfShape":
            options.setdefault("result", torch.float32)
        return options

    def _fill(self, node: Node) -> tuple[Any, torch.dtype]:
        """The value of a ConstantOfShape, and its dtype."""
        import onnx

        for attribute in self.model.graph.node[int(node.origin)].attribute:
            if attribute.name == "value":
                array = onnx.numpy_helper.to_array(attribute.t)
                kind = getattr(torch, str(array.dtype), None)
                if array.size != 1 or not isinstance(kind, torch.dtype):
                    raise _refusal(node, f"is filled with {array.dtype} numbers")
                return array.reshape(-1)[0].item(), kind
        return 0.0, torch.float32

    def _result(self, node: Node) -> torch.dtype | None:
        """The dtype of a result that does not follow from an operand."""
        kinds = [node.output.type.dtype] if node.output.type is not None else []
        for item in node.args:
            if isinstance(item, Literal):
                kinds.append(item.dtype)
            elif isinstance(item, Value):
                kinds += [self.kinds[item][0]] if item in self.kinds else []
                kinds += [item.type.dtype] if item.type is not None else []
        return getattr(torch, kinds[0]) if kinds else None

    def _moded(self, node: Node, form: Operator, options: dict[str, Any], outputs: int) -> bool:
        """Emit what follows the mode as a module of its own; False for a batch norm that follows none."""
        if form.function is BatchNorm:
            if options.get("training_mode"):
                return False
            if outputs > 1:
                raise _refusal(node, "gives statistics beside its result")
            part: nn.Module = BatchNorm(**options)
            args = [self._tensor(item, node, place) for place, item in enumerate(node.args)]
        else:
            args = [self._tensor(node.args[0], node, 0)]
            given = node.args[1] if len(node.args) > 1 else None
            rate = given.values[0] if isinstance(given, Literal) else options.get("ratio", 0.5)
            if isinstance(given, (Value, WeightRef)):
                args.append(self._tensor(given, node, 1))
            part = Dropout(float(rate), outputs)
        path = self._mount(node.scope, node.name, part)
        self.values[node.output] = self.made.call_module(path, tuple(args))
        return True


def _refusal(node: Node, what: str) -> EmitError:
    return EmitError(f"node %{node.name} ({node.op.removeprefix('onnx.')}) {what}; {_INSTEAD}")


def _identifier(name: str) -> str:
    """A name of Python's that reads like the given one."""
    text = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in name)
    return f"_{text}" if text[:1].isdigit() else text
