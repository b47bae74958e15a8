"""A folder that appears whole or not at all, and whose making a later run can continue. No torch here.

Beside the target OUT lies ``.OUT.partial`` while it is made. In it, ``begun`` holds the files that are being written,
``whole`` those that are finished: a file moves from one to the other by a rename, so its name in ``whole`` is the mark
that it was written to its end, whatever ended the process. ``whole`` gets the name OUT in the end. ``journal`` states
what the work is for. ``lock`` is there while a run works on it; the lock of a process that has died is free at once.
After a crash of the machine the file system may know a name without its bytes, so work from before the last start of
the system counts only where each file was synced before its rename (``durable``).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from elastic_ir.errors import ElasticError, OutputError, SourceChangedError, SourceError, reason
from elastic_ir.formats.files import read_json, refuse_taken, remove, sync, take_name
from elastic_ir.formats.locks import locked
from elastic_ir.tensors.lazy import TensorData

#: What a user reads of work that is kept.
KEPT = "what is finished of it is kept (files: {}), and --resume goes on with that"
#: What lies in the folder of a run.
_JOURNAL, _NEW, _LOCK, _BEGUN, _WHOLE = "journal", "journal.new", "lock", "begun", "whole"


@dataclass(frozen=True)
class Journal:
    """What the work in a folder is for, and how far its files can be trusted."""

    version: str  #: of ElasticIR
    plan: str  #: a digest of what is written
    source: str  #: a digest of the files that it is read from, as they were
    boot: str = ""  #: the start of the system since which it was written, where that is known
    durable: bool = False  #: whether each file in ``whole`` was synced
    ending: bool = False  #: whether ``whole`` was about to get the target's name

    def refused(self, found: Journal) -> str:
        """Why work with the journal that was found cannot be continued as this one; empty where it can."""
        if found.version != self.version:
            return f"by ElasticIR {found.version}"
        if found.plan != self.plan:
            return "for another plan, source or shard size"
        return "from a source that was changed since" if found.source != self.source else ""


def digests(files: Mapping[str, Mapping[str, TensorData]], texts: Mapping[str, str]) -> tuple[str, str]:
    """The digests of a plan (names, shapes, shards, origins, recipes, texts) and of the source files' stamps.

    Lazy tensors and recipes are frozen dataclasses, whose fields determine all that they yield; of a file that one
    refers to, the stamp (inode, size, time of change) goes into the second digest. A tensor of another kind gives
    a digest that no other plan has: such work is not resumed.
    """
    stamps: set[str] = set()

    def described(item: Any) -> Any:
        """What JSON has no form for."""
        if isinstance(item, Path):
            return item.name  # however it is reached, now or after a move; its content is in the stamp
        if isinstance(item, bytes | bytearray | memoryview):
            return hashlib.sha256(item).hexdigest()
        if hasattr(item, "stored"):  # a mask, whose bits are a range of a file
            return [item.shape, item.dtype, item.stored]
        if not is_dataclass(type(item)):
            return os.urandom(16).hex()
        parts = {part.name: getattr(item, part.name) for part in fields(item)}
        if "stamp" in parts:
            stamps.add(f"{parts['path'].name} {parts.pop('stamp')}")
        return [type(item).__name__, *parts.values()]

    plan = json.dumps([list(files.items()), sorted(texts.items())], default=described)
    return described(plan.encode()), described(repr(sorted(stamps)).encode())


class Work:
    """The folder in the making, held by this process alone."""

    def __init__(self, target: Path, journal: Journal, replace: bool = False) -> None:
        self.target, self.folder, self.journal = target, partial_folder(target), journal
        self.replace = replace  #: whether a folder that has the target's name gives way
        self.begun, self.whole = self.folder / _BEGUN, self.folder / _WHOLE
        self.complete = False  #: whether the target has its name
        self.pool = ThreadPoolExecutor(1)
        self._pending: list[Future[None]] = []

    def finish(self, name: str) -> None:
        """Mark a file in ``begun`` as finished; where it is synced first, that happens while the next is written."""

        def mark() -> None:
            self.sync(self.begun / name)
            os.rename(self.begun / name, self.whole / name)

        self._pending.append(self.pool.submit(mark))

    def settle(self) -> None:
        """Wait until every finished file has its mark."""
        for future in self._pending:
            future.result()

    def sync(self, *paths: Path) -> None:
        """Have files and folders on the disk, where that is asked for."""
        for path in paths if self.journal.durable else ():
            sync(path)

    def lock(self, stack: contextlib.ExitStack) -> None:
        """Make the folder and hold its lock; OutputError where another run has it, or what is there is not ours."""
        try:
            self.folder.mkdir(0o700, exist_ok=True)
            names = set(os.listdir(self.folder)) - {_LOCK, _NEW}
            if (names and _JOURNAL not in names) or not _is_own(self.folder):
                raise FileExistsError
            if not stack.enter_context(locked(self.folder / _LOCK, needed=True)):
                raise BlockingIOError
        except (BlockingIOError, FileNotFoundError) as error:  # it may just have removed the folder
            text = "is being written by another run; wait for it, or write elsewhere with -o OUT"
            raise OutputError(f"{self.target} {text}") from error
        except FileExistsError as error:
            text = "is in the way, and was not left by a run of yours; move it elsewhere"
            raise OutputError(f"{self.folder} {text}") from error
        except OSError as error:
            raise OutputError(f"{self.target} cannot be written: {reason(error)}") from error

    def begin(self, resume: bool) -> None:
        """Have what an earlier run has finished where it can be used, and room for the rest; OutputError where not."""
        found, why = Journal("", "", ""), "and its journal is damaged"
        with contextlib.suppress(OSError, ValueError, TypeError, SourceError):
            found = Journal(**read_json(self.folder / _JOURNAL))
            why = self.journal.refused(found)
        if resume and not why and found.ending and leftover(self.target) is None:
            self.complete = self.target.is_dir()  # it got its name, and then the process died
        if self.complete:
            return
        refuse_taken(self.target, self.replace)
        resume = resume and kept_files(self.folder) > 0
        if resume and why:
            text = f"{self.folder.name} beside it was begun {why}; without --resume it is begun anew"
            raise OutputError(f"{self.target} cannot be resumed: {text}")
        remove(self.begun)
        if resume and (found.durable or found.boot == self.journal.boot != ""):
            self.sync(*self.whole.rglob("*"))  # the earlier run may not have been durable
        elif self.whole.exists():
            os.rename(self.whole, self.begun)  # takes every mark away at once
        self.write(self.journal)
        remove(self.begun)
        self.begun.mkdir()
        self.whole.mkdir(exist_ok=True)
        self.sync(self.folder, self.folder.parent)

    def write(self, journal: Journal) -> None:
        """Replace the journal; a process that dies leaves the one before or this one."""
        new = self.folder / _NEW
        new.write_text(json.dumps(asdict(journal)))
        self.sync(new)
        os.replace(new, self.folder / _JOURNAL)

    def stop(self, error: BaseException) -> None:
        """Keep or remove what an error has ended, and raise the error that says which, where it does not itself."""
        # a source that cannot be read may be there again; one that has changed, or a fault of ours, is beyond that
        again = isinstance(error, OutputError | SourceError) and not isinstance(error, SourceChangedError)
        kept = kept_files(self.folder) if again or not isinstance(error, ElasticError) else 0
        remove(self.begun)
        if not kept:
            self.remove()
        left = KEPT.format(kept) if kept else "nothing of it is left"
        if isinstance(error, OSError):
            text = f"could not be written: {reason(error)}; {left}"
            if self.complete:
                text = f"is written and whole, but its name may not be on the disk: {reason(error)}"
            raise OutputError(f"{self.target} {text}") from error
        if kept and isinstance(error, SourceError):
            raise SourceError(f"{error}; {left}") from error
        if kept and isinstance(error, OutputError) and self.target.exists():  # it would be forgotten
            raise OutputError(f"{error}; {self.folder} holds unfinished work on it") from error

    def remove(self) -> None:
        """Remove everything; without the journal nobody could tell what the rest is, so that goes late."""
        for name in (_BEGUN, _WHOLE, _NEW, _JOURNAL, _LOCK):
            remove(self.folder / name)
        self.leave()

    def leave(self) -> None:
        """Remove the folder where it is empty; on Windows that is not before the lock's file is closed."""
        with contextlib.suppress(OSError):
            self.folder.rmdir()


@contextlib.contextmanager
def resumable_folder(
    path: Path, journal: Journal, resume: bool, durable: bool, replacing: bool = False
) -> Iterator[Work]:
    """Yield the work on a folder ``path``, which gets its name when the block ends well.

    The block writes files of ``begun`` and marks them by :meth:`Work.finish`; small ones it may write into ``whole``.
    With ``resume``, what an earlier run of the same journal has finished lies in ``whole`` already, or the work is
    ``complete``; without, it is removed. After an interrupt, a full disk or any error that another try may not meet,
    the work is kept where a file of it is finished; otherwise, and where the source changed, nothing is left. With
    ``replacing``, a folder that has the name keeps it until the new one is whole, and then goes.

    Raises OutputError: the target is taken or cannot be written, another run has it, earlier work is of another plan.
    """
    work = Work(path, replace(journal, boot=boot_id(), durable=durable), replacing)
    with contextlib.ExitStack() as stack:
        stack.callback(work.leave)
        work.lock(stack)
        try:
            with work.pool:
                work.begin(resume)
                yield work
                work.settle()
            if not work.complete:
                work.sync(*work.whole.rglob("*"), work.whole)
                work.write(replace(work.journal, ending=True))
                remove(work.begun)
                take_name(work.whole, work.target, work.replace)
                work.complete = True
                work.sync(work.target.parent)
        except BaseException as error:
            work.stop(error)
            raise
        work.remove()


def leftover(path: Path) -> Path | None:
    """What an earlier run has left of its work on a target, if anything."""
    folder = partial_folder(path)
    return folder if (folder / _WHOLE).is_dir() or (folder / _BEGUN).is_dir() else None


def kept_files(folder: Path) -> int:
    """How many files of the work in a folder are finished."""
    return sum(len(names) for _, _, names in os.walk(folder / _WHOLE))


def held_by(folder: Path) -> int:
    """Bytes of disk that earlier work takes, and gives back or uses again."""
    found = [part.lstat() for part in folder.rglob("*") if part.is_file()]
    # Windows counts no blocks
    return sum(status.st_blocks * 512 if hasattr(status, "st_blocks") else status.st_size for status in found)


def _is_own(folder: Path) -> bool:
    """Whether a folder is this user's; Windows, whose files state no owner, is not asked."""
    return not hasattr(os, "geteuid") or folder.lstat().st_uid == os.geteuid()


def partial_folder(path: Path) -> Path:
    """Where the work on a target lies: beside it, under a name made from the target's."""
    path = path.resolve() if path.name in ("", "..") else path
    name = path.name
    if len(os.fsencode(name)) > 200:  # a name has 255 bytes
        name = f"{name[:50]}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}"
    return path.with_name(f".{name}.partial")


def boot_id() -> str:
    """The identifier of this start of the system; empty where there is none, as off Linux."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""
