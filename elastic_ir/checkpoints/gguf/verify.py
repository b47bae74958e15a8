"""Whether a GGUF file's metadata is its source's, but for what follows from the plan of its record. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from elastic_ir.checkpoints.gguf.layers import followed
from elastic_ir.checkpoints.gguf.record import RECORD
from elastic_ir.checkpoints.record import Step
from elastic_ir.checkpoints.stacks import Stack
from elastic_ir.errors import PlanError
from elastic_ir.formats.gguf.header import Entry, Header, Value
from elastic_ir.formats.gguf.parts import SPLIT, GgufSource
from elastic_ir.ir.graph import Graph

_SHOWN = 80  #: characters of a value


def metadata_differences(
    target: Graph,
    sources: Sequence[Graph],
    plan: Mapping[str, Sequence[tuple[bool, int]]],
    step: Step | None,
) -> Iterator[str]:
    """What a file states otherwise than its sources and its plan have it, each in words.

    ``plan`` has for each stack, by its label, whether each layer is of another source, and the layer's number there.
    """
    mine, first = target.origin, sources[0].origin
    if not isinstance(mine, GgufSource) or not isinstance(first, GgufSource):
        return
    others = tuple(one.origin for one in sources[1:] if isinstance(one.origin, GgufSource))
    stacks = [
        replace(
            stack, order=tuple(number for _, number in plan[stack.label]), taken=_taken(stack, plan, step)
        )
        if stack.label in plan
        else stack
        for stack in Stack.all_of(sources[0])
    ]
    shapes = {name: data.shape for name, data in first.tensors.items()}
    wanted: Mapping[str, Value] = {}
    try:
        source = replace(first, others=others)
        wanted = followed(source, stacks, shapes, [one.path.name for one in others]).changed
    except PlanError as error:
        yield f"cannot state the record's plan: {error}"
    ours, theirs = mine.head, first.head
    for key in [*theirs.entries, *(key for key in ours.entries if key not in theirs.entries)]:
        if key in SPLIT or key == RECORD:
            continue
        own, other = ours.entries.get(key), theirs.entries.get(key)
        if own is None:
            yield f"lacks {key}"
        elif other is None:
            yield f"states {key} = {_shown(own)}, and {first.path.name} does not"
        elif key in wanted:
            if own.value != wanted[key] or own.kind != other.kind:
                yield f"states {key} = {_shown(own)} where {str(wanted[key])[:_SHOWN]} follows from the plan"
        elif not _same(ours, own, theirs, other):
            yield f"states {key} = {_shown(own)}, and {first.path.name} {_shown(other)}"


def _taken(
    stack: Stack, plan: Mapping[str, Sequence[tuple[bool, int]]], step: Step | None
) -> tuple[tuple[int, int] | None, ...]:
    """For each layer of another source that source's number, by the lineage of its tensors, and the layer there."""
    layers = plan[stack.label]
    if step is None or not any(other for other, _ in layers):
        return ()
    numbers = {}
    for name, origin in step.lineage.items():
        at = stack.series.number(name)
        if at is not None:
            numbers[at - stack.base] = origin.source
    return tuple((numbers.get(at, 0), number) if other else None for at, (other, number) in enumerate(layers))


def _same(ours: Header, own: Entry, theirs: Header, other: Entry) -> bool:
    """Whether two entries have one type and the same bytes."""
    if (own.kind, own.count, own.end - own.at) != (other.kind, other.count, other.end - other.at):
        return False
    pairs = zip(
        ours.bytes_of(own.at, own.end).chunks(), theirs.bytes_of(other.at, other.end).chunks(), strict=True
    )
    return all(bytes(one) == bytes(two) for one, two in pairs)


def _shown(entry: Entry) -> str:
    return str(entry.value)[:_SHOWN] if entry.value is not None else "a list or text that is long"
