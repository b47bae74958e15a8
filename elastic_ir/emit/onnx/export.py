"""Export of a network to ONNX by PyTorch's exporter, with the state dict's names and every pruned zero kept.

``torch.onnx.export(dynamo=True)`` knows the operators; its optimiser is not used as it comes, because it folds batch
norms into convolutions and transposes weights, after which names and structure are gone. The rules of onnxscript that
do no such thing are run instead. The weights' bytes are taken from the graph, not from the exported program, so that
they can be streamed.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils import _pytree

from elastic_ir.emit.example_runs import run_module, with_another
from elastic_ir.emit.onnx.check import Expected
from elastic_ir.errors import EmitError, first_line
from elastic_ir.ir.example_inputs import map_tensors, tensors_in
from elastic_ir.ir.graph import Graph
from elastic_ir.onnx_model import DTYPES, SCOPES, TYPES, set_aside
from elastic_ir.onnx_model.record import write_record
from elastic_ir.safety.registered import without_cache
from elastic_ir.tensors.lazy import InlineData, TensorData

if TYPE_CHECKING:
    import onnx
    import onnx_ir

OPSET = 20  #: where none is asked for; onnxruntime 1.17 and later run it
_LACKING = re.compile(r"No ONNX function found for <OpOverload\(op='([^']+)'")
_FOLDED = 1024  #: elements of a constant that may be computed in advance; a weight's never are


@dataclass(frozen=True)
class Exported:
    """A model without its tensors, these, and what the module returned on two inputs."""

    model: onnx.ModelProto
    tensors: dict[str, TensorData]
    expected: Expected | None  #: None where nobody is going to compare
    dynamic: bool  #: whether the batch is open


def export_module(
    module: nn.Module,
    graph: Graph,
    *,
    opset: int | None = None,
    dynamic: bool = True,
    fold_batchnorm: bool = False,
    compare: bool = True,
) -> Exported:
    """Export the module that a graph was emitted as. Raises EmitError with the exporter's reason.

    Where a weight is computed by what ONNX has no operator for (orthogonal matrices), the weights that were computed
    are written in place of what they are computed from.
    """
    inputs = graph.origin.inputs
    if inputs is None:
        raise EmitError(
            f"{graph.name} has no example inputs to export it with; trace it, or load it with --arch"
        )
    module = module.eval().cpu()
    inputs = inputs.to("cpu")
    args, kwargs = inputs.args, dict(inputs.kwargs)
    batch = _batch(args, kwargs)
    program = None
    if dynamic and batch is not None:
        wide: Any = map_tensors((args, kwargs), lambda tensor: _widened(tensor, batch))
        shapes = _dynamic_shapes(module, tuple(wide[0]), wide[1])
        with contextlib.suppress(EmitError):
            program = _export(module, tuple(wide[0]), wide[1], opset, shapes)
            args, kwargs = tuple(wide[0]), wide[1]
    opened = program is not None
    if program is None:
        try:
            program = _export(module, args, kwargs, opset, None)
        except EmitError:
            from elastic_ir.tickets.parametrizations import with_computed_weights

            computed = with_computed_weights(module)
            if computed is None:
                raise
            return export_module(
                computed, graph, opset=opset, dynamic=dynamic, fold_batchnorm=fold_batchnorm, compare=compare
            )
    model = program.model
    _clean(model, set(graph.weights), fold_batchnorm=fold_batchnorm)
    proto, tensors = _to_proto(model, graph)
    if not compare:
        return Exported(proto, tensors, None, opened)
    calls = with_another(module, (tuple(args), kwargs))
    names = [entry.name for entry in proto.graph.input]
    feeds = [
        {
            name: tensor.detach().numpy()
            for name, tensor in zip(names, tensors_in([*a, *k.values()]), strict=False)
        }
        for a, k in calls
    ]
    return Exported(proto, tensors, Expected(feeds, run_module(module, calls)), opened)


def _batch(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int | None:
    """The extent of the first axis, where all inputs have the same."""
    found = {tensor.shape[0] for tensor in tensors_in((args, kwargs)) if tensor.ndim}
    return found.pop() if len(found) == 1 else None


def _widened(item: torch.Tensor, batch: int) -> torch.Tensor:
    """An input with a batch of two or more: torch.export takes an extent of 1 for a constant."""
    if not item.ndim or batch > 1:
        return item
    if item.is_floating_point():
        generator = torch.Generator().manual_seed(1)
        return torch.cat([item, torch.randn(item.shape, generator=generator).to(item.dtype)])
    return torch.cat([item, item])


def _dynamic_shapes(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """By the parameters of the module's forward: the first axis of each tensor as one open batch."""
    open_batch = torch.export.Dim("batch")

    def one(item: Any) -> Any:
        return {0: open_batch} if isinstance(item, torch.Tensor) and item.ndim else None

    names = inspect.signature(module.forward).parameters
    shapes: dict[str, Any] = _pytree.tree_map(one, {**dict(zip(names, args, strict=False)), **kwargs})
    return shapes


def _export(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], opset: int | None, shapes: Any
) -> torch.onnx.ONNXProgram:
    try:
        with _quiet(), without_cache(module):
            program = torch.onnx.export(
                module, args, kwargs=kwargs or None, dynamo=True, optimize=False, verbose=False,
                opset_version=opset or OPSET, dynamic_shapes=shapes, keep_initializers_as_inputs=False,
            )  # fmt: skip
    except Exception as error:  # the exporter wraps whatever an operator or a constraint raised
        lacking = _LACKING.search(str(error))
        reason = first_line(error)[:300]
        if lacking is not None:
            reason = f"ONNX has no operator for {lacking[1]}"
        raise EmitError(f"{type(module).__name__} could not be exported to ONNX ({reason})") from error
    assert program is not None
    return program


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on standard output and in the log."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _clean(model: onnx_ir.Model, weights: set[str], *, fold_batchnorm: bool) -> None:
    """Remove what an exporter leaves behind (casts, expanded zeros, shape arithmetic), but change no weight."""
    import onnx_ir
    from onnx_ir.passes import common
    from onnxscript import rewriter
    from onnxscript.optimizer import _constant_folding

    def may_fold(node: onnx_ir.Node) -> bool | None:
        """Never what is computed from a weight; its shape is another matter."""
        if node.op_type in ("Shape", "Size"):
            return None
        return False if any(value is not None and value.name in weights for value in node.inputs) else None

    def kept(name: str) -> bool:
        """Not the rules that take away a weight: a bias that happens to be zero, a batch norm unless wanted."""
        return "RemoveOptionalBias" not in name and (fold_batchnorm or "BatchNorm" not in name)

    rules: Any = [
        _AtItsOperator(rule)
        for rule in rewriter._DEFAULT_REWRITE_RULES
        if kept(getattr(rule, "name", None) or "")
    ]
    steps = onnx_ir.passes.Sequential(
        common.InlinePass(),
        onnx_ir.passes.PassManager(
            [
                _constant_folding.FoldConstantsPass(
                    shape_inference=True,
                    input_size_limit=_FOLDED,
                    output_size_limit=_FOLDED,
                    should_fold=may_fold,
                ),
                rewriter.RewritePass(rules),
                common.RemoveUnusedNodesPass(),
                common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
                common.RemoveUnusedOpsetsPass(),
            ],
            steps=3,
            early_stop=True,
        ),
        common.IdentityEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.OutputFixPass(),
        common.NameFixPass(),
    )
    with _quiet():
        steps(model)
    _drop_zero_biases(model, weights)
    for node in model.graph:
        # the others are stack traces with paths of the machine, and longer than the network
        for key in [key for key in node.metadata_props if key != SCOPES]:
            del node.metadata_props[key]
        node.doc_string = None


class _AtItsOperator:
    """A rule of onnxscript that is tried at nodes of its operator alone.

    By itself each of them is tried at every node, and one whose pattern has two ends goes through the whole graph
    there, which takes a third of an export's time.
    """

    def __init__(self, rule: Any) -> None:
        self._rule = rule
        self._operator: tuple[str, str] | None = None  # any
        with contextlib.suppress(AttributeError):  # in a release that keeps its patterns in another way
            found = rule._target_pattern.output_nodes[0].op_identifier()
            self._operator = found[:2] if found is not None else None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rule, name)

    def try_rewrite(self, model: Any, graph: Any, node: onnx_ir.Node, **options: Any) -> Any:
        """What is to stand in the node's place, if anything."""
        if self._operator not in (None, node.op_identifier()[:2]):
            return None
        return self._rule.try_rewrite(model, graph, node, **options)


def _drop_zero_biases(model: onnx_ir.Model, weights: set[str]) -> None:
    """The exporter gives a convolution without bias one of zeros; what is a parameter of the network stays."""
    for node in model.graph:
        bias = node.inputs[2] if node.op_type in ("Conv", "ConvTranspose") and len(node.inputs) == 3 else None
        if bias is not None and bias.name not in weights and bias.const_value is not None:
            if not bias.const_value.numpy().any():
                node.resize_inputs(2)
            if not bias.uses() and bias.name is not None:
                model.graph.initializers.pop(bias.name, None)


def _to_proto(model: onnx_ir.Model, graph: Graph) -> tuple[onnx.ModelProto, dict[str, TensorData]]:
    """The model's message with marks for its initializers, which are put into the order of the state dict."""
    import onnx
    import onnx_ir

    tensors: dict[str, TensorData] = {}
    kept: list[onnx.TensorProto] = []
    found = dict(model.graph.initializers)
    order = {name: place for place, name in enumerate(graph.weights)}
    for name in sorted(found, key=lambda name: order.get(name, len(order))):
        held = found[name].const_value
        assert held is not None
        weight = graph.weights.get(name)
        if weight is not None and weight.shape == tuple(held.shape.numpy()) and weight.dtype in TYPES:
            data = weight.storage.emitted()
        else:
            dtype = DTYPES.get(int(held.dtype))
            if dtype is None:
                continue
            data = InlineData(tuple(held.shape.numpy()), dtype, held.tobytes())
        del model.graph.initializers[name]
        # a shape or an axis: every reader needs it
        if isinstance(data, InlineData) and len(data.raw) < _FOLDED:
            tensor = onnx.TensorProto(
                name=name, data_type=TYPES[data.dtype], dims=data.shape, raw_data=data.raw
            )
        else:
            tensor = onnx.TensorProto(name=name)
            set_aside(tensor, data, tensors)
        kept.append(tensor)
    proto = onnx_ir.to_proto(model)
    rest = list(proto.graph.initializer)
    del proto.graph.initializer[:]
    proto.graph.initializer.extend([*kept, *rest])
    proto.graph.name = graph.name
    proto.producer_name, proto.producer_version = "elastic-ir", version("elastic-ir")
    written = {tensor.name for tensor in proto.graph.initializer}
    write_record(proto, graph, {n: origin for n, origin in graph.lineage().items() if n in written})
    return proto, tensors
