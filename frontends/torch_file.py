"""Reading ``.pt`` and ``.pth`` files without running what they say.

A state dict goes through ``torch.load(weights_only=True)``. What that refuses, a pickled module, goes through the
unpickler of :mod:`elastic_ir.frontends.pickles`, which makes instances of an allow-list of classes and calls nothing.
"""

from __future__ import annotations

import os
import pickle
import tarfile
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from elastic_ir.errors import SourceError
from elastic_ir.frontends.pickle_names import class_allowed, resolve_class
from elastic_ir.frontends.pickles import restricted_pickle

#: Where checkpoints keep a state dict beside the epoch, the optimizer and so on.
USUAL_KEYS = ("state_dict", "model_state_dict", "model", "net", "weights")

#: What wrappers (DataParallel and its kin, torch.compile) put before every name.
WRAPPER_PREFIXES = ("module.", "_orig_mod.")


def read_torch_file(path: str | os.PathLike[str], trust: Sequence[str] = ()) -> Any:
    """What a file of ``torch.save`` holds: a state dict, another container, or a module. Tensors are mapped lazily.

    ``trust`` names packages whose classes may be rebuilt beside the known ones. Raises UntrustedError for a pickle
    that names or does anything else (nothing of it is run), SourceError for a missing, empty, truncated or garbage
    file, for another form (TorchScript, an exported program), and for a class that cannot be imported here.
    """
    path = Path(path)
    is_zip = _sniff(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's advice to users of torch.load
        try:
            return torch.load(os.fspath(path), map_location="cpu", weights_only=True, mmap=is_zip)
        except pickle.UnpicklingError:
            pass  # a pickled module, something that must not run, or garbage: the other reader tells which
        except Exception as error:
            # On damaged bytes torch raises nearly anything; that a plain module fails here is told by its own error.
            if not isinstance(error, (AttributeError, TypeError)):
                raise _damaged(path, error) from error
        try:
            return torch.load(
                os.fspath(path),
                map_location="cpu",
                weights_only=False,
                mmap=is_zip,
                pickle_module=restricted_pickle(trust, path.name),
            )
        except SourceError:
            raise
        except Exception as error:
            raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> SourceError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return SourceError(
        f"{path.name} is damaged, or no PyTorch file ({lines[0][:160]}); copy or download it again"
    )


def _sniff(path: Path) -> bool:
    """Whether it is a zip (all files since torch 1.6) or an older pickle; SourceError for anything else."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except FileNotFoundError as error:
        raise SourceError(f"{path} does not exist") from error
    except IsADirectoryError as error:
        raise SourceError(f"{path} is a folder, not a .pt file") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SourceError(f"{path} cannot be read: {reason.lower()}") from error
    if not head:
        raise SourceError(f"{path.name} is empty")
    if head.startswith(b"PK"):
        _sniff_zip(path)
        return True
    if head.startswith(b"version https://git-lfs"):
        raise SourceError(
            f"{path.name} is only a pointer to a file in Git LFS; get the file itself with `git lfs pull`"
        )
    if head.startswith(b"\x80"):
        return False
    if head.strip(b"\0") and tarfile.is_tarfile(path):  # nothing but zeros is a tar archive too
        raise SourceError(
            f"{path.name} is a tar archive, not a file of torch.save (since 2017); load and save it anew"
        )
    raise SourceError(f"{path.name} is no PyTorch file: it begins with {head[:8]!r}")


def _sniff_zip(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2] for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise SourceError(
            f"{path.name} is truncated or damaged: the zip's directory at its end is missing"
        ) from error
    if "constants.pkl" in names:
        raise SourceError(
            f"{path.name} is a TorchScript archive, which holds code; save the state dict of the model it was made "
            "from (torch.save(model.state_dict(), NAME))"
        )
    if "archive_format" in names or "serialized_exported_program.json" in names:
        raise SourceError(f"{path.name} is an exported program of torch.export; name it .pt2")
    if "data.pkl" not in names:
        raise SourceError(f"{path.name} is a zip file, but none of torch.save: it has no record data.pkl")


def state_dict_of(found: object) -> dict[str, torch.Tensor] | None:
    """The state dict in what a file holds: itself, or the one under a usual key, or the only one; None if none is.

    A prefix that wrappers put before every name ("module.", "_orig_mod.") is taken off. Raises SourceError where
    several are equally likely.
    """
    state = _tensors(found)
    if state is None and isinstance(found, Mapping):
        inner = {key: table for key, value in found.items() if (table := _tensors(value)) is not None}
        candidates = [key for key in USUAL_KEYS if key in inner] or list(inner)
        if len(candidates) > 1:
            raise SourceError(
                f"it holds several state dicts ({', '.join(map(str, candidates))}); save the one that is meant to a "
                "file of its own"
            )
        if candidates:
            state = inner[candidates[0]]
    if state is None:
        return None
    while prefix := next((p for p in WRAPPER_PREFIXES if all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _tensors(item: object) -> dict[str, torch.Tensor] | None:
    """A mapping of names to tensors, not empty; nothing of a mixed one is picked out, which would lose the rest."""
    if not isinstance(item, Mapping) or not item:
        return None
    fits = all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in item.items())
    return dict(item) if fits else None


def read_zip_records(path: str | os.PathLike[str], folder: str = "elastic_ir/") -> dict[str, bytes]:
    """The extra records under a folder of a ``.pt``'s zip, name (with the folder) to bytes; empty for other files.

    Raises SourceError where a record is damaged.
    """
    if not zipfile.is_zipfile(path):
        return {}
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2]: name for name in archive.namelist()}
            return {inner: archive.read(name) for inner, name in names.items() if inner.startswith(folder)}
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError) as error:
        raise SourceError(
            f"{Path(path).name} is damaged in the records that ElasticIR wrote ({error})"
        ) from error


__all__ = ["class_allowed", "read_torch_file", "read_zip_records", "resolve_class", "state_dict_of"]
