"""A folder that appears whole or not at all, and whose making a later run can continue. No torch here.

Beside the target OUT lies ``.OUT.partial`` while it is made. In it, ``begun`` holds the files that are being written,
``whole`` those that are finished: a file moves from one to the other by a rename, so its name in ``whole`` is the mark
that it is finished. ``whole`` gets the name OUT in the end. ``journal`` states what the work is for. ``lock`` is
there while a run works on it; the lock of a process that has died is free at once.

What the marks promise: a file in ``whole`` was written to its end, whatever ended the process. After a crash of the
machine the file system may know a name without its bytes, so work from before the last start of the system counts
only where each file was synced before its rename (``durable``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from elastic_ir.errors import ElasticError, OutputError, SourceChangedError, SourceError, reason
from elastic_ir.formats.files import read_json, refuse_taken, remove, sync
from elastic_ir.formats.locks import locked
from elastic_ir.tensors.lazy import Mask, TensorData

#: What a user reads of work that is kept.
KEPT = "what is finished of it is kept (files: {}), and --resume goes on with that"
#: What lies in the folder of a run.
_OURS = _JOURNAL, _NEW, _LOCK, _BEGUN, _WHOLE = "journal", "journal.new", "lock", "begun", "whole"


@dataclass(frozen=True)
class Journal:
    """What the work in a folder is for, and how far its files can be trusted."""

    version: str  #: of ElasticIR
    plan: str  #: a digest of what is written; empty while the files of other work are removed
    source: str  #: a digest of the files that it is read from, as they were
    boot: str = ""  #: the start of the system since which it was written, where that is known
    durable: bool = False  #: whether each file in ``whole`` was synced
    ending: bool = False  #: whether ``whole`` was about to get the target's name

    def refused(self, other: Journal) -> str | None:
        """Why work that was begun as ``other`` cannot be continued as this one; None where it can."""
        if self.version != other.version:
            return f"by ElasticIR {other.version}"
        if self.plan != other.plan:
            return "for another plan, source or shard size"
        return "from a source that was changed since" if self.source != other.source else None


def digests(files: Mapping[str, Mapping[str, TensorData]], texts: Mapping[str, str]) -> tuple[str, str]:
    """The digests of a plan (names, shapes, shards, origins, recipes, texts) and of the source files' stamps.

    Lazy tensors and recipes are frozen dataclasses, whose fields determine all that they yield; of a file that one
    refers to, the stamp (inode, size, time of change) goes into the second digest. A tensor of another kind gives
    a digest that no other plan has: such work is not resumed.
    """
    stamps: set[tuple[str, Any]] = set()
    masks: dict[int, tuple[Mask, str]] = {}  # clones share them; each is held, so that its id stays its own

    def described(item: Any) -> Any:
        """What JSON has no form for."""
        if isinstance(item, Path):
            return item.name  # however it is reached, now or after a move; its content is in the stamp
        if isinstance(item, bytes | bytearray | memoryview):
            return hashlib.sha256(item).hexdigest()
        if isinstance(item, Mask):
            stored = getattr(item, "stored", None)  # a range of a file
            if stored is None and id(item) not in masks:
                masks[id(item)] = item, hashlib.sha256(item.bits).hexdigest()
            return ["Mask", item.shape, item.dtype, masks[id(item)][1] if stored is None else stored]
        if not dataclasses.is_dataclass(item) or isinstance(item, type):
            raise TypeError(type(item))
        fields = {part.name: getattr(item, part.name) for part in dataclasses.fields(item)}
        if "stamp" in fields:
            stamps.add((Path(fields.get("path", "")).name, fields.pop("stamp")))
        return [type(item).__name__, *fields.values()]

    try:
        plan = json.dumps([list(files.items()), sorted(texts.items())], default=described)
    except TypeError:
        return secrets.token_hex(32), ""
    found = plan, json.dumps(sorted(map(str, stamps)))
    return hashlib.sha256(found[0].encode()).hexdigest(), hashlib.sha256(found[1].encode()).hexdigest()


class Work:
    """The folder in the making, held by this process alone."""

    def __init__(self, target: Path, durable: bool) -> None:
        self.target, self.folder, self.durable = target, partial_folder(target), durable
        self.begun, self.whole = self.folder / _BEGUN, self.folder / _WHOLE
        self.complete = False  #: whether an earlier run had given the target its name already
        self.pool = ThreadPoolExecutor(1)
        self._pending: list[Future[None]] = []

    def keep(self, names: set[str]) -> None:
        """Of what an earlier run left in ``whole``, leave only the files of these names."""
        for part in self.whole.iterdir():
            if part.name not in names:
                remove(part)

    def finish(self, name: str) -> None:
        """Mark a file in ``begun`` as finished; where it is synced first, that happens while the next is written."""
        self._pending.append(self.pool.submit(self._finish, name))

    def _finish(self, name: str) -> None:
        self.sync(self.begun / name)
        os.rename(self.begun / name, self.whole / name)

    def settle(self) -> None:
        """Wait until every finished file has its mark."""
        for future in self._pending:
            future.result()

    def sync(self, *paths: Path) -> None:
        """Have files and folders on the disk, where that is asked for."""
        for path in paths if self.durable else ():
            sync(path)

    def remove(self) -> None:
        """Remove everything, the journal last: without it nobody could tell what the rest is."""
        for name in (_BEGUN, _WHOLE, _NEW, _JOURNAL):
            remove(self.folder / name)

    def read(self) -> Journal | None:
        """What the journal states; None where there is none, or nothing sound in it."""
        try:
            return Journal(**read_json(self.folder / _JOURNAL))
        except (OSError, ValueError, TypeError, SourceError):
            return None

    def write(self, journal: Journal) -> None:
        """Replace the journal; a process that dies leaves the one before or this one."""
        (self.folder / _NEW).write_text(json.dumps(asdict(journal)))
        self.sync(self.folder / _NEW)
        os.replace(self.folder / _NEW, self.folder / _JOURNAL)


@contextlib.contextmanager
def resumable_folder(
    path: Path, journal: Journal, *, resume: bool = False, durable: bool = False
) -> Iterator[Work]:
    """Yield the work on a folder ``path``, which gets its name when the block ends well.

    The block writes files of ``begun`` and marks them by :meth:`Work.finish`; small ones it may write into ``whole``.
    With ``resume``, what an earlier run of the same journal has finished lies in ``whole`` already; without, it is
    removed.

    After an interrupt, a full disk or any error that another try may not meet, the work is kept where a file of it is
    finished; otherwise, and where the source changed, nothing is left. Raises OutputError, one line: the target is
    taken, another run works on it, earlier work is of another plan, or it cannot be written.
    """
    work = Work(path.resolve() if path.name in ("", "..") else path, durable)
    journal = replace(journal, boot=boot_id(), durable=durable)
    if not work.folder.is_dir():
        refuse_taken(work.target)
    with _locked(work):
        continued = _continued(work, journal, resume)
        if work.complete:
            yield work
            work.remove()
            return
        try:
            with work.pool:
                _prepare(work, journal, continued)
                yield work
                work.settle()
                work.sync(*work.whole.rglob("*"), work.whole)
                work.write(replace(journal, ending=True))
                # an empty folder gives way; one that another has filled meanwhile does not
                os.rename(work.whole, work.target)
        except BaseException as error:
            left = _left(work, error)
            if left is error:
                raise
            raise left from error
        try:
            work.sync(work.target.parent)
        except OSError as error:
            raise OutputError(
                f"{work.target} is written and whole, but its name may not be on the disk: {reason(error)}"
            ) from error
        finally:
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
    files = (part for part in folder.rglob("*") if part.is_file() and not part.is_symlink())
    return sum(part.lstat().st_blocks * 512 for part in files)


def partial_folder(path: Path) -> Path:
    """Where the work on a target lies: beside it, under a name made from the target's."""
    path = path.resolve() if path.name in ("", "..") else path
    name = path.name
    if len(os.fsencode(name)) > 200:  # a name has 255 bytes
        name = f"{name[:50]}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}"
    return path.with_name(f".{name}.partial")


# -- its steps ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(work: Work) -> Iterator[None]:
    """Hold the lock of a folder, which is made; OutputError where another run has it, or it is not one of ours."""
    mine: bool | None = None
    try:
        with contextlib.ExitStack() as stack:
            while mine is None:
                _refuse_foreign(work.folder)
                try:
                    work.folder.mkdir(0o700, exist_ok=True)
                    mine = stack.enter_context(locked(work.folder / _LOCK, needed=True))
                except OSError as error:
                    if isinstance(error, FileNotFoundError) and work.folder.parent.is_dir():
                        continue  # another run has ended, and removed the folder
                    raise OutputError(f"{work.target} cannot be written: {reason(error)}") from error
            if not mine:
                raise OutputError(
                    f"{work.target} is being written by another run; wait for it, or write elsewhere with -o OUT"
                )
            yield
    finally:
        with contextlib.suppress(OSError):
            work.folder.rmdir()  # where nothing is left in it


def _refuse_foreign(folder: Path) -> None:
    """OutputError where something lies in the place that no run of ours has left."""
    if not os.path.lexists(folder):
        return
    plain = folder.is_dir() and not folder.is_symlink() and folder.stat().st_uid == os.geteuid()
    names = {part.name for part in folder.iterdir()} if plain else {""}
    if not names <= {*_OURS} or (_JOURNAL not in names and not names <= {_LOCK, _NEW}):
        raise OutputError(f"{folder} is in the way, and was not left by a run of yours; move it elsewhere")


def _continued(work: Work, journal: Journal, resume: bool) -> bool:
    """Whether earlier files are used; OutputError where they are of other work, or the target is taken."""
    found, empty = work.read(), not kept_files(work.folder)
    if resume and found is not None and found.ending and journal.refused(found) is None:
        # the name was given, and then the process died
        work.complete = not work.whole.exists() and work.target.is_dir()
    try:
        if work.complete:
            return True
        refuse_taken(work.target)
        # a journal without a plan is of a run that was to remove the files, and died over it
        if not resume or empty or (found is not None and not found.plan):
            return False
        why = "and its journal is damaged" if found is None else journal.refused(found)
        if found is None or why is not None:
            raise OutputError(
                f"{work.target} cannot be resumed: {work.folder.name} beside it was begun {why}; "
                "without --resume it is begun anew"
            )
        return found.durable or (found.boot != "" and found.boot == journal.boot)
    except OutputError as error:
        if empty:
            work.remove()
        elif work.target.exists():  # a hidden folder would be forgotten
            raise OutputError(f"{error}; {work.folder} holds unfinished work on it") from error
        raise


def _prepare(work: Work, journal: Journal, continued: bool) -> None:
    """Have the folders ready for this run, with what an earlier one finished where it is continued."""
    remove(work.begun)
    if continued:
        work.sync(*work.whole.rglob("*"))  # the earlier run may not have been durable
    else:
        work.write(replace(journal, plan=""))  # from here on, what lies there belongs to no plan
        remove(work.whole)
    work.write(journal)
    work.begun.mkdir()
    work.whole.mkdir(exist_ok=continued)  # what could not be removed is never taken for this run's
    work.sync(work.folder, work.folder.parent)


def _left(work: Work, error: BaseException) -> BaseException:
    """Keep or remove the work that an error has ended; the error to raise, which says which of the two."""
    # a source that cannot be read may be there again; one that has changed, or a fault of ours, is beyond that
    again = isinstance(error, OutputError | SourceError) and not isinstance(error, SourceChangedError)
    kept = kept_files(work.folder) if again or not isinstance(error, ElasticError) else 0
    if kept:
        remove(work.begun)
    else:
        work.remove()
    if isinstance(error, OSError):
        left = KEPT.format(kept) if kept else "nothing of it is left"
        return OutputError(f"{work.target} could not be written: {reason(error)}; {left}")
    return SourceError(f"{error}; {KEPT.format(kept)}") if isinstance(error, SourceError) and kept else error


def boot_id() -> str:
    """The identifier of this start of the system; empty where there is none, as off Linux."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
