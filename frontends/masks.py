"""Masks from files, from ``torch.nn.utils.prune`` state dicts, and from exact zeros. Torch only where a file needs it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elastic_ir.errors import MaskError
from elastic_ir.tensors import ITEM_SIZES, Mask, TensorData
from elastic_ir.weights import Weight

if TYPE_CHECKING:
    import torch


def read_masks(path: Path) -> dict[str, Any]:
    """A mask file: ``.safetensors`` or ``.pt`` (open_lth's ``mask.pth`` too) with a 0/1 tensor for each weight name.

    Raises SourceError for an unreadable file, MaskError (naming the weight) for values other than 0 and 1.
    """
    if path.suffix.lower() == ".safetensors":
        from elastic_ir.frontends.safetensors_file import read_safetensors

        tensors, _ = read_safetensors(path)
        return {name: mask_of_data(data, name) for name, data in tensors.items()}
    from elastic_ir.frontends.torch_file import read_torch_file, state_dict_of

    state = state_dict_of(read_torch_file(path))
    if state is None:
        raise MaskError(f"{path.name} holds no masks: a mask file maps weight names to 0/1 tensors")
    found = {name.removesuffix("_mask") if name.endswith("_mask") else name: t for name, t in state.items()}
    return dict(found)


def mask_of_data(data: TensorData, name: str) -> Mask:
    """A lazy 0/1 tensor as a packed mask; MaskError where it holds anything else."""
    import numpy as np

    raw = b"".join(bytes(chunk) for chunk in data.chunks())
    if data.dtype == "bfloat16":
        array = (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
    elif data.dtype.startswith("float8"):
        raise MaskError(f"the mask of {name!r} is of dtype {data.dtype}; give it as bool or uint8")
    else:
        array = np.frombuffer(raw, np.dtype(data.dtype))
    return Mask.from_array(array.reshape(data.shape), name, data.dtype)


def masks_from_state(
    state: Mapping[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Take ``weight_orig`` and ``weight_mask`` pairs out of a pruned module's state dict: weights and masks."""
    weights: dict[str, torch.Tensor] = {}
    masks: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        plain = name.removesuffix("_orig")
        if name.endswith("_orig") and f"{plain}_mask" in state:
            weights[plain] = tensor
        elif name.endswith("_mask") and f"{name.removesuffix('_mask')}_orig" in state:
            masks[name.removesuffix("_mask")] = tensor
        else:
            weights[name] = tensor
    return weights, masks


def masks_from_zeros(tensors: Mapping[str, TensorData], prunable: set[str]) -> dict[str, Mask]:
    """Masks that are 0 where a prunable weight is exactly zero (either sign); weights without a zero get none."""
    import numpy as np

    found = {}
    for name, data in tensors.items():
        if name not in prunable:
            continue
        raw = b"".join(bytes(chunk) for chunk in data.chunks())
        item = ITEM_SIZES[data.dtype]
        elements = np.frombuffer(raw, np.uint8).reshape(-1, item)
        magnitude = elements.copy()
        if data.dtype.startswith(("float", "bfloat")):
            magnitude[:, -1] &= 0x7F  # little-endian: the sign is the top bit of the last byte
        keep = magnitude.any(axis=1).reshape(data.shape)
        if not bool(keep.all()):
            found[name] = Mask.from_array(keep, name)
    return found


def attach_packed(weights: Mapping[str, Weight], masks: Mapping[str, Mask]) -> None:
    """Attach packed masks by name; MaskError names an unknown weight or a wrong shape."""
    for name, mask in masks.items():
        if name not in weights:
            near = [other for other in weights if other.endswith(name.rsplit(".", 1)[-1])][:3]
            raise MaskError(
                f"the mask {name!r} fits no weight of the network (it has, for example, {', '.join(near) or 'none'})"
            )
        weight = weights[name]
        if mask.shape != weight.shape:
            raise MaskError(f"the mask of {name!r} has shape {list(mask.shape)}, its weight {list(weight.shape)}")
        weight.storage.mask = mask
