"""Files written from parts: bytes, tensors, and most of all ranges of other files. No torch here.

What is written is a plan first: which bytes lie where, most of them ranges of other files. Ranges that follow each
other in a source as they do in the target are one, each source is opened once, and what a system call can copy does not
pass through this process (on file systems that can share blocks, ``copy_file_range`` copies nothing at all). Where
there is much to do, a second thread helps. Writes to one file wait for each other inside the kernel (two threads that
both write gained nothing), so it reads into a mapping of the target: 1 GB in memory took 0.31 s so and 0.46 s by one
thread; on ext4 both took the same. What has to be on the disk in the end begins to go there at once: 400 MB took 0.20 s
so, and 0.27 s written first and synced then. Ranges whose pages do not fit go through this process: the system took
0.45 s for 400 MB of them, and 0.25 s so. What is larger than the memory takes the place of other files in the system's
cache, as a copy by ``cp`` does: nothing is done against that.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from elastic_ir.errors import EmitError, SourceChangedError, SourceError
from elastic_ir.formats.ranges import DistantTensor, FileTensor, Sources, check_distant
from elastic_ir.tensors.lazy import TensorData, nbytes

BUFFER = 1 << 20  #: bytes that go through this process at once where the system does not copy
#: bytes that a thread moves before it looks whether there is more to do; a multiple of a page
BLOCK = 1 << 24
#: bytes from which on a second thread, and places that suit the pages of the source, are worth it
LARGE = 1 << 26
PAGE = 4096
ASKED = 1 << 23  #: bytes of a distant file that are asked for at once
_AT_ONCE = 8  #: ranges of distant files that are asked for at the same time
#: What copying within the system fails with where it cannot be done: other file systems, old kernels, odd files.
_NOT_SO = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM}


class Part(NamedTuple):
    """What lies at a place of a file that is written."""

    at: int
    data: bytes | TensorData
    name: str = ""  #: the tensor's, for an error


def write_parts(
    path: str | os.PathLike[str],
    parts: Iterable[Part],
    tell: Callable[[int], None] | None = None,
    synced: bool = True,
    helped: bool = True,
) -> None:
    """Write a file from parts that do not overlap; between them it has zeros.

    ``tell`` is called with the bytes of tensors that have been written since the call before, not always by the same
    thread; ``synced`` states that the caller has the file on the disk before it gets its name, ``helped`` that a second
    thread may help: none is to spare where several files are written at once. Raises SourceError where a source was
    replaced, cut short, or is gone, EmitError where a tensor yields another number of bytes than its shape says.
    OSError is left to the caller.
    """
    moves: list[_Move] = []
    distant: list[_Move] = []
    made: list[Part] = []
    read: list[TensorData] = []
    size = 0
    for part in parts:
        length = len(part.data) if isinstance(part.data, bytes) else nbytes(part.data)
        size = max(size, part.at + length)
        if not isinstance(part.data, bytes):
            read.append(part.data)
        if isinstance(part.data, DistantTensor):
            _append(distant, _Move(part.data, part.data.offset, part.at, length))
        elif isinstance(part.data, FileTensor):
            _append(moves, _Move(part.data, part.data.offset, part.at, length))
        else:
            made.append(part)
    blocks = deque(block for move in moves for block in move.blocks())
    large = helped and sum(move.size for move in moves) >= LARGE and (os.cpu_count() or 1) > 1
    told = tell or (lambda size: None)
    with open(path, "w+b", buffering=0) as target:
        if large and not synced:
            target.truncate(size)  # a mapping ends with the file
            _by_two(Path(path), target, blocks, made, told)
        elif large and hasattr(os, "posix_fadvise"):
            _with_writeback(target, blocks, made, told)
        else:
            _write_made(target, made, told)
            _move(target, blocks.popleft, (_within, _through), lambda block: told(block.size))
        if distant:
            _by_ranges(target, deque(piece for move in distant for piece in move.blocks(ASKED)), told)
        check_distant(read)
        if os.fstat(target.fileno()).st_size < size:
            target.truncate(size)  # it ends with an empty tensor at an aligned place


def stream_parts(parts: Iterable[Part], tell: Callable[[int], None]) -> Iterator[memoryview]:
    """The bytes of parts in the order of their places, with zeros between them; errors as of :func:`write_parts`."""
    at = 0
    read: list[TensorData] = []
    for part in parts:
        if part.at > at:
            yield memoryview(bytes(part.at - at))
        at = part.at + (len(part.data) if isinstance(part.data, bytes) else nbytes(part.data))
        if isinstance(part.data, bytes):
            yield memoryview(part.data)
            continue
        read.append(part.data)
        pieces = part.data.pieces(BUFFER) if isinstance(part.data, FileTensor) else part.data.chunks()
        for piece in _exactly(part.data, part.name, pieces):
            yield piece
            tell(len(piece))
    check_distant(read)


def _exactly(data: TensorData, name: str, pieces: Iterator[memoryview]) -> Iterator[memoryview]:
    """The bytes of a tensor; EmitError, before what would be too much, where they are not as many as its shape says."""
    expected, given = nbytes(data), 0
    for piece in pieces:
        given += piece.nbytes
        if given > expected:  # the next tensor's place
            break
        yield piece.cast("B")
    if given != expected:
        what = f"the tensor {name!r}" if name else f"a tensor of shape {list(data.shape)}"
        raise EmitError(f"{what} gave {given} bytes where its shape and dtype need {expected}")


def _by_two(
    path: Path, target: BinaryIO, blocks: deque[_Move], made: list[Part], tell: Callable[[int], None]
) -> None:
    """Write from both ends; whichever thread fails takes the other's work away, so that both come to an end."""
    from concurrent.futures import ThreadPoolExecutor
    from threading import Lock

    lock = Lock()

    def moved(block: _Move) -> None:
        with lock:
            tell(block.size)

    def help_out() -> None:
        try:
            with path.open("r+b", buffering=0) as own:
                _move(own, blocks.pop, (_mapped, _within, _through), moved)
        except BaseException:
            blocks.clear()
            raise

    with ThreadPoolExecutor(1) as pool:
        helper = pool.submit(help_out)
        try:
            _write_made(target, made, tell)
            _move(target, blocks.popleft, (_within, _through), moved)
        except BaseException:
            blocks.clear()
            raise
        helper.result()


def _with_writeback(
    target: BinaryIO, blocks: deque[_Move], made: list[Part], tell: Callable[[int], None]
) -> None:
    """Write while the second thread has the blocks before go to the disk."""
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(1)

    def moved(block: _Move) -> None:
        # begins to write the pages out; being busy with that, none of them leaves the memory
        pool.submit(os.posix_fadvise, target.fileno(), block.at, block.size, os.POSIX_FADV_DONTNEED)
        tell(block.size)

    try:
        _write_made(target, made, tell)
        _move(target, blocks.popleft, (_within, _through), moved)
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


def _by_ranges(target: BinaryIO, blocks: deque[_Move], tell: Callable[[int], None]) -> None:
    """Ask for ranges of distant files, several at once, and write each to its place; a failure ends the others."""
    from concurrent.futures import ThreadPoolExecutor
    from threading import Lock

    lock = Lock()

    def work() -> None:
        try:
            while True:
                try:
                    block = blocks.popleft()
                except IndexError:
                    return
                assert isinstance(block.source, DistantTensor)
                view = memoryview(block.source.ranges().read(block.offset, block.size))
                at = block.at
                while view:
                    done = os.pwrite(target.fileno(), view, at)
                    view, at = view[done:], at + done
                with lock:
                    tell(block.size)
        except BaseException:
            blocks.clear()
            raise

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        workers = [pool.submit(work) for _ in range(min(_AT_ONCE, len(blocks)))]
        try:
            for worker in workers:
                worker.result()
        except BaseException:
            blocks.clear()
            raise


def _write_made(target: BinaryIO, made: list[Part], tell: Callable[[int], None]) -> None:
    """Write what has to be computed, or is in memory."""
    for at, data, name in made:
        target.seek(at)
        if isinstance(data, bytes):
            _write(target, memoryview(data))
            continue
        for chunk in _exactly(data, name, data.chunks()):
            _write(target, chunk)
        tell(nbytes(data))


def _write(target: BinaryIO, view: memoryview) -> None:
    """Write all of it, however little a single call takes."""
    while view:
        view = view[target.write(view) :]


# -- ranges ------------------------------------------------------------------------------------------------------------


class _Move(NamedTuple):
    """A range of a source, and its place in the target."""

    source: FileTensor  #: of which the file and its stamp count
    offset: int
    at: int
    size: int

    def blocks(self, length: int = BLOCK) -> Iterator[_Move]:
        """The range in pieces that end at multiples of a length in the target."""
        done = 0
        while done < self.size:
            size = min(self.size - done, length - (self.at + done) % length)
            yield _Move(self.source, self.offset + done, self.at + done, size)
            done += size

    @property
    def fits(self) -> bool:
        """Whether it is small, or its pages are pages of the target; where not, the system copies each in two parts."""
        return self.size < BUFFER or (self.offset - self.at) % PAGE == 0

    def short(self) -> SourceError:
        return SourceChangedError(f"{self.source.path} was cut short while it was being read")


def _append(moves: list[_Move], move: _Move) -> None:
    """Let a range join the last one where it follows it on both sides."""
    last = moves[-1] if moves else None
    if (
        last is not None
        and (last.offset + last.size, last.at + last.size) == (move.offset, move.at)
        and (last.source.path, last.source.stamp) == (move.source.path, move.source.stamp)
    ):
        moves[-1] = last._replace(size=last.size + move.size)
    elif move.size:
        moves.append(move)


# -- ways to move a block ----------------------------------------------------------------------------------------------

_Way = Callable[[BinaryIO, BinaryIO, _Move], None]


def _move(
    target: BinaryIO, take: Callable[[], _Move], ways: tuple[_Way, ...], moved: Callable[[_Move], None]
) -> None:
    """Move blocks until none is left, by the first way that the system has; one that fails is not tried again."""
    with Sources() as sources:
        while True:
            try:
                block = take()
            except IndexError:
                return
            source = sources.file(block.source)
            while True:
                try:
                    (ways[0] if block.fits or ways[0] is _mapped else _through)(source, target, block)
                    break
                except OSError as error:
                    if len(ways) == 1 or not (error.errno in _NOT_SO or ways[0] is _mapped):
                        raise
                    ways = ways[1:]
            moved(block)


def _within(source: BinaryIO, target: BinaryIO, block: _Move) -> None:
    """Have the system copy it."""
    if not hasattr(os, "copy_file_range"):
        raise OSError(errno.ENOSYS, "copy_file_range")
    done = 0
    while done < block.size:
        moved = os.copy_file_range(
            source.fileno(), target.fileno(), block.size - done, block.offset + done, block.at + done
        )
        if moved == 0:
            raise block.short()
        done += moved


def _mapped(source: BinaryIO, target: BinaryIO, block: _Move) -> None:
    """Read it into a mapping of the target, which does not wait for the other thread's writes.

    No byte of the mapping is touched but by system calls, which fail where a full disk would otherwise raise a signal.
    """
    import mmap

    if not hasattr(os, "preadv"):
        raise OSError(errno.ENOSYS, "preadv")
    before = block.at % mmap.ALLOCATIONGRANULARITY
    try:
        mapped = mmap.mmap(target.fileno(), before + block.size, offset=block.at - before)
    except (ValueError, OverflowError) as error:
        raise OSError(errno.EINVAL, "mmap") from error
    with mapped, memoryview(mapped) as view:
        done = 0
        while done < block.size:
            moved = os.preadv(source.fileno(), [view[before + done :]], block.offset + done)
            if moved == 0:
                raise block.short()
            done += moved


def _through(source: BinaryIO, target: BinaryIO, block: _Move) -> None:
    """Read and write it."""
    source.seek(block.offset)
    target.seek(block.at)
    buffer = memoryview(bytearray(min(BUFFER, block.size)))
    left = block.size
    while left:
        read = source.readinto(buffer[:left])  # type: ignore[attr-defined]  # files without buffers have it
        if not read:
            raise block.short()
        _write(target, buffer[:read])
        left -= read
