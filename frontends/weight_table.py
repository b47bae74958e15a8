"""The weight table of a live module: lazy, in state-dict order, with its ties, prunable weights and pruning hooks."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from elastic_ir.tensors.lazy import ShapeOnly, TensorData
from elastic_ir.tensors.torch_bridge import TorchData, dtype_name
from elastic_ir.tensors.weights import Storage, Weight, is_prunable


def prunable_names(model: nn.Module) -> set[str]:
    """Names of the weights of convolutions and linear layers, fused attention's input projection included."""
    return {
        f"{path}.{role}" if path else role
        for path, module in model.named_modules(remove_duplicate=False)
        for role, parameter in module.named_parameters(recurse=False)
        if is_prunable(module, role, parameter)
    }


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
