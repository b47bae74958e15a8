"""Modules under ``torch.nn.utils.prune``: ``weight_orig`` and ``weight_mask`` become a weight and its mask."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


def absorb_pruning(model: nn.Module) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A module without pruning hooks, and the masks that they held, by weight name.

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
