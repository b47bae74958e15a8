"""Whether what lies beside a checkpoint's network is what its source has there, by its record's plan. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from elastic_ir.checkpoints.dcp.follow import Made, beside
from elastic_ir.checkpoints.record import Step
from elastic_ir.checkpoints.stacks import Stack
from elastic_ir.errors import EmitError
from elastic_ir.formats.dcp.folder import DcpSource, saved_at
from elastic_ir.formats.dcp.metadata import Entry
from elastic_ir.ir.graph import Graph
from elastic_ir.tensors.lazy import same_bytes


def beside_differences(
    target: Graph, source: Graph, plan: Mapping[str, Sequence[tuple[bool, int]]], step: Step | None
) -> Iterator[tuple[str, str, str]]:
    """Each entry beside the network that is not as it should be: its name, that of its origin, and what is wrong.

    ``plan`` has for each stack, by its label, the number of each layer in the source, as ``verify`` has it.
    """
    mine, first = target.origin, source.origin
    if not isinstance(mine, DcpSource) or not isinstance(first, DcpSource):
        return
    stacks = [
        replace(
            stack,
            order=tuple(number for _, number in plan[stack.label]),
            taken=tuple((1, number) if other else None for other, number in plan[stack.label]),
        )
        if stack.label in plan
        else stack
        for stack in Stack.all_of(source)
    ]
    targets: dict[str, list[str]] = {}
    for name in target.weights:
        origin = (step or Step("", ("",), {})).origin(name)
        if not origin.source:
            targets.setdefault(origin.name, []).append(name)
    try:
        wanted = {made.name: made for made in beside(first, stacks, targets).entries}
    except EmitError as error:
        yield "", "", str(error)
        return
    held = {entry.name: entry for entry in mine.beside}
    for name, made in wanted.items():
        what = _wrong(made, held.get(name), mine)
        if what:
            yield name, made.of.name, what
    for name in held.keys() - wanted.keys():
        yield name, "", "is of no entry of the source"


def _wrong(made: Made, entry: Entry | None, mine: DcpSource) -> str:
    """What is wrong with an entry; nothing if it is as planned."""
    if entry is None:
        return "is missing"
    if made.names is not None:
        place = entry.boxes[0].place
        found = saved_at(mine.folder, place, mine.stamps[place.file], entry.name)
        return "" if found == list(made.names) else "lists other parameters than the plan gives"
    if (entry.dtype, entry.shape) != (made.of.dtype, made.of.shape):
        return "is of another shape or type than its origin"
    places = zip(entry.boxes, made.of.boxes, strict=False)
    same = len(entry.boxes) == len(made.of.boxes) and all(
        (own.offsets, own.sizes) == (other.offsets, other.sizes)
        and same_bytes(mine.carried(own.place), made.source.carried(other.place))
        for own, other in places
    )
    return "" if same else "differs from its origin"
