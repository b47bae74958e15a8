"""Extra records in the zip of a ``.pt`` file, which ``torch.load`` ignores: the place of our graph and masks."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping

from elastic_ir.errors import EmitError


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
