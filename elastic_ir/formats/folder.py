"""A folder that appears whole or not at all: made beside its target under another name, then renamed. No torch here."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from elastic_ir.errors import OutputError
from elastic_ir.formats.temporary import temporary_name


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``, which gets the name ``path`` when the block ends well.

    After any exception, KeyboardInterrupt included, it is gone. Raises OutputError, one line: the target holds
    something already, its parent is missing, or it cannot be written.
    """
    refuse_taken(path)
    try:
        temporary = temporary_name(path)
        temporary.mkdir(0o700)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {(error.strerror or str(error)).lower()}") from error
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if path.exists():
            path.rmdir()  # it is empty; where another run has filled it meanwhile, this fails and nothing is lost
        temporary.rename(path)
    except OSError as error:
        raise OutputError(
            f"{path} could not be written: {(error.strerror or str(error)).lower()}; nothing of it is left"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def refuse_taken(path: Path) -> None:
    """OutputError where a folder cannot be made at ``path``: something is there, or its parent is not."""
    if path.is_symlink():
        raise OutputError(f"{path} is a symbolic link; name the folder that it leads to, or another")
    if path.resolve() == Path.cwd():
        raise OutputError(
            f"{path} is the folder that this runs in, which a new one would take away; name another"
        )
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise OutputError(f"{path} exists already and is no empty folder")
    if not path.parent.is_dir():
        raise OutputError(f"the folder {path.parent} does not exist")


def _umask() -> int:
    """The process's mask for new files; reading it needs setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def sync(path: Path) -> None:
    """Have a file's or a folder's content on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
