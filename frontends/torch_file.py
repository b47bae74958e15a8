"""Reading ``.pt`` and ``.pth`` files: without running what they say, and which of what they hold is meant.

``torch.load`` maps the tensors and leaves the pickle to the unpickler of :mod:`elastic_ir.formats.pickles.module`,
which makes instances of an allow-list of classes and calls nothing.

Checkpoints nest a state dict in dictionaries, next to an optimizer's, an average's, another network's, and masks beside
it. Where more than one could be meant none is chosen: the error lists them, and a key says which.
"""

from __future__ import annotations

import os
import tarfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from elastic_ir.errors import MaskError, SourceError, first_line
from elastic_ir.formats import PYTORCH
from elastic_ir.formats.files import opened
from elastic_ir.formats.pickles.module import restricted_pickle
from elastic_ir.formats.torch_zip import Place, check_content, content, places_of
from elastic_ir.safety.limits import STATE_LEVELS, open_plain
from elastic_ir.tensors.lazy import ITEM_SIZES
from elastic_ir.tensors.torch_bridge import dtype_name

#: What wrappers (DataParallel and its kin, torch.compile) put before every name.
WRAPPER_PREFIXES = ("module.", "_orig_mod.")
#: What only the state of a ``torch.optim`` optimizer has: its moments stand under numbers or under weights' names.
_OF_OPTIMIZER = "param_groups"
_SHOWN = 6

Keys = tuple[str, ...]  #: the keys of dictionaries within dictionaries


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


def read_zip_records(path: str | os.PathLike[str], folder: str = "elastic_ir/") -> dict[str, bytes]:
    """The extra records under a folder of a ``.pt``'s zip, name (with the folder) to bytes; empty for other files.

    Raises SourceError where a record is damaged or compressed.
    """
    name = Path(path).name
    try:
        with open_plain(Path(path)) as file:
            if file.read(2) != b"PK":
                return {}
            found = places_of(file, name)
            return {
                key: content(file, place, key, name) for key, place in found.items() if key.startswith(folder)
            }
    except OSError as error:
        raise SourceError(f"{name} is damaged in the records that ElasticIR wrote ({error})") from error


# -- the state dict that is meant --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chosen:
    """The tensors (or the network) that are meant, the masks beside them, and the keys of what else there is."""

    held: dict[str, torch.Tensor] | nn.Module
    masks: dict[str, Any]
    left: tuple[str, ...] = ()


def choose(found: object, where: str, key: str | None = None) -> Chosen | None:
    """The one state dict or network in what a file holds, found at any level; None if there is none.

    ``key`` names it: ``ema``, or with dots ``state.model``. Without, it is the only one that has a weight of two
    dimensions or more. Raises SourceError where several are left, or nothing is under the key.
    """
    inner: Any
    path, inner = _under(found, key, where) if key is not None else ((), found)
    tables = {(*path, *below): table for below, table in _tables(inner)}
    if key is not None and path not in tables and _is_table(inner):
        tables = {path: inner}  # named by the user, whatever its name
    if len(tables) > 1:
        tables = {at: table for at, table in tables.items() if _has_weights(table)} or tables
    if len(tables) > 1:
        first = ".".join(next(iter(tables)))
        raise SourceError(
            f"{where} holds several state dicts: {_listed(tables)}; say which one is meant, for example "
            f"by --key {first} (in Python key={first!r})"
        )
    if not tables:
        return None
    ((at, table),) = tables.items()
    masks = {
        other: mask for other, mask in _masks(found) if other[:-1] == at[: len(other) - 1] and other != at
    }
    given = _only(masks, where)
    left = tuple(_left(found, at, masks))
    held = table if isinstance(table, nn.Module) else _unwrapped(table)
    return Chosen(held, given or {}, left)


def state_dict_of(found: object, where: str = "it") -> dict[str, torch.Tensor] | None:
    """The only state dict in what a file holds, without a wrapper's prefix; None if there is none."""
    chosen = choose(found, where)
    return None if chosen is None or isinstance(chosen.held, nn.Module) else chosen.held


def masks_in(found: object, where: str) -> dict[str, Any] | None:
    """The only set of masks in what a file holds beside other things; MaskError where there are several."""
    return _only(dict(_masks(found)), where)


def _only(masks: Mapping[Keys, Mapping[str, Any]], where: str) -> dict[str, Any] | None:
    if len(masks) > 1:
        listed = ", ".join(".".join(path) for path in masks)
        raise MaskError(
            f"{where} holds several sets of masks: {listed}; save the one that is meant to a file of its own"
        )
    return _unwrapped(dict(*masks.values())) if masks else None


def check_tensors(state: Mapping[str, torch.Tensor], where: str) -> dict[str, torch.Tensor]:
    """The tensors as they are read: plain, with values, in dtypes that are known; SourceError names another one."""
    made = {}
    for name, tensor in state.items():
        odd = _odd(tensor)
        if odd is not None:
            raise SourceError(f"{where}: {name!r} {odd} and save it again")
        made[name] = tensor.resolve_conj().resolve_neg()
    return made


def _odd(tensor: torch.Tensor) -> str | None:
    """Why a tensor cannot be read, and what to do about it."""
    if tensor.is_meta:
        return "was saved on the meta device and has no values; load the network with its weights"
    if tensor.is_nested:
        return "is a nested tensor; load it with torch, turn it into plain tensors"
    if tensor.layout != torch.strided:
        form = str(tensor.layout).removeprefix("torch.")
        return f"is stored as {form}; load it with torch, make it dense (tensor.to_dense())"
    if tensor.is_quantized:
        return "is a quantized tensor; load it with torch, make it plain (tensor.dequantize())"
    if type(tensor) not in (torch.Tensor, nn.Parameter):
        return f"is a {type(tensor).__name__}; load it with torch, turn it into a plain tensor"
    if dtype_name(tensor.dtype) not in ITEM_SIZES:
        return f"has the dtype {dtype_name(tensor.dtype)}, which is not known here; load it with torch, convert it"
    return None


def _tables(found: object) -> Iterator[tuple[Keys, Mapping[str, torch.Tensor] | nn.Module]]:
    """The state dicts and networks in nested dictionaries; no optimizer's, and no masks."""
    for path, item in _walk(found):
        masks = path and _is_mask_key(path[-1])
        if not masks and (isinstance(item, nn.Module) or _is_table(item)):
            yield path, item  # type: ignore[misc]


def _masks(found: object) -> Iterator[tuple[Keys, Mapping[str, Any]]]:
    for path, item in _walk(found):
        if path and _is_mask_key(path[-1]) and isinstance(item, Mapping) and item:
            arrays = all(isinstance(n, str) and hasattr(v, "shape") for n, v in item.items())
            if arrays:
                yield path, item


def _is_mask_key(key: str) -> bool:
    return key in ("mask", "masks") or key.endswith(("_mask", "_masks"))


def _walk(found: object) -> Iterator[tuple[Keys, object]]:
    """What nested dictionaries hold, by their keys, from the outside to the inside; what is a table is not entered."""
    waiting: list[tuple[Keys, object]] = [((), found)]
    seen: set[int] = set()
    for path, item in waiting:  # it grows
        if id(item) in seen:
            continue
        seen.add(id(item))
        yield path, item
        inner = isinstance(item, Mapping) and not _is_table(item) and _OF_OPTIMIZER not in item
        if inner and len(path) < STATE_LEVELS:
            waiting += [
                ((*path, key), value)
                for key, value in item.items()  # type: ignore[attr-defined]
                if isinstance(key, str) and isinstance(value, Mapping | nn.Module)
            ]


def _is_table(item: object) -> bool:
    """A mapping of names to tensors, not empty; nothing of a mixed one is picked out, which would lose the rest."""
    return (
        isinstance(item, Mapping)
        and bool(item)
        and all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in item.items())
    )


def _has_weights(table: Mapping[str, torch.Tensor] | nn.Module) -> bool:
    return isinstance(table, nn.Module) or any(tensor.ndim > 1 for tensor in table.values())


def _under(found: object, key: str, where: str) -> tuple[Keys, object]:
    """What stands under a key whose dots lead into dictionaries, or are part of a name."""
    waiting: list[tuple[Keys, object, str]] = [((), found, key)]
    for path, item, rest in waiting:
        if not rest:
            return path, item
        if isinstance(item, Mapping) and len(path) <= STATE_LEVELS:
            for name in item:
                if isinstance(name, str) and name and (rest == name or rest.startswith(f"{name}.")):
                    waiting.append(((*path, name), item[name], rest[len(name) + 1 :]))
    tables = {path: table for path, table in _tables(found) if path}
    holds = f"it holds {_listed(tables)}" if tables else "it is not a dictionary of state dicts"
    raise SourceError(f"{where} has nothing under the key {key!r}; {holds}")


def _listed(tables: Mapping[Keys, Mapping[str, torch.Tensor] | nn.Module]) -> str:
    shown = []
    for path, table in tables.items():
        size = f"a {type(table).__name__}" if isinstance(table, nn.Module) else f"{len(table)} tensors"
        shown.append(f"{'.'.join(path)} ({size})")
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return ", ".join(shown[:_SHOWN]) + more


def _left(found: object, at: Keys, masks: Mapping[Keys, object]) -> Iterator[str]:
    """The keys of what is neither chosen nor a mask, at every level that leads to it."""
    item = found
    for level, step in enumerate(at):
        assert isinstance(item, Mapping)
        for key, value in item.items():
            path = (*at[:level], str(key))
            if key != step and value is not None and path not in masks:
                yield ".".join(path)
        item = item[step]


def _unwrapped(state: Mapping[str, Any]) -> dict[str, Any]:
    """The names without what a wrapper has put before every one of them."""
    state = dict(state)
    while prefix := next((p for p in WRAPPER_PREFIXES if all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state
