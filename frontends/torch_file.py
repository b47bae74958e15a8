"""Reading ``.pt`` and ``.pth`` files that hold more than plain data and tensors: without running what they say.

``torch.load`` maps the tensors and leaves the pickle to the unpickler of :mod:`elastic_ir.formats.pickles.module`,
which makes instances of an allow-list of classes and calls nothing.
"""

from __future__ import annotations

import os
import tarfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from elastic_ir.errors import SourceError, first_line
from elastic_ir.formats import PYTORCH
from elastic_ir.formats.files import opened
from elastic_ir.formats.pickles.module import restricted_pickle
from elastic_ir.formats.torch_zip import Place, check_content, places_of
from elastic_ir.tensors.lazy import ITEM_SIZES, TensorData
from elastic_ir.tensors.torch_bridge import TorchData, dtype_name, is_sparse


def read_torch_file(path: str | os.PathLike[str], trust: Sequence[str] = ()) -> Any:
    """What a file of ``torch.save`` holds: a state dict, another container, or a module. Tensors are mapped lazily.

    ``trust`` names packages whose classes may be rebuilt beside the known ones. Raises UntrustedError for a pickle
    that names or does anything else (nothing of it is run), SourceError for a missing, empty, truncated, damaged or
    garbage file, for another form (TorchScript, an exported program), for records that are compressed or encrypted,
    and for a class that cannot be imported here.
    """
    path = Path(path)
    records = _sniff(path)
    # what lies in a storage is not asked of it: torch would take the bytes behind a record for its own
    sizes = path.stat().st_size if records is None else {n: place.size for n, place in records.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's advice to users of torch.load
        try:
            return torch.load(
                os.fspath(path),
                map_location="cpu",
                weights_only=False,
                mmap=records is not None,
                pickle_module=restricted_pickle(trust, path.name, sizes),
            )
        except SourceError:
            raise
        except Exception as error:  # on damaged bytes torch raises nearly anything
            raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> SourceError:
    why = first_line(error).replace("unexpected EOF", "it ends too early")[:160]
    return SourceError(f"{path.name} is damaged, or not a PyTorch file ({why}); copy or download it again")


def _sniff(path: Path) -> dict[str, Place] | None:
    """The records of a zip (all files since torch 1.6), whole; None for an older pickle, SourceError for the rest."""
    with opened(path, PYTORCH.suffixes[0]) as file:
        head = file.read(64)
        if head.startswith(b"PK"):
            records = places_of(file, path.name)
            for name, place in records.items():
                check_content(file, place, name, path.name)
            return records
    if not head:
        raise SourceError(f"{path.name} is empty")
    if head.startswith(b"version https://git-lfs"):
        raise SourceError(
            f"{path.name} is only a pointer to a file in Git LFS; get the file itself with `git lfs pull`"
        )
    if head.startswith(b"\x80"):
        return None
    if head.strip(b"\0") and tarfile.is_tarfile(path):  # nothing but zeros is a tar archive too
        raise SourceError(
            f"{path.name} is a tar archive, not a file of torch.save (since 2017); load and save it anew"
        )
    raise SourceError(f"{path.name} is not a PyTorch file: it begins with {head[:8]!r}")


def checked_tensors(
    state: Mapping[str, torch.Tensor], where: str, *, sparse: bool = True
) -> dict[str, TensorData]:
    """The tensors as lazy ones, sparse ones as dense; what shares memory stays one where it is one object.

    Raises SourceError, which names the tensor: without values, of a dtype that is not known, nested, quantized, of
    another class, or, unless ``sparse`` are taken, of a sparse layout.
    """
    made: dict[str, TensorData] = {}
    seen: dict[int, TensorData] = {}
    for name, tensor in state.items():
        odd = _odd(tensor, sparse)
        if odd is not None:
            raise SourceError(f"{where}: {name!r} {odd} and save it again")
        if not is_sparse(tensor):
            made[name] = TorchData(tensor.resolve_conj().resolve_neg())
            continue
        if id(tensor) not in seen:
            from elastic_ir.tensors.sparse import data_of

            try:
                seen[id(tensor)] = data_of(tensor, name)
            except SourceError as error:
                raise SourceError(f"{where}: {error}") from error
        made[name] = seen[id(tensor)]
    return made


def _odd(tensor: torch.Tensor, sparse: bool) -> str | None:
    """Why a tensor cannot be read, and what to do about it."""
    if tensor.is_meta:
        return "was saved on the meta device and has no values; load the network with its weights"
    if tensor.is_nested:
        return "is a nested tensor; load it with torch, turn it into plain tensors"
    if tensor.layout != torch.strided and not (sparse and is_sparse(tensor)):
        form = str(tensor.layout).removeprefix("torch.")
        return f"is stored as {form}; load it with torch, make it dense (tensor.to_dense())"
    if tensor.is_quantized:
        return "is a quantized tensor; load it with torch, make it plain (tensor.dequantize())"
    if type(tensor) not in (torch.Tensor, nn.Parameter):
        return f"is a {type(tensor).__name__}; load it with torch, turn it into a plain tensor"
    if dtype_name(tensor.dtype) not in ITEM_SIZES:
        return f"has the dtype {dtype_name(tensor.dtype)}, which is not known here; load it with torch, convert it"
    return None
