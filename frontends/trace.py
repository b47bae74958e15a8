"""From a live module to a graph: symbolic tracing first, ``torch.export`` where that fails.

Symbolic tracing goes into torch's own modules that hold layers, its transformers; most of their forwards ask for
values, and torch.export reads them. Where that fails too, such a module is taken as one node, and a note says so.

The module is left as it was, and torch's remarks about tracing are kept from the user. A forward that caches something
(attention biases, masks) would keep a tracer's stand-ins in the live module, and fail with them later. What
torch.export and torch.fx warn of concerns programs to be run, and ours are only read.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard, cast

import torch
from torch import fx, nn

from elastic_ir.choices import Frontend, check_choice
from elastic_ir.errors import TraceError
from elastic_ir.frontends.example_inputs import from_shapes, guesses
from elastic_ir.frontends.fx import holds_layers, is_torchs, read_fx, read_sealed
from elastic_ir.ir.example_inputs import Inputs
from elastic_ir.ir.graph import Graph, Node, Value
from elastic_ir.ir.info import Origin
from elastic_ir.tensors.torch_bridge import lazy_of
from elastic_ir.tensors.weights import (
    Storage,
    Weight,
    computes_weights,
    is_prunable,
    may_be_multiplied,
    ties_of,
)

if TYPE_CHECKING:
    from torch.export import ExportedProgram


class LiveSource(Origin):
    """A live module, or what a file says of one, with inputs that it runs on."""

    def retrace(self, module: nn.Module, frontend: str) -> Graph:
        """Another module of the kind as a graph, read in the same way on the same inputs."""
        if self.inputs is None:
            raise TraceError(f"{type(module).__name__} has no example inputs to be traced on")
        return trace(module, self.inputs.args, self.inputs.kwargs, frontend=cast("Frontend", frontend))


def _read_export(model: nn.Module, inputs: Inputs, weights: dict[str, Weight]) -> Graph:
    from elastic_ir.frontends.export import read_export  # rarely needed, and with it torch.export

    return read_export(model, inputs, weights)


Reader: TypeAlias = Callable[[nn.Module, Inputs, dict[str, Weight]], Graph]
READERS: dict[str, Reader] = {"fx": read_fx, "export": _read_export}
_SEALED = "sealed"  #: the last resort, where a module of torch that holds layers cannot be traced into


def _is_program(model: object) -> TypeGuard[ExportedProgram]:
    """Whether it is what ``torch.export.export`` returns; whoever has one has imported torch.export."""
    exported = sys.modules.get("torch.export.exported_program")
    return exported is not None and isinstance(model, exported.ExportedProgram)


def _sealed_note(graph: Graph, model: nn.Module, frontend: str) -> str:
    """Which networks are one node each in a graph."""
    sealed = {node.scope: node.op for node in graph if node.kind == "module"}
    networks = [f"{path} ({op})" for path, op in sealed.items() if holds_layers(model.get_submodule(path))]
    if not networks:
        return ""
    by = "torch.fx cannot" if frontend == "fx" else "neither torch.fx nor torch.export can"
    more = f" and {len(networks) - 1} more" if len(networks) > 1 else ""
    return f"{networks[0]}{more}: {by} trace into it, so it counts as one layer"


def trace(
    model: nn.Module | ExportedProgram,
    example_inputs: Sequence[Any] | torch.Tensor | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    masks: Mapping[str, Any] | None = None,
    *,
    frontend: Frontend = "auto",
    input_shape: Sequence[Sequence[int]] | None = None,
) -> Graph:
    """Read a module into a :class:`~elastic_ir.ir.graph.Graph`; its weights are referred to, not copied.

    A GraphModule of torch.fx or of torch.export is read with the scopes that it was traced with; an ``ExportedProgram``
    as its ``module()``, on its own example inputs where none are given.
    ``frontend`` is ``"fx"``, ``"export"`` or ``"auto"`` (fx, then export). A module of torch that holds layers and
    that none of these can trace into is one node; ``info.sealed_note`` says so. Without example
    inputs, shapes are guessed from the model's published configuration or its first layer.
    ``torch.nn.utils.prune`` masks are taken from the module; ``masks`` maps weight names
    to 0/1 tensors of the weight's shape.

    Raises TraceError (with the reason of each way), MaskError, or ``ValueError`` for an unknown front end.
    """
    if _is_program(model):
        if example_inputs is None and example_kwargs is None and model.example_inputs is not None:
            example_inputs, example_kwargs = model.example_inputs
        model = model.module()
    if not isinstance(model, nn.Module):
        raise TraceError(
            f"trace reads a torch.nn.Module or an ExportedProgram, not a {type(model).__name__}; "
            "for a file or a name use load"
        )
    check_choice("frontend", frontend, Frontend, ValueError)
    model, found = absorb_pruning(model)
    weights = weight_table(model)
    if given := {**found, **(masks or {})}:
        from elastic_ir.frontends.masks import attach_masks  # and with it the formats of masks

        attach_masks(weights, given)
    if isinstance(example_inputs, torch.Tensor):
        example_inputs = (example_inputs,)
    if example_inputs is not None or example_kwargs is not None:
        candidates = [Inputs(tuple(example_inputs or ()), dict(example_kwargs or {}))]
    elif input_shape is not None:
        candidates = [from_shapes(model, input_shape)]
    else:
        candidates = list(guesses(model))
    problems: dict[str, str] = {}
    values: dict[str, bool] = {}  # by front end, whether it met control flow on a tensor's values
    readers: dict[str, Reader] = dict(READERS) if frontend == "auto" else {frontend: READERS[frontend]}
    if isinstance(model, fx.GraphModule):  # torch.export would lose the scopes that it has
        readers = dict(READERS)
    if "fx" in readers and any(is_torchs(part) and holds_layers(part) for part in model.modules()):
        readers[_SEALED] = read_sealed
    for name, reader in readers.items():
        for inputs in candidates:
            try:
                with without_side_effects(model):  # which puts the modes back
                    # draws of training (stochastic depth) would stay in the graph
                    for part in model.modules():
                        part.training = False
                    graph = reader(model, inputs, weights)
            except Exception as error:  # any tracer may raise anything; the reason is reported below
                if name == _SEALED:  # fx has given its reason
                    continue
                # a branch on values stops every input, and says more than that a guessed shape does not fit
                branches = _reads_values(error)
                if branches or not values.get(name):
                    values[name] = branches
                    problems[name] = _first_line(error)
                continue
            if any(map(may_be_multiplied, graph.weights.values())):
                from elastic_ir.frontends.multiplied import mark_multiplied

                mark_multiplied(graph)
            graph.origin = LiveSource(module=model, inputs=inputs)
            if not graph.modules:
                graph.modules = {path: list(module._modules) for path, module in model.named_modules()}
            if any(map(_takes_several, graph)):
                from elastic_ir.frontends.bring_forward import bring_forward  # few networks need it

                bring_forward(graph)
            sealed = _sealed_note(graph, model, frontend) if name == _SEALED else ""
            graph.info = replace(
                graph.info, source_names=tuple(weights), ties=ties_of(weights), sealed_note=sealed
            )
            return graph
    tried = "; ".join(f"torch.{name}: {text}" for name, text in problems.items())
    advice = ""
    if values.get("export"):
        advice = (
            " Its forward branches on the values of tensors, which no example input changes; "
            "its state dict can be given instead (a file of model.state_dict(), without an architecture)."
        )
    elif not candidates or candidates[0].guessed:
        advice = " Pass example_inputs (--input-shape 1,3,224,224)."
    raise TraceError(f"{type(model).__name__} could not be traced ({tried}).{advice}")


def _takes_several(node: Node) -> bool:
    """Whether a node collects values in a list, or is the output and gives several."""
    lists = [item for item in (*node.args, *node.kwargs.values()) if isinstance(item, (list, tuple))]
    if node.kind == "output":
        return len(node.operands()) > 1
    return any(sum(isinstance(item, Value) for item in items) > 1 for items in lists)


#: What torch.export raises, or has under what it raises, where a tensor's value or a size made of values is asked for.
_OF_VALUES = {"GuardOnDataDependentSymNode", "DataDependentOutputException", "DynamicOutputShapeException"}


def _reads_values(error: BaseException | None) -> bool:
    """Whether tracing ended at what depends on a tensor's values."""
    while error is not None:
        if type(error).__name__ in _OF_VALUES:
            return True
        error = error.__cause__ or error.__context__
    return False


def _first_line(error: Exception) -> str:
    message = str(error).strip()
    return f"{type(error).__name__}: {message.splitlines()[0][:200]}" if message else type(error).__name__


# -- the weight table: lazy, in state-dict order, with its ties, prunable weights and pruning hooks --------------------


def prunable_names(model: nn.Module) -> set[str]:
    """Names of the weights of convolutions and linear layers, fused attention's input projection included."""
    return {name for name, prunable in _layer_names(model).items() if prunable}


def _layer_names(model: nn.Module) -> dict[str, bool]:
    """Names of the weights of layers, and whether they are prunable."""
    found: dict[str, bool] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        head = f"{path}." if path else ""
        if computes_weights(module):
            from elastic_ir.tickets.parametrizations import layer_weights

            found.update((head + weight.name, weight.prunable) for weight in layer_weights(module))
        else:
            own = module.named_parameters(recurse=False)
            found.update((head + role, True) for role, tensor in own if is_prunable(module, role, tensor))
    return found


def weight_table(model: nn.Module) -> dict[str, Weight]:
    """All parameters and buffers of a module, those a state dict holds first and in its order."""
    kept = {k: v for k, v in model.state_dict(keep_vars=True).items() if isinstance(v, torch.Tensor)}
    transient = {
        name: buffer
        for name, buffer in model.named_buffers(remove_duplicate=False)
        if name not in kept and isinstance(buffer, torch.Tensor)
    }
    layers = _layer_names(model)
    storages: dict[Any, Storage] = {}
    table: dict[str, Weight] = {}
    for name, tensor in (*kept.items(), *transient.items()):
        storage = storages.setdefault(_identity(tensor), Storage(lazy_of(tensor)))
        is_parameter = isinstance(tensor, nn.Parameter)
        table[name] = Weight(
            name, storage, name, is_parameter, name in kept, layers.get(name, False), layer=name in layers
        )
    return table


def _identity(tensor: torch.Tensor) -> Any:
    """What two names must share to be tied: the object, or the same view of the same memory."""
    strided = tensor.layout is torch.strided  # a sparse one has no memory of its own
    if tensor.is_meta or tensor.numel() == 0 or not strided or type(tensor).__name__ == "FakeTensor":
        return id(tensor)
    return tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def absorb_pruning(model: nn.Module) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A module without the hooks of ``torch.nn.utils.prune``, and the masks that they held, by weight name.

    The module given is not changed: where hooks are found, a copy that shares its tensors is returned.
    """
    from torch.nn.utils.prune import BasePruningMethod

    if not any(
        isinstance(h, BasePruningMethod) for m in model.modules() for h in m._forward_pre_hooks.values()
    ):
        return model, {}
    memo: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    for module in model.modules():  # the masked products are plain attributes, made anew at every forward
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, BasePruningMethod):
                memo[id(getattr(module, hook._tensor_name))] = None
    from elastic_ir.tickets.parametrizations import copied

    twin = copied(model, memo)
    masks: dict[str, torch.Tensor] = {}
    for path, module in twin.named_modules():
        for key, hook in list(module._forward_pre_hooks.items()):
            if not isinstance(hook, BasePruningMethod):
                continue
            role = hook._tensor_name
            masks[f"{path}.{role}" if path else role] = getattr(module, f"{role}_mask")
            del module._forward_pre_hooks[key]
            del module._buffers[f"{role}_mask"]
            module.__dict__.pop(role, None)
            # the pruned parameter stands last; put it back where an unpruned module has it
            original = module._parameters.pop(f"{role}_orig")
            assert original is not None
            rest = dict(module._parameters)
            module._parameters.clear()
            if role == "weight":
                module._parameters[role] = original
                module._parameters.update(rest)
            else:
                module._parameters.update({**rest, role: original})
    return twin, masks


# -- without side effects ----------------------------------------------------------------------------------------------

_TORCH = os.path.dirname(torch.__file__)
_LIBRARY = sysconfig.get_path("stdlib")  # torch warns from inside context managers, in contextlib's name


@contextlib.contextmanager
def without_side_effects(model: nn.Module) -> Iterator[None]:
    """Put back whatever attributes the modules had, and pass on only warnings that are not torch's own.

    What is written to standard error meanwhile is dropped: torch.export prints the program it had come to there.
    """
    before = [(module, _state(module)) for module in model.modules()]
    # a norm in training counts its batches while it is traced, in place; nothing larger is touched
    numbers = [b for b in model.buffers() if not (b.ndim or b.is_meta or b.is_inference())]
    counts = [(b, b._version, b.clone()) for b in numbers]
    # some of torch's loggers have a level of their own; the others, and what is made meanwhile, ask their parents
    own = [name for name in logging.root.manager.loggerDict if name.startswith("torch.")]
    loggers = [logging.getLogger("torch"), *(item for item in map(logging.getLogger, own) if item.level)]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with (
            warnings.catch_warnings(record=True) as heard,
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("always")  # a filter that makes errors of warnings is for what is passed on
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for module, state in before:
            _restore(module, state)
        for buffer, version, value in counts:
            if buffer._version != version:
                buffer.copy_(value)
    for warning in heard:
        if not warning.filename.startswith((_TORCH, _LIBRARY)):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _state(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Each attribute with, for a plain dict or list, a copy of what is in it."""
    return {
        name: (value, value.copy() if type(value) in (dict, list, set) else None)
        for name, value in vars(module).items()
    }


def _restore(module: nn.Module, state: dict[str, tuple[Any, Any]]) -> None:
    now = vars(module)
    for name in [name for name in now if name not in state]:
        del now[name]
    for name, (value, content) in state.items():
        now[name] = value
        if isinstance(value, list) and content is not None:
            value[:] = content
        elif isinstance(value, (dict, set)) and content is not None:
            value.clear()
            value.update(content)
