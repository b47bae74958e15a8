"""Writing checkpoint folders as streams: shards and index, configuration, side files, and a record. No torch here.

Ranges of the sources' files are copied to ranges of the target's (:mod:`elastic_ir.formats.ranges`), so memory does not
depend on the size of the model. Everything is decided before the first byte is written: the names,
the shards, the configuration, and whether the disk has room.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from elastic_ir.checkpoints.card import CARD, card, card_before, plan_text
from elastic_ir.checkpoints.config.depth import Stack, reindexed
from elastic_ir.checkpoints.config.differences import differences
from elastic_ir.checkpoints.config.entries import followed
from elastic_ir.checkpoints.config.tables import Reader
from elastic_ir.checkpoints.config.taps import taps_followed
from elastic_ir.checkpoints.libraries.find import library_of
from elastic_ir.checkpoints.oracle.comparison import NOT_WANTED, Compared, Comparison, comparison
from elastic_ir.checkpoints.record import Origin, Step, gone_from, read_record, record_text
from elastic_ir.checkpoints.resumable import Journal, digests, held_by, partial_folder, resumable_folder
from elastic_ir.checkpoints.shards import Workers, is_whole, write_shard, write_shards
from elastic_ir.checkpoints.side_files import (
    SideFile,
    adapters_in,
    copy_side_file,
    followed_files,
    json_text,
    left_out,
    side_files,
)
from elastic_ir.checkpoints.undo import steps_after
from elastic_ir.errors import EmitError, OutputError, PlanError
from elastic_ir.formats.files import refuse_taken, remove
from elastic_ir.formats.mask_tie import TIE, tie_of
from elastic_ir.formats.model_folder import MASKS, RECORD, CheckpointSource, Layout
from elastic_ir.formats.packed_masks import packed_masks, packed_size
from elastic_ir.formats.ranges import settled
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.numbering import natural_key
from elastic_ir.tensors.gathered import gathering_of
from elastic_ir.tensors.lazy import Mask, TensorData, grouped, nbytes
from elastic_ir.tensors.recipes import factor_of
from elastic_ir.version import __version__

SHARD_SIZE = 5_000_000_000  #: bytes of tensors in a file; transformers' default
_ROOM = 16 << 20  #: bytes that headers, index and folders may take beside the tensors


@dataclass(frozen=True)
class Plan:
    """What will be written: the shards with their tensors, the texts, the files that are copied along."""

    source: CheckpointSource
    shards: dict[str, dict[str, TensorData]]
    masks: dict[str, Mask]
    texts: dict[str, str]
    side: list[SideFile]
    config: dict[str, Any]  #: the configuration as it will be
    stacks: list[Stack]
    kept: list[str]  #: entries of the configuration that may refer to layers by their place
    #: entries and files that would have changed, and were kept because the user asked for it
    kept_beside: list[str]
    notes: list[str]  #: where the configurations of further sources differ
    left_out: list[str]  #: files of weights of the source's depth that the result lacks
    followed: list[str]  #: tensors beside the layers that have followed them, each with how
    #: why the configuration cannot state the change, as far as the names of its entries show
    doubt: PlanError | None = None
    #: files of tensors beside the weights: adapters, which follow the layers
    beside: dict[str, dict[str, TensorData]] = field(default_factory=dict)
    adapters: list[tuple[str, str]] = field(default_factory=list)  #: what is to be said of them

    @property
    def tensors(self) -> dict[str, dict[str, TensorData]]:
        """All files of tensors but that of masks."""
        return self.shards | self.beside

    @property
    def total(self) -> int:
        """Bytes of all tensors."""
        return sum(nbytes(data) for held in self.tensors.values() for data in held.values())

    @property
    def files(self) -> dict[str, int]:
        """The files with their bytes; of those of tensors these alone."""
        sizes = {name: sum(map(nbytes, tensors.values())) for name, tensors in self.tensors.items()}
        if self.masks:
            sizes[self.masks_file] = sum(packed_size(mask.size) for mask in self.masks.values())
        sizes |= {name: len(text.encode()) for name, text in self.texts.items()}
        return sizes | {file.name: file.size for file in self.side}

    @property
    def streams(self) -> dict[str, tuple[dict[str, TensorData], dict[str, str]]]:
        """The files of tensors and the one of masks, each with its tensors and its metadata."""
        metadata = {"format": "pt", **self.source.metadata}
        files = {name: (tensors, metadata) for name, tensors in self.tensors.items()}
        return files | ({self.masks_file: packed_masks(self.masks)} if self.masks else {})

    @property
    def masks_file(self) -> str:
        """Where the masks go."""
        return f"{self.source.inner}{MASKS}"

    def comparison(self) -> AbstractContextManager[Comparison]:
        """Begin to ask the folder's library whether its network takes what will be written."""
        shapes = {name: data.shape for shard in self.shards.values() for name, data in shard.items()}
        return comparison(
            (self.source.config, self.source.shapes), (self.config, shapes), self.stacks, self.doubt
        )

    def settled(self) -> Plan:
        """The plan with a configuration; PlanError, the doubt, where even experiments find none."""
        if self.doubt is None:
            return self
        with self.comparison() as compared:
            return self.with_found(compared.result())

    def with_found(self, found: Compared) -> Plan:
        """The plan with the configuration that a comparison found, if it did."""
        if found.config is None:
            return self
        file = f"{self.source.inner}{self.source.layout.config}"
        texts = {**self.texts, file: json_text(found.config)}
        return replace(self, config=found.config, texts=texts, doubt=None)

    @property
    def journal(self) -> Journal:
        """What distinguishes this plan and its source from others, for a run that continues what another has begun."""
        files = {name: tensors for name, (tensors, _) in self.streams.items()}
        return Journal(__version__, *digests(files, self.texts))


def plan_checkpoint(
    graph: Graph, shard_size: int = SHARD_SIZE, to: str | os.PathLike[str] | None = None
) -> Plan:
    """Decide on everything that :func:`save_checkpoint` writes; nothing is written.

    ``shard_size`` is in bytes of tensors; a larger tensor gets a shard of its own. ``to`` is where it will be
    written, which an adapter beside the weights names as its base. Raises EmitError for a graph that was not read from
    a folder by its headers, PlanError where a file beside the weights cannot follow. Where by its
    names config.json cannot state the new depth, the plan has that as its doubt.
    """
    source = graph.origin
    if not isinstance(source, CheckpointSource):
        raise EmitError(f"{graph.name} was not read from a checkpoint folder by its headers")
    if graph.earlier:
        raise PlanError(
            f"{graph.name} was changed at two levels, of which one folder states one; write it after each change"
        )
    if source.awaited is not None:
        source.awaited.fetch_side()
    stacks = Stack.all_of(graph)
    side = side_files(source)  # first, since it sees that no text read here is a link out of the folder
    origins = [weight.origin for weight in graph.weights.values()]
    names = graph.edits.sources
    configs = {name: one.config for name, one in zip(names[1:], source.others, strict=True)}
    doubt: PlanError | None = None
    layout, library = source.layout, library_of(source.config)
    try:
        config, kept = reindexed(
            source.config,
            stacks,
            origins,
            source.kinds,
            configs,
            source.layout.config,
            library.count,
            source.counted or (),
        )
    except PlanError as error:
        doubt, config, kept = error, source.config, []
    keep = graph.edits.keep_beside
    follow = followed(config, layout.config, stacks, source.shapes, keep, is_config=True)
    reader = Reader(source.config, stacks, origins, file=layout.config)
    config, taps = taps_followed(follow.document, reader, keep)
    beside = followed_files(side, stacks, source.shapes, keep)
    tensors = {name: graph.weights[name].storage.emitted() for name in sorted(graph.weights, key=natural_key)}
    if any(one.awaited is not None for one in (source, *source.others)):
        tensors = {name: settled(data) for name, data in tensors.items()}
    shards = sharded(tensors, shard_size if library.sharded else None, layout)
    texts = {layout.config: json_text(config)}
    if list(shards) != [layout.weights]:
        texts[layout.index] = index_text(shards)
    texts |= _texts_of(graph, source, stacks, names)
    shards = {f"{source.inner}{name}": tensors for name, tensors in shards.items()}
    texts = {f"{source.inner}{name}": text for name, text in texts.items()} | beside.texts
    files, adapters = dict[str, dict[str, TensorData]](), list[tuple[str, str]]()
    if adapters_in(source):
        from elastic_ir.checkpoints.adapters.write import follow_beside

        followed_adapters = follow_beside(graph, source, stacks, None if to is None else os.fspath(to))
        files, adapters = followed_adapters.files, followed_adapters.facts
        texts |= followed_adapters.texts
    side = [file for file in side if file.name not in texts]
    masks = {name: weight.mask for name, weight in graph.weights.items() if weight.mask is not None}
    notes = [note for name, other in configs.items() for note in differences(source.config, other, name)]
    return Plan(
        source, shards, masks, texts, side, config, stacks, kept, [*follow.kept, *taps, *beside.kept], notes,
        left_out(source), _followed(graph, source), doubt, files, adapters,
    )  # fmt: skip


def save_checkpoint(
    graph: Graph,
    path: Path,
    *,
    shard_size: int = SHARD_SIZE,
    durable: bool = False,
    resume: bool = False,
    check: bool = True,
    replace: bool = False,
    workers: Workers = Workers(),  # noqa: B008 - frozen
    tell: Callable[[int, int], None] | None = None,
    tell_compared: Callable[[Compared], None] | None = None,
) -> Path:
    """Write a graph that was read by headers as a folder, and return its path.

    ``durable`` has it on the disk before it gets its name; ``resume`` continues what a run of the same plan has left,
    see :mod:`elastic_ir.checkpoints.resumable`; ``workers`` write the shards; ``replace`` lets a folder go that is
    there when the new one is whole, and without is refused. ``tell`` is called with bytes done and in all, at the
    start with what was there. ``check`` compares names and shapes with the class that the new config.json names, where
    transformers can build it, meanwhile in a process of its own; ``tell_compared`` is called with the result.

    Raises OutputError where the target is taken, another run works on it, the disk is too small, or what lies there is
    of another plan; SourceError where a source file changed since its header was read; EmitError where the network
    would not take what would be written; PlanError where there is none to compare with and the length of a list or
    tensor seems to follow the number of layers. Whatever goes wrong, ``path`` is as it was.
    """
    if not partial_folder(path).is_dir():
        refuse_taken(path, replace)
    plan = plan_checkpoint(graph, shard_size, path)
    if plan.doubt is not None and not check:
        raise plan.doubt
    if fetch_awaited(graph):
        plan = plan_checkpoint(graph, shard_size, path)
    total, done = plan.total, 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        if tell is not None:
            tell(done, total)

    streams = plan.streams
    with (
        resumable_folder(path, plan.journal, resume, durable, replace) as work,
        plan.comparison() if check else nullcontext() as compared,
    ):
        if work.complete:
            return path
        check_room(plan, path, held_by(work.folder))
        if compared is not None and (graph.edits.unproven_beside or plan.doubt is not None):
            compared.result().prove(graph.edits.unproven_beside)  # before the first byte is copied
        # the masks state which weights, as written, they belong to, and so are written last, and always
        for room in (work.begun, work.whole):
            for name in plan.streams:
                (room / name).parent.mkdir(parents=True, exist_ok=True)
        kept = {name for name in plan.tensors if is_whole(work.whole / name, *streams[name])}
        for there in [one for one in work.whole.rglob("*") if one.is_file()]:
            if there.relative_to(work.whole).as_posix() not in kept:
                remove(there)
        count(sum(nbytes(data) for name in kept for data in plan.tensors.get(name, {}).values()))
        wanted = {name: streams[name] for name in plan.tensors if name not in kept}
        write_shards(work.begun, wanted, durable, workers, work.finish, count)
        if plan.masks:
            work.settle()
            tensors, metadata = streams[plan.masks_file]
            metadata = {**metadata, TIE: tie_of(work.whole / shard for shard in plan.shards)}
            write_shard(work.begun / plan.masks_file, tensors, metadata, durable)
            work.finish(plan.masks_file)
        for file in plan.side:
            copy_side_file(file, work.whole / file.name)
        found = compared.result() if compared is not None else NOT_WANTED
        for name, text in plan.with_found(found).texts.items():
            (work.whole / name).write_text(text, encoding="utf-8")
        if tell_compared is not None:
            tell_compared(found)
    return path


def fetch_awaited(graph: Graph, tell: Callable[[int, int], None] | None = None) -> bool:
    """Have the files here that a graph's tensors lie in, and no others; whether any of its folders is from elsewhere.

    ``tell`` is called with bytes done and bytes in all of each folder. Raises SourceError.
    """
    source, awaits = graph.origin, False
    for number, one in enumerate((source, *source.others)):
        if isinstance(one, CheckpointSource) and one.awaited is not None:
            held = [weight for weight in graph.weights.values() if weight.source == number]
            one.awaited.fetch(sorted({one.places[weight.origin] for weight in held}), tell)
            awaits = True
    return awaits


def check_room(plan: Plan, path: Path, held: int = 0) -> None:
    """OutputError where a file system has less room than the plan needs; ``held`` is what earlier work gives back."""
    needed = sum(plan.files.values()) + _ROOM - held
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise OutputError(
            f"{path} needs {needed / 1e9:.2f} GB and {path.parent} has {free / 1e9:.2f} GB free; make room or "
            "write elsewhere with -o OUT"
        )


def sharded(
    tensors: dict[str, TensorData], limit: int | None, layout: Layout
) -> dict[str, dict[str, TensorData]]:
    """The tensors in files, in order, each file as full as the limit allows; one file has the plain name."""
    groups = grouped(tensors, limit)
    if len(groups) == 1:
        return {layout.weights: groups[0]}
    return {layout.shard(i, len(groups)): group for i, group in enumerate(groups, start=1)}


def index_text(shards: dict[str, dict[str, TensorData]]) -> str:
    total = sum(nbytes(data) for shard in shards.values() for data in shard.values())
    places = {name: file for file, shard in shards.items() for name in shard}
    return (
        json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}, indent=2)
        + "\n"
    )


def _texts_of(
    graph: Graph, source: CheckpointSource, stacks: list[Stack], names: Sequence[str]
) -> dict[str, str]:
    """The record of what was done before and is done now, and the card; where that was undone what was there before."""
    before = read_record(source.folder)
    steps = steps_after(graph, before, _step(graph, source, stacks))
    if len(steps) > len(before):
        return {RECORD: record_text(steps), CARD: card(source.folder / CARD, steps[-1], stacks, names)}
    text = card_before(source.folder / CARD)
    return {**({RECORD: record_text(steps)} if steps else {}), **({CARD: text} if text else {})}


def _step(graph: Graph, source: CheckpointSource, stacks: list[Stack]) -> Step:
    """What is done now."""
    lineage = {
        name: Origin(
            weight.origin, weight.source, factor_of(weight.storage.data), gathering_of(weight.storage.data)
        )
        for name, weight in graph.weights.items()
    }
    names = graph.edits.sources
    plan = {stack.label: plan_text(stack, names) for stack in stacks}
    folders = tuple(one.label for one in (source, *source.others))
    return Step(__version__, folders, plan, lineage, gone_from(source.shapes, lineage))


def _followed(graph: Graph, source: CheckpointSource) -> list[str]:
    """Tensors beside the layers of which each layer has an entry, with what has become of them."""
    found = []
    for name, weight in graph.weights.items():
        how = gathering_of(weight.storage.data)
        if how is None:
            continue
        before = source.shapes[weight.origin]
        text = f"{name} {list(before)} -> {list(weight.shape)}, an entry for each layer"
        if how.shared:
            gone = len(set(range(before[how.axis])) - set(how.entries))
            text += ", softmaxed: copies share their source's weight"
            text += f"; the weights of {gone} that are gone are the others' now" if gone else ""
        found.append(text)
    return found
