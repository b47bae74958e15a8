"""The weight table of a live module: lazy, in state-dict order, with its ties, prunable weights and pruning hooks."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

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
    if not masks:
        return
    from elastic_ir.frontends.masks import attach_packed  # and with it the formats of masks

    packed = {}
    for name, given in masks.items():
        if isinstance(given, Mask):
            packed[name] = given
        elif isinstance(given, torch.Tensor):
            packed[name] = mask_from_torch(given, name)
        else:
            packed[name] = Mask.from_array(given, name)
    attach_packed(weights, packed)


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
    twin = copy.deepcopy(model, memo)
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
