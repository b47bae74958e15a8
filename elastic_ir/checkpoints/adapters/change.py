"""What became of the base that an adapter was trained on: by an edited graph, or by the record of a folder. No torch.

A record has one step for each change of depth. Those from the adapter's base on count, taken together: a layer of the
result is of the layer of that base that it goes back to, and of none where another network brought it in between.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from elastic_ir.checkpoints.held import Place
from elastic_ir.checkpoints.read import inside, root_of, tensors_of
from elastic_ir.checkpoints.record import Origin, Step, read_record
from elastic_ir.checkpoints.stacks import Stack
from elastic_ir.errors import SourceError
from elastic_ir.formats.model_folder import RECORD, CheckpointSource, is_checkpoint, label_of
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.numbering import DIGITS, width_of
from elastic_ir.tensors.gathered import gathering_of
from elastic_ir.tensors.lazy import TensorData
from elastic_ir.tensors.recipes import factor_of

_FOREIGN = 1  #: any source but the first


@dataclass(frozen=True)
class Change:
    """A base's stacks before and after, and where the result's tensors come from."""

    base: str  #: what the base is called
    stacks: tuple[Stack, ...]
    before: frozenset[str]  #: the names of the base's tensors
    tensors: Mapping[str, TensorData]  #: the result's
    origins: Mapping[
        str, Origin
    ]  #: of the result's tensors; of another source than 0 where they are not the base's

    @staticmethod
    def of_graph(graph: Graph, source: CheckpointSource, stacks: Sequence[Stack]) -> Change:
        """The change that a graph has gone through since it was read from a folder."""
        data = {name: weight.storage.data for name, weight in graph.weights.items()}
        origins = {
            name: Origin(weight.origin, weight.source, factor_of(data[name]), gathering_of(data[name]))
            for name, weight in graph.weights.items()
        }
        return Change(source.label, tuple(stacks), frozenset(source.shapes), data, origins)

    @staticmethod
    def recorded(place: Place, base: str, trained_on: str | None = None) -> Change:
        """The changes that led to a folder from the model of that name on; ``trained_on`` is a name in the record.

        Raises SourceError: it is no model's folder, it has no record, the record is damaged or of several changes of
        which none begins with such a model.
        """
        folder = place.path
        if place.awaited is not None:
            place.awaited.fetch_record()
        elif place.headers is not None or not is_checkpoint(folder):
            absent = place.headers is None and not folder.exists()
            raise SourceError(
                f"{place.label} does not exist"
                if absent
                else f"{place.label} is no folder of a model; give the one that stretch or squeeze has written"
            )
        where = place.label if place.url or place.awaited is None else label_of(folder)
        if (folder / RECORD).exists():
            inside(folder / RECORD, root_of(folder))
        steps = _from(read_record(folder), where, label_of(folder), base, trained_on)
        return Change.of_steps(tensors_of(folder, place.awaited), steps, where)

    @staticmethod
    def of_steps(tensors: Mapping[str, TensorData], steps: Sequence[Step], where: str) -> Change:
        """The changes that the last steps of a folder's record state. SourceError where they do not fit the folder."""
        names = set(tensors)
        origins = {name: Origin(name) for name in names}
        stacks: dict[str, Stack] = {}
        for step in reversed(steps):
            if step.gone is None:
                raise SourceError(
                    f"the record of {where} is of an earlier ElasticIR, which did not state which tensors are gone; "
                    f"make {where} again from {step.sources[0]}"
                )
            before = {step.origin(name).name for name in names if not step.origin(name).source}
            before.update(step.gone)
            origins = {name: _earlier(origin, step) for name, origin in origins.items()}
            for label, layers in step.layers(where).items():
                stack = _stack(label, layers, before, names, where)
                stacks[label] = _joined(stack, stacks[label], where) if label in stacks else stack
            names = before
        return Change(steps[0].sources[0], tuple(stacks.values()), frozenset(names), tensors, origins)


def _from(steps: Sequence[Step], where: str, label: str, base: str, trained_on: str | None) -> Sequence[Step]:
    """The steps of a record from the one on that begins with the adapter's base."""
    if not steps:
        raise SourceError(
            f"{where} has no {RECORD}, which states where its layers come from; give the folder that stretch or "
            "squeeze has written"
        )
    descent = ", then ".join(step.sources[0] for step in steps)
    wanted = trained_on if trained_on is not None else base
    found = [at for at, step in enumerate(steps) if _is_same(wanted, step.sources[0])]
    if (
        len(found) > 1 and trained_on is None and is_checkpoint(Path(base))
    ):  # what it was made by says which it is
        known = len(read_record(Path(base)))
        found = [at for at in found if at == known] or found
    if len(found) > 1:
        raise SourceError(
            f"{where} was made from {descent}: several of them are called {PurePath(wanted).name}, and it is not "
            "known on which the adapter was trained; follow each change in turn, from folder to folder"
        )
    if found:
        return steps[found[0] :]
    if trained_on is None and _is_same(base, label):
        raise SourceError(
            f"the adapter names {base} as its base, which {where} is: there is nothing to follow"
        )
    if trained_on is not None or len(steps) > 1:
        named = f"{wanted} is none of them" if wanted else "the adapter does not name its base"
        raise SourceError(
            f"{where} was made from {descent}, and {named}; say which of them the adapter was trained on, with "
            "--trained-on NAME (trained_on=)"
        )
    return steps


def _is_same(name: str, label: str) -> bool:
    """Whether a model's name or path is that of a record's source: ``ORG/NAME@COMMIT``, or a folder's name."""

    def ends(text: str) -> set[str]:
        last = PurePath(text).name
        return {last, last.partition("@")[0]} - {""}

    return bool(ends(name) & ends(label)) or (bool(name) and label_of(Path(name)) == label)


def _earlier(origin: Origin, step: Step) -> Origin:
    """The origin, before a step, of what has an origin behind it."""
    if origin.source:
        return origin
    first = step.origin(origin.name)
    scales = [one.scale for one in (origin, first) if one.scale is not None]
    scale = scales[0] * scales[-1] if len(scales) > 1 else scales[0] if scales else None
    return replace(first, scale=scale, gathering=origin.gathering or first.gathering)


def _stack(
    label: str, layers: Sequence[tuple[bool, int]], before: Iterable[str], after: Iterable[str], where: str
) -> Stack:
    """A stack by its label in a record, and by the names of tensors before and after."""
    head = "" if label == "network" else re.escape(label)
    pattern = re.compile(rf"({head}[._]?)({DIGITS})(?:\..+)?")
    held = [match for name in before if (match := pattern.fullmatch(name))]
    heads = Counter(match[1] for match in held).most_common(1)
    held = [match for match in held if match[1] == heads[0][0]]
    matches = [pattern.fullmatch(name) for name in after]
    now = (
        [int(match[2]) for match in matches if match is not None and match[1] == heads[0][0]] if heads else []
    )
    if not now:
        raise SourceError(
            f"{RECORD} of {where} is damaged: there are no layers at {label!r}, which its plan states"
        )
    path, _, prefix = heads[0][0].rpartition(".")
    base = min(int(match[2]) for match in held)
    count = max(int(match[2]) for match in held) - base + 1
    tail = max(now) - min(now) + 1 - len(layers)
    if tail < 0 or any(not other and number >= count - tail for other, number in layers):
        raise SourceError(
            f"{RECORD} of {where} is damaged: its plan for {label} does not fit the tensors' names"
        )
    taken = tuple((_FOREIGN, number) if other else None for other, number in layers)
    return Stack(
        path, prefix, base, count - tail, tuple(number for _, number in layers), taken if any(taken) else (), tail,
        width_of(match[2] for match in held) or 1,
    )  # fmt: skip


def _joined(first: Stack, then: Stack, where: str) -> Stack:
    """Two changes of a stack as one."""
    places = first.places()
    if any(not source and number >= len(places) for source, number in then.places()):
        raise SourceError(f"{RECORD} of {where} is damaged: its changes do not fit one another")
    joined = [(source, number) if source else places[number] for source, number in then.places()]
    taken = tuple((source, number) if source else None for source, number in joined)
    return replace(first, order=tuple(number for _, number in joined), taken=taken if any(taken) else ())
