"""A folder that appears whole or not at all, and whose making a later run can go on with. No torch here.

Beside the target OUT lies ``.OUT.partial`` while it is made. In it, ``begun`` holds the files that are being written,
``whole`` those that are done: a file moves from one to the other by a rename, so its name in ``whole`` is the mark
that it is done. ``whole`` gets the name OUT in the end. ``journal`` says what the work is for, and is locked while a
run is at it; the lock of a process that has died is free at once.

What the marks promise: a file in ``whole`` was written to its end, whatever ended the process. After a crash of the
machine the file system may know a name without its bytes, so work from before the last start of the system counts
only where each file was synced before its rename (``durable``).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elastic_ir.errors import ElasticError, OutputError, SourceChangedError, SourceError
from elastic_ir.formats.files import refuse_taken, sync

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

JOURNAL, BEGUN, WHOLE = "journal", "begun", "whole"
#: What a user is told of work that is kept.
KEPT = "what is finished of it is kept (files: {}), and --resume goes on with that"
_LIMIT = 1 << 16  #: bytes of a journal that are worth reading


@dataclass(frozen=True)
class Journal:
    """What the work in a folder is for, and how far its files can be trusted."""

    version: str  #: of ElasticIR
    plan: str  #: a digest of what is written
    source: str  #: a digest of the files that it is read from, as they were
    boot: str = ""  #: the start of the system since which it was written, where that is known
    durable: bool = False  #: whether each file in ``whole`` was synced
    ending: bool = False  #: whether ``whole`` was about to get the target's name

    def refused(self, other: Journal) -> str | None:
        """Why work that was begun as ``other`` cannot be gone on with as this one; None where it can."""
        if self.version != other.version:
            return f"by ElasticIR {other.version}"
        if self.plan != other.plan:
            return "for another plan, source or shard size"
        if self.source != other.source:
            return "from a source that was changed since"
        return None


class Work:
    """The folder in the making, held by this process alone."""

    def __init__(self, target: Path, durable: bool) -> None:
        self.target = target
        self.folder = partial_folder(target)
        self.begun, self.whole = self.folder / BEGUN, self.folder / WHOLE
        self.complete = False  #: whether an earlier run had given the target its name already
        self._durable = durable
        self._pool: ThreadPoolExecutor | None = None
        self._pending: list[Future[None]] = []

    def keep(self, names: set[str]) -> None:
        """Of what an earlier run left in ``whole``, leave only the files of these names."""
        for part in self.whole.iterdir():
            if part.name not in names:
                _remove(part)

    def finish(self, name: str) -> None:
        """Mark a file in ``begun`` as done; where it must be on the disk first, that goes on beside the next one."""
        if not self._durable:
            self._settle(name)
            return
        if self._pool is None:
            from concurrent.futures import ThreadPoolExecutor

            self._pool = ThreadPoolExecutor(1)
        self._pending.append(self._pool.submit(self._settle, name))
        for future in self._pending:
            if future.done():
                future.result()  # a full disk may be told only now

    def settle(self) -> None:
        """Wait until every file that was finished has its mark."""
        for future in self._pending:
            future.result()

    def stop(self) -> None:
        """End the thread that syncs, if there is one."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def files(self) -> int:
        """How many files are done."""
        return kept_files(self.folder)

    def remove(self) -> None:
        """Take all of it away, the journal last of the files: without it nobody could tell what the rest is."""
        for part in (self.begun, self.whole):
            _remove(part)
        with contextlib.suppress(OSError):
            (self.folder / JOURNAL).unlink(missing_ok=True)
            self.folder.rmdir()

    def _settle(self, name: str) -> None:
        if self._durable:
            sync(self.begun / name)
        os.rename(self.begun / name, self.whole / name)


@contextlib.contextmanager
def resumable_folder(
    path: Path,
    journal: Journal,
    *,
    resume: bool = False,
    durable: bool = False,
    room: Callable[[int], None] = lambda held: None,
) -> Iterator[Work]:
    """Yield the work on a folder ``path``, which gets its name when the block ends well.

    The block writes files of ``begun`` and marks them by :meth:`Work.finish`; small ones it may write into ``whole``.
    ``room`` is told how many bytes earlier work holds, and raises where the disk has too few beside them. With
    ``resume``, what an earlier run of the same journal has finished lies in ``whole`` already; without, it is removed.

    After an interrupt, a full disk or any error that another try may not meet, the work is kept where a file of it is
    done; otherwise, and where the source changed, nothing is left. Raises OutputError, one line: the target is taken,
    another run is at it, earlier work is of another plan, or it cannot be written.
    """
    path = path.resolve() if path.name in ("", "..") else path
    work = Work(path, durable)
    if not work.folder.is_dir():
        refuse_taken(path)
    with _locked(work) as handle:
        mine = replace(journal, boot=_boot(), durable=durable)
        found, empty = _read(handle), not work.files()
        ended = found is not None and found.ending and not work.whole.exists() and path.is_dir()
        if resume and ended and found is not None and mine.refused(found) is None:
            work.complete = True  # the name was given, and then the process died
            yield work
            work.remove()
            return
        try:
            refuse_taken(path)
            going_on = resume and not empty and _trusted(work, mine, found)
            room(held_by(work.folder))
        except ElasticError as error:
            if empty:
                work.remove()
            elif path.exists():  # a hidden folder would be forgotten
                raise OutputError(f"{error}; {work.folder} holds unfinished work on it") from error
            raise
        yield from _made(work, mine, handle, going_on)


def leftover(path: Path) -> Path | None:
    """What an earlier run has left of its work on a target, if anything."""
    folder = partial_folder(path)
    return folder if (folder / WHOLE).is_dir() or (folder / BEGUN).is_dir() else None


def kept_files(folder: Path) -> int:
    """How many files of the work in a folder are done."""
    return sum(len(names) for _, _, names in os.walk(folder / WHOLE))


def held_by(folder: Path) -> int:
    """Bytes of disk that earlier work takes, and gives back or uses again."""
    return sum(
        part.lstat().st_blocks * 512 for part in folder.rglob("*") if part.is_file() and not part.is_symlink()
    )


def partial_folder(path: Path) -> Path:
    """Where the work on a target lies: beside it, under a name that says whose it is."""
    path = path.resolve() if path.name in ("", "..") else path
    name = path.name
    if len(os.fsencode(name)) > 200:  # a name has 255 bytes
        name = f"{name[:50]}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}"
    return path.with_name(f".{name}.partial")


# -- the steps of it ---------------------------------------------------------------------------------------------------


def _made(work: Work, journal: Journal, handle: int, going_on: bool) -> Iterator[Work]:
    """The block's part, the end, and what is left when either stops."""
    path = work.target
    named = False
    try:
        _remove(work.begun)
        if going_on and journal.durable:
            for part in work.whole.rglob("*"):
                sync(part)  # they were not, if the earlier run was another
        elif not going_on:
            _write(handle, replace(journal, plan=""))  # what lies there is nobody's any more
            _remove(work.whole)
        _write(handle, journal)
        work.begun.mkdir()
        work.whole.mkdir(exist_ok=going_on)  # what could not be removed is never taken for this run's
        if journal.durable:
            sync(work.folder)
            sync(work.folder.parent)
        yield work
        work.settle()
        if journal.durable:
            for part in (*work.whole.rglob("*"), work.whole):
                sync(part)
        _write(handle, replace(journal, ending=True))
        # an empty folder gives way; one that another has filled meanwhile does not
        os.rename(work.whole, path)
        named = True
        if journal.durable:
            sync(path.parent)
        work.remove()
    except BaseException as error:
        work.stop()
        if named:
            work.remove()
            if isinstance(error, OSError):
                raise OutputError(
                    f"{path} is written and whole, but that its name is on the disk is not sure: {_reason(error)}"
                ) from error
            raise
        # a source that cannot be read may be there again; one that has changed, or a fault of ours, is beyond that
        again = isinstance(error, OutputError | SourceError) and not isinstance(error, SourceChangedError)
        kept = work.files() if again or not isinstance(error, ElasticError) else 0
        if kept:
            _remove(work.begun)
        else:
            work.remove()
        if isinstance(error, OSError):
            left = KEPT.format(kept) if kept else "nothing of it is left"
            raise OutputError(f"{path} could not be written: {_reason(error)}; {left}") from error
        if isinstance(error, SourceError) and kept:
            raise SourceError(f"{error}; {KEPT.format(kept)}") from error
        raise
    finally:
        work.stop()


def _trusted(work: Work, mine: Journal, found: Journal | None) -> bool:
    """Whether earlier files can be gone on with; OutputError where they are of other work."""
    if found is not None and not found.plan:
        return False  # the run that was to remove them died over it
    why = "and its journal is damaged" if found is None else mine.refused(found)
    if found is None or why is not None:
        raise OutputError(
            f"{work.target} cannot be resumed: {work.folder.name} beside it was begun {why}; "
            "without --resume it is begun anew"
        )
    return found.durable or (found.boot != "" and found.boot == mine.boot)


@contextlib.contextmanager
def _locked(work: Work) -> Iterator[int]:
    """An open journal that no other process has; OutputError where one has it, or where no work of ours lies there."""
    import fcntl

    while True:
        try:
            with contextlib.suppress(FileExistsError):
                work.folder.mkdir(0o700)
            _refuse_foreign(work)
            handle = os.open(work.folder / JOURNAL, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:
            if work.folder.parent.is_dir():
                continue  # another run has ended, and taken the folder with it
            raise OutputError(f"the folder {work.folder.parent} does not exist") from None
        except OSError as error:
            raise OutputError(f"{work.target} cannot be written: {_reason(error)}") from error
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise OutputError(
                    f"{work.target} is being written by another run; wait for it, or write elsewhere with -o OUT"
                ) from error
            except OSError as error:
                if not os.fstat(handle).st_size:
                    work.remove()
                raise OutputError(
                    f"{work.target} cannot be written: files cannot be locked in {work.folder.parent} "
                    f"({_reason(error)}); write elsewhere with -o OUT"
                ) from error
            if _still(handle, work.folder / JOURNAL):
                yield handle
                return
        finally:
            os.close(handle)


def _refuse_foreign(work: Work) -> None:
    """OutputError where something lies in the place that no run of ours has left."""
    names = {"link"} if work.folder.is_symlink() else {part.name for part in work.folder.iterdir()}
    ours = names <= {JOURNAL, BEGUN, WHOLE} and (JOURNAL in names or not names)
    if not ours or work.folder.stat().st_uid != os.geteuid():
        raise OutputError(
            f"{work.folder} is in the way, and is not what a run of yours has left; move it elsewhere"
        )


def _still(handle: int, path: Path) -> bool:
    """Whether an open file is still the one of that name: a run that ended takes its journal away."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _read(handle: int) -> Journal | None:
    """What a journal says; None where it says nothing yet, or nothing sound."""
    text = os.pread(handle, _LIMIT, 0).partition(b"\n")[0]
    try:
        data: Any = json.loads(text)
        found = Journal(**data)
    except (ValueError, TypeError, RecursionError):
        return None
    return found


def _write(handle: int, journal: Journal) -> None:
    """One write of one line: a process that dies leaves the line before it or this one."""
    os.pwrite(handle, json.dumps(asdict(journal)).encode() + b"\n", 0)
    if journal.durable:
        os.fsync(handle)


def _boot() -> str:
    """What tells this start of the system from others; empty where the system does not say, as off Linux."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
