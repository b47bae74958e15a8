"""A training checkpoint of another depth: entries copied from where they lie, into files of the same names.

Each file of the source has its counterpart, with the entries that are kept and their copies, as the bytes that they
are; what is computed (a scaled copy, a group's list of parameters) lies in a file of its own. ``.metadata`` names them,
and the record of ElasticIR lies beside it. Two files are written at once, as two ranks would. No torch here.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from elastic_ir.checkpoints.card import plan_text
from elastic_ir.checkpoints.dcp.follow import Followed, Made, followed
from elastic_ir.checkpoints.dcp.places import places_of
from elastic_ir.checkpoints.record import Origin, Step, gone_from, read_record, record_text
from elastic_ir.checkpoints.stacks import Stack
from elastic_ir.checkpoints.undo import steps_after
from elastic_ir.errors import EmitError, OutputError, PlanError
from elastic_ir.formats.dcp.folder import DcpSource, stamps_of
from elastic_ir.formats.dcp.metadata import (
    METADATA,
    Box,
    Entry,
    Metadata,
    Place,
    metadata_bytes,
    read_metadata,
)
from elastic_ir.formats.files import atomic_folder, stamp_of
from elastic_ir.formats.model_folder import RECORD, label_of
from elastic_ir.formats.parts import Part, write_parts
from elastic_ir.formats.torch_zip import write_plain, write_tensor
from elastic_ir.ir.graph import Graph
from elastic_ir.tensors.lazy import nbytes
from elastic_ir.tensors.recipes import factor_of
from elastic_ir.version import __version__

if TYPE_CHECKING:
    from elastic_ir.checkpoints.side_files import SideFile

_AT_ONCE = 2  #: files that are written at the same time
_ROOM = 16 << 20  #: bytes that metadata, record and folders may take beside the files

Tell = Callable[[int, int], None]  #: called with bytes done, and bytes in all


@dataclass(frozen=True)
class Plan:
    """What will be written: the entries, the files with what is copied into each, and what lies beside."""

    source: DcpSource
    follow: Followed
    steps: list[Step]
    files: dict[str, list[Part]]
    #: where in the files of its source each box of an entry lies, by the numbers of both
    moved: dict[tuple[int, int], int]
    side: list[SideFile]

    @property
    def computed(self) -> list[Made]:
        """The entries that lie in files of their own."""
        return [made for made in self.follow.entries if made.is_computed]

    @property
    def sizes(self) -> dict[str, int]:
        """The files with their bytes; of what is computed the bytes of tensors alone."""
        sizes = {name: _end(parts) for name, parts in self.files.items()}
        sizes |= {
            f"{made.name} (computed)": nbytes(made.data) for made in self.computed if made.data is not None
        }
        return sizes | {file.name: file.size for file in self.side}

    @property
    def facts(self) -> tuple[tuple[str, str], ...]:
        """What has become of what lies beside the network."""
        along = [("following", ", ".join(sorted(self.follow.following)))] if self.follow.following else []
        kept = [("kept", f"{', '.join(sorted(self.follow.kept))}, as they are")] if self.follow.kept else []
        return (*along, *kept, *self.source.left_out())


def plan_dcp(graph: Graph) -> Plan:
    """Decide on everything that :func:`save_dcp` writes; nothing is written.

    Raises EmitError for a graph of another source, with masks, or whose optimizer's state cannot follow.
    """
    source = graph.origin
    if not isinstance(source, DcpSource):
        raise EmitError(
            f"{graph.name} was not read from a checkpoint of torch.distributed, so it has no form of one"
        )
    masked = next((name for name, weight in graph.weights.items() if weight.mask is not None), None)
    if masked is not None:
        raise EmitError(
            f"a checkpoint of torch.distributed holds no masks, and {masked} has one; write .pt or .safetensors"
        )
    if graph.earlier:
        raise PlanError(
            f"{graph.name} was changed at two levels, of which one record states one; write it after each change"
        )
    follow = followed(graph, source)
    for made in follow.entries:
        if made.data is not None and (made.data.shape, made.data.dtype) != (made.of.shape, made.of.dtype):
            raise EmitError(
                f"{made.name} has become {made.data.dtype} {list(made.data.shape)}, and what an optimizer keeps of it "
                "cannot follow; write .pt or .safetensors"
            )
    steps = steps_after(graph, read_record(source.folder), _step(graph, source))
    files, moved = places_of(follow.entries, source)
    return Plan(source, follow, steps, files, moved, _side_files(source))


def write_dcp(graph: Graph, path: Path, check: bool) -> list[Path]:
    """Write a graph that was read from a checkpoint of torch.distributed as one; the path written.

    See :func:`plan_dcp` and :func:`save_dcp`.
    """
    plan = plan_dcp(graph)
    save_dcp(plan, path, check=check)
    graph.emitted = replace(graph.emitted, beside=plan.facts)
    return [path]


def save_dcp(
    plan: Plan, path: Path, *, check: bool = True, replaced: bool = False, tell: Tell | None = None
) -> list[Path]:
    """Write what was planned, and return the path. ``check`` compares what was written with the plan, by its headers.

    Raises OutputError where the target is taken, unless it is to be ``replaced``, or cannot be written; SourceError
    where a file of the source changed meanwhile. Then what was there is there still.
    """
    check_room(plan, path)
    with atomic_folder(path, replaced) as folder:
        with _copying(folder, plan.files, tell):
            entries = _entries(folder, plan)
            metadata = Metadata(tuple(entries), plan.source.metadata.nested, plan.source.metadata.version)
            _copy_side_files(plan.side, folder)
            if plan.steps:
                (folder / RECORD).write_text(record_text(plan.steps), encoding="utf-8")
            (folder / METADATA).write_bytes(metadata_bytes(metadata))
            if check and read_metadata(folder) != metadata:
                raise EmitError(f"{path} does not read back as it was planned")
        if check:
            stamps_of(metadata, folder)  # the files are all there now, and whole
    return [path]


def write_followed(follow: Followed, source: DcpSource, path: Path) -> None:
    """Write entries that were decided on as a folder without a record, which a folder around it has."""
    files, moved = places_of(follow.entries, source)
    save_dcp(Plan(source, follow, [], files, moved, _side_files(source)), path)


def check_room(plan: Plan, path: Path) -> None:
    """OutputError where a file system has less room than the plan needs."""
    needed = sum(plan.sizes.values()) + _ROOM
    try:
        free = shutil.disk_usage(path.parent).free
    except OSError:
        return  # whoever writes there reports it
    if free < needed:
        raise OutputError(
            f"{path} needs {needed / 1e9:.2f} GB and {path.parent} has {free / 1e9:.2f} GB free; make room or write "
            "elsewhere with -o OUT"
        )


@contextlib.contextmanager
def _copying(folder: Path, files: Mapping[str, list[Part]], tell: Tell | None) -> Iterator[None]:
    """Write what is copied while the block runs, and until it is all there; a failure ends the rest."""
    from concurrent.futures import ThreadPoolExecutor
    from threading import Lock

    total = sum(_length(part) for parts in files.values() for part in parts)
    done, lock = 0, Lock()

    def count(size: int) -> None:
        nonlocal done
        with lock:
            done += size
            if tell is not None:
                tell(done, total)

    count(0)
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
    pool = ThreadPoolExecutor(_AT_ONCE)
    try:
        begun = [
            pool.submit(write_parts, folder / file, parts, count, synced=False, helped=False)
            for file, parts in files.items()
        ]
        yield
        for one in begun:
            one.result()
    finally:
        pool.shutdown(cancel_futures=True)
    for file, parts in files.items():
        size, planned = (folder / file).stat().st_size, _end(parts)
        if size != planned:
            raise EmitError(f"{file} has {size} bytes where {planned} were planned")


def _end(parts: Sequence[Part]) -> int:
    return max(part.at + _length(part) for part in parts)


def _length(part: Part) -> int:
    return len(part.data) if isinstance(part.data, bytes) else nbytes(part.data)


def _entries(folder: Path, plan: Plan) -> list[Entry]:
    """The entries with their places; what is computed is written now."""
    found: list[Entry] = []
    numbers: dict[str, int] = {}
    for at, item in enumerate(plan.follow.entries):
        entry = replace(item.of, name=item.name, path=item.path)
        if item.is_computed and item.of.boxes:  # an empty tensor may lie nowhere
            found.append(_computed(folder, item, entry, numbers, plan.files))
            continue
        places = [
            replace(box, place=replace(box.place, offset=plan.moved[at, number]))
            for number, box in enumerate(item.of.boxes)
        ]
        found.append(replace(entry, boxes=tuple(places)))
    return found


def _computed(
    folder: Path, item: Made, entry: Entry, numbers: dict[str, int], files: Mapping[str, object]
) -> Entry:
    """Write an entry that is computed into a file of its own, named after the rank that held what it stands for.

    ``files`` are those that others are written to meanwhile.
    """
    head = item.of.boxes[0].place.file.rpartition("_")[0]
    number = numbers.get(head, 0)
    while f"{head}_{number}.distcp" in files or (folder / f"{head}_{number}.distcp").exists():
        number += 1
    numbers[head] = number + 1
    file = f"{head}_{number}.distcp"
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    if item.data is None:
        write_plain(path, list(item.names or ()))
        boxes = (Box((), (), Place(file, 0, path.stat().st_size)),)
        return replace(entry, boxes=boxes)
    write_tensor(path, item.name, item.data)
    shape = item.data.shape
    return replace(entry, boxes=(Box((0,) * len(shape), shape, Place(file, 0, path.stat().st_size)),))


def _side_files(source: DcpSource) -> list[SideFile]:
    """The files beside the entries (Lightning's ``meta.pt``, tokenizers, settings); hidden ones stay behind."""
    paths = []
    for path in sorted(source.folder.rglob("*")):
        name = path.relative_to(source.folder).as_posix()
        if name in source.stamps or name == RECORD or path.suffix == ".distcp" or not path.is_file():
            continue
        if not any(part.startswith(".") for part in name.split("/")):
            paths.append((name, path))
    if not paths:
        return []  # as most have none, and the rest is loaded for them alone
    from elastic_ir.checkpoints.read import inside
    from elastic_ir.checkpoints.side_files import SideFile

    root, found = source.folder.resolve(), []
    for name, path in paths:
        inside(path, root)
        status = path.stat()
        found.append(SideFile(name, path, status.st_size, stamp_of(status)))
    return found


def _copy_side_files(files: Sequence[SideFile], folder: Path) -> None:
    if not files:
        return
    from elastic_ir.checkpoints.side_files import copy_side_file

    for file in files:
        copy_side_file(file, folder / file.name)


def _step(graph: Graph, source: DcpSource) -> Step:
    """What is done now: the lineage of the network's tensors, and of those that follow them."""
    lineage = {
        name: Origin(weight.origin, weight.source, factor_of(weight.storage.data))
        for name, weight in graph.weights.items()
    }
    names = graph.edits.sources
    plan = {stack.label: plan_text(stack, names) for stack in Stack.all_of(graph)}
    sources = (source, *source.others)
    keys = tuple(one.asked or "" for one in sources)
    return Step(
        __version__, tuple(label_of(one.folder) for one in sources), plan, lineage,
        gone_from(source.network, lineage), keys=keys if any(keys) else (),
    )  # fmt: skip
