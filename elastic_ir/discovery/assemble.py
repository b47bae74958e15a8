"""From candidates to stages: where stages begin in a container, what their entries are, how many blocks make a unit.

The rules are those of the design; none of them knows an architecture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from elastic_ir.discovery.candidates import Candidate, Reader
from elastic_ir.discovery.parts import Group, kin
from elastic_ir.discovery.signatures import period_together, shortest_period, shown_period
from elastic_ir.ir.numbering import pattern_of
from elastic_ir.ir.structure import Block, Stage

if TYPE_CHECKING:
    from elastic_ir.discovery.from_names import NameReader


@dataclass(eq=False)
class Draft:
    """A stage being put together."""

    candidate: Candidate
    entry: Group | None = None
    free: list[Group] = field(default_factory=list)
    exit: Group | None = None  #: a last block that lacks what the others have
    downsamples: bool = False  #: the entry changes the activation's shape, or a pool runs before it
    after_foreign: Group | None = None  #: a layer of another kind that runs before it in the same container
    ordinal: int = 0

    @property
    def groups(self) -> list[Group]:
        return [group for group in (self.entry, *self.free, self.exit) if group is not None]


def draft_stages(candidate: Candidate) -> list[Draft]:
    """Cut a container's groups into stages at shape changes, pools and layers of another kind."""
    forms = _mixed_forms(candidate)
    drafts: list[Draft] = []
    current: Draft | None = None
    foreign: Group | None = None
    for group in candidate.groups:
        if not any(kin(group.form, form) for form in forms):
            current, foreign = None, group if drafts else None  # before the first stage it is the stem
            continue
        if current is not None and group.linked and not group.boundary:
            last = group is candidate.groups[-1]
            if last and ((group.free and group.torn) or 0 < len(group.outputs) < len(group.inputs)):
                current.exit = group
                continue
            if group.free and not group.torn:
                current.free.append(group)
                continue
        current = Draft(candidate, after_foreign=foreign)
        drafts.append(current)
        foreign = None
        if group.free and not group.boundary and not group.torn:
            current.free.append(group)
        else:
            current.entry = group
            current.downsamples = not group.preserving or group.boundary
    for ordinal, draft in enumerate(drafts):
        draft.ordinal = ordinal
    return drafts


def _mixed_forms(candidate: Candidate) -> list[frozenset[str]]:
    """The forms of its blocks: the commonest, and those that repeat between blocks of it and keep what flows.

    A layer of Zamba is a Mamba block, or one beside an attention that all such layers share. One that occurs once
    stands between stages.
    """
    form = candidate.form
    own = [kin(group.form, form) for group in candidate.groups]
    others: dict[frozenset[str], list[Group]] = {}
    inner: set[frozenset[str]] = set()
    if any(own):
        first, last = own.index(True), len(own) - 1 - own[::-1].index(True)
        inner = {group.form for group in candidate.groups[first:last]}
        for place in range(first, len(own)):
            if not own[place]:
                others.setdefault(candidate.groups[place].form, []).append(candidate.groups[place])
    return [
        form,
        *(
            other
            for other, groups in others.items()
            if other in inner and len(groups) > 1 and all(group.free and group.linked for group in groups)
        ),
    ]


def pin_first_blocks(drafts: list[Draft]) -> None:
    """Settle entries over the whole network.

    Where other stages of the same kind open with a downsampling block, the first block of every stage counts as
    the entry, as in the paper. A first block with weights that the others lack, or of other shapes, is pinned too.
    """
    downsampling = [draft for draft in drafts if draft.downsamples]
    for draft in drafts:
        if draft.entry is not None or not draft.free:
            continue
        first = draft.free[0]
        others = [group.weights for group in draft.free[1:]]
        family = any(kin(first.form, other.groups[0].form) for other in downsampling)
        unlike = bool(others) and first.weights not in others and not _alternates(draft, drafts)
        if (family and draft.after_foreign is None) or unlike:
            draft.entry = draft.free.pop(0)


def join_last_blocks(drafts: list[Draft], reader: NameReader) -> None:
    """Of names alone: keep a list's last block as the last one of the stage before it where it is only its end.

    The last block of two streams (SD3's) makes nothing of the second, and so has fewer weights and other widths; that
    of a refining network (a postnet's) gives out the width that the stage's entry takes in. One of equal blocks' kind
    that gives out another width than they do (WaveNet's, of whose result nothing goes on) is the last, too.
    """
    for draft in list(drafts):
        last = draft.entry
        if draft.free or last is None or last is not draft.candidate.groups[-1]:
            continue
        before = [other for other in drafts if other.candidate is draft.candidate and other is not draft][-1:]
        for stage in before:
            whole = stage.free and stage.exit is None and last.linked and not last.boundary
            less = bool(stage.free) and last.weights.keys() < stage.free[-1].weights.keys()
            if whole and (less or _returns(stage, last, reader)):
                stage.exit = last
                drafts.remove(draft)
    for draft in drafts:
        if draft.exit is not None or not draft.free or draft.free[-1] is not draft.candidate.groups[-1]:
            continue
        *others, end = (reader.channels(group) for group in draft.free)
        alike = len(others) > 2 and others.count(others[0]) == len(others)
        if alike and others[0] and end and end[1] != others[0][1]:
            draft.exit = draft.free.pop()


def _returns(stage: Draft, last: Group, reader: NameReader) -> bool:
    """Whether a block gives out the width that a stage's entry takes in, and takes in what the stage gives out."""
    if stage.entry is None or not kin(stage.entry.form, last.form):
        return False
    first, end = reader.channels(stage.entry), reader.channels(last)
    return first is not None and end is not None and first[0] == end[1] != end[0] == first[1]


def keep_last_blocks(drafts: list[Draft]) -> None:
    """Keep a last block as the last one where it holds norms that none of the others has, for the result of all."""
    for draft in drafts:
        if draft.exit is not None or len(draft.free) < 3:
            continue
        last, others = draft.free[-1].weights, [group.weights for group in draft.free[:-1]]
        more = {name: shape for name, shape in last.items() if all(name not in other for other in others)}
        rest = {name: shape for name, shape in last.items() if name not in more}
        if more and rest in others and all(len(shape) == 1 for shape in more.values()):
            draft.exit = draft.free.pop()


def keep_odd_ends(drafts: list[Draft]) -> None:
    """Keep a last block that begins a period without ending it, where a caller treats the blocks of a period apart.

    A caller that lets two streams meet in every second block counts its blocks: another order is none that it runs.
    """
    for draft in drafts:
        hashes = [group.signature for group in draft.free]
        period = shortest_period(hashes[:-1])
        if draft.exit is not None or period == 1 or hashes[-1] != hashes[-1 - period]:
            continue
        if len({_wiring(group) for group in draft.free}) > 1:
            draft.exit = draft.free.pop()


def _wiring(group: Group) -> tuple[frozenset[int], ...]:
    """Which of the values that flow into a block each of its slots reads."""
    read = [{value for node in part.nodes for value in node.operands()} for part in group.parts]
    return tuple(frozenset(i for i, value in enumerate(group.inputs) if value in values) for values in read)


def _alternates(draft: Draft, drafts: list[Draft]) -> bool:
    """Whether stages of the same kind go in pairs or more: an unlike first block is then the first of such a unit."""
    steps = {
        shortest_period([group.signature for group in other.free])
        for other in drafts
        if other is not draft and other.free and kin(other.free[0].form, draft.free[0].form)
    }
    return any(step > 1 and len(draft.free) % step == 0 for step in steps)


def periods(drafts: list[Draft], reader: Reader) -> list[int | None]:
    """How many blocks make a unit, for each stage: the shortest period of the hashes of its free blocks."""
    found = [shown_period(draft.free) for draft in drafts]
    common = max(found, default=1)
    if common == 1:
        # stages that hold one unit each show it together, where their blocks do the same in turn (Swin of 2, 2, 2)
        together = period_together([draft.free for draft in drafts if len(draft.free) > 1])
        found = [together if len(draft.free) > 1 else 1 for draft in drafts]
    elif common > 1:
        # where one stage alternates, stages of the same kind do too, even if their resolution hides it (Swin's last
        # stage is one window large, so its shift vanishes)
        form = drafts[found.index(common)].free[0].form
        for index, draft in enumerate(drafts):
            alike = bool(draft.free) and kin(draft.free[0].form, form)
            if found[index] == 1 and alike and len(draft.free) % common == 0:
                found[index] = common
        return list(found)
    if reader.form != "names":
        return list(found)
    # nothing but names: where every stage holds a whole number of pairs behind separate downsampling layers, the
    # blocks may alternate (Swin's windows), which shows in no weight; stages of lists with other names than their
    # numbers are of another part of the network (a text and a vision model), which nothing downsamples
    rows: dict[str, list[Draft]] = {}
    for draft in drafts:
        rows.setdefault(pattern_of(draft.candidate.container.label), []).append(draft)
    paired = {draft for row in rows.values() if _paired(row) for draft in row}
    return [None if draft in paired else period for draft, period in zip(drafts, found, strict=True)]


def _paired(row: list[Draft]) -> bool:
    """Whether stages in a row hold pairs of blocks, each of them, and open with none of their own."""
    return len(row) > 1 and all(draft.entry is None and len(draft.free) % 2 == 0 for draft in row)


def build_stages(
    drafts: list[Draft], reader: Reader, layers: Callable[[Group], int | None], transitions: dict[Draft, str]
) -> list[Stage]:
    """Turn drafts, in running order, into stages over shared containers."""
    held = Counter(draft.candidate.container for draft in drafts)
    stages = []
    for draft, period in zip(drafts, periods(drafts, reader), strict=True):
        boxes = reader.bundle(draft.candidate.container)
        container = boxes[0]
        for box in boxes:
            box.source_count = len(box.children)
        slot = {child.path: child for box in boxes for child in box.children}

        def block(group: Group, slot: dict[str, object] = slot) -> Block:  # type: ignore[assignment]
            return Block(
                [slot[part.path] for part in group.parts],  # type: ignore[misc]
                list(group.nodes),
                group.inputs,
                group.outputs,
                group.taps,
                group.given,
                layers(group),
                group.signature,
            )

        name = container.label
        if held[container] > 1:
            name = f"{name}:{draft.ordinal + 1}"
        ends = draft.groups[-1].outputs
        stages.append(
            Stage(
                name,
                boxes,
                block(draft.entry) if draft.entry is not None else None,
                [block(group) for group in draft.free],
                period,
                transitions.get(draft),
                ends[0].type.shape if ends and ends[0].type is not None else None,
                block(draft.exit) if draft.exit is not None else None,
            )
        )
    return stages
