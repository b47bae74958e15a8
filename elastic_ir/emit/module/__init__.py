"""Emission to a module: the source's own class with re-filled containers, or a GraphModule.

Where the units are children of a container, the source is copied without its tensors, the container's children are
laid out as planned, and every parameter and buffer gets a tensor of its own; so the class, modes, hooks and names
stay. Where the forward names its units one by one, the graph's nodes become a ``torch.fx.GraphModule``; those of an
ONNX file always do.

Torch is imported where tensors or modules are made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from elastic_ir.emit import refuse_without_values
from elastic_ir.emit.module.attributes import refresh, shift_counts
from elastic_ir.emit.module.in_class import PROOFS, in_its_class, levels_of
from elastic_ir.errors import EmitError
from elastic_ir.formats.pickles.description import is_graph_module
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.info import Emitted, described
from elastic_ir.tensors.lazy import ShapeOnly
from elastic_ir.tensors.torch_bridge import TorchData, to_torch

if TYPE_CHECKING:
    import torch
    from torch import nn

    from elastic_ir.emit.module.check import RunsOtherwiseError


def to_module(graph: Graph, masked: bool = True, check: bool = True) -> nn.Module:
    """A trainable module that shares no storage with the source.

    Pruned weights are zero (``masked=False`` gives the stored values). ``check`` runs what was changed, where there are
    example inputs, and compares its outputs with those of the graph's nodes (:mod:`elastic_ir.emit.module.check`); why
    they could not be compared is left in ``graph.emitted.unchecked``. Where the class cannot follow the plan, does not
    run with it or computes something else, a ``torch.fx.GraphModule`` takes its place, and ``graph.emitted.replaced``
    says why.

    Raises EmitError where there is no network to emit (a bare state dict) or no values (the meta device), where the
    names and shapes made are not the planned ones, and where the check fails for a GraphModule too.
    """
    refuse_without_values(graph)
    return _complete(build_module(graph, masked, check=check), graph)


def module_to_describe(graph: Graph, check: bool) -> nn.Module:
    """As :func:`to_module`, for who describes it and lets it go; it must not be trained.

    For the ``check`` its parameters are the source's own tensors where those are unmasked in memory. Where nothing has
    to be run, they are on the meta device.
    """
    refuse_without_values(graph)
    with described(graph):
        return _complete(_build(graph, True, check, own=False, values=check), graph)


def _complete(made: nn.Module, graph: Graph) -> nn.Module:
    """A module of which what is in no state dict has values; EmitError for one that lacks some."""
    lacking = [
        name
        for name, tensor in _tensors(made)
        if tensor.is_meta
        and ((weight := graph.weights.get(name)) is None or isinstance(weight.storage.data, ShapeOnly))
    ]
    if lacking:
        raise EmitError(
            f"{lacking[0]!r} has no values: it is in no state dict, and was read on the meta device; give like= a "
            "network with values, or its name"
        )
    return made


def build_module(graph: Graph, masked: bool = True, check: bool = False) -> nn.Module:
    """As :func:`to_module`, and on the meta device where the weights are: for what needs no values, as counting."""
    with described(graph):
        return _build(graph, masked, check)


def _build(graph: Graph, masked: bool, check: bool, *, own: bool = True, values: bool = True) -> nn.Module:
    graph.emitted = Emitted()
    live = graph.origin.module
    if live is None and len(graph) and graph.info.frontend == "onnx":
        from elastic_ir.emit.module.from_onnx import build_onnx_module

        return _finish(build_onnx_module(graph), graph, masked, own=own, values=values)
    touched = [container for level in levels_of(graph) for container in level if container.changed]
    edited = graph.edits.rewired or graph.edits.edited_layers or graph.reference is not None
    check = check and (bool(touched) or bool(edited))
    if check and graph.info.ties:
        from elastic_ir.emit.module.aliases import refuse_aliases

        refuse_aliases(graph, touched)
    replaced = ""
    if live is not None:
        module, replaced = _proven_class(graph, live, masked, check, own, values)
        if module is not None:
            return module
    if graph.is_program:
        from elastic_ir.emit.module.check import check_module
        from elastic_ir.emit.module.from_torch import build_graph_module

        try:
            made = _finish(build_graph_module(graph, live), graph, masked, own=own, values=values)
            if check:
                _note_unchecked(graph, check_module(made, graph))
        except EmitError as error:
            if not replaced:
                raise
            raise EmitError(
                f"{replaced}; nor can a GraphModule take the place of the class: {error}"
            ) from error
        if replaced and not is_graph_module(live):
            if graph.info.frontend == "export":
                replaced += (
                    "; torch.export read it, so it takes inputs of the sizes of the example inputs only"
                )
            graph.emitted = replace(graph.emitted, replaced=replaced)
        return made
    if live is not None:
        raise EmitError(replaced)
    raise EmitError(
        f"{graph.name} was read without its network, so there is no module to emit; pass --arch SOURCE "
        "(arch=...), or write a state dict (.pt, .safetensors)"
    )


def _proven_class(
    graph: Graph, live: nn.Module, masked: bool, check: bool, own: bool, values: bool
) -> tuple[nn.Module | None, str]:
    """A module of the source's class that follows the plan as far as is checked, or None and why there is none."""
    from elastic_ir.emit.module.check import follows_plan

    module, unproven, why, placed = in_its_class(graph, live)
    if module is not None:
        module = _finish(module, graph, masked, own=own, values=values or bool(unproven))
        if not unproven or follows_plan(module, graph, exact=unproven == "exact"):
            problem = _problem(module, graph, placed or graph.reference is not None) if check else None
            if problem is not None and shift_counts(
                module, [box for level in levels_of(graph) for box in level]
            ):
                problem = _problem(module, graph, placed or graph.reference is not None) and problem
            return (module, "") if problem is None else (None, str(problem))
    return None, f"{graph.name}.forward {why}"


def as_described(graph: Graph) -> tuple[nn.Module | None, str]:
    """What a file is to say of the module of a graph whose class is not at hand, as a tree without values.

    This is what would be emitted if the class had been built; the second result says what remains to be proven by
    whoever builds it. None where it would be a GraphModule.
    """
    described = graph.origin.described
    if described is None:
        return None, ""
    module, unproven, *_ = in_its_class(graph, described)
    if module is None:
        return None, ""
    changed = "wiring" if any(container.changed for level in levels_of(graph) for container in level) else ""
    return _finish(module, graph, masked=False, values=False), max(
        graph.origin.unproven, unproven, changed, key=PROOFS.index
    )


def _problem(module: nn.Module, graph: Graph, placed: bool) -> RunsOtherwiseError | None:
    """What a module of the source's class computes otherwise than the graph; None where that is as it should be.

    Numbers prove nothing where the trace was of a network in training, whose dropouts the nodes keep; traced
    again, the module then has to be the graph, constants included. Constants of a place (a layer's index, the
    reference's factors) are the network's own and not the graph's, which has those of the block that was copied: where
    emission has ``placed`` some, operations, weights and wiring must agree.
    """
    from elastic_ir.emit.module.check import RunsOtherwiseError, check_module, follows_plan

    try:
        _note_unchecked(graph, check_module(module, graph))
    except RunsOtherwiseError as error:
        if not error.finite or not follows_plan(module, graph, exact=not placed):
            return error
        if placed:
            _note_unchecked(graph, "constants follow the place; operations, weights and wiring were compared")
    return None


def _note_unchecked(graph: Graph, why: str) -> None:
    if why:
        graph.emitted = replace(graph.emitted, unchecked=why)


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _finish(
    module: nn.Module, graph: Graph, masked: bool, *, own: bool = True, values: bool = True
) -> nn.Module:
    """A module with its tensors (without ``values`` on the meta device), its names and shapes checked."""
    if graph.reference is not None:
        from elastic_ir.emit.module.adopt import adopt

        changes = adopt(module, graph, graph.structure.containers)
        constants = dict.fromkeys(changes, "as the reference has it")
        graph.emitted = replace(graph.emitted, constants=constants)
    if graph.edits.edited_layers:
        from elastic_ir.emit.module.layers import conform_layers

        conform_layers(module, graph)
    if is_graph_module(module):
        from elastic_ir.emit.module.from_torch import order

        order(module, graph)
    from elastic_ir.emit.module.check import check_names

    _assign(module, graph, masked, own, values)
    refresh(module)
    check_names(module, graph)
    return module


def _assign(module: nn.Module, graph: Graph, masked: bool, own: bool, values: bool) -> None:
    """Give every parameter and buffer a tensor of its own, or a parameter the source's; tied names get the same one."""
    import torch
    from torch import nn

    done: dict[tuple[int, bool], torch.Tensor] = {}
    for path, part in module.named_modules(remove_duplicate=False):
        head = f"{path}." if path else ""
        for table in (part._parameters, part._buffers):
            for role, old in table.items():
                weight = graph.weights.get(head + role)
                if old is None or weight is None:
                    continue
                is_parameter = table is part._parameters
                key = (id(weight.storage), is_parameter)
                if key not in done:
                    if not values or isinstance(weight.storage.data, ShapeOnly):
                        tensor = torch.empty(weight.shape, dtype=old.dtype, device="meta")
                    else:
                        data = weight.storage.emitted(masked)
                        shared = not own and is_parameter and isinstance(data, TorchData)
                        tensor = data.tensor.detach() if shared else to_torch(data)  # type: ignore[attr-defined]
                        if old.device.type != "meta" and tensor.device != old.device:
                            tensor = tensor.to(old.device)
                    if is_parameter:
                        tensor = nn.Parameter(tensor, requires_grad=old.requires_grad)
                        tensor.__dict__.update(old.__dict__)
                    done[key] = tensor
                table[role] = done[key]
                if role in ("weight", "bias") and old.shape != weight.shape:
                    from elastic_ir.emit.module.sizes import state_sizes  # few plans change a size

                    state_sizes(part, weight.shape)
