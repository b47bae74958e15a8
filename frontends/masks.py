"""Masks from files, from state dicts under ``torch.nn.utils.prune``, and from exact zeros.

Torch is imported only where a file or a value needs it: masks in ``.safetensors`` are read without.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from elastic_ir.errors import MaskError, SourceError
from elastic_ir.formats.json_file import parse_json
from elastic_ir.formats.packed_masks import INDEX, SUFFIX, VERSION, StoredMask, mask_entry, packed_size
from elastic_ir.formats.ticket_format import EXTENSION
from elastic_ir.tensors.lazy import Mask, TensorData
from elastic_ir.tensors.weights import Weight
from elastic_ir.tensors.zeros import magnitudes, nonzero

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

V = TypeVar("V")

#: The byte that is 1.0 in each eight-bit float; numpy knows none of them.
_ONE_OF_FLOAT8 = {
    "float8_e4m3fn": 0x38,
    "float8_e5m2": 0x3C,
    "float8_e4m3fnuz": 0x40,
    "float8_e5m2fnuz": 0x40,
}


def read_masks(path: str | os.PathLike[str], trust: tuple[str, ...] = ()) -> dict[str, Mask]:
    """A mask file, weight name to 0/1 tensor of any dtype: ``.safetensors``, ``.ticket``, ``.pt``, ``mask.pth``.

    Names ending in ``_mask``, as pruned modules have them, stand for the weight. Raises SourceError for a file that
    cannot be read, MaskError for one that holds no masks or, naming the weight, values other than 0 and 1.
    """
    path = Path(path)
    found: Mapping[str, Any] | None
    if path.suffix.lower() == EXTENSION:
        from elastic_ir.formats.ticket import read_ticket

        found = packed = read_ticket(path).read_masks()
        if packed:
            return packed  # its names are meant as they stand
    elif path.suffix.lower() == ".safetensors":
        from elastic_ir.formats.safetensors import read_safetensors

        found, metadata = read_safetensors(path)
        if INDEX in metadata:
            return _packed(path, found, metadata[INDEX])
    else:
        from elastic_ir.frontends.state_dicts import masks_in, state_dict_of
        from elastic_ir.frontends.torch_file import read_torch_file

        content = read_torch_file(path, trust)
        try:
            found = masks_in(content, path.name) or state_dict_of(content, path.name)
        except SourceError as error:
            raise MaskError(str(error)) from error
    if not found:
        raise MaskError(
            f"{path.name} holds no masks; a mask file maps names of weights to tensors of zeros and ones"
        )
    masks: dict[str, Mask] = {}
    for name, value in found.items():
        weight = name.removesuffix("_mask")
        if weight in masks:
            raise MaskError(f"{path.name} holds two masks for {weight!r}")
        masks[weight] = as_mask(value, weight)
    return masks


def _packed(path: Path, stored: Mapping[str, TensorData], index: str) -> dict[str, Mask]:
    """The masks of a packed file, unread; SourceError where its index and its tensors do not fit."""
    try:
        data = parse_json(index)
        if type(data["version"]) is not int or not isinstance(data["masks"], dict):
            raise ValueError("no version, or no table of masks")
        entries: dict[str, Any] = data["masks"]
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{path} is damaged: its index of masks cannot be read ({error})") from error
    if data["version"] > VERSION:
        raise SourceError(
            f"{path} has version {data['version']} of packed masks; this ElasticIR reads version {VERSION}"
        )
    masks: dict[str, Mask] = {}
    for name, entry in entries.items():
        try:
            shape, dtype = mask_entry(entry)
        except ValueError as error:
            raise SourceError(f"{path} is damaged: the index entry of {name!r} has {error}") from error
        bits = stored.get(name + SUFFIX)
        if bits is None or bits.dtype != "uint8" or bits.shape != (packed_size(prod(shape)),):
            raise SourceError(
                f"{path} is damaged: the mask of {name!r} is missing, or not of {prod(shape)} bits"
            )
        masks[name] = StoredMask(name, bits, tuple(shape), dtype)
    unknown = [name for name in stored if name.removesuffix(SUFFIX) not in entries]
    if unknown:
        raise SourceError(
            f"{path} is damaged: it holds {unknown[0]!r}, which its index of masks does not name"
        )
    return masks


def masks_of_records(records: Mapping[str, bytes], path: Path) -> dict[str, Mask]:
    """The masks in the records of a ``.pt``; SourceError, which names the weight, where bits and index do not fit."""
    index, packed = "elastic_ir/masks.json", "elastic_ir/masks.bin"
    if index not in records and packed not in records:
        return {}
    where = f"{path.name} is damaged in the records that ElasticIR wrote: "
    try:
        bits, entries = records[packed], parse_json(records[index])
    except KeyError as error:
        raise SourceError(f"{where}{error.args[0]!r} is missing") from error
    except ValueError as error:
        raise SourceError(f"{where}the index of masks cannot be read ({error})") from error
    if not isinstance(entries, dict):
        raise SourceError(f"{where}the index of masks is no table")
    masks: dict[str, Mask] = {}
    end = 0
    for name, item in entries.items():
        told = item if isinstance(item, dict) else {}
        try:
            shape, dtype = mask_entry({"shape": told.get("shape"), "mask": told.get("dtype")})
        except ValueError as error:
            raise SourceError(f"{where}the entry of the mask {name!r} has {error}") from error
        begin, size = end, prod(shape)
        end += packed_size(size)
        if told.get("offset") != begin or end > len(bits):
            raise SourceError(f"{where}the bits of the mask {name!r} are not where its entry says")
        if size % 8 and bits[end - 1] & (0xFF >> size % 8):
            raise SourceError(f"{where}the mask of {name!r} has ones behind its end")
        masks[name] = Mask(tuple(shape), bits[begin:end], dtype)
    if end != len(bits):
        raise SourceError(f"{where}{len(bits) - end} bytes of masks belong to no weight")
    return masks


def as_mask(value: Any, name: str) -> Mask:
    """A mask from a lazy tensor, an array or a torch tensor; MaskError names ``name`` for other values than 0 and 1."""
    if isinstance(value, Mask):
        return value
    if isinstance(value, TensorData):
        return mask_of_data(value, name)
    if hasattr(value, "detach"):
        from elastic_ir.tensors.torch_bridge import mask_from_torch

        return mask_from_torch(value, name)
    return Mask.from_array(value, name)


def mask_of_data(data: TensorData, name: str) -> Mask:
    """A lazy 0/1 tensor as a packed mask; MaskError where it holds anything else."""
    import numpy as np

    raw = _bytes(data)
    if data.dtype == "bfloat16":
        array: NDArray[Any] = (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    elif data.dtype in _ONE_OF_FLOAT8:
        array = np.full(raw.shape, 2, np.uint8)
        array[raw == _ONE_OF_FLOAT8[data.dtype]] = 1
        array[magnitudes(raw, data.dtype) == 0] = 0
        if bool((array == 2).any()):
            raise MaskError(f"the mask of {name!r} holds other values than 0 and 1")
    elif data.dtype.startswith("float8"):
        raise MaskError(
            f"the mask of {name!r} has the dtype {data.dtype}, which has no zero; give it as bool"
        )
    else:
        array = raw.view(np.dtype(data.dtype).newbyteorder("<"))
    return Mask.from_array(array.reshape(data.shape), name, data.dtype)


def masks_from_state(state: Mapping[str, V]) -> tuple[dict[str, V], dict[str, Mask]]:
    """Take ``weight_orig`` and ``weight_mask`` pairs, as ``torch.nn.utils.prune`` makes them, out of a state dict.

    The weight stands where its ``_orig`` stood. Names that are no pair are left alone. Raises MaskError, naming the
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
            masks[name.removesuffix("_mask")] = as_mask(value, name.removesuffix("_mask"))
        else:
            weights[name] = value
    for name, mask in masks.items():
        _check_shape(name, mask, tuple(weights[name].shape))  # type: ignore[attr-defined]
    return weights, masks


def masks_from_zeros(tensors: Mapping[str, Any], prunable: Iterable[str]) -> dict[str, Mask]:
    """Masks that are 0 where a prunable weight (lazy tensor, array, torch tensor) is exactly zero, of either sign.

    A weight without a zero gets no mask. Raises MaskError for a name that is not among the tensors.
    """
    masks: dict[str, Mask] = {}
    for name in prunable:
        if name not in tensors:
            raise MaskError(f"there is no weight {name!r} to take a mask from")
        kept = _nonzero(tensors[name])
        if not bool(kept.all()):
            masks[name] = Mask.from_array(kept, name)
    return masks


def attach_packed(weights: Mapping[str, Weight], masks: Mapping[str, Mask]) -> None:
    """Attach packed masks by name; MaskError names an unknown weight or a wrong shape, and nothing is attached."""
    for name, mask in masks.items():
        if name not in weights:
            near = ([other for other in weights if other.endswith(name.rsplit(".", 1)[-1])] or list(weights))[
                :3
            ]
            raise MaskError(
                f"the mask {name!r} fits no weight of the network (it has, for example, {', '.join(near) or 'none'})"
            )
        if not weights[name].is_parameter:
            raise MaskError(f"{name!r} is a buffer; masks are for parameters")
        _check_shape(name, mask, weights[name].shape)
    for name, mask in masks.items():
        weights[name].storage.mask = mask


def _check_shape(name: str, mask: Mask, shape: tuple[int, ...]) -> None:
    if mask.shape != shape:
        raise MaskError(f"the mask of {name!r} has shape {list(mask.shape)}, its weight {list(shape)}")


def _nonzero(value: Any) -> NDArray[np.bool_]:
    import numpy as np

    if hasattr(value, "detach"):
        from elastic_ir.tensors.torch_bridge import TorchData

        value = TorchData(value)
    if not isinstance(value, TensorData):
        return np.asarray(value != 0)
    return nonzero(value)


def _bytes(data: TensorData) -> NDArray[np.uint8]:
    import numpy as np

    return np.frombuffer(b"".join(data.chunks()), np.uint8)
