"""The weight table of a live module: lazy, in state-dict order, with ties and prunable weights told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from elastic_ir.frontends.masks import attach_packed
from elastic_ir.tensors.lazy import Mask, ShapeOnly, TensorData
from elastic_ir.tensors.torch_bridge import TorchData, dtype_name, mask_from_torch
from elastic_ir.tensors.weights import Storage, Weight


def prunable_names(model: nn.Module) -> set[str]:
    """Names of the weights of convolutions and linear layers, fused attention's input projection included.

    Told by form, not by a list of classes: a ``weight`` of two to five dimensions that belongs neither to an
    embedding nor to a normalisation.
    """
    names = set()
    for path, module in model.named_modules(remove_duplicate=False):
        head = f"{path}." if path else ""
        for name, parameter in module.named_parameters(recurse=False):
            if not 2 <= parameter.ndim <= 5:
                continue
            lookup = hasattr(module, "num_embeddings") or hasattr(module, "normalized_shape")
            fused = isinstance(module, nn.MultiheadAttention) and name.endswith("_proj_weight")
            if fused or (name == "weight" and not lookup):
                names.add(head + name)
    return names


def weight_table(model: nn.Module) -> dict[str, Weight]:
    """All parameters and buffers of a module, those a state dict holds first and in its order."""
    kept = {k: v for k, v in model.state_dict(keep_vars=True).items() if isinstance(v, torch.Tensor)}
    transient = {
        name: buffer
        for name, buffer in model.named_buffers(remove_duplicate=False)
        if name not in kept and isinstance(buffer, torch.Tensor)
    }
    prunable = prunable_names(model)
    storages: dict[Any, Storage] = {}
    table: dict[str, Weight] = {}
    for name, tensor in (*kept.items(), *transient.items()):
        storage = storages.setdefault(_identity(tensor), Storage(_lazy(tensor)))
        is_parameter = isinstance(tensor, nn.Parameter)
        table[name] = Weight(name, storage, name, is_parameter, name in kept, name in prunable)
    return table


def _identity(tensor: torch.Tensor) -> Any:
    """What two names must share to be tied: the object, or the same view of the same memory."""
    if tensor.is_meta or tensor.numel() == 0 or type(tensor).__name__ == "FakeTensor":
        return id(tensor)
    return tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def _lazy(tensor: torch.Tensor) -> TensorData:
    return ShapeOnly(tuple(tensor.shape), dtype_name(tensor.dtype)) if tensor.is_meta else TorchData(tensor)


def attach_masks(weights: Mapping[str, Weight], masks: Mapping[str, Any]) -> None:
    """Attach 0/1 masks (tensors, arrays or :class:`Mask`) to weights by name.

    Raises MaskError that names the weight: unknown name, wrong shape, values other than 0 and 1.
    """
    packed = {}
    for name, given in masks.items():
        if isinstance(given, Mask):
            packed[name] = given
        elif isinstance(given, torch.Tensor):
            packed[name] = mask_from_torch(given, name)
        else:
            packed[name] = Mask.from_array(given, name)
    attach_packed(weights, packed)
