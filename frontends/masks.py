"""Masks from files, from state dicts under ``torch.nn.utils.prune``, and from exact zeros.

Torch is imported only where a file or a value needs it: masks in ``.safetensors`` are read without.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from elastic_ir import formats
from elastic_ir.errors import MaskError, SourceError
from elastic_ir.formats import OWN, SAFETENSORS, TICKET
from elastic_ir.formats.packed_masks import named_masks, read_mask_tensors
from elastic_ir.tensors.arrays import nonzero
from elastic_ir.tensors.lazy import Mask, TensorData
from elastic_ir.tensors.weights import Weight

V = TypeVar("V")


def read_masks(path: str | os.PathLike[str], trust: tuple[str, ...] = ()) -> dict[str, Mask]:
    """A mask file, weight name to 0/1 tensor of any dtype: ``.safetensors``, ``.ticket``, ``.pt``, ``.npz``.

    Of a registered format of others, the masks in the file, or its tensors where it holds no masks. Names ending in
    ``_mask``, as pruned modules have them, stand for the weight; a module's name is understood when the masks are
    attached, and ``{module: {"weight": mask, "bias": mask}}`` is taken apart here. Raises SourceError for a file that
    cannot be read, MaskError for one that holds no masks or, naming the weight, values other than 0 and 1.
    """
    path = Path(path)
    found: Mapping[str, Any] | None
    if TICKET.names(path):
        from elastic_ir.formats.ticket import read_ticket

        found = packed = read_ticket(path).read_masks()
        if packed:
            return packed  # its names are meant as they stand
    elif SAFETENSORS.names(path):
        return read_mask_tensors(path)
    elif (form := formats.format_named(path)) is not None and form not in OWN:
        stored = formats.read(form, path, formats.ReadOptions(trust=trust))
        if not isinstance(stored, formats.Stored):
            raise MaskError(f"{path.name} holds a network and no masks of their own; load it as a source")
        found = stored.masks or stored.tensors
    elif path.suffix.lower() == ".npz":
        from elastic_ir.formats.npz import read_npz
        from elastic_ir.frontends.saved_state import unwrapped

        found = unwrapped(read_npz(path))
    elif path.suffix.lower() == ".npy":
        raise MaskError(
            f"{path.name} is a single array without a weight's name; save masks by name with numpy.savez(NAME, **masks)"
        )
    else:
        from elastic_ir.frontends.saved_state import by_module, masks_in, saved_in, state_dict_of

        content, _ = saved_in(path, trust)
        try:
            found = masks_in(content, path.name) or by_module(content)
            found = found or state_dict_of(content, path.name)
        except SourceError as error:
            raise MaskError(str(error)) from error
    return named_masks(found or {}, path.name)


def masks_from_state(state: Mapping[str, V]) -> tuple[dict[str, V], dict[str, Mask]]:
    """Take ``weight_orig`` and ``weight_mask`` pairs, as ``torch.nn.utils.prune`` makes them, out of a state dict.

    The weight stands where its ``_orig`` stood. Other names stay. Raises MaskError, naming the
    weight: values other than 0 and 1, another shape than the weight's, or a weight of that name beside the pair.
    """
    pairs = {
        name.removesuffix("_orig")
        for name in state
        if name.endswith("_orig") and f"{name.removesuffix('_orig')}_mask" in state
    }
    for name in sorted(pairs & state.keys()):
        raise MaskError(
            f"the state dict holds both {name!r} and {name + '_orig'!r}, so which is meant is unclear"
        )
    weights: dict[str, V] = {}
    masks: dict[str, Mask] = {}
    for name, value in state.items():
        if name.removesuffix("_orig") in pairs:
            weights[name.removesuffix("_orig")] = value
        elif name.removesuffix("_mask") in pairs:
            masks[name.removesuffix("_mask")] = Mask.of(value, name.removesuffix("_mask"))
        else:
            weights[name] = value
    for name, mask in masks.items():
        _check_shape(name, mask, tuple(weights[name].shape))  # type: ignore[attr-defined]
    return weights, masks


def masks_from_zeros(tensors: Mapping[str, TensorData]) -> dict[str, Mask]:
    """Masks that are 0 where a lazy tensor is exactly zero, of either sign; none for a tensor without a zero."""
    kept = {name: nonzero(data) for name, data in tensors.items()}
    return {name: Mask.from_array(array, name) for name, array in kept.items() if not array.all()}


def attach_masks(weights: Mapping[str, Weight], masks: Mapping[str, Any]) -> None:
    """Attach masks (of :meth:`Mask.of`) by weight name, or by that of the module whose weight it is, all or none.

    Raises MaskError that names the weight: unknown name, a module of several weights, two masks of one weight, a
    buffer, wrong shape, values other than 0 and 1.
    """
    packed: dict[str, Mask] = {}
    for given, mask in masks.items():
        name = _weight_of(given, weights)
        if name in packed:
            raise MaskError(f"there are two masks for {name!r}; one is under {given!r}")
        packed[name] = Mask.of(mask, name)
    for name, mask in packed.items():
        if name not in weights:
            role = name.rsplit(".", 1)[-1]
            near = ([other for other in weights if other.endswith(role)] or list(weights))[:3]
            raise MaskError(
                f"the mask {name!r} fits no weight of the network (it has, for example, {', '.join(near) or 'none'})"
            )
        if not weights[name].is_parameter:
            raise MaskError(f"{name!r} is a buffer; masks are for parameters")
        _check_shape(name, mask, weights[name].shape)
    for name, mask in packed.items():
        weights[name].storage.mask = mask


def _weight_of(name: str, weights: Mapping[str, Weight]) -> str:
    """The weight that a mask's name means: the weight itself, or the only prunable one of the module of that name.

    A module that multiplies by a buffer ``mask`` has it beside its weight, so ``NAME.mask`` stands for ``NAME``.
    """
    for module in dict.fromkeys((name, name.removesuffix(".mask"))):
        if module in weights:
            return module
        if f"{module}.weight" in weights:
            return f"{module}.weight"
        within = [
            other
            for other, weight in weights.items()
            if weight.prunable and other.rpartition(".")[0] == module
        ]
        if len(within) > 1:
            raise MaskError(
                f"the mask {name!r} is of a module with several weights ({', '.join(within[:3])}); name the weight"
            )
        if within:
            return within[0]
    return name


def _check_shape(name: str, mask: Mask, shape: tuple[int, ...]) -> None:
    if mask.shape != shape:
        raise MaskError(f"the mask of {name!r} has shape {list(mask.shape)}, its weight {list(shape)}")
