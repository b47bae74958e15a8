"""A training checkpoint of another depth: entries copied from where they lie, into files of the same names.

Each file of the source has its counterpart, with the entries that are kept and their copies, as the bytes that they
are; what is computed (a scaled copy, a group's list of parameters) lies in a file of its own. ``.metadata`` names them,
and the record of ElasticIR lies beside it. No torch here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from elastic_ir.checkpoints.card import plan_text
from elastic_ir.checkpoints.dcp.follow import Followed, Made, followed
from elastic_ir.checkpoints.record import Origin, Step, gone_from, read_record, record_text
from elastic_ir.checkpoints.stacks import Stack
from elastic_ir.checkpoints.undo import steps_after
from elastic_ir.errors import EmitError, PlanError
from elastic_ir.formats.dcp.folder import DcpSource, read_folder
from elastic_ir.formats.dcp.metadata import METADATA, Box, Entry, Metadata, Place, metadata_bytes
from elastic_ir.formats.files import atomic_folder
from elastic_ir.formats.model_folder import RECORD, label_of
from elastic_ir.formats.ranges import Part, write_parts
from elastic_ir.formats.torch_zip import write_plain, write_tensor
from elastic_ir.ir.graph import Graph
from elastic_ir.tensors.recipes import factor_of
from elastic_ir.version import __version__


def write_dcp(graph: Graph, path: Path, check: bool) -> list[Path]:
    """Write a graph that was read from a checkpoint of torch.distributed as one; the path written.

    Raises EmitError for a graph of another source, with masks, or whose optimizer's state cannot follow; OutputError
    where the target is taken or cannot be written; SourceError where a file of the source changed meanwhile. Then what
    was there is there still. ``check`` compares what was written with the plan, by reading its headers.
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
    steps = steps_after(graph, read_record(source.folder), _step(graph, source, follow))
    with atomic_folder(path) as folder:
        entries = _write_files(folder, follow.entries, source)
        metadata = Metadata(tuple(entries), source.metadata.nested, source.metadata.version)
        _copy_side(source, folder)
        if steps:
            (folder / RECORD).write_text(record_text(steps), encoding="utf-8")
        (folder / METADATA).write_bytes(metadata_bytes(metadata))
        if check and read_folder(folder).metadata != metadata:
            raise EmitError(f"{path} does not read back as it was planned")
    along = [("following", ", ".join(sorted(follow.following)))] if follow.following else []
    kept = [("kept", f"{', '.join(sorted(follow.kept))}, as they are")] if follow.kept else []
    graph.emitted = replace(graph.emitted, beside=(*along, *kept))
    return [path]


def _write_files(folder: Path, entries: Sequence[Made], source: DcpSource) -> list[Entry]:
    """Write the files, and return the entries with their places in them."""
    boxes: list[
        tuple[str, int, int, int, int]
    ] = []  #: file, which copy, place there, entry, which of its boxes
    copies: dict[int, int] = {}
    for at, item in enumerate(entries):
        if item.data is None and item.names is None:
            copy = copies[id(item.of)] = copies.get(id(item.of), -1) + 1
            boxes += [
                (b.place.file, copy, b.place.offset, at, number) for number, b in enumerate(item.of.boxes)
            ]
    parts: dict[str, list[Part]] = {file: [] for file in source.stamps}
    ends: dict[str, int] = {}
    moved: dict[tuple[int, int], int] = {}
    for file, _, _, at, number in sorted(boxes):  # neighbours stay neighbours, and are copied as one range
        item = entries[at]
        place, end = item.of.boxes[number].place, ends.get(file, 0)
        parts.setdefault(file, []).append(Part(end, item.source.carried(place), item.name))
        moved[at, number], ends[file] = end, end + place.length
    for file, held in parts.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        write_parts(folder / file, held)
    made: list[Entry] = []
    numbers: dict[str, int] = {}
    for at, item in enumerate(entries):
        entry = replace(item.of, name=item.name, path=item.path)
        if item.data is not None or item.names is not None:
            made.append(_computed(folder, item, entry, numbers))
            continue
        places = [
            replace(box, place=replace(box.place, offset=moved[at, number]))
            for number, box in enumerate(item.of.boxes)
        ]
        made.append(replace(entry, boxes=tuple(places)))
    return made


def _computed(folder: Path, item: Made, entry: Entry, numbers: dict[str, int]) -> Entry:
    """Write an entry that is computed into a file of its own, named after the rank that held what it stands for."""
    head = item.of.boxes[0].place.file.rpartition("_")[0]
    number = numbers.get(head, 0)
    while (folder / f"{head}_{number}.distcp").exists():
        number += 1
    numbers[head] = number + 1
    path = folder / f"{head}_{number}.distcp"
    if item.data is None:
        write_plain(path, list(item.names or ()))
        boxes = (Box((), (), Place(path.name, 0, path.stat().st_size)),)
        return replace(entry, boxes=boxes)
    if (item.data.shape, item.data.dtype) != (item.of.shape, item.of.dtype):
        raise EmitError(
            f"{item.name} has become {item.data.dtype} {list(item.data.shape)}, and what an optimizer keeps of it "
            "cannot follow; write .pt or .safetensors"
        )
    write_tensor(path, item.name, item.data)
    shape = item.data.shape
    return replace(entry, boxes=(Box((0,) * len(shape), shape, Place(path.name, 0, path.stat().st_size)),))


def _copy_side(source: DcpSource, folder: Path) -> None:
    """Copy the files beside the entries (Lightning's ``meta.pt``, tokenizers, settings)."""
    from elastic_ir.checkpoints.read import inside
    from elastic_ir.checkpoints.side_files import SideFile, copy_side_file
    from elastic_ir.formats.files import stamp_of

    root = source.folder.resolve()
    for path in sorted(source.folder.rglob("*")):
        name = path.relative_to(source.folder).as_posix()
        if name in source.stamps or name == RECORD or path.suffix == ".distcp" or not path.is_file():
            continue
        if any(part.startswith(".") for part in name.split("/")):
            continue
        inside(path, root)
        status = path.stat()
        copy_side_file(SideFile(name, path, status.st_size, stamp_of(status)), folder / name)


def _step(graph: Graph, source: DcpSource, follow: Followed) -> Step:
    """What is done now: the lineage of the network's tensors, and of those that follow them."""
    lineage = {
        name: Origin(weight.origin, weight.source, factor_of(weight.storage.data))
        for name, weight in graph.weights.items()
    }
    names = graph.edits.sources
    plan = {stack.label: plan_text(stack, names) for stack in Stack.all_of(graph)}
    folders = tuple(label_of(one.folder) for one in (source, *source.others))
    return Step(__version__, folders, plan, lineage, gone_from(source.network, lineage))
