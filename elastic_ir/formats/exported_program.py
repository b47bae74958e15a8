"""Files of ``torch.export.save`` (``.pt2``): a zip with the program as JSON and each tensor's bytes; only read.

``torch.export.load`` evaluates expressions that stand in the file, so it is not used: the JSON and the bytes are read
as what they are. No torch here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from elastic_ir.errors import SourceError
from elastic_ir.formats import EXPORTED
from elastic_ir.formats.files import opened, parse_json, stamp_of
from elastic_ir.formats.ranges import FileTensor
from elastic_ir.formats.torch_zip import Place, content, places_of
from elastic_ir.safety.limits import JSON_BYTES, RECORD_BYTES
from elastic_ir.tensors.lazy import ITEM_SIZES, TensorData

#: torch's numbers of dtypes in these files.
DTYPES = {
    1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64",
    9: "complex32", 10: "complex64", 11: "complex128", 12: "bool", 13: "bfloat16", 28: "uint16",
    29: "float8_e4m3fn", 30: "float8_e5m2", 31: "float8_e4m3fnuz", 32: "float8_e5m2fnuz", 33: "float8_e8m0fnu",
    34: "uint32", 35: "uint64",
}  # fmt: skip
#: What reading damaged JSON may raise.
DAMAGE = (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError)
_MODEL = "models/model.json"
_TABLES = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")


@dataclass(frozen=True)
class ExportedTensor:
    """A tensor of the file; names with one ``place`` are tied."""

    data: TensorData
    is_parameter: bool
    place: str


@dataclass(frozen=True)
class ExportedFile:
    """What a file holds: the program, its tensors by name in the order of the state dict, a pickle of its inputs."""

    program: Mapping[str, Any]
    tensors: Mapping[str, ExportedTensor]
    inputs: bytes | None


@dataclass(frozen=True)
class StridedData:
    """A tensor whose elements do not stand in the file in their order; read whole when it is asked for."""

    stored: FileTensor
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def dtype(self) -> str:
        return self.stored.dtype

    def chunks(self) -> Iterator[memoryview]:
        import numpy as np

        size = ITEM_SIZES[self.dtype]
        flat = np.frombuffer(b"".join(self.stored.chunks()), dtype=f"V{size}")
        steps = [stride * size for stride in self.strides]
        ordered = np.lib.stride_tricks.as_strided(flat, self.shape, steps)
        yield memoryview(ordered.tobytes())


def read_exported(path: Path) -> ExportedFile:
    """Read an exported program. Raises SourceError, one line, for a damaged file and for forms that are not read."""
    where = path.name
    with opened(path, EXPORTED.suffixes[0]) as file:
        if not file.read(2) == b"PK":
            raise SourceError(f"{where} is not an exported program: it is no zip file")
        places = places_of(file, where, exported=True)
        stamp = stamp_of(os.fstat(file.fileno()))
        if _MODEL not in places:
            raise SourceError(
                f"{where} is an exported program in another form than torch 2.9 and later write; load it with "
                "torch.export.load and save it again with torch.export.save"
            )
        program = _json(file, places, _MODEL, where)
        tensors: dict[str, ExportedTensor] = {}
        for table in _TABLES:
            if table in places:
                folder = table.rpartition("/")[0]
                try:
                    for name, entry in _json(file, places, table, where)["config"].items():
                        place = f"{folder}/{entry['path_name']}"
                        tensors[name] = _tensor(path, places, place, name, entry, stamp)
                except DAMAGE as error:
                    raise SourceError(f"{where} is damaged in its list of tensors ({error})") from error
        sample = "data/sample_inputs/model.pt"
        inputs = content(file, places[sample], sample, where) if sample in places else None
    if not isinstance(program, dict):
        raise SourceError(f"{where} is damaged: its program is no table")
    return ExportedFile(program, tensors, inputs)


def _json(file: BinaryIO, places: Mapping[str, Place], name: str, where: str) -> Any:
    if places[name].size > min(JSON_BYTES, RECORD_BYTES):
        raise SourceError(f"{where} has a record {name!r} of {places[name].size} bytes, which is too large")
    try:
        return parse_json(content(file, places[name], name, where))
    except ValueError as error:
        raise SourceError(f"{where} is damaged: its record {name!r} is no JSON ({error})") from error


def _tensor(
    path: Path,
    places: Mapping[str, Place],
    record: str,
    name: str,
    entry: Mapping[str, Any],
    stamp: tuple[int, int, int],
) -> ExportedTensor:
    """A tensor by its entry in a table; raises what :data:`DAMAGE` lists, and SourceError."""
    meta = entry["tensor_meta"]
    shape, strides = (tuple(int(one["as_int"]) for one in meta[key]) for key in ("sizes", "strides"))
    dtype, begin = DTYPES[meta["dtype"]], int(meta["storage_offset"]["as_int"])
    if entry["use_pickle"] or dtype not in ITEM_SIZES or record not in places:
        raise SourceError(f"{path.name}: the tensor {name!r} is stored in a form that is not read")
    size = ITEM_SIZES[dtype]
    reach = sum((extent - 1) * stride for extent, stride in zip(shape, strides, strict=True)) + 1
    count = reach if prod(shape) else 0
    if min((*shape, *strides, begin), default=0) < 0 or (begin + count) * size > places[record].size:
        raise SourceError(f"{path.name} is damaged: the tensor {name!r} is larger than its record")
    offset = places[record].offset + begin * size
    ordered = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
    in_order = all(a == b or extent == 1 for a, b, extent in zip(strides, ordered, shape, strict=True))
    data: TensorData = FileTensor(path, offset, shape, dtype, stamp)
    if not in_order and count:
        data = StridedData(FileTensor(path, offset, (count,), dtype, stamp), shape, strides)
    return ExportedTensor(data, bool(entry["is_param"]), f"{record}:{begin}:{shape}:{strides}")
