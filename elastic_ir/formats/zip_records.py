"""Extra records in the zip of a ``.pt`` file, which ``torch.load`` ignores: the place of our graph and masks."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from typing import BinaryIO

from elastic_ir.errors import EmitError


class _Watched:
    """An open file that remembers why a write failed: torch tells only that the place is not the one it thought of."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def save_torch(item: object, path: str | os.PathLike[str]) -> None:
    """``torch.save`` with names that do not follow from the path's; OSError where the disk is full."""
    import torch

    with open(path, "wb") as file:  # given a path, torch names the records after it
        watched = _Watched(file)
        try:
            torch.save(item, watched)  # type: ignore[arg-type]
        except RuntimeError as error:
            raise watched.error or error from error


def append_zip_records(path: str | os.PathLike[str], records: Mapping[str, bytes]) -> None:
    """Add records, name to bytes, to what ``torch.save`` wrote; the names are relative to the archive's own folder.

    They are stored uncompressed behind torch's records, whose places (which ``mmap=True`` relies on) do not change.
    Raises EmitError where the file is no such zip or has a record of that name already; OSError is left to the caller.
    """
    try:
        with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as archive:
            present = set(archive.namelist())
            roots = [name.removesuffix("data.pkl") for name in present if name.count("/") == 1]
            roots = [root for root in roots if root + "data.pkl" in present]
            if len(roots) != 1:
                raise EmitError(f"{os.fspath(path)} is no file of torch.save, so nothing can be added to it")
            for name, content in records.items():
                if roots[0] + name in present:
                    raise EmitError(f"{os.fspath(path)} already has a record {name!r}")
                # A ZipInfo of its own has a fixed date: the same graph gives the same bytes.
                archive.writestr(zipfile.ZipInfo(roots[0] + name), content)
    except zipfile.BadZipFile as error:
        raise EmitError(f"{os.fspath(path)} is no zip file, so nothing can be added to it") from error
