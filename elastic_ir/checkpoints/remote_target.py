"""Writing behind a URL: each file as a stream of bytes, in order, several of a folder at once.

Nothing of a folder or of a GGUF file is here; other formats are not written in order, so their files are written here
first. An object store shows an object when its upload is completed, so no file is ever there in part. There is no
renaming of folders: the files with weights come first, and the configuration, without which no program takes the folder
for a model's, last. What a failed run has uploaded is removed again.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from threading import Event, Lock
from typing import Any

from elastic_ir.checkpoints.gguf.write import Plan as GgufPlan
from elastic_ir.checkpoints.oracle.comparison import NOT_WANTED, Compared
from elastic_ir.checkpoints.side_files import SideFile
from elastic_ir.checkpoints.write import SHARD_SIZE, fetch_awaited, plan_checkpoint
from elastic_ir.errors import OutputError, SourceChangedError, SourceError
from elastic_ir.formats.files import stamp_of
from elastic_ir.formats.model_folder import LAYOUTS
from elastic_ir.formats.parts import BUFFER, stream_parts
from elastic_ir.formats.remote import (
    in_one_line,
    is_filled,
    names_place,
    path_of,
    system_of,
    url_beside,
    without_credentials,
)
from elastic_ir.formats.safetensors import safetensors_parts
from elastic_ir.ir.graph import Graph

_AT_ONCE = 4  #: files that are uploaded at once


def save_remote(
    graph: Graph,
    url: str,
    *,
    shard_size: int = SHARD_SIZE,
    check: bool = True,
    tell: Callable[[int, int], None] | None = None,
    tell_compared: Callable[[Compared], None] | None = None,
) -> str:
    """Write a graph that was read by headers as a folder behind a URL, and return that.

    The arguments are those of :func:`elastic_ir.checkpoints.write.save_checkpoint`. Raises OutputError where something
    is there already, it cannot be written, or the graph has masks; else what that function raises. Whatever goes wrong,
    nothing is left there, as far as it can still be reached.
    """
    target = _Target.at(url)
    target.refuse_filled()
    plan = plan_checkpoint(graph, shard_size, target.url)
    if plan.doubt is not None and not check:
        raise plan.doubt
    if plan.masks:
        raise OutputError(
            f"{url}: masks state which files they belong to; write to a folder here and copy that"
        )
    if fetch_awaited(graph):
        plan = plan_checkpoint(graph, shard_size, target.url)
    total, done, lock = plan.total, 0, Lock()

    def count(size: int) -> None:
        nonlocal done
        with lock:
            done += size
            if tell is not None:
                tell(done, total)

    def upload(name: str) -> None:
        tensors, metadata = plan.streams[name]
        target.write(name, stream_parts(safetensors_parts(tensors, metadata), count))

    target.refuse_taken(*plan.tensors, *(file.name for file in plan.side), *plan.texts)
    with plan.comparison() if check else nullcontext() as compared, target.made():
        if compared is not None and (graph.edits.unproven_beside or plan.doubt is not None):
            compared.result().prove(graph.edits.unproven_beside)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            uploads = [pool.submit(upload, name) for name in plan.tensors]
            try:
                for future in uploads:
                    future.result()
            except BaseException:
                target.stopped.set()
                pool.shutdown(cancel_futures=True)
                raise
        for file in plan.side:
            target.write(file.name, _content(file))
        found = compared.result() if compared is not None else NOT_WANTED
        texts, config = plan.with_found(found).texts, plan.source.layout.config
        for name in sorted(texts, key=lambda name: (name == config, name)):
            target.write(name, iter((memoryview(texts[name].encode()),)))
        if tell_compared is not None:
            tell_compared(found)
    return url


def refuse_target(url: str, names: Sequence[str], replace: bool = False) -> None:
    """OutputError where a file of one of the names, or without names a folder, cannot be written, or is there already.

    The first name is that of the URL, the others are those of what would lie beside its file. ``replace`` lets files
    go.
    """
    if names:
        _Target.around(url, replace).refuse_taken(*names)
    else:
        _Target.at(url).refuse_filled()


def taken(url: str, names: Sequence[str]) -> str | None:
    """What is there already of what :func:`refuse_target` refuses; None where nothing is. OutputError as that."""
    if not names:
        return "a folder of files" if _Target.at(url).is_filled() else None
    target = _Target.around(url, replace=False)
    return next((name for name in names if target.holds(name)), None)


def save_remote_gguf(
    plan: GgufPlan, url: str, replace: bool = False, tell: Callable[[int, int], None] | None = None
) -> dict[str, int]:
    """Write GGUF files, planned under a name, behind a URL of that name; by their URLs, the bytes of what was written.

    ``replace`` lets files of the names go. ``tell`` is called with bytes done and in all. Raises OutputError and
    SourceError as :func:`save_remote`.
    """
    total, done = sum(file.moved for file in plan.files.values()), 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        if tell is not None:
            tell(done, total)

    target = _Target.around(url, replace)
    target.refuse_taken(*plan.sizes)
    with target.made():
        for path, file in reversed(
            plan.files.items()
        ):  # the first part, without which none is read, comes last
            target.write(path.name, stream_parts(file.parts(), count))
    return {url_beside(url, name): size for name, size in plan.sizes.items()}


def save_remote_file(
    url: str,
    write: Callable[[Path], Sequence[Path]],
    replace: bool = False,
    tell: Callable[[int, int], None] | None = None,
    beside: Sequence[str] = (),
) -> dict[str, int]:
    """Write a file of any format, and what belongs to it, behind a URL; by their URLs, the bytes of what was written.

    ``write`` writes it at a path, in a temporary folder from which it is uploaded, and returns all paths. ``beside``
    names what such a file may have beside it: what is there of an earlier one, and is not written anew, goes with it.
    The rest is as of :func:`save_remote_gguf`.
    """
    name = path_of(url).name
    target = _Target.around(url, replace)
    target.refuse_taken(name, *beside)
    with tempfile.TemporaryDirectory(prefix="elastic-ir-") as home, target.made():
        sizes = {path: path.stat().st_size for path in write(Path(home) / name)}
        target.refuse_taken(*(path.name for path in sizes))
        done = 0
        for path in reversed(sizes):  # what belongs to the file is there before it
            target.write(path.name, _pieces(path))
            done += sizes[path]
            if tell is not None:
                tell(done, sum(sizes.values()))
    target.remove_left({*beside} - {path.name for path in sizes})
    return {url_beside(url, path.name): size for path, size in sizes.items()}


def save_remote_tree(
    url: str, write: Callable[[Path], object], tell: Callable[[int, int], None] | None = None
) -> dict[str, int]:
    """Write a model's folder that is not streamed behind a URL; by its URL, the bytes of what was written.

    ``write`` writes it at a path, in a temporary folder from which it is uploaded. The rest is as of
    :func:`save_remote`.
    """
    target = _Target.at(url)
    target.refuse_filled()
    with tempfile.TemporaryDirectory(prefix="elastic-ir-") as home, target.made():
        folder = Path(home) / path_of(url).name
        write(folder)
        configs = {layout.config for layout in LAYOUTS}
        files = sorted(
            (path for path in folder.rglob("*") if path.is_file()),
            key=lambda path: (path.name in configs, path),
        )
        total = sum(path.stat().st_size for path in files)
        for path in files:
            target.write(path.relative_to(folder).as_posix(), _pieces(path))
            if tell is not None:
                tell(sum(target.sizes.values()), total)
    return {url: total}


def _pieces(path: Path) -> Iterator[memoryview]:
    with path.open("rb") as source:
        while piece := source.read(BUFFER):
            yield memoryview(piece)


class _Target:
    """The folder, and what was written into it."""

    def __init__(self, url: str, replace: bool = False) -> None:
        self.url, self.written, self.stopped = without_credentials(url), list[str](), Event()
        self.given, self.replace = url, replace
        self.sizes: dict[str, int] = {}  #: by name, the bytes of what was written
        if url.lower().startswith(("http://", "https://")):
            raise OutputError(f"{self.url}: servers of HTTP take no files; write here, and upload that")
        self.what = self.url  #: what is written, for an error
        self.after = ""  #: what an error says of what is there
        try:
            self.system, self.root = system_of(url)
        except SourceError as error:
            raise OutputError(str(error)) from error

    @staticmethod
    def at(url: str) -> _Target:
        """A folder."""
        _refuse_nowhere(url)
        return _Target(url.rstrip("/"))

    @staticmethod
    def around(url: str, replace: bool) -> _Target:
        """The folder of a file."""
        _refuse_nowhere(url)
        folder = url.rpartition("/")[0]
        target = _Target(f"{folder}/" if folder.endswith(":/") else folder, replace)
        target.what = without_credentials(url)
        return target

    def refuse_filled(self) -> None:
        """OutputError where there is any file in the folder, or that is not known."""
        if self.is_filled():
            raise OutputError(f"{self.url} holds files already; name another, or remove them")

    def is_filled(self) -> bool:
        """Whether there is any file in the folder; OutputError where that is not known."""
        try:
            return is_filled(self.given)
        except SourceError as error:
            raise OutputError(
                f"{self.url} cannot be listed, so it is not known to be empty ({error}); see what is there, and your "
                "rights"
            ) from error

    def refuse_taken(self, *names: str) -> None:
        """OutputError where there is a file of one of the names."""
        for name in names if not self.replace else ():
            if self.holds(name):
                other = "choose another name with -o OUT"
                if self.what != self.url:  # a file
                    other += ", or write over it with --force"
                raise OutputError(f"{self.url}/{name} exists already; {other}")

    def holds(self, name: str) -> bool:
        """Whether there is something of a name; OutputError where that is not known."""
        with self._in_one_line(name):
            self.system.invalidate_cache()
            try:
                self.system.info(self._path(name))  # its exists() takes every failure for a no
            except FileNotFoundError:
                return False
            return True

    def _path(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"

    def write(self, name: str, pieces: Iterator[memoryview]) -> None:
        """Upload a file, which is there when all of it is; OutputError where it does not arrive."""
        path = self._path(name)
        with self._in_one_line(name):
            self.system.makedirs(path.rpartition("/")[0], exist_ok=True)
            if not self.replace:  # else what is there stays until all of the new one is
                self.written.append(path)
            more = {} if self.replace else {"autocommit": False}  # else the transaction ends with it
            file: Any = self.system.open(path, "wb", **more)
        size = 0
        try:
            for piece in pieces:
                if self.stopped.is_set():
                    raise OutputError(f"{self.url}: another file could not be written")
                with self._in_one_line(name):
                    file.write(piece)
                size += len(piece)
            with self._in_one_line(name):
                file.close()
                if not self.replace:
                    file.commit()
        except BaseException:
            if not self.replace:
                with contextlib.suppress(Exception):
                    file.discard()
            raise
        self.sizes[name] = size
        if not self.replace:
            self._check(name)

    def _check(self, name: str) -> None:
        """OutputError where a file has another size than was written."""
        with self._in_one_line(name):
            self.system.invalidate_cache()
            held = self.system.info(self._path(name))["size"]
        if held != self.sizes[name]:
            raise OutputError(
                f"{self.url}/{name} was written with {self.sizes[name]} bytes and has {held}; try again"
            )

    @contextlib.contextmanager
    def made(self) -> Iterator[None]:
        """Remove what was written where the block fails; what is replaced is there until all of the new is."""
        if self.replace:
            with self._replaced():
                yield
            return
        try:
            yield
        except BaseException:
            for path in set(self.written):
                with contextlib.suppress(Exception):
                    self.system.rm(path)
            raise

    @contextlib.contextmanager
    def _replaced(self) -> Iterator[None]:
        """Let nothing of what the block writes be seen before its end."""
        self.after = f"what was at {self.what} is still there"
        self.system.start_transaction()
        try:
            yield
        except BaseException:
            with contextlib.suppress(Exception):
                self.system.transaction.complete(commit=False)
            raise
        self.after = f"what was at {self.what} may be replaced in part: write it again"
        with self._in_one_line(next(reversed(self.sizes), "")):
            self.system.end_transaction()
        for name in self.sizes:
            self._check(name)

    def remove_left(self, names: Iterable[str]) -> None:
        """Remove files of an earlier result, which belong to no file any more; OutputError where one stays."""
        self.after = "the new file is there: see whether this one of an earlier result is too, and remove it"
        for name in names if self.replace else ():
            if self.holds(name):
                with self._in_one_line(name):
                    self.system.rm(self._path(name))

    @contextlib.contextmanager
    def _in_one_line(self, name: str) -> Iterator[None]:
        try:
            with in_one_line(f"{self.url}/{name}"):
                yield
        except SourceError as error:
            text = str(error).replace("cannot be read", "cannot be written", 1)
            after = self.after or f"nothing of {self.what} is left"
            raise OutputError(f"{text}; {after}") from error


def _refuse_nowhere(url: str) -> None:
    if not names_place(url):
        raise OutputError(f"{without_credentials(url)} names no place behind its scheme")


def _content(file: SideFile) -> Iterator[memoryview]:
    """A file's bytes; SourceError where it was changed since the folder was read."""
    try:
        yield from _pieces(file.path)
        if stamp_of(file.path.stat()) == file.stamp:
            return
    except FileNotFoundError:
        pass
    raise SourceChangedError(f"{file.path} was changed after it was read; read it again")
