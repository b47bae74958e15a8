"""What was written of a damaged file, compared with what torch and safetensors themselves read of it."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import elastic_ir as eir

Tensors = dict[str, torch.Tensor]


def compare(folder: Path, source: str, output: str) -> str:
    """An empty text where every tensor written is the one that its lineage names; else what is wrong."""
    if (folder / source / ".metadata").exists():
        return _compare_entries(folder / source, folder / output)
    written, lineage, masks = _written(folder / output)
    try:
        held: Tensors | None = _read(folder / source)
        why = ""
    except Exception as error:
        held, why = None, f"{type(error).__name__}: {error}"
    if held is None and (folder / source).suffix != ".pt":
        return f"the library itself does not read the source ({why[:300]}), and {output} was written"
    raw = b"" if held is not None else _raw(folder / source)
    for name, tensor in written.items():
        origin = lineage.get(name)
        if origin is None:
            return f"{name!r} has no lineage"
        if held is None:
            if name not in masks and _bytes(tensor) not in raw:
                return f"{name!r} holds bytes that the source has not"
            continue
        if origin not in held:
            return f"{name!r} comes from {origin!r}, which the library does not find in the source"
        known = held[origin]
        if known.shape != tensor.shape or known.dtype != tensor.dtype:
            return (
                f"{name!r} is {tensor.dtype}{list(tensor.shape)}, its origin {known.dtype}{list(known.shape)}"
            )
        if name in masks:
            known = torch.where(masks[name], known, torch.zeros_like(known))
        if _bytes(known) != _bytes(tensor):
            return f"{name!r} is not what {origin!r} is in the source"
    return ""


def _compare_entries(source: Path, output: Path) -> str:
    """The same of a checkpoint of torch.distributed, of which more is carried than torch looks at."""
    try:
        held = _entries(source)
    except BaseException:  # which is what torch's own error is
        return ""
    if output.is_dir():
        record = json.loads((output / "elastic_ir.json").read_text())
        told: Any = record["history"][-1]["lineage"]
        written = _entries(output)
    else:
        written, told, _ = _written(output)
    held, written = ({n.removeprefix("model."): t for n, t in one.items()} for one in (held, written))
    for name, tensor in written.items():
        origin = told.get(name, name)
        known = held.get(origin)
        beside = name.startswith("optim.")  # follows, by other names than the lineage has
        if (
            not beside
            and known is not None
            and (known.shape, _bytes(known)) != (tensor.shape, _bytes(tensor))
        ):
            return f"{name!r} is not what {origin!r} is in the source"
    return ""


def _entries(path: Path) -> Tensors:
    """The tensors of a checkpoint as torch.distributed reads them."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    described = FileSystemReader(path).read_metadata().state_dict_metadata
    tensors: Any = {
        name: torch.empty(item.size, dtype=item.properties.dtype)
        for name, item in described.items()
        if isinstance(item, TensorStorageMetadata)
    }
    load(tensors, storage_reader=FileSystemReader(path), no_dist=True)
    return dict(tensors)


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _raw(path: Path) -> bytes:
    """All bytes of a file, those of a zip's records after they are taken out of it."""
    raw = path.read_bytes()
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            raw += b"".join(archive.read(info) for info in archive.infolist())
    return raw


def _written(path: Path) -> tuple[Tensors, dict[str, str], Tensors]:
    """The tensors of an output, their lineage and their masks."""
    if path.is_dir():
        tensors = _read(path)
        record = json.loads((path / "elastic_ir.json").read_text())
        told: Any = record["history"][-1]["lineage"]  # what moved, and what was multiplied
        scaled = {name for name, origin in told.items() if not isinstance(origin, str)}
        return {n: t for n, t in tensors.items() if n not in scaled}, {n: told.get(n, n) for n in tensors}, {}
    if path.suffix == ".gguf":
        tensors, record = _gguf(path)
        told = json.loads(record)["history"][-1]["lineage"]
        return tensors, {name: told.get(name, name) for name in tensors}, {}
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            data = json.loads(file.metadata()["elastic_ir.graph"])
        beside = path.with_name(f"{path.stem}.masks.safetensors")
        masks = {n: t.bool() for n, t in load_file(beside).items()} if beside.exists() else {}
        return load_file(path), data["metadata"]["lineage"], masks
    if path.suffix == ".ticket":
        graph = eir.load(path)
        return graph.state_dict(), _lineage(path), {n: m.bool() for n, m in graph.masks().items()}
    with zipfile.ZipFile(path) as archive:
        names = {name.partition("/")[2]: name for name in archive.namelist()}
        data = json.loads(archive.read(names["elastic_ir/graph.json"]))
        index = (
            json.loads(archive.read(names["elastic_ir/masks.json"]))
            if "elastic_ir/masks.json" in names
            else {}
        )
        bits = archive.read(names["elastic_ir/masks.bin"]) if index else b""
    masks = {name: _mask(bits[item["offset"] :], item["shape"]) for name, item in index.items()}
    return torch.load(path, weights_only=True), data["metadata"]["lineage"], masks


def _lineage(path: Path) -> dict[str, str]:
    import base64
    import zlib

    with safe_open(path, "pt") as file:
        text = zlib.decompress(base64.b64decode(file.metadata()["elastic_ir.graph.zlib"]))
    found: dict[str, str] = json.loads(text)["metadata"]["lineage"]
    return found


def _mask(bits: bytes, shape: list[int]) -> torch.Tensor:
    count = int(np.prod(shape))
    return torch.from_numpy(np.unpackbits(np.frombuffer(bits, np.uint8), count=count)).bool().reshape(shape)


def _read(path: Path) -> Tensors:
    """A source as torch and safetensors read it."""
    if path.is_dir():
        index = path / "model.safetensors.index.json"
        if (path / "model.safetensors").exists():
            return load_file(path / "model.safetensors")
        if index.exists():
            files = set(json.loads(index.read_text())["weight_map"].values())
            return {name: value for file in files for name, value in load_file(path / file).items()}
        return dict(torch.load(path / "pytorch_model.bin", weights_only=True))
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".gguf":
        return _gguf(path)[0]
    if path.suffix == ".ticket":
        return _ticket(path)
    found = torch.load(path, weights_only=True)
    while isinstance(found, Mapping) and not all(isinstance(value, torch.Tensor) for value in found.values()):
        inner = [value for value in found.values() if isinstance(value, Mapping)]
        if len(inner) != 1:
            break
        found = inner[0]
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}


def _gguf(path: Path) -> tuple[Tensors, str]:
    """The tensors of a file as bytes, and its record, as the ``gguf`` package reads them."""
    import gguf

    reader = gguf.GGUFReader(path)
    record = reader.fields.get("elastic_ir.record")
    tensors = {
        one.name: torch.frombuffer(bytearray(one.data.tobytes()), dtype=torch.uint8) for one in reader.tensors
    }
    return tensors, str(record.contents()) if record is not None else ""


def _ticket(path: Path) -> Tensors:
    stored = load_file(path)
    with safe_open(path, "pt") as file:
        masked = json.loads(file.metadata()["elastic_ir.ticket"])["masked"]
    tensors = {name: value for name, value in stored.items() if not name.endswith((":mask", ":kept"))}
    for name, entry in masked.items():
        if name not in tensors:
            kept, mask = stored[f"{name}:kept"], _mask(bytes(stored[f"{name}:mask"].numpy()), entry["shape"])
            tensors[name] = torch.zeros(entry["shape"], dtype=kept.dtype).masked_scatter_(mask, kept)
    return tensors
