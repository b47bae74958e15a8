"""Reading ``.pt`` and ``.pth`` files without running what they say.

``torch.load`` maps the tensors and leaves the pickle to the unpickler of :mod:`elastic_ir.formats.pickles.module`,
which makes instances of an allow-list of classes and calls nothing.
"""

from __future__ import annotations

import os
import tarfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from elastic_ir.errors import SourceError
from elastic_ir.formats import PYTORCH
from elastic_ir.formats.files import opened
from elastic_ir.formats.pickles.module import restricted_pickle
from elastic_ir.formats.torch_zip import Place, check_content, content, places_of
from elastic_ir.safety.limits import open_plain


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
    lines = str(error).replace("unexpected EOF", "it ends too early").strip().splitlines() or [
        type(error).__name__
    ]
    return SourceError(
        f"{path.name} is damaged, or not a PyTorch file ({lines[0][:160]}); copy or download it again"
    )


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
