"""What ``HuggingFaceStorageWriter`` of torch.distributed.checkpoint writes: safetensors files, also those of ranks.

Saved by each rank for itself (``save_distributed=True``) a folder has a file of each of them, with parts of tensors
whose places the header's metadata states (`torch/distributed/checkpoint/_hf_utils.py`); such files are no model, and
are put together here. Otherwise, and where torch has consolidated them, tensors are whole: those are ordinary folders,
though torch puts no configuration beside the weights. No torch here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from elastic_ir.errors import SourceError
from elastic_ir.formats import ReadOptions, Stored
from elastic_ir.formats.dcp.boxes import Boxed
from elastic_ir.formats.dcp.metadata import Box, Place, fills
from elastic_ir.formats.files import parse_json
from elastic_ir.formats.model_folder import is_checkpoint
from elastic_ir.formats.safetensors import read_safetensors
from elastic_ir.tensors.lazy import TensorData, nbytes

INFO = "DCP_SHARDING_INFO"  #: the entry of the metadata with the places of a file's parts
_OFFSETS = "saved_offsets"
_NAME = re.compile(r"shard-(?P<rank>\d{5,})-model-(?P<number>\d{5,})-of-(?P<count>\d{5,})\.safetensors")


def holds_shards(folder: Path) -> bool:
    """Whether a folder has files of ranks, and not what they were consolidated to as well."""
    return bool(_files(folder)) and not is_checkpoint(folder)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("shard-*.safetensors") if _NAME.fullmatch(path.name))


def read_shards(folder: Path, options: ReadOptions) -> Stored:
    """The tensors of a folder of ranks' files, put together of their parts.

    Raises SourceError as :func:`elastic_ir.formats.safetensors.read_safetensors` does, for a file without the places of
    its parts, and where parts do not fill their tensor, as when the files of a rank are missing.
    """
    parts: dict[str, list[_Part]] = {}
    absent = _absent(folder)
    for path in _files(folder):
        if not path.resolve().is_relative_to(folder.resolve()):
            raise SourceError(f"{path} is a symbolic link out of the folder; put the file itself there")
        tensors, metadata = read_safetensors(path)
        for name, offsets in _places(tensors, metadata, path).items():
            data = tensors[name]
            if len(offsets) != len(data.shape):
                raise SourceError(
                    f"{path} is damaged: {INFO} gives {name!r} a place of {len(offsets)} axes, and the tensor has "
                    f"{len(data.shape)}"
                )
            place = Place(path.name, data.offset, nbytes(data))
            parts.setdefault(name, []).append(_Part(Box(offsets, data.shape, place), data))
    return Stored({name: _whole(name, parts[name], folder, absent) for name in sorted(parts)})


def _absent(folder: Path) -> str:
    """The file of a rank that is missing between those that are there; nothing where none is.

    A rank without any part of a tensor has none, so that alone is nothing wrong. SourceError where all ranks lack a
    file that the names count, or count differently.
    """
    names = [match for path in _files(folder) if (match := _NAME.fullmatch(path.name))]
    counts = sorted({match["count"] for match in names})
    if len(counts) > 1:
        raise SourceError(
            f"{folder} has files of several saves: some are of {int(counts[0])} and some of {int(counts[-1])} for each "
            "rank"
        )
    held, ranks = ({int(match[part]) for match in names} for part in ("number", "rank"))
    lacking = _first_absent(held)
    if lacking <= int(counts[0]):
        raise SourceError(
            f"{folder} is not complete: no rank has its file {lacking} of {int(counts[0])} "
            f"(shard-{min(ranks):05}-model-{lacking:05}-of-{counts[0]}.safetensors); fetch all of it again"
        )
    rank = _first_absent(ranks)
    between = rank < max(ranks)
    return f"shard-{rank:05}-model-{min(held):05}-of-{counts[0]}.safetensors" if between else ""


def _first_absent(numbers: set[int]) -> int:
    """The first number from 1 on that is none of some."""
    return next(number for number in range(1, len(numbers) + 2) if number not in numbers)


def refuse_shard(path: Path, metadata: Mapping[str, str]) -> None:
    """SourceError for a file that holds parts of tensors, by its name or its metadata."""
    offsets = _stated(metadata[INFO], path).values() if INFO in metadata else ()
    if _NAME.fullmatch(path.name) or any(any(places) for places in offsets):
        raise SourceError(
            f"{path} holds one rank's parts of tensors; give the folder with the files of all ranks, {path.parent}"
        )


@dataclass(frozen=True)
class _Part:
    box: Box
    data: TensorData


def _whole(name: str, parts: list[_Part], folder: Path, absent: str) -> TensorData:
    first = parts[0].data
    for one in parts:
        if (len(one.data.shape), one.data.dtype) != (len(first.shape), first.dtype):
            raise SourceError(
                f"{folder}: the parts of {name!r} are not of one type; the files are of several saves"
            )
    shape = tuple(
        max(at + size for at, size in ends)
        for ends in zip(*(zip(one.box.offsets, one.box.sizes, strict=True) for one in parts), strict=True)
    )
    boxes = list(
        {one.box.offsets: one.box for one in reversed(parts)}.values()
    )  # what ranks have alike is one
    if not fills(shape, boxes):
        named = f" ({absent})" if absent else ""
        raise SourceError(
            f"{folder}: the parts of {name!r} do not fill its shape {list(shape)}, or overlap; the file of a rank is "
            f"missing{named}, or files of another save lie there too"
        )
    held: dict[Box, TensorData] = {one.box: one.data for one in parts}
    return first if len(boxes) == 1 else Boxed(shape, first.dtype, boxes, partial(_held, held))


def _held(held: Mapping[Box, TensorData], box: Box) -> TensorData:
    return held[box]


def _places(tensors: Iterable[str], metadata: Mapping[str, str], path: Path) -> dict[str, tuple[int, ...]]:
    if INFO not in metadata:
        raise SourceError(
            f"{path} does not state where the parts of tensors in it lie ({INFO} in its metadata)"
        )
    stated = _stated(metadata[INFO], path)
    lacking = next((name for name in tensors if name not in stated), None)
    if lacking is not None:
        raise SourceError(f"{path} is damaged: {INFO} does not say where the part of {lacking!r} lies")
    return {name: stated[name] for name in tensors}


def _stated(text: str, path: Path) -> dict[str, tuple[int, ...]]:
    """The first element of each part, by the names of tensors."""
    try:
        found: Any = parse_json(text)
        places = {str(name): tuple(entry[_OFFSETS]) for name, entry in found.items()}
        if all(type(at) is int and at >= 0 for offsets in places.values() for at in offsets):
            return places
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    raise SourceError(f"{path} is damaged: {INFO} in its metadata does not list the places of parts")
