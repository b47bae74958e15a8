"""A folder of torch.distributed.checkpoint as an origin: entries, and tensors put together of boxes. No torch.

No process group is needed for that: each box is a range of one of the folder's files, whichever rank wrote it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, ClassVar

from elastic_ir.errors import SourceError
from elastic_ir.formats.bin import read_within
from elastic_ir.formats.dcp.metadata import METADATA, Box, Entry, Metadata, Place, read_metadata
from elastic_ir.formats.files import opened, stamp_of
from elastic_ir.formats.ranges import CHUNK, FileTensor
from elastic_ir.ir.info import Origin
from elastic_ir.tensors.lazy import TensorData, item_size

Stamp = tuple[int, int, int]
_SHOWN = 8  #: keys that are named


@dataclass(frozen=True, eq=False)
class Boxed:
    """A tensor of a checkpoint, which lies there in boxes; to be read, it is put together of them."""

    entry: Entry
    folder: Path
    stamps: Mapping[str, Stamp]  #: of the files

    @property
    def shape(self) -> tuple[int, ...]:
        return self.entry.shape

    @property
    def dtype(self) -> str:
        return str(self.entry.dtype)

    def chunks(self) -> Iterator[memoryview]:
        """The bytes in order: box by box where each has whole rows, else of the whole, which is held in memory.

        SourceError where a file was changed, or a box does not hold what the metadata says.
        """
        boxes = sorted((box for box in self.entry.boxes if prod(box.sizes)), key=lambda box: box.offsets)
        if all(box.sizes[1:] == self.shape[1:] for box in boxes):
            for box in boxes:
                yield from self._held(box).chunks()
            return
        import numpy as np

        whole = np.empty(self.shape, f"V{item_size(self.dtype)}")
        for box in boxes:
            part: Any = np.frombuffer(b"".join(self._held(box).chunks()), whole.dtype)
            where = tuple(slice(at, at + size) for at, size in zip(box.offsets, box.sizes, strict=True))
            whole[where] = part.reshape(box.sizes)
        flat = whole.reshape(-1).view(np.uint8)
        for at in range(0, flat.size, CHUNK):
            yield flat[at : at + CHUNK].data

    def _held(self, box: Box) -> TensorData:
        """What lies in a box, as a range of its file."""
        found = saved_at(self.folder, box.place, self.stamps[box.place.file], self.entry.name)
        if not isinstance(found, TensorData) or (found.shape, found.dtype) != (box.sizes, self.dtype):
            raise SourceError(
                f"{self.folder / box.place.file} is damaged: at byte {box.place.offset} it does not hold the part of "
                f"{self.entry.name!r} that {METADATA} states, {self.dtype} {list(box.sizes)}"
            )
        return found


def saved_at(folder: Path, place: Place, stamp: Stamp, name: str) -> Any:
    """What ``torch.save`` wrote at a place: plain data, or a tensor, which is unread. SourceError."""
    path = folder / place.file
    if place.transforms:
        raise SourceError(
            f"{path}: {name!r} was changed by {', '.join(place.transforms)} when it was saved, and is only carried as "
            "it is; save the checkpoint without extensions to have its values read"
        )
    with opened(path, "checkpoint") as file:
        if stamp_of(os.fstat(file.fileno())) != stamp:
            raise SourceError(f"{path} was changed after it was read; read it again")
        return read_within(file, path, place.offset, place.length, stamp)


@dataclass(eq=False)
class DcpSource(Origin):
    """A checkpoint of a training, and which of its entries are the network's."""

    streamed: ClassVar[bool] = True
    folder_format: ClassVar[str] = "dcp"
    folder: Path
    metadata: Metadata
    stamps: Mapping[str, Stamp]  #: of its files
    network: dict[str, Entry] = field(default_factory=dict)  #: the network's tensors, by their names in it
    #: the keys of the dictionary that holds them, and what precedes every name in it
    key: str = ""
    #: the further checkpoints that layers come from, in the order of their numbers from 1 on
    others: tuple[DcpSource, ...] = field(default=(), kw_only=True)

    def tensor(self, entry: Entry) -> Boxed:
        """An entry with a dtype as a tensor."""
        return Boxed(entry, self.folder, self.stamps)

    @cached_property
    def tensors(self) -> dict[str, Boxed]:
        """The network's tensors by name, in the order in which folders are read."""
        return {name: self.tensor(self.network[name]) for name in sorted(self.network)}

    def carried(self, place: Place) -> FileTensor:
        """The bytes at a place, whatever they are."""
        path = self.folder / place.file
        return FileTensor(path, place.offset, (place.length,), "uint8", self.stamps[place.file])

    @property
    def beside(self) -> list[Entry]:
        """What it holds beside the network's tensors."""
        own = {entry.name for entry in self.network.values()}
        return [entry for entry in self.metadata.entries if entry.name not in own]

    def record_folder(self) -> Path:
        """The folder itself."""
        return self.folder

    def along(self) -> list[str]:
        """The first keys of what lies beside the network."""
        return list(dict.fromkeys(str(entry.path[0]).partition(".")[0] for entry in self.beside))

    def facts(self) -> list[tuple[str, str]]:
        """What a reader wants to know of the checkpoint."""
        ranks = len(self.stamps)
        size = sum(stamp[1] for stamp in self.stamps.values())
        held = f"{len(self.network)} tensors" + (f" under {self.key}" if self.key else "")
        found = [
            ("checkpoint", f"{held}, {len(self.beside)} further entries"),
            ("files", f"{ranks}, {size:,} bytes"),
        ]
        return [*found, ("beside", ", ".join(self.along()[:_SHOWN]))] if self.beside else found


def is_dcp(path: Path) -> bool:
    """Whether a folder is, or was to become, a checkpoint of torch.distributed."""
    return (path / METADATA).is_file() or any(path.glob("__*_*.distcp"))


def read_folder(folder: Path) -> DcpSource:
    """A folder's entries, every file of them looked for.

    Raises SourceError as :func:`elastic_ir.formats.dcp.metadata.read_metadata` does, and for a file that is missing
    (that of a rank) or shorter than what is to lie in it.
    """
    if not (folder / METADATA).is_file():
        each = sorted(path.name for path in folder.glob(f"__*{METADATA}"))
        raise SourceError(
            f"{folder} has no {METADATA}, which says what lies where"
            + (
                f", only those of single ranks ({each[0]}); save with a process group or with no_dist=True"
                if each
                else ": it is written last, so the save was not finished, or the file was left behind by a copy"
            )
        )
    metadata = read_metadata(folder)
    needed: dict[str, tuple[int, list[str]]] = {}
    for entry in metadata.entries:
        for box in entry.boxes:
            end, names = needed.setdefault(box.place.file, (0, []))
            names.append(entry.name)
            needed[box.place.file] = max(end, box.place.offset + box.place.length), names
    root, stamps = folder.resolve(), {}
    for file, (end, names) in sorted(needed.items()):
        path = folder / file
        if not path.is_file():
            raise SourceError(
                f"{folder} lacks {file}, where {len(names)} of its entries lie ({names[0]} for example): each rank of "
                "a training writes its own files; bring those of all ranks into one folder"
            )
        if not path.resolve().is_relative_to(root):
            raise SourceError(f"{path} is a symbolic link out of the folder; put the file itself there")
        stamps[file] = stamp_of(path.stat())
        if stamps[file][1] < end:
            raise SourceError(
                f"{path} is truncated: by {METADATA} it reaches to byte {end}, and it has {stamps[file][1]}"
            )
    return DcpSource(folder, metadata, stamps)
