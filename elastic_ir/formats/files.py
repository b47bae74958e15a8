"""What every format needs of files: output that appears whole or not at all, and JSON of a size that it may have.

Output is written beside its target under another name, then renamed: a crash, a full disk or Ctrl-C leaves what stood
at the target before. What is being written is locked, and the kernel gives a lock back when its process ends: so what
a killed process has left is known by its free lock, and goes with the next save into that folder. Windows renames and
removes no file that is open: there nothing that is written is locked, and what a killed process has left stays. No
torch here.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from elastic_ir.errors import OutputError, SourceError, reason
from elastic_ir.safety.limits import JSON_BYTES, JSON_ENTRIES, JSON_LEVELS, open_plain

NAME_BYTES = 255  #: of a file's name, on nearly every file system
MOVES_OPEN = os.name != "nt"  #: whether a file that is open can be renamed and removed
_LOCKED_BYTE = (
    1 << 30
)  #: where Windows locks a file, behind all that is in it: locked bytes cannot be read there


@contextlib.contextmanager
def atomic_output(path: str | os.PathLike[str], synced: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; what was written there gets the name ``path`` when the block ends well.

    After any exception, KeyboardInterrupt included, the temporary is gone and ``path`` is as it was. A new file has
    the permissions of any other new file, one that replaces another keeps that one's. A link is followed: the file
    it points to is replaced. ``synced`` has all on the disk before it gets its name. Raises OutputError, one line: the
    folder is missing, the target is a folder or no plain file, nothing may be written there, the disk is full.
    """
    given = Path(path)
    target = Path(os.path.realpath(given))
    mode = existing_mode(given, target)
    with temporary(target) as made:
        try:
            yield made
            if mode is not None:
                made.chmod(mode)
            if synced:
                sync(made)  # before it gets the name; some file systems report a full disk only now
            os.replace(made, target)
        except OSError as error:
            if error.filename is None or Path(os.fsdecode(error.filename)) == made:
                raise OutputError(
                    f"{given} could not be written: {reason(error)}; what was there is unchanged"
                ) from error
            raise  # of some other file


def refuse_long_name(path: Path, why: str) -> None:
    """OutputError where a name that follows from the target's is longer than a file system takes."""
    size = len(os.fsencode(path.name))
    if size > NAME_BYTES:
        raise OutputError(
            f"{why} would be named {path.name}, which takes {size} bytes, and a name has at most {NAME_BYTES}; choose "
            "a shorter one with -o OUT"
        )


def existing_mode(given: Path, target: Path) -> int | None:
    """The permissions of the file to replace, None if there is none; OutputError where it cannot be replaced."""
    try:
        if target.is_dir():
            raise OutputError(f"{given} is a folder; give the name of a file")
        if not target.parent.is_dir():
            raise OutputError(f"{given} cannot be written: the folder {target.parent} does not exist")
        if not target.exists():
            return None
        if not target.is_file():  # renaming onto /dev/null would replace the device
            raise OutputError(f"{given} is not a plain file; give the name of a file")
        if not os.access(target, os.W_OK):
            raise OutputError(f"{given} cannot be written: it is read-only")
        return target.stat().st_mode & 0o7777
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise OutputError(f"{given} cannot be written: {reason(error)}") from error


@contextlib.contextmanager
def atomic_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``, which gets the name ``path`` when the block ends well.

    After any exception, KeyboardInterrupt included, it is gone. Raises OutputError, one line: the target holds
    something already, unless that is to be replaced, its parent is missing, or it cannot be written.
    """
    refuse_taken(path, replace)
    with temporary(path, folder=True) as made:
        try:
            yield made
            made.chmod(0o777 & ~_umask())
            take_name(made, path, replace)
        except OSError as error:
            raise OutputError(
                f"{path} could not be written: {reason(error)}; nothing of it is left"
            ) from error


def refuse_taken(path: Path, replace: bool = False) -> None:
    """OutputError where a folder cannot be made at ``path``: something is there, or its parent is not.

    With ``replace`` a folder may be there, whatever is in it.
    """
    if path.is_symlink():
        raise OutputError(f"{path} is a symbolic link; name the folder that it leads to, or another")
    if path.resolve() == Path.cwd():
        raise OutputError(
            f"{path} is the folder that this runs in, which a new one would take away; name another"
        )
    if path.exists() and not (path.is_dir() and (replace or not any(path.iterdir()))):
        raise OutputError(f"{path} exists already and is not an empty folder")
    if not path.parent.is_dir():
        raise OutputError(f"the folder {path.parent} does not exist")


def take_name(made: Path, path: Path, replace: bool = False) -> None:
    """Rename a folder that is whole; an empty one that has the name gives way, with ``replace`` any.

    A process that is killed between two renames leaves what had the name as ``.NAME.replaced-...`` beside it. Raises
    OSError where the name cannot be had; what has it then keeps it.
    """
    if not (replace and path.is_dir() and any(path.iterdir())):
        if path.is_dir():
            path.rmdir()  # where another process has filled it meanwhile, this fails and nothing is lost
        os.rename(made, path)
        return
    aside = path.with_name(f".{_cut(path.name, _STEM)}.replaced-{secrets.token_hex(8)}")
    os.rename(path, aside)
    try:
        os.rename(made, path)
    except BaseException:
        os.rename(aside, path)
        raise
    remove(aside)


def _umask() -> int:
    """The process's mask for new files; reading it needs setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def sync(path: Path) -> None:
    """Have a file's or a folder's content on the disk; Windows opens no folder, and syncs what may be written alone."""
    if not MOVES_OPEN and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY if MOVES_OPEN else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# -- reading -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(path: Path, form: str) -> Iterator[BinaryIO]:
    """A plain file, open for reading; SourceError, one line, where the system refuses it, at once or later."""
    try:
        with open_plain(path) as file:
            yield file
    except FileNotFoundError as error:
        raise SourceError(f"{path} does not exist") from error
    except IsADirectoryError as error:
        raise SourceError(f"{path} is a folder, not a {form} file") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise SourceError(f"{path} cannot be read: {reason(error)}") from error


def stamp_of(status: os.stat_result) -> tuple[int, int, int]:
    """What changes when a file is written anew or replaced by another: its inode, size and time of change."""
    return status.st_ino, status.st_size, status.st_mtime_ns


# -- JSON that comes with a model --------------------------------------------------------------------------------------

#: What may be half of a pair of surrogates, escaped or not.
_HALVES = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")
Pairs = Callable[[list[tuple[str, Any]]], Any]


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises OSError where it cannot be read, ValueError, which states what is wrong, where it is too large or not JSON,
    SourceError where it is not a plain file.
    """
    with open_plain(path) as file:
        # the size is asked for first: a read takes memory for as much as it may return
        text = file.read(min(JSON_BYTES, os.fstat(file.fileno()).st_size) + 1)
    if len(text) > JSON_BYTES:
        raise ValueError(f"it has more than {JSON_BYTES >> 20} MiB, which no such file needs")
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"it is not JSON ({error})") from error


def parse_json(text: str | bytes, pairs: Pairs | None = None) -> Any:
    """The content of a text; ValueError where it is not JSON, nested too deeply, or has more entries than honest ones.

    The entries are counted by their commas and brackets before anything is made of them; ``pairs`` is json's
    ``object_pairs_hook``.
    """
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if sum(map(raw.count, (b",", b"[", b"{"))) > JSON_ENTRIES:
        raise ValueError(f"it has more than {JSON_ENTRIES:,} entries")
    try:
        found = json.loads(text, object_pairs_hook=pairs)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    _check_levels(found)
    if _HALVES.search(raw):  # a pair of them is one character, as json writes it
        try:
            json.dumps(found, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                "it holds half a character (a surrogate), which no file can be written with"
            ) from error
    return found


def _check_levels(found: Any) -> None:
    """ValueError where lists and tables lie deeper in one another than what is read."""
    level = [found] if isinstance(found, dict | list) else []
    for _ in range(JSON_LEVELS):
        parts = (part for item in level for part in (item.values() if isinstance(item, dict) else item))
        level = [part for part in parts if isinstance(part, dict | list)]
        if not level:
            return
    raise ValueError("it is nested too deeply")


# -- temporary files and folders ---------------------------------------------------------------------------------------

_STEM, _SUFFIX = 100, 20  #: bytes of a target's name that its temporary's keeps
_OURS = re.compile(r"\..*\.elastic-ir-[0-9a-f]{16}\.tmp(?:\.[^.]*)?", re.DOTALL)


@contextlib.contextmanager
def temporary(target: Path, *, folder: bool = False) -> Iterator[Path]:
    """A new file or folder beside a target, locked while the block runs, and removed when it ends.

    Its name begins like the target's and has the target's ending, for writers that go by it. What earlier processes
    have left beside the target is removed first. OutputError, one line, where it cannot be made.
    """
    sweep(target.parent)
    stem, suffix = _cut(target.stem, _STEM), _cut(target.suffix, _SUFFIX)
    while True:
        path = target.with_name(f".{stem}.elastic-ir-{secrets.token_hex(8)}.tmp{suffix}")
        try:
            handle = _made(path, folder)
        except OSError as error:
            raise OutputError(f"{target} cannot be written: {reason(error)}") from error
        try:
            if handle is None or (try_lock(handle) is not False and is_named(path, handle)):
                try:
                    yield path
                finally:
                    remove(path)
                return
            # else another process has swept it before it was locked
        finally:
            if handle is not None:
                os.close(handle)


def _made(path: Path, folder: bool) -> int | None:
    """Make a file or folder, and open it for its lock; None where it could then not get another name."""
    if folder:
        path.mkdir(0o700)
        return os.open(path, os.O_RDONLY) if MOVES_OPEN else None
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    if MOVES_OPEN:
        return handle
    os.close(handle)
    return None


def sweep(folder: Path) -> None:
    """Remove the temporaries that no process has locked; what cannot be locked or removed stays."""
    if not MOVES_OPEN:
        return  # none is locked
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            inside = entry.is_dir(follow_symlinks=False)
            if _OURS.fullmatch(entry.name) and (inside or entry.is_file(follow_symlinks=False)):
                flags = os.O_NOFOLLOW | (os.O_RDONLY if inside else os.O_RDWR)
                with contextlib.suppress(OSError):
                    handle = os.open(entry.path, flags)
                    if try_lock(handle):
                        remove(Path(entry.path))
                    os.close(handle)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, as far as that can be done."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _cut(text: str, size: int) -> str:
    """As much of a text as takes so many bytes in a file's name."""
    while len(os.fsencode(text)) > size:
        text = text[: min(len(text) - 1, size)]
    return text


def try_lock(handle: int) -> bool | None:
    """Lock an open file or folder: whether that worked, False where another has it; None where it cannot be locked."""
    try:
        import fcntl
    except ImportError:
        return _try_windows_lock(handle)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _try_windows_lock(handle: int) -> bool | None:
    """The same on Windows, where a lock is on bytes and its end is that of the open file."""
    try:
        system: Any = importlib.import_module("msvcrt")
    except ImportError:
        return None
    try:
        os.lseek(handle, _LOCKED_BYTE, os.SEEK_SET)
        system.locking(handle, system.LK_NBLCK, 1)
        os.lseek(handle, 0, os.SEEK_SET)
    except PermissionError:
        return False
    except OSError:
        return None
    return True


def is_named(path: Path, handle: int) -> bool:
    """Whether a path is still that of an open file."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.stat(path), os.fstat(handle))
    return False
