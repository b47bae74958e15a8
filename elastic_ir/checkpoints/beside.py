"""Whether what lies beside the network that changed, in a folder of several, is what its source has there. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from elastic_ir.checkpoints.side_files import beside_part
from elastic_ir.formats.compound_folder import parts_of
from elastic_ir.formats.files import stamp_of
from elastic_ir.formats.model_folder import RECORD, is_compound
from elastic_ir.formats.ranges import FileTensor
from elastic_ir.tensors.lazy import same_bytes


@dataclass
class Beside:
    """What was found of a folder's other files, by their names in it."""

    source: Path  #: the folder that it was compared with
    compared: int = 0
    differing: dict[str, str] = field(default_factory=dict)  #: each with what is wrong
    changed: list[str] = field(
        default_factory=list
    )  #: parts that have a change of their own since: not compared


def compare_beside(whole: Path, inner: Path, source: Path) -> Beside | None:
    """Compare all files that came along with the network in ``inner``, byte by byte, with those beside its source.

    ``source`` is the network that it was made from. None for a folder without other parts, and where the source is
    not in one.
    """
    if not is_compound(whole):
        return None
    for name in reversed(inner.parts):
        if source.name != name:
            return None
        source = source.parent
    if not is_compound(source):
        return None
    parts = [part for part in parts_of(whole) if Path(part) != inner]
    found = Beside(source, changed=[part for part in parts if _has_changed(whole, source, part)])
    prefix = f"{inner.as_posix()}/" if inner.parts else ""
    for name in beside_part(source, prefix):
        if any(name.startswith(f"{part}/") for part in found.changed):
            continue
        found.compared += 1
        if not (whole / name).is_file():
            found.differing[name] = "is missing"
        elif not _equal(whole / name, source / name):
            found.differing[name] = "differs from the source's file"
    return found


def _has_changed(whole: Path, source: Path, part: str) -> bool:
    """Whether a part has a record that the source's does not have."""
    own, theirs = whole / part / RECORD, source / part / RECORD
    return own.is_file() and not (theirs.is_file() and _equal(own, theirs))


def _equal(one: Path, other: Path) -> bool:
    def bytes_of(path: Path) -> FileTensor:
        status = path.stat()
        return FileTensor(path, 0, (status.st_size,), "uint8", stamp_of(status))

    return same_bytes(bytes_of(one), bytes_of(other))
