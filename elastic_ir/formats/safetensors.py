"""A lazy reader of ``.safetensors`` files that needs no torch: the header is read, tensors only when asked for."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from elastic_ir.errors import SourceChangedError, SourceError
from elastic_ir.formats.files import parse_json
from elastic_ir.formats.model_folder import stamp_of
from elastic_ir.formats.safetensors_format import DTYPES, MAX_HEADER, METADATA, PACKED
from elastic_ir.safety.limits import open_plain
from elastic_ir.tensors.lazy import nbytes, size_of

CHUNK = 1 << 24  #: bytes read at once; a multiple of every element's size
BUFFER = 1 << 18  #: bytes that go through this process at once where the system cannot copy; more is slower
#: What copying within the system fails with where it cannot be done: other file systems, old kernels, odd files.
_NOT_SO = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM}
_NAMES = {theirs: ours for ours, theirs in (*DTYPES.items(), *PACKED.items())}


@dataclass(frozen=True)
class FileTensor:
    """A tensor's bytes at a place in a file; the file must stay as it is until they are read."""

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: str
    stamp: tuple[int, int, int] | None = None  #: of the file whose header was read

    def chunks(self) -> Iterator[memoryview]:
        """The bytes in pieces of at most 16 MiB; SourceError if the file was replaced, cut short, or is gone."""
        left = nbytes(self)
        with self._open() as file:
            file.seek(self.offset)
            while left:
                piece = file.read(min(left, CHUNK))
                if len(piece) < min(left, CHUNK):
                    raise self._cut_short()
                left -= len(piece)
                yield memoryview(piece)
            self._check_stamp(file)  # what was read is what was there when the reading began

    def copy_into(self, target: BinaryIO) -> None:
        """Append the bytes to an open file without their passing through this process, where the system can do that.

        Raises SourceError as :meth:`chunks` does, and OSError where the target cannot be written.
        """
        left = nbytes(self)
        target.flush()
        with self._open() as file:
            at = self.offset
            while left and hasattr(os, "copy_file_range"):
                try:
                    done = os.copy_file_range(file.fileno(), target.fileno(), left, at)
                except OSError as error:
                    if error.errno in _NOT_SO:
                        break
                    raise
                if done == 0:
                    raise self._cut_short()
                at, left = at + done, left - done
            file.seek(at)
            while left:
                piece = file.read(min(left, BUFFER))
                if len(piece) < min(left, BUFFER):
                    raise self._cut_short()
                target.write(piece)
                left -= len(piece)
            self._check_stamp(file)  # what was copied is what was there when the copying began

    def _cut_short(self) -> SourceError:
        return SourceChangedError(f"{self.path} was cut short while it was being read")

    @contextlib.contextmanager
    def _open(self) -> Iterator[BinaryIO]:
        try:
            file = self.path.open("rb")
        except OSError as error:
            raise SourceError(
                f"{self.path} could not be read: {(error.strerror or str(error)).lower()}"
            ) from error
        with file:
            self._check_stamp(file)
            yield file

    def _check_stamp(self, file: BinaryIO) -> None:
        if self.stamp not in (None, stamp_of(os.fstat(file.fileno()))):
            raise SourceChangedError(f"{self.path} was changed after it was read; read it again")


def read_safetensors(
    path: str | os.PathLike[str], form: str = ".safetensors"
) -> tuple[dict[str, FileTensor], dict[str, str]]:
    """The tensors, in the header's order and unread, and the metadata; ``form`` is what errors call the file.

    Raises SourceError: the file is missing, a folder, empty, truncated or longer than its header says, or the header
    is garbage, names an unknown dtype, or has offsets that overlap, leave gaps or do not fit the shapes.
    """
    path = Path(path)
    try:
        with open_plain(path) as file:
            status = os.fstat(file.fileno())
            size = status.st_size
            length = int.from_bytes(file.read(8), "little")
            if size == 0:
                raise SourceError(f"{path} is empty")
            if size < 8:
                raise SourceError(f"{path} is no {form} file: it has only {size} bytes")
            if length > MAX_HEADER:
                raise SourceError(
                    f"{path} is no {form} file: its first 8 bytes ask for a header of {length} bytes"
                )
            if 8 + length > size:
                raise SourceError(
                    f"{path} is truncated: the header should have {length} bytes, the file has {size}"
                )
            text = file.read(length)
    except FileNotFoundError as error:
        raise SourceError(f"{path} does not exist") from error
    except IsADirectoryError as error:
        raise SourceError(f"{path} is a folder, not a {form} file") from error
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from error
    header = _parse(text, path, form)
    metadata = header.pop(METADATA, None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise SourceError(f"{path} is damaged: its metadata is no table of texts")
    start = 8 + length
    tensors: dict[str, FileTensor] = {}
    spans: list[tuple[int, int, str]] = []
    for name, item in header.items():
        shape, dtype, begin, end = _entry(name, item, path)
        tensors[name] = FileTensor(path, start + begin, shape, dtype, stamp_of(status))
        spans.append((begin, end, name))
    _check_spans(sorted(spans), size - start, path)
    return tensors, metadata


def _parse(text: bytes, path: Path, form: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):  # which of the two is meant cannot be known
            raise SourceError(f"{path} is damaged: a name stands twice in its header")
        return table

    try:
        header = parse_json(text, unique)
    except ValueError as error:
        raise SourceError(
            f"{path} is no {form} file, or damaged: its header is not JSON ({error})"
        ) from error
    if not isinstance(header, dict):
        raise SourceError(f"{path} is damaged: its header is no table of tensors")
    return header


def _entry(name: str, item: Any, path: Path) -> tuple[tuple[int, ...], str, int, int]:
    where = f"{path} is damaged: the header's entry for {name!r}"
    if not isinstance(item, dict) or not {"dtype", "shape", "data_offsets"} <= item.keys():
        raise SourceError(f"{where} lacks dtype, shape or data_offsets")
    dtype, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _NAMES:
        raise SourceError(
            f"{path}: the tensor {name!r} has the dtype {dtype!r}, which ElasticIR does not know"
        )
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        raise SourceError(f"{where} has a shape or offsets that are no counts: {shape!r}, {offsets!r}")
    needed = size_of(shape, _NAMES[dtype])
    if offsets[1] - offsets[0] != needed:
        raise SourceError(f"{where} has offsets {offsets}, but {dtype} of shape {shape} takes {needed} bytes")
    return tuple(shape), _NAMES[dtype], offsets[0], offsets[1]


def _counts(item: Any) -> bool:
    return isinstance(item, list) and all(type(part) is int and part >= 0 for part in item)


def _check_spans(spans: list[tuple[int, int, str]], size: int, path: Path) -> None:
    done, before = 0, "the header"
    for begin, end, name in spans:
        if begin < done:
            raise SourceError(
                f"{path} is damaged: the bytes of {name!r} and {before!r} overlap in the header's offsets"
            )
        if begin > done:
            raise SourceError(f"{path} is damaged: {begin - done} bytes before {name!r} belong to no tensor")
        if end > size:
            raise SourceError(
                f"{path} is truncated: {name!r} should end at byte {end} of the data, which has {size}"
            )
        done, before = end, name
    if done < size:
        raise SourceError(f"{path} is damaged: {size - done} bytes at its end belong to no tensor")
