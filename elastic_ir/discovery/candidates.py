"""Candidates: the containers that may hold the stages of a network, and which of them are taken.

Containers are searched from the outside in: one whose groups repeat (equal hashes) holds stages, and so does one with a
single shape-preserving block if its like occurs in the network elsewhere. No rule knows an architecture.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from elastic_ir.discovery.from_graph import GraphReader
from elastic_ir.discovery.parts import Group, Part, kin
from elastic_ir.discovery.signatures import period_together
from elastic_ir.ir.numbering import pattern_of
from elastic_ir.ir.structure import Container

if TYPE_CHECKING:
    from elastic_ir.discovery.from_names import NameReader

Reader: TypeAlias = "GraphReader | NameReader"


@dataclass(eq=False)
class Candidate:
    """A container that may hold stages."""

    container: Container
    parent: str
    groups: list[Group]
    strong: bool  #: some block occurs twice
    trunk: bool
    weights: int  #: how many weights lie in its groups
    inner: list[Candidate] = field(
        default_factory=list
    )  #: what its groups hold, if it should not be chosen itself
    outer: Candidate | None = None  #: the container of one block around it, whose place it takes

    @property
    def form(self) -> frozenset[str]:
        """The form of its commonest free block."""
        forms = Counter(group.form for group in self.groups if group.free) or Counter(
            g.form for g in self.groups
        )
        return forms.most_common(1)[0][0]

    @property
    def kernels(self) -> set[tuple[int, ...]]:
        """The extents of its free blocks' kernels, where names are all there is; a bare linear layer has none."""
        return {
            shape[2:]
            for group in self.groups
            if group.free and not group.nodes
            for shape in group.weights.values()
            if len(shape) > 2
        }

    @property
    def streams(self) -> int:
        """How many tensors flow from block to block; of names alone one is taken for granted."""
        return max((len(group.inputs) for group in self.groups if group.free), default=1) or 1

    @property
    def kinds(self) -> set[str]:
        return {group.kind for group in self.groups if group.free}


def find_candidates(part: Part, reader: Reader) -> list[Candidate]:
    """Containers that may hold stages, the outermost sensible ones, in the order of the tree."""
    own: list[Candidate] = []
    apart: list[str] = []  #: paths of blocks of no stage, in which only what repeats is one
    for container, parts in reader.containers(part):
        if reader.follows(container):
            if container.native:
                return []
            continue
        groups = reader.groups(container, parts)
        free = [group for group in groups if group.free]
        # long skips, or no block that reads the one before it: the attentions between a UNet's residual blocks
        if container in reader.paired or (len(free) > 1 and not any(group.linked for group in free)):
            apart += [f"{inner.path}." for inner in parts]
            continue
        if not free:
            continue
        repeats = Counter(group.signature for group in free).most_common(1)[0][1] > 1
        # by names, norms that stand beside do not make a block's convolutions the block; a recurrent layer is all of
        # its parameters
        bare = reader.form == "names" and not container.parameters
        weights = sum(map(len, (part.weights for part in parts) if bare else (g.weights for g in groups)))
        # a recurrent module is a stack by its class, however few its layers, and whatever is added to what it gives
        stack = container.parameters
        trunk = stack or reader.on_trunk(groups)
        own.append(Candidate(container, part.path, groups, repeats or stack, trunk, weights))
    strong = [candidate for candidate in own if candidate.strong]
    lead = strong[0] if any(candidate.streams == 1 for candidate in strong) else None
    framing = lead is not None and _is_frame(lead, reader)
    # by names, numbered attributes may be but the stem of what stands beside them
    series = lead is not None and reader.form == "names" and not lead.container.native
    if lead is not None and not (framing or series):
        return _side_by_side(strong)
    inner = [c for child in part.children.values() for c in find_candidates(child, reader)]
    if lead is not None:
        if not (framing or _outweighed(lead, inner, reader)):
            return _side_by_side(strong)
        own = [one for one in own if one is not lead and not (one.strong and _outweighed(one, inner, reader))]
    inner = [c for c in inner if c.strong or not f"{c.container.path}.".startswith(tuple(apart))]
    # several streams may be of stages that run side by side (HRNet, CrossViT): then the lists inside are the stages
    own = [one for one in own if one.streams == 1 or not _mostly_lists(one, inner)]
    strong = [candidate for candidate in own if candidate.strong]
    if strong:
        return _side_by_side(strong)
    _take_together(inner)
    for candidate in own:
        if not _overridden(candidate, inner) and not _outweighed(candidate, inner, reader):
            blocks = tuple(f"{part.path}." for group in candidate.groups for part in group.parts)
            candidate.inner = [one for one in inner if f"{one.container.path}.".startswith(blocks)]
            # a series among other children does not hide what repeats in these, or may do so elsewhere
            beside = not candidate.container.native
            return [
                candidate,
                *(one for one in inner if (one.strong or beside) and one not in candidate.inner),
            ]
        for one in inner:
            if one.outer is None and f"{one.container.path}.".startswith(f"{candidate.container.path}."):
                one.outer = candidate
    return inner


def _side_by_side(found: list[Candidate]) -> list[Candidate]:
    """The first, and other series of attributes that have no block of it (``conv1_1``, ``conv1_2`` and ``conv2_1``)."""
    taken: set[Part] = set()
    chosen = []
    for candidate in found:
        blocks = {part for group in candidate.groups for part in group.parts}
        if taken.isdisjoint(blocks):
            chosen.append(candidate)
            taken |= blocks
    return chosen


def _is_frame(outer: Candidate, reader: Reader) -> bool:
    """Whether what repeats in a container are but layers around a child that repeats inside and outweighs them.

    ESRGAN is one Sequential: a convolution, the trunk of 23 blocks, two convolutions behind upsampling.
    """
    form = outer.form
    repeated = sum(len(group.weights) for group in outer.groups if kin(group.form, form))
    others = [group for group in outer.groups if not kin(group.form, form)]
    inner = [c for group in others for part in group.parts for c in find_candidates(part, reader)]
    return sum(candidate.weights for candidate in inner if candidate.strong) > repeated


def _take_together(inner: list[Candidate]) -> None:
    """Lists of equal path but for numbers, none of which repeats by itself, may show together what repeats.

    Swin with two blocks in each of its stages: plain and shifted windows, in every stage again.
    """
    alike: dict[str, list[Candidate]] = {}
    for candidate in inner:
        alike.setdefault(pattern_of(candidate.container.path), []).append(candidate)
    for candidates in alike.values():
        if period_together([[group for group in one.groups if group.free] for one in candidates]) > 1:
            for one in candidates:
                one.strong = True


def named_candidates(root: Part, reader: Reader, within: Collection[tuple[str, str]]) -> list[Candidate]:
    """The containers of those paths and prefixes, as far as they are there and hold blocks."""
    found = []
    for part in root.walk():
        for container, parts in reader.containers(part):
            if (container.path, container.prefix) in within:
                groups = reader.groups(container, parts)
                if groups:
                    found.append(Candidate(container, part.path, groups, True, True, 0))
    return found


def _mostly_lists(outer: Candidate, inner: list[Candidate]) -> bool:
    """Whether lists that repeat, one for each stream of an outer block, hold half of its blocks' weights or more."""
    held = sum(candidate.weights for candidate in inner)
    block = tuple(f"{part.path}." for part in outer.groups[-1].parts)
    lists = [one for one in inner if f"{one.container.path}.".startswith(block)]
    some = any(one.strong for one in lists)
    return some and len(lists) >= outer.streams and 2 * held >= outer.weights


def _overridden(outer: Candidate, inner: list[Candidate]) -> bool:
    """Whether a repeated container inside shows that the outer one's children are stages, not blocks."""
    return any(
        candidate.strong
        and candidate.trunk
        and any(
            10 * candidate.weights >= 6 * len(group.weights)
            for group in outer.groups
            if any(candidate.container.path.startswith(part.path) for part in group.parts)
        )
        for candidate in inner
    )


def _outweighed(series: Candidate, inner: list[Candidate], reader: Reader) -> bool:
    """Whether layers numbered among other children are but the stem of a repeated container that stands beside them.

    Of names alone, where no data flow shows it: Whisper's encoder has ``conv1`` and ``conv2`` beside ``layers``.
    """
    own = tuple(f"{part.path}." for group in series.groups for part in group.parts)
    return (
        reader.form == "names"
        and not series.container.native
        and any(
            candidate.strong
            and candidate.weights > 2 * series.weights
            and not f"{candidate.container.path}.".startswith(own)
            for candidate in inner
        )
    )


def choose(found: list[Candidate], reader: Reader) -> list[Candidate]:
    """Keep repeated containers, and single ones whose like occurs elsewhere in the network.

    Where that leaves none, the lists inside are asked: they repeat, or are stages of one block behind an entry each.
    """
    found = _on_one_level(found)
    chosen = _choose(found, reader)
    inner = [one for outer in found for one in outer.inner]
    if chosen or not inner:
        return chosen
    if any(one.strong and one.trunk for one in inner):  # in blocks that are none of a stage
        return _choose(inner, reader)
    twins = _twins(inner, reader)
    return [one for one in inner if not twins.isdisjoint(_places(one))]


def _on_one_level(found: list[Candidate]) -> list[Candidate]:
    """The candidates, those inside of one block replaced by it where a list of the same place has such blocks.

    Where ``stages.1.layers`` holds three blocks, the one of ``stages.0.layers`` is no stage by itself, whatever repeats
    in it.
    """
    strong = [one for one in found if one.strong]

    def like_others(outer: Candidate) -> bool:
        place = pattern_of(outer.container.path)
        return any(pattern_of(c.container.path) == place and kin(c.form, outer.form) for c in strong)

    return list(
        dict.fromkeys(one.outer if one.outer is not None and like_others(one.outer) else one for one in found)
    )


def _choose(found: list[Candidate], reader: Reader) -> list[Candidate]:
    strong = [c for c in found if c.strong]
    if any(c.trunk for c in strong):
        # of branches side by side only the last looks like the trunk: what it starts from, the others start from too
        forks = {c.groups[0].inputs for c in strong if c.trunk}
        # and the stages of an encoder whose results a decoder reads again have the place of one that is the trunk
        beside = {pattern_of(c.container.path) for c in strong if c.trunk}
        strong = [
            c
            for c in strong
            if c.trunk or c.groups[0].inputs in forks or pattern_of(c.container.path) in beside
        ]
    if strong:
        twins = _twins(found, reader)
        weak = [
            c
            for c in found
            if not c.strong and (any(_akin(c, other) for other in strong) or not twins.isdisjoint(_places(c)))
        ]
    else:
        counts = Counter(g.kind for c in found for g in c.groups if g.free)
        weak = [c for c in found if any(counts[kind] > 1 for kind in c.kinds)]
    kept = set(strong) | {one for one in weak if not reader.lends(one.groups)}
    # where the blocks of one stage alone outweigh what stands around them, and those of another do not (MobileViT's
    # transformers of 4 and of 2 blocks), the others are no less blocks
    forms = [c.form for c in strong]
    unwanted = [c for c in found if c not in kept]
    passed = {
        i for c in unwanted for i in c.inner if i.strong and i.trunk and any(i.form == f for f in forms)
    }
    return [
        c for outer in found for c in ((outer,) if outer in kept else outer.inner) if c in kept or c in passed
    ]


def _twins(found: list[Candidate], reader: Reader) -> set[tuple[tuple[str, str], str]]:
    """The places and kinds of lists that run one after the other, each one block behind an entry.

    So does a ResNet of 2, 2, 2, 2 that is one of two towers; the heads of a detector run side by side.
    """
    lists: dict[tuple[tuple[str, str], str], list[Candidate]] = {}
    for candidate in found:
        if candidate.container.native and not candidate.groups[0].preserving:
            for place in _places(candidate):
                lists.setdefault(place, []).append(candidate)
    for alike in lists.values():
        alike.sort(key=lambda one: reader.position(one.groups[0]))
    return {
        place
        for place, alike in lists.items()
        if any(reader.leads(a.groups[-1], b.groups[0]) for a, b in itertools.pairwise(alike))
    }


def _places(candidate: Candidate) -> set[tuple[tuple[str, str], str]]:
    """Where its list stands, and the kinds of its free blocks of the commonest form."""
    form, place = candidate.form, _beside(candidate)
    return {(place, group.kind) for group in candidate.groups if group.free and group.form == form}


def _beside(candidate: Candidate) -> tuple[str, str]:
    """What lists side by side have in common: their parent, and their name but for its number."""
    parent, _, name = candidate.container.path.rpartition(".")
    return parent, pattern_of(name)


def _akin(single: Candidate, other: Candidate) -> bool:
    """Whether a single block is of the kind of others: of their form and, a bare layer by names, of their kernel.

    Such a layer has no names inside to recognize it by, and convolutions of 7 by 7 that make VGG's head are not blocks.
    """
    bare = all(":" in part for part in single.form)
    kernels = single.kernels, other.kernels
    unlike = bare and all(kernels) and kernels[0].isdisjoint(kernels[1])
    return kin(single.form, other.form) and not unlike


def sibling_entries(chosen: list[Candidate], root: Part, reader: Reader) -> list[Candidate]:
    """Stages of one block (MobileNet's first): containers beside the chosen ones that hold the same kind of block."""
    parents = Counter(c.container.path.rpartition(".")[0] for c in chosen)
    taken = {c.container.path for c in chosen}
    extra: list[Candidate] = []
    for part in root.walk():
        parent = part.path.rpartition(".")[0]
        if parents[parent] < 2 or part.path in taken or not part.path:
            continue
        for container, parts in reader.containers(part):
            groups = reader.groups(container, parts) if not reader.follows(container) else []
            forms = [c.form for c in chosen if c.container.path.rpartition(".")[0] == parent]
            if groups and all(any(kin(g.form, form) for form in forms) for g in groups):
                extra.append(Candidate(container, parent, groups, False, True, 0))
    return extra
