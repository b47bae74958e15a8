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
    """Every persistent weight, evaluated, in the order of the native network's state dict."""
    from elastic_ir.tensors.torch_bridge import to_torch

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


def refuse_without_values(graph: Graph) -> None:
    """EmitError where a weight was read on the meta device."""
    for name, weight in graph.weights.items():
        if weight.persistent and isinstance(weight.storage.data, ShapeOnly):
            raise EmitError(
                f"{name!r} was read on the meta device and has no values; load the model with its weights"
            )
