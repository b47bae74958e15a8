"""Emission: a graph becomes a trainable module, a state dict, masks, or a file.

State dicts and masks are torch tensors of their own storage; tied names share one tensor. Torch is imported when
tensors are made, and what makes the rest when it is first asked for: writing a checkpoint must not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from elastic_ir.errors import EmitError
from elastic_ir.ir.graph import Graph
from elastic_ir.lazy_names import lazy_names
from elastic_ir.tensors.lazy import ShapeOnly

if TYPE_CHECKING:
    import torch

_HOMES = {"remap_optimizer_state": "optimizer", "save": "files", "to_module": "module"}

__all__ = ["masks", "remap_optimizer_state", "save", "state_dict", "to_module"]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)


def state_dict(graph: Graph, masked: bool = True) -> dict[str, torch.Tensor]:
    """Every persistent weight, evaluated, in the order of the native network's state dict.

    Raises EmitError where that has more than tensors (:func:`refuse_extra_state`).
    """
    from elastic_ir.tensors.torch_bridge import to_torch

    refuse_extra_state(graph)
    done: dict[int, torch.Tensor] = {}
    state: dict[str, torch.Tensor] = {}
    for name, weight in graph.weights.items():
        if weight.persistent:
            key = id(weight.storage)
            if key not in done:
                done[key] = to_torch(weight.storage.emitted(masked))
            state[name] = done[key]
    return state


def masks(graph: Graph) -> dict[str, torch.Tensor]:
    """The masks by weight name, 0 and 1 in the dtype their owner gave them."""
    from elastic_ir.tensors.torch_bridge import mask_to_torch

    return {
        name: mask_to_torch(weight.mask)
        for name, weight in graph.weights.items()
        if weight.mask is not None and weight.persistent
    }


def refuse_as_tensors(graph: Graph) -> None:
    """EmitError where a file of tensors cannot hold all of a graph: weights without values, or a state beside them."""
    refuse_without_values(graph)
    refuse_extra_state(graph)


def refuse_without_values(graph: Graph) -> None:
    """EmitError where a weight was read on the meta device."""
    for name, weight in graph.weights.items():
        if weight.persistent and isinstance(weight.storage.data, ShapeOnly):
            raise EmitError(
                f"{name!r} was read on the meta device and has no values; load the model with its weights"
            )


def refuse_extra_state(graph: Graph) -> None:
    """EmitError where a module keeps a state beside its tensors (``get_extra_state``), which its state dict has too.

    A module that is emitted has it; what holds tensors alone would not load strictly.
    """
    # what our own file states was written without such a state, and is not built for this
    if graph.origin.stated is not None or graph.origin.module is None:
        return
    from torch import nn

    for path, part in graph.origin.module.named_modules():
        if type(part).get_extra_state is not nn.Module.get_extra_state:
            name = f"{path}._extra_state" if path else "_extra_state"
            raise EmitError(
                f"the state dict has {name!r}, which {type(part).__name__} makes by get_extra_state and is no "
                "tensor of the network; take to_module() and its own state_dict()"
            )
