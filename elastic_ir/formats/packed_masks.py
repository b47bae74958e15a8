"""Packed mask files: one bit for each weight, one mask in memory at a time, written, and read where they lie. No torch.

A packed mask file is a ``.safetensors`` file: of each mask the bits as ``NAME:mask``, as ``.ticket`` files have them,
and in the metadata an index of shapes. Files of plain zeros and ones under the weights' names are masks, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from elastic_ir.errors import MaskError, SourceError
from elastic_ir.formats.files import parse_json
from elastic_ir.formats.safetensors import read_safetensors
from elastic_ir.tensors.lazy import ITEM_SIZES, Mask, TensorData

#: The version that is written, and the newest that is read.
VERSION = 1

#: Metadata: the index as JSON, ``{"version": 1, "masks": {NAME: {"shape": [...], "mask": DTYPE}}}``.
INDEX = "elastic_ir.masks"

#: What is put behind a weight's name for the bits of its mask.
SUFFIX = ":mask"


def packed_size(size: int) -> int:
    """Bytes of a mask of so many weights: a bit for each, the last byte filled up."""
    return -(-size // 8)


def parse_index(text: str, table: str, form: str, path: Path) -> dict[str, Any]:
    """The named table of an index, ``{"version": 1, TABLE: {NAME: ...}}``, which stands in the metadata of a file.

    Raises SourceError where the index is damaged, or of a newer version of the format, which ``form`` names.
    """
    try:
        data = parse_json(text)
        version = data["version"]
        if type(version) is int and version > VERSION:
            raise SourceError(
                f"{path} has version {version} of {form}; this ElasticIR reads version {VERSION}"
            )
        if type(version) is not int or version < 1 or not isinstance(data[table], dict):
            raise ValueError("no version, or no table of masks")
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{path} is damaged: its index cannot be read ({error})") from error
    entries: dict[str, Any] = data[table]
    return entries


def mask_entry(entry: Any) -> tuple[list[int], str]:
    """Shape and dtype that an index gives a mask; ValueError for an entry that has none."""
    shape, dtype = (entry.get("shape"), entry.get("mask")) if isinstance(entry, dict) else (None, None)
    if (
        not isinstance(shape, list)
        or not all(type(extent) is int and extent >= 0 for extent in shape)
        or not isinstance(dtype, str)
        or dtype not in ITEM_SIZES
    ):
        raise ValueError("no shape, or no dtype of a mask")
    return shape, dtype


class StoredMask(Mask):
    """A mask whose bits stay in their file: each use reads them, and none keeps them."""

    def __init__(
        self, name: str, stored: TensorData, shape: tuple[int, ...], dtype: str, kept: int | None = None
    ) -> None:
        # a mask is frozen, and its bits are not here
        vars(self).update(name=name, stored=stored, shape=shape, dtype=dtype, kept=kept)

    name: str
    stored: TensorData  #: packed bits, most significant bit first
    kept: int | None  #: the number of ones, where the file states it by what it holds for them

    @property
    def bits(self) -> bytes:
        """The bits, read anew; SourceError where the file was changed, or its ones are not those that it states."""
        bits = b"".join(self.stored.chunks())
        where = f"{getattr(self.stored, 'path', 'the file')} is damaged: the mask of {self.name!r}"
        if _runs_over(bits, self.size):
            raise SourceError(f"{where} has ones behind its end")
        ones = int.from_bytes(bits, "big").bit_count()
        if self.kept not in (None, ones):
            raise SourceError(f"{where} keeps {ones} values, the file holds {self.kept}")
        return bits

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mask):
            return NotImplemented
        return (self.shape, self.dtype) == (other.shape, other.dtype) and self.bits == other.bits

    def __hash__(self) -> int:
        return hash((self.shape, self.dtype))


def _runs_over(bits: bytes, size: int) -> bool:
    """Whether packed bits have ones behind the last of so many."""
    return bool(size % 8 and bits[-1] & (0xFF >> size % 8))


@dataclass(frozen=True)
class MaskBits:
    """A mask's bits as a tensor of bytes, read when they are written."""

    mask: Mask
    dtype: str = "uint8"

    @property
    def shape(self) -> tuple[int, ...]:
        return (packed_size(self.mask.size),)

    def chunks(self) -> Iterator[memoryview]:
        yield memoryview(self.mask.bits)


def packed_masks(masks: Mapping[str, Mask]) -> tuple[dict[str, TensorData], dict[str, str]]:
    """The tensors and the metadata of a mask file, for the writer of ``.safetensors``."""
    index = {name: {"shape": list(mask.shape), "mask": mask.dtype} for name, mask in masks.items()}
    metadata = {
        "format": "pt",
        INDEX: json.dumps({"version": VERSION, "masks": index}, separators=(",", ":")),
    }
    return {name + SUFFIX: MaskBits(mask) for name, mask in masks.items()}, metadata


def read_packed(path: Path, stored: Mapping[str, TensorData], index: str) -> dict[str, Mask]:
    """The masks of a packed file, unread; SourceError where its index and its tensors do not fit."""
    entries = parse_index(index, "masks", "packed masks", path)
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
        raise SourceError(f"{where}the index of masks is not a table")
    masks: dict[str, Mask] = {}
    end = 0
    for name, item in entries.items():
        entry = item if isinstance(item, dict) else {}
        try:
            shape, dtype = mask_entry({"shape": entry.get("shape"), "mask": entry.get("dtype")})
        except ValueError as error:
            raise SourceError(f"{where}the entry of the mask {name!r} has {error}") from error
        begin, size = end, prod(shape)
        end += packed_size(size)
        if entry.get("offset") != begin or end > len(bits):
            raise SourceError(f"{where}the bits of the mask {name!r} are not where its entry says")
        if _runs_over(bits[begin:end], size):
            raise SourceError(f"{where}the mask of {name!r} has ones behind its end")
        masks[name] = Mask(tuple(shape), bits[begin:end], dtype)
    if end != len(bits):
        raise SourceError(f"{where}{len(bits) - end} bytes of masks belong to no weight")
    return masks


def read_mask_tensors(path: Path) -> dict[str, Mask]:
    """The masks of a ``.safetensors`` file, packed ones or tensors of zeros and ones under the weights' names.

    Raises SourceError for a damaged file, MaskError for one without masks or with other values.
    """
    stored, metadata = read_safetensors(path)
    return read_packed(path, stored, metadata[INDEX]) if INDEX in metadata else named_masks(stored, path.name)


def named_masks(found: Mapping[str, Any], where: str) -> dict[str, Mask]:
    """Masks from zeros and ones under the weights' names, or those with ``_mask`` behind, as pruned modules have them.

    Raises MaskError for none at all, two of one weight, or other values than 0 and 1.
    """
    if not found:
        raise MaskError(
            f"{where} holds no masks; a mask file maps names of weights to tensors of zeros and ones"
        )
    masks: dict[str, Mask] = {}
    for name, value in found.items():
        weight = name.removesuffix("_mask")
        if weight in masks:
            raise MaskError(f"{where} holds two masks for {weight!r}")
        masks[weight] = Mask.of(value, weight)
    return masks
