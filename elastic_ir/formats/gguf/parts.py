"""GGUF files of one model: one, or several, of which the first has the metadata (``NAME-00001-of-00003.gguf``)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, TypeAlias

from elastic_ir.errors import SourceError
from elastic_ir.formats import GGUF
from elastic_ir.formats.distant import Elsewhere
from elastic_ir.formats.gguf.header import Header, Value, read_header
from elastic_ir.formats.gguf.types import type_name
from elastic_ir.formats.model_folder import label_of
from elastic_ir.formats.ranges import FileTensor
from elastic_ir.ir.info import Origin
from elastic_ir.tensors.lazy import nbytes

ARCHITECTURE = "general.architecture"
NUMBER, COUNT, TENSOR_COUNT = "split.no", "split.count", "split.tensors.count"
SPLIT = (NUMBER, COUNT, TENSOR_COUNT)
_PART = re.compile(r"(?P<stem>.*)-(?P<number>[0-9]{5,})-of-(?P<count>[0-9]{5,})", re.DOTALL)

Tell: TypeAlias = "Callable[[int, int], None]"


@dataclass(eq=False)
class GgufSource(Origin):
    """The headers of a model's files, and what its metadata says of the layers."""

    streamed: ClassVar[bool] = True
    mixed_types: ClassVar[bool] = True
    written_as: ClassVar[str] = GGUF.suffixes[0]
    parts: tuple[Header, ...]
    #: for each stack, by its label, what each layer holds: its kind, as a number
    kinds: dict[str, tuple[int, ...]] = field(default_factory=dict)
    #: the further files that layers come from, in the order of their numbers from 1 on
    others: tuple[GgufSource, ...] = field(default=(), kw_only=True)
    url: str = field(default="", kw_only=True)  #: where it lies, without credentials; empty for a file here
    #: has its files here that are not yet, and is told bytes done and in all; for a model of the hub
    fetch: Callable[[Tell | None], None] | None = field(default=None, kw_only=True)

    @property
    def head(self) -> Header:
        """The header that has the metadata."""
        return self.parts[0]

    @property
    def path(self) -> Path:
        return self.head.path

    @property
    def label(self) -> str:
        """What records call it: see :func:`elastic_ir.formats.model_folder.label_of`; by its URL if it has one."""
        return self.url or label_of(self.path)

    @property
    def architecture(self) -> str:
        """What keys about the network begin with."""
        return self.head.text(ARCHITECTURE) or ""

    @property
    def tensors(self) -> dict[str, FileTensor]:
        """All tensors, in the order of the files."""
        return {name: data for part in self.parts for name, data in part.tensors.items()}

    def values(self) -> Mapping[str, Value]:
        """The short entries about the network, by their keys without the architecture."""
        prefix = f"{self.architecture}."
        found = {
            key.removeprefix(prefix): entry.value
            for key, entry in self.head.entries.items()
            if key.startswith(prefix)
        }
        return {key: value for key, value in found.items() if value is not None}

    def facts(self) -> list[tuple[str, str]]:
        """What a reader wants to know of the file."""
        sizes: dict[str, list[int]] = {}
        for data in self.tensors.values():
            sizes.setdefault(type_name(data.dtype), []).append(nbytes(data))
        ordered = sorted(sizes.items(), key=lambda item: -sum(item[1]))
        types = ", ".join(f"{len(held)} of {name}" for name, held in ordered)
        found = [("architecture", self.architecture or "not stated"), ("tensors", types or "none")]
        return [*found, ("files", str(len(self.parts)))] if len(self.parts) > 1 else found


def stem_of(path: Path) -> str:
    """A file's name without its ending, and without the number of a part."""
    match = _PART.fullmatch(path.stem)
    return match["stem"] if match else path.stem


def part_name(stem: str, number: int, count: int, suffix: str = GGUF.suffixes[0]) -> str:
    """What a part is called, the first being number 0; a file that is the only one has its plain name."""
    return f"{stem}-{number + 1:05}-of-{count:05}{suffix}" if count > 1 else f"{stem}{suffix}"


def first_parts(names: Iterable[str]) -> list[str]:
    """Of the names of GGUF files those that are one model each: of parts the first."""
    numbers = ((name, _PART.fullmatch(name.rpartition(".")[0])) for name in names)
    return sorted(name for name, match in numbers if match is None or int(match["number"]) == 1)


def count_in(name: str) -> int:
    """How many files a model has by the name of one of them."""
    match = _PART.fullmatch(name.rpartition(".")[0])
    return int(match["count"]) if match else 1


def parts_of(name: str, names: Iterable[str]) -> list[str]:
    """The names of a model's files among others, the first or only one's first."""
    match = _PART.fullmatch(name.rpartition(".")[0])
    if match is None:
        return [name]
    numbered = ((other, _PART.fullmatch(other.rpartition(".")[0])) for other in names)
    return sorted(
        other
        for other, found in numbered
        if found and found.group("stem", "count") == match.group("stem", "count")
    )


def read_parts(path: Path, elsewhere: Elsewhere | None = None) -> tuple[Header, ...]:
    """The headers of all files of a model, by its first or only one.

    ``elsewhere`` gives the file that a path stands for where that is not here; None for one that is.

    Raises SourceError as :func:`read_header` does, and where a part is given that is not the first, where one is
    missing, of another model, or holds a tensor that another holds too.
    """
    found = elsewhere or (lambda path: None)
    head = read_header(path, found(path))
    count = head.count(COUNT) or 1
    if count == 1:
        return (head,)
    match = _PART.fullmatch(path.stem)
    if match is None or int(match["count"]) != count:
        raise SourceError(
            f"{path} is one of {count} parts by its metadata ({COUNT}), so its name has to end in "
            f"-00001-of-{count:05}{path.suffix}"
        )
    stem, width = match["stem"], len(match["count"])

    def called(at: int) -> Path:
        return path.with_name(f"{stem}-{at + 1:0{width}}-of-{match['count']}{path.suffix}")

    if head.count(NUMBER) != 0 or int(match["number"]) != 1:
        raise SourceError(
            f"{path} is one of {count} parts, and the metadata is in the first; give {called(0)}"
        )
    parts, held = [head], dict.fromkeys(head.tensors, path.name)
    for at in range(1, count):
        other = called(at)
        distant = found(other)
        if distant is None and not other.exists():
            raise SourceError(f"{path} is the first of {count} parts, and {other.name} is not beside it")
        part = read_header(other, distant)
        if part.count(NUMBER) != at or part.count(COUNT) != count:
            raise SourceError(
                f"{other} is not part {at + 1} of {count} by its metadata ({NUMBER} = {part.count(NUMBER)}, {COUNT} = "
                f"{part.count(COUNT)})"
            )
        for name in part.tensors:
            if name in held:
                raise SourceError(f"the tensor {name!r} lies in both {held[name]} and {other.name}")
            held[name] = other.name
        parts.append(part)
    total = head.count(TENSOR_COUNT)
    if total is not None and total != len(held):
        raise SourceError(
            f"{path} states {total} tensors in all ({TENSOR_COUNT}), and its parts hold {len(held)}"
        )
    return tuple(parts)
