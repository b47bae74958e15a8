"""A folder of torch.distributed.checkpoint as an origin: entries, and tensors put together of boxes. No torch.

No process group is needed for that: each box is a range of one of the folder's files, whichever rank wrote it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, ClassVar

from elastic_ir.errors import SourceError
from elastic_ir.formats.bin import read_within
from elastic_ir.formats.dcp.boxes import Boxed
from elastic_ir.formats.dcp.metadata import METADATA, Box, Entry, Metadata, Place, read_metadata
from elastic_ir.formats.files import opened, stamp_of
from elastic_ir.formats.ranges import FileTensor
from elastic_ir.ir.info import Origin
from elastic_ir.tensors.lazy import ITEM_SIZES, TensorData

Stamp = tuple[int, int, int]
_SHOWN = 8  #: keys that are named
_RANKS = "*.distcp"  #: the files of ranks


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
    asked: str | None = None  #: the key by which the network was chosen, if one was given
    #: the further checkpoints that layers come from, in the order of their numbers from 1 on
    others: tuple[DcpSource, ...] = field(default=(), kw_only=True)

    def tensor(self, entry: Entry) -> Boxed:
        """An entry with a dtype as a tensor; to read it raises SourceError where it is not what the metadata says."""
        return Boxed(entry.shape, str(entry.dtype), entry.boxes, partial(self._held, entry))

    def _held(self, entry: Entry, box: Box) -> TensorData:
        """What lies in a box, as a range of its file."""
        found = saved_at(self.folder, box.place, self.stamps[box.place.file], entry.name)
        if not isinstance(found, TensorData) or (found.shape, found.dtype) != (box.sizes, entry.dtype):
            raise SourceError(
                f"{self.folder / box.place.file} is damaged: at byte {box.place.offset} it does not hold the part of "
                f"{entry.name!r} that {METADATA} states, {entry.dtype} {list(box.sizes)}"
            )
        return found

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

    @property
    def unnamed(self) -> list[str]:
        """Files of ranks that its metadata does not name: of another save into the folder, of more ranks perhaps."""
        return sorted(path.name for path in self.folder.glob(_RANKS) if path.name not in self.stamps)

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
        if self.beside:
            found.append(("beside", ", ".join(self.along()[:_SHOWN])))
        return [*found, *self.left_out()]

    def left_out(self) -> list[tuple[str, str]]:
        """That the folder has files that are no part of the checkpoint, if it has."""
        names = self.unnamed
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        return (
            [("left out", f"{', '.join(names[:_SHOWN])}{more}, of which {METADATA} does not know")]
            if names
            else []
        )


def is_dcp(path: Path) -> bool:
    """Whether a folder is, or was to become, a checkpoint of torch.distributed."""
    return (path / METADATA).is_file() or any(path.glob("__*_*.distcp"))


def read_folder(folder: Path) -> DcpSource:
    """A folder's entries, every file of them looked for.

    Raises SourceError as :func:`elastic_ir.formats.dcp.metadata.read_metadata` does, for a file that is missing (that
    of a rank) or shorter than what is to lie in it, and for places of two entries that overlap.
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
    return DcpSource(folder, metadata, stamps_of(metadata, folder))


def stamps_of(metadata: Metadata, folder: Path) -> dict[str, Stamp]:
    """The files that metadata names. SourceError where one of them cannot be what it says, see :func:`read_folder`."""
    root, stamps = folder.resolve(), {}
    for file, held in sorted(_places(metadata, folder).items()):
        path = folder / file
        if not path.is_file():
            raise SourceError(
                f"{folder} lacks {file}, where {len(held)} of its entries lie ({held[0][1].name} for example): each "
                "rank of a training writes its own files; bring those of all ranks into one folder"
            )
        if not path.resolve().is_relative_to(root):
            raise SourceError(f"{path} is a symbolic link out of the folder; put the file itself there")
        stamps[file] = stamp_of(path.stat())
        end = max(box.place.offset + box.place.length for box, _ in held)
        if stamps[file][1] < end:
            raise SourceError(
                f"{path} is truncated: by {METADATA} it reaches to byte {end}, and it has {stamps[file][1]}"
            )
        _refuse_overlap(held, path)
    return stamps


_Held = tuple[Box, Entry]


def _places(metadata: Metadata, folder: Path) -> dict[str, list[_Held]]:
    """What lies in each file; SourceError for a part of a tensor with fewer bytes than its elements take."""
    found: dict[str, list[_Held]] = {}
    for entry in metadata.entries:
        item = ITEM_SIZES.get(entry.dtype or "", 0)
        for box in entry.boxes:
            place, needed = box.place, prod(box.sizes) * item
            if place.length < needed and not place.transforms:
                raise SourceError(
                    f"{folder / METADATA} is damaged: {entry.dtype} {list(box.sizes)} of {entry.name!r} takes {needed} "
                    f"bytes, and its place in {place.file} has {place.length}"
                )
            found.setdefault(place.file, []).append((box, entry))
    return found


def _refuse_overlap(held: list[_Held], path: Path) -> None:
    """SourceError where bytes of a file are a part of two entries."""
    in_order = sorted(
        ((box, entry) for box, entry in held if box.place.length),
        key=lambda one: (one[0].place.offset, one[0].place.length),
    )
    for (box, entry), (other, following) in pairwise(in_order):
        # empty parts of one tensor, of several ranks, are one part with one place
        same = entry is following and box.offsets == other.offsets and box.place == other.place
        if other.place.offset < box.place.offset + box.place.length and not same:
            raise SourceError(
                f"{path.parent / METADATA} is damaged: the places of {entry.name!r} and {following.name!r} in "
                f"{path.name} overlap at byte {other.place.offset}"
            )
