"""A GGUF file of another depth: tensors and metadata copied from where they lie, counts and lists brought up to date.

Everything is decided before the first byte is written: names, files, metadata, and whether the disk has room. Files get
their names when all are whole, the first part last. ElasticIR's record is the entry ``elastic_ir.record``.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from elastic_ir.checkpoints.card import plan_text
from elastic_ir.checkpoints.gguf.layers import followed
from elastic_ir.checkpoints.gguf.record import RECORD, read_steps
from elastic_ir.checkpoints.record import Origin, Step, gone_from, record_text
from elastic_ir.checkpoints.stacks import Stack, first_places, layer_of
from elastic_ir.checkpoints.undo import steps_after
from elastic_ir.errors import EmitError, OutputError, PlanError
from elastic_ir.formats.files import atomic_output, refuse_long_name
from elastic_ir.formats.gguf.header import ALIGNMENT, DEFAULT_ALIGNMENT, Header, Value
from elastic_ir.formats.gguf.parts import (
    COUNT,
    NUMBER,
    SPLIT,
    TENSOR_COUNT,
    GgufSource,
    part_name,
    stem_of,
)
from elastic_ir.formats.gguf.writer import File, changed_entry, number_entry, text_entry
from elastic_ir.formats.parts import PAGE
from elastic_ir.formats.ranges import FileTensor
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.numbering import natural_key
from elastic_ir.tensors.lazy import TensorData, grouped, nbytes
from elastic_ir.tensors.recipes import factor_of
from elastic_ir.version import __version__

_U16, _I32 = 2, 5  #: the types that llama.cpp gives the numbers of parts
_ROOM = 1 << 20  #: bytes that a file system may take beside the files


@dataclass(frozen=True)
class Plan:
    """What will be written: the files in order, what changes in the metadata, and what a reader should know."""

    source: GgufSource
    files: dict[Path, File]
    changed: dict[str, tuple[Value | None, Value]]  #: by key: before and after
    kept: list[str]  #: entries that may refer to layers by their place
    notes: list[str]  #: what further sources state otherwise

    @property
    def sizes(self) -> dict[str, int]:
        """The files by name, with their bytes."""
        return {path.name: file.size for path, file in self.files.items()}


def plan_gguf(graph: Graph, path: Path, shard_size: int | None = None) -> Plan:
    """Decide on everything that :func:`save_gguf` writes; nothing is written.

    ``shard_size`` is the most bytes of tensors in one file; without it the result of a file is a file, and that of
    several parts has parts as large as the largest of them. Raises EmitError for a graph of another source or with
    masks, PlanError where the metadata cannot state the change.
    """
    source = graph.origin
    if not isinstance(source, GgufSource):
        raise EmitError(
            f"{graph.name} was not read from a GGUF file, and only what was can be written as one; convert a folder "
            "with convert_hf_to_gguf of llama.cpp"
        )
    masked = next((name for name, weight in graph.weights.items() if weight.mask is not None), None)
    if masked is not None:
        raise EmitError(f"a GGUF file holds no masks, and {masked} has one; leave masks out")
    if graph.earlier:
        raise PlanError(
            f"{graph.name} was changed at two levels, of which one file states one; write it after each change"
        )
    _refuse_other_architecture(source, graph.edits.sources)
    stacks = Stack.all_of(graph)
    shapes = {name: data.shape for name, data in source.tensors.items()}
    found = followed(source, stacks, shapes, graph.edits.sources[1:])
    tensors = _ordered(graph, source, stacks)
    steps = steps_after(graph, read_steps(source.head), _step(graph, source, stacks))
    if shard_size is None and len(source.parts) > 1:
        shard_size = max(sum(map(nbytes, part.tensors.values())) for part in source.parts)
    groups = grouped(tensors, shard_size)
    total = len(tensors)
    files: dict[Path, File] = {}
    for number, group in enumerate(groups):
        target = path.with_name(part_name(stem_of(path), number, len(groups), path.suffix))
        refuse_long_name(target, "a part of the result")
        _refuse_source(target, source)
        split = {NUMBER: number, COUNT: len(groups), TENSOR_COUNT: total} if len(groups) > 1 else {}
        text = record_text(steps) if number == 0 and steps else None
        files[target] = _file(source.head, found.changed if number == 0 else None, split, text, group)
    changed = {key: (source.head.value(key), value) for key, value in found.changed.items()}
    return Plan(source, files, changed, found.kept, list(_notes(source, graph.edits.sources)))


def write_gguf(graph: Graph, path: Path, check: bool) -> list[Path]:
    """Write a graph that was read from a GGUF file; the paths written. See :func:`save_gguf`."""
    return save_gguf(plan_gguf(graph, path))


def save_gguf(
    plan: Plan, tell: Callable[[int, int], None] | None = None, durable: bool = False
) -> list[Path]:
    """Write what was planned, and return the paths; ``tell`` is called with bytes done and bytes in all.

    A file that replaces another is on the disk before it gets its name, and with ``durable`` a new one too.

    Raises OutputError where a target cannot be written or the disk is too small, SourceError where the source changed
    since its header was read, EmitError where what was written does not read back as it was planned. Whatever goes
    wrong, what was at the targets is there still.
    """
    total, done = sum(file.moved for file in plan.files.values()), 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        if tell is not None:
            tell(done, total)

    check_room(plan)
    count(0)
    with contextlib.ExitStack() as stack:
        synced = {path: durable or path.exists() for path in plan.files}
        made = {path: stack.enter_context(atomic_output(path, synced[path])) for path in plan.files}
        for path, file in plan.files.items():
            file.write(made[path], count, synced[path])
            _check(made[path], path, file)
    return list(plan.files)


def check_room(plan: Plan) -> None:
    """OutputError where a file system has less room than the plan needs."""
    needed = sum(plan.sizes.values()) + _ROOM
    folder = next(iter(plan.files)).parent
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return  # whoever writes there reports it
    if free < needed:
        raise OutputError(
            f"{next(iter(plan.files))} needs {needed / 1e9:.2f} GB and {folder} has {free / 1e9:.2f} GB free; make "
            "room or write elsewhere with -o OUT"
        )


def _check(made: Path, path: Path, file: File) -> None:
    """EmitError where a file that was written does not read back as it was planned."""
    from elastic_ir.formats.gguf.header import read_header

    size = made.stat().st_size
    if size != file.size:
        raise EmitError(f"{path.name} has {size} bytes where {file.size} were planned")
    found = {name: (data.shape, data.dtype) for name, data in read_header(made).tensors.items()}
    if found != {name: (data.shape, data.dtype) for name, data in file.tensors.items()}:
        raise EmitError(f"{path.name} does not hold the tensors that were planned")


def _refuse_source(target: Path, source: GgufSource) -> None:
    """OutputError where a file that is to be written is one that is read."""
    for one in (source, *source.others):
        for part in one.parts:
            if target.exists() and part.path.exists() and target.samefile(part.path):
                raise OutputError(
                    f"{target} is the source, or a part of it, which would be written over; choose another name with "
                    "-o OUT"
                )


def _refuse_other_architecture(source: GgufSource, names: tuple[str, ...]) -> None:
    for name, other in zip(names[1:], source.others, strict=True):
        if other.architecture != source.architecture:
            raise PlanError(
                f"{source.path.name} is of the architecture {source.architecture!r}, and {name} of "
                f"{other.architecture!r}; take layers of one architecture"
            )


def _notes(source: GgufSource, names: tuple[str, ...]) -> Iterator[str]:
    """What further sources state otherwise about the network; the first one's entries are kept."""
    own = source.values()
    for name, other in zip(names[1:], source.others, strict=True):
        theirs = other.values()
        for key in sorted(own.keys() | theirs.keys()):
            one, two = own.get(key), theirs.get(key)
            if one != two and not key.endswith("block_count") and not isinstance(one, list):
                yield f"{name} has {source.architecture}.{key} = {two}, and the result {one}"


def _ordered(graph: Graph, source: GgufSource, stacks: list[Stack]) -> dict[str, TensorData]:
    """The tensors in the source's order, layers in the order of their new numbers where the first ones stood."""
    place = {name: number for number, name in enumerate(source.tensors)}
    first = first_places(place, stacks)

    def key(name: str) -> tuple[object, ...]:
        weight = graph.weights[name]
        found = layer_of(name, stacks)
        own = place.get(name if weight.source else weight.origin, len(place))
        if found is None:
            return own, 0, 0, natural_key(name)
        return first.get(found[0], len(place)), found[1], own, natural_key(name)

    return {name: graph.weights[name].storage.data for name in sorted(graph.weights, key=key)}


def _file(
    head: Header,
    changed: Mapping[str, Value] | None,
    split: Mapping[str, int],
    record: str | None,
    tensors: dict[str, TensorData],
) -> File:
    """A file: the first one has all of the metadata, a further part what it needs (``changed`` is None there)."""
    entries: list[tuple[FileTensor | bytes, int]] = []
    if changed is not None:
        begin = end = count = 0
        for key, entry in head.entries.items():
            stays = key not in changed and key not in SPLIT and key != RECORD
            if stays and entry.begin == end:
                end, count = entry.end, count + 1
                continue
            if count:
                entries.append((head.bytes_of(begin, end), count))
                count = 0
            if stays:
                begin, end, count = entry.begin, entry.end, 1
            elif key in changed:
                entries.append((changed_entry(entry, changed[key]), 1))
        if count:
            entries.append((head.bytes_of(begin, end), count))
    elif head.alignment != DEFAULT_ALIGNMENT:
        entry = head.entries[ALIGNMENT]
        entries.append((head.bytes_of(entry.begin, entry.end), 1))
    kinds = {NUMBER: _U16, COUNT: _U16, TENSOR_COUNT: _I32}
    entries += [(number_entry(key, kinds[key], value), 1) for key, value in split.items()]
    if record is None:
        return File(head.version, head.alignment, entries, tensors)
    made = File(head.version, head.alignment, [*entries, (text_entry(RECORD, record), 1)], tensors)
    # spaces behind the record, so that tensors lie in pages as they do in the source: they are copied page by page
    record += " " * ((head.start - made.start) % PAGE)
    return replace(made, entries=[*entries, (text_entry(RECORD, record), 1)])


def _step(graph: Graph, source: GgufSource, stacks: list[Stack]) -> Step:
    """What is done now."""
    lineage = {
        name: Origin(weight.origin, weight.source, factor_of(weight.storage.data))
        for name, weight in graph.weights.items()
    }
    names = graph.edits.sources
    plan = {stack.label: plan_text(stack, names) for stack in stacks}
    files = tuple(one.label for one in (source, *source.others))
    return Step(__version__, files, plan, lineage, gone_from(source.tensors, lineage))
