"""The way back from a change of depth: which blocks of the result make the source again, by the record. No torch here.

The record states of each tensor where it comes from, and which of the source's tensors are gone. A layer of the source
is taken from its first copy that is neither scaled nor zero; where any is missing, nothing is restored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from elastic_ir.checkpoints.gguf.record import read_steps
from elastic_ir.checkpoints.record import Step, read_record
from elastic_ir.errors import PlanError, SourceError
from elastic_ir.formats.gguf.parts import GgufSource
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.naming import head_in
from elastic_ir.ir.numbering import Series, consecutive, number_of
from elastic_ir.plans.plan import Plan
from elastic_ir.tensors.gathered import Gathering
from elastic_ir.tensors.lazy import same_bytes

_LAYERS = 100_000  #: more than any network has
_NUMBER = re.compile(r"([0-9]+)")
_SHOWN = 8  #: runs of layers, or tensors, that a refusal lists


@dataclass(frozen=True)
class WayBack:
    """What makes the source again: blocks for each stage, and the entries of tensors beside the stages."""

    step: Step  #: what is taken back
    plan: Plan
    beside: Mapping[str, Gathering]


def steps_of_graph(graph: Graph) -> list[Step]:
    """The changes of depth that led to what a graph was read from, the oldest first."""
    folder = graph.origin.record_folder()
    if folder is not None:
        return read_record(folder)
    if isinstance(graph.origin, GgufSource):
        return read_steps(graph.origin.head)
    try:
        return [Step.of(step) for step in graph.info.steps]
    except ValueError as error:
        raise SourceError(f"the record in {_name(graph)} is damaged: {error}") from error


def steps_after(graph: Graph, steps: Sequence[Step], step: Step) -> list[Step]:
    """The record of what is written: a step more, or one less where the last one was taken back."""
    if graph.edits.undone and steps and not _unlike(graph, steps[-1]):
        return list(steps[:-1])
    return [*steps, step]


def runs_of(graph: Graph, step: Step) -> dict[str, list[tuple[str, str]]]:
    """For each stack runs of its layers, and the runs of the source's that they are by a step: ``16-31``, ``6-21``."""
    plans: dict[str, list[str]] = {label: text.split(",") for label, text in step.plan.items()}
    if not plans and len(graph.info.plan) == len(graph.stages):
        plans = {
            stage.name: [str(item) for item in order]
            for stage, order in zip(graph.stages, graph.info.plan, strict=True)
        }
    found = {}
    for label, parts in plans.items():
        places: list[tuple[str, int]] = []
        for part in parts:
            head, slash, numbers = part.strip().rpartition("/")
            first, _, last = numbers.partition("-")
            ends = number_of(first), number_of(last or first)
            if ends[0] is None or ends[1] is None or not 0 <= ends[1] - ends[0] < _LAYERS:
                raise SourceError(
                    f"the record of {_name(graph)} is damaged: {part!r} is not a part of a plan"
                )
            places += [(head + slash, number) for number in range(ends[0], ends[1] + 1)]
        runs, at = [], 0
        for head, run in consecutive(places):
            runs.append((_run(range(at, at + len(run))), head + _run(run)))
            at += len(run)
        found[label] = runs
    return found


def _run(numbers: range) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"


def way_back(graph: Graph) -> WayBack:
    """How the last change of depth is taken back. PlanError says what is missing, where that cannot be done."""
    steps = steps_of_graph(graph)
    if any(container.changed for container in graph.structure.containers) or graph.earlier:
        raise PlanError(f"{_name(graph)} was changed since it was read; undo takes back what a file records")
    if not steps:
        raise PlanError(
            f"{_name(graph)} has no record of a change of depth, so there is nothing to undo: stretch and squeeze "
            "write one; squeeze takes layers out by --drop or --plan"
        )
    step = steps[-1]
    _refuse_missing(graph, step)
    return WayBack(step, _plan_back(graph, step), dict(_entries_back(graph, step)))


def changed_lists(step: Step) -> list[str]:
    """The lists whose layers have other numbers than in the source, by the lineage: those that the change was of."""
    heads: dict[str, None] = {}
    for name, origin in step.lineage.items():
        now, before = _NUMBER.split(name), _NUMBER.split(origin.name)
        at = next((at for at, pair in enumerate(zip(now, before, strict=False)) if pair[0] != pair[1]), 0)
        if not origin.source and at % 2:  # every second part is a number
            heads["".join(now[:at]).rstrip(".")] = None
    return list(heads)


def names_in_source(graph: Graph, step: Step) -> set[str]:
    """What the tensors were called in the first source, of which a result has copies."""
    return {origin.name for origin in map(step.origin, graph.weights) if not origin.source}


def check_undone(graph: Graph, step: Step, wanted: set[str]) -> None:
    """PlanError unless every tensor of a graph is again what had its name in the source, and none is missing."""
    wrong = [*_unlike(graph, step), *sorted(wanted ^ graph.weights.keys())]
    if wrong:
        raise PlanError(
            f"undo does not bring back the source's names ({_listed(wrong)}): the record and the weights do not belong "
            "together, or the source numbered its layers otherwise"
        )


def copies_left_out(before: Graph, after: Graph) -> dict[str, bool]:
    """Each tensor that was left out though the source had it: whether it is equal to the one taken in its place.

    They were equal when they were written, so what differs was changed since. Bytes are read, a piece at a time.
    """
    step = steps_of_graph(before)[-1]
    taken = {step.origin(weight.origin): weight.origin for weight in after.weights.values()}
    found = {}
    for name, weight in before.weights.items():
        other = taken.get(step.origin(name), name)
        if other != name:
            one, two = weight.storage.emitted(), before.weights[other].storage.emitted()
            found[name] = same_bytes(one, two)
    return found


def _unlike(graph: Graph, step: Step) -> list[str]:
    """Names of a graph that are not what the source had under them."""
    found = []
    for name, weight in graph.weights.items():
        origin = step.origin(weight.origin)
        if weight.source or origin.source or origin.name != name or origin.scale is not None:
            found.append(name)
    return found


# -- what is missing ---------------------------------------------------------------------------------------------------


def _refuse_missing(graph: Graph, step: Step) -> None:
    source = step.sources[0]
    lost = [name for name in step.lineage if name not in graph.weights]
    if lost:
        raise PlanError(
            f"{_name(graph)} cannot be undone: its record is of other weights, since {_listed(_by_layer(graph, lost))} "
            "is not there any more"
        )
    if step.rewired:
        raise PlanError(
            f"{_name(graph)} cannot be undone: passes changed more of {source} than which layers there are"
            f"{_passes(graph)}, and only a change of depth is taken back"
        )
    if step.gone is None:
        raise PlanError(
            f"the record of {_name(graph)} is of an earlier ElasticIR, which did not state whether {source} had more "
            "than what was kept; if it had not, 'elastic-ir squeeze' with --plan and the first copy of each layer "
            f"restores it (source layers now: {'; '.join(f'{label} {text}' for label, text in step.plan.items())})"
        )
    scaled: dict[str, float] = {}
    for origin in step.lineage.values():
        if origin.scale is not None and not origin.source:
            scaled.setdefault(origin.name, origin.scale)
    anew = {step.origin(name).name: name for name in step.computed}
    deleted = [name for name in step.gone if name not in scaled and name not in anew]
    if deleted:
        raise PlanError(
            f"{_name(graph)} cannot be undone, since not all of {source} is in it: it has no copy of "
            f"{_listed(_by_layer(graph, deleted))}; only {source} itself has what is missing"
        )
    if step.gone:
        name = step.gone[0]
        how = (
            "computed anew"
            if name not in scaled
            else f"multiplied by {scaled[name]:g}"
            if scaled[name]
            else "zero"
        )
        raise PlanError(
            f"{_name(graph)} cannot be undone: {_listed(_by_layer(graph, step.gone))} of {source} "
            f"{'is' if len(step.gone) == 1 else 'are'} there only changed ({name} is {how}){_passes(graph)}"
        )


def _passes(graph: Graph) -> str:
    """What ran over the network, where that is recorded: `` (passes: stretch, fold-batchnorm)``."""
    return f" (passes: {', '.join(graph.history.pipeline)})" if graph.history.pipeline else ""


def _name(graph: Graph) -> str:
    return graph.info.file or graph.name


def _by_layer(graph: Graph, names: Iterable[str]) -> list[str]:
    """Names of tensors as runs of layers where they lie in numbered layers: ``model.layers.4-5``."""
    heads = {container.series for container in graph.structure.containers}
    layers: dict[Series, set[int]] = {}
    others = []
    for name in names:
        home = next((head for head in heads if head.number(name) is not None), None)
        number = home.number(name) if home is not None else None
        if home is None or number is None:
            others.append(name)
        else:
            layers.setdefault(home, set()).add(number)
    runs = []
    for home, numbers in layers.items():
        for _, run in consecutive((home.head, number) for number in sorted(numbers)):
            runs.append(home.head + _run(run))
    return runs + others


def _listed(items: Sequence[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more


# -- the plan ----------------------------------------------------------------------------------------------------------


def _plan_back(graph: Graph, step: Step) -> Plan:
    """For each stage the first plain copy of each of the source's blocks, in their order there."""
    homes = {child.path: box for box in graph.structure.containers for child in box.children}
    held: dict[str, list[str]] = {}
    for name in graph.weights:
        head = head_in(name, homes)
        if head is not None:
            held.setdefault(head, []).append(name)
    plan = []
    for stage in graph.stages:
        places: dict[tuple[int, ...], int] = {}
        for at, block in enumerate(stage.all_blocks):
            numbers = []
            for child in block.children:
                series = homes[child.path].series
                found = {_source_number(series, name, step) for name in held.get(child.path, ())}
                numbers.append(found.pop() if len(found) == 1 else -1 if not found else None)
            if None not in numbers:
                places.setdefault(tuple(number for number in numbers if number is not None), at)
        if not places:
            raise PlanError(
                f"{_name(graph)} cannot be undone: no block of {stage.name!r} is, in all that it holds, a copy of one "
                "of the source's; layers inside of its blocks were changed, in lists that cannot be told from the names"
            )
        plan.append(tuple(places[numbers] for numbers in sorted(places)))
    return tuple(plan)


def _source_number(series: Series, name: str, step: Step) -> int | None:
    """The number in the source of the layer that a tensor is a plain copy of; None where it is none of it."""
    origin = step.origin(name)
    before, now = series.number(origin.name), series.number(name)
    if origin.source or origin.scale is not None or name in step.computed or before is None or now is None:
        return None
    same = origin.name[len(series.name(before)) :] == name[len(series.name(now)) :]
    return before if same else None


def _entries_back(graph: Graph, step: Step) -> Iterator[tuple[str, Gathering]]:
    """For each tensor whose entries followed the layers those that make the source's; PlanError where they do not."""
    for name, origin in step.lineage.items():
        how = origin.gathering
        if how is None:
            continue
        count = max(how.entries, default=-1) + 1
        lacking = sorted(set(range(count)) - set(how.entries))
        if lacking:
            raise PlanError(
                f"{_name(graph)} cannot be undone: {name} has no entry {lacking[0]} of the source's any more"
            )
        if how.shared and len(how.entries) > count:
            raise PlanError(
                f"{_name(graph)} cannot be undone bit for bit: {name} holds softmaxed weights, of which copies share "
                "one; the source's was rounded when it was divided. 'elastic-ir squeeze --plan' gives a network of the "
                f"source's depth, with other values there ({step.sources[0]} has the source's)"
            )
        back = tuple(how.entries.index(entry) for entry in range(count))
        if back != tuple(range(len(how.entries))):
            yield name, replace(how, entries=back)
