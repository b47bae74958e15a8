"""Output that appears whole or not at all: written beside its target under another name, then renamed.

A crash, a full disk or Ctrl-C leaves what stood at the target before. No torch here.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from elastic_ir.errors import OutputError
from elastic_ir.formats.temporary import temporary_name

NAME_BYTES = 255  #: of a file's name, on nearly every file system


@contextlib.contextmanager
def atomic_output(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; what was written there gets the name ``path`` when the block ends well.

    After any exception, KeyboardInterrupt included, the temporary is gone and ``path`` is as it was. A new file has
    the permissions of any other new file, one that replaces another keeps that one's. A link is followed: the file
    it points to is replaced. Raises OutputError, one line: the folder is missing, the target is a folder or no plain
    file, nothing may be written there, the disk is full.
    """
    given = Path(path)
    target = Path(os.path.realpath(given))
    mode = _existing_mode(given, target)
    temporary = temporary_name(target)
    try:
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except OSError as error:
        raise OutputError(f"{given} cannot be written: {_reason(error)}") from error
    try:
        yield temporary
        if mode is not None:
            temporary.chmod(mode)
        flush(temporary)
        os.replace(temporary, target)
    except OSError as error:
        if error.filename is None or Path(os.fsdecode(error.filename)) == temporary:
            raise OutputError(
                f"{given} could not be written: {_reason(error)}; what was there is unchanged"
            ) from error
        raise  # of some other file
    finally:
        # After the rename there is nothing of this name; before it, whatever stopped us, it goes.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def refuse_long_name(path: Path, why: str) -> None:
    """OutputError where a name that follows from the target's is longer than a file system takes."""
    size = len(os.fsencode(path.name))
    if size > NAME_BYTES:
        raise OutputError(
            f"{why} would be named {path.name}, which takes {size} bytes, and a name has at most {NAME_BYTES}; choose "
            "a shorter one with -o OUT"
        )


def _existing_mode(given: Path, target: Path) -> int | None:
    """The permissions of the file to replace, None if there is none; OutputError where it cannot be replaced."""
    try:
        if target.is_dir():
            raise OutputError(f"{given} is a folder; give the name of a file")
        if not target.parent.is_dir():
            raise OutputError(f"{given} cannot be written: the folder {target.parent} does not exist")
        if not target.exists():
            return None
        if not target.is_file():  # renaming onto /dev/null would replace the device
            raise OutputError(f"{given} is no plain file; give the name of a file")
        if not os.access(target, os.W_OK):
            raise OutputError(f"{given} cannot be written: it is read-only")
        return target.stat().st_mode & 0o7777
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise OutputError(f"{given} cannot be written: {_reason(error)}") from error


def _reason(error: OSError | ValueError) -> str:
    text = error.strerror if isinstance(error, OSError) else None
    return (text or str(error)).lower()


def flush(path: Path) -> None:
    """Have the bytes on the disk before the name says so; some file systems report a full disk only now."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
