"""From groups to stages: which containers hold the units, where stages begin, what their entries are.

The rules are those of the design; none of them knows an architecture. Containers are searched from the outside in:
one whose groups repeat (equal hashes) holds stages, and so does one with a single shape-preserving block if its
like occurs in the network elsewhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from elastic_ir.discovery.from_graph import GraphReader
from elastic_ir.discovery.parts import Group, Part, containers, kin
from elastic_ir.ir.structure import Block, Container, Stage

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
    def kinds(self) -> set[str]:
        return {group.kind for group in self.groups if group.free}


@dataclass(eq=False)
class Draft:
    """A stage being put together."""

    candidate: Candidate
    entry: Group | None = None
    free: list[Group] = field(default_factory=list)
    downsamples: bool = False  #: the entry changes the activation's shape, or a pool runs before it
    after_foreign: Group | None = None  #: a layer of another kind that runs before it in the same container
    ordinal: int = 0

    @property
    def groups(self) -> list[Group]:
        return ([self.entry] if self.entry else []) + self.free


def find_candidates(part: Part, reader: Reader, listed: dict[str, list[str]]) -> list[Candidate]:
    """Containers that may hold stages, the outermost sensible ones, in the order of the tree."""
    own: list[Candidate] = []
    for container, parts in containers(part, listed):
        groups = reader.groups(container, parts)
        free = [group for group in groups if group.free]
        if not free:
            continue
        repeats = Counter(group.signature for group in free).most_common(1)[0][1] > 1
        weights = sum(len(group.weights) for group in groups)
        own.append(Candidate(container, part.path, groups, repeats, reader.on_trunk(groups), weights))
    strong = [candidate for candidate in own if candidate.strong]
    if strong:
        return strong[:1]
    inner = [c for child in part.children.values() for c in find_candidates(child, reader, listed)]
    for candidate in own:
        if not _overridden(candidate, inner) and not _outweighed(candidate, inner, reader):
            candidate.inner = inner
            return [candidate]
    return inner


def named_candidates(
    root: Part, reader: Reader, listed: dict[str, list[str]], within: Collection[tuple[str, str]]
) -> list[Candidate]:
    """The containers of those paths and prefixes, as far as they are there and hold blocks."""
    found = []
    for part in root.walk():
        for container, parts in containers(part, listed):
            if (container.path, container.prefix) in within:
                groups = reader.groups(container, parts)
                if groups:
                    found.append(Candidate(container, part.path, groups, True, True, 0))
    return found


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


def choose(found: list[Candidate]) -> list[Candidate]:
    """Keep repeated containers, and single ones whose like occurs elsewhere in the network."""
    strong = [c for c in found if c.strong]
    if any(c.trunk for c in strong):
        # of branches side by side only the last looks like the trunk: what it starts from, the others start from too
        forks = {c.groups[0].input for c in strong if c.trunk}
        strong = [c for c in strong if c.trunk or c.groups[0].input in forks]
    if strong:
        weak = [c for c in found if not c.strong and any(_akin(c, other) for other in strong)]
    else:
        counts = Counter(g.kind for c in found for g in c.groups if g.free)
        weak = [c for c in found if any(counts[kind] > 1 for kind in c.kinds)]
    kept = set(strong) | set(weak)
    # where the blocks of one stage alone outweigh what stands around them, and those of another do not (MobileViT's
    # transformers of 4 and of 2 blocks), the others are no less blocks
    forms = [c.form for c in strong]
    unwanted = [c for c in found if c not in kept]
    passed = {
        i for c in unwanted for i in c.inner if i.strong and i.trunk and any(i.form == f for f in forms)
    }
    return [c for outer in found for c in (outer, *outer.inner) if c in kept or c in passed]


def _akin(single: Candidate, other: Candidate) -> bool:
    """Whether a single block is of the kind of others: of their form and, a bare layer by names, of their kernel.

    Such a layer has no names inside to recognize it by, and convolutions of 7 by 7 that make VGG's head are not blocks.
    """
    bare = all(":" in part for part in single.form)
    kernels = single.kernels, other.kernels
    unlike = bare and all(kernels) and kernels[0].isdisjoint(kernels[1])
    return kin(single.form, other.form) and not unlike


def draft_stages(candidate: Candidate) -> list[Draft]:
    """Cut a container's groups into stages at shape changes, pools and layers of another kind."""
    form = candidate.form
    drafts: list[Draft] = []
    current: Draft | None = None
    foreign: Group | None = None
    for group in candidate.groups:
        if not kin(group.form, form):
            current, foreign = None, group if drafts else None  # before the first stage it is the stem
            continue
        if group.free and current is not None and group.linked and not group.boundary:
            current.free.append(group)
            continue
        current = Draft(candidate, after_foreign=foreign)
        drafts.append(current)
        foreign = None
        if group.free and not group.boundary:
            current.free.append(group)
        else:
            current.entry = group
            current.downsamples = not group.preserving or group.boundary
    for ordinal, draft in enumerate(drafts):
        draft.ordinal = ordinal
    return drafts


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


def _alternates(draft: Draft, drafts: list[Draft]) -> bool:
    """Whether stages of the same kind go in pairs or more: an unlike first block is then the first of such a unit."""
    steps = {
        _own_period([group.signature for group in other.free])
        for other in drafts
        if other is not draft and other.free and kin(other.free[0].form, draft.free[0].form)
    }
    return any(step > 1 and len(draft.free) % step == 0 for step in steps)


def sibling_entries(
    chosen: list[Candidate], root: Part, reader: Reader, listed: dict[str, list[str]]
) -> list[Candidate]:
    """Stages of one block (MobileNet's first): containers beside the chosen ones that hold the same kind of block."""
    parents = Counter(c.container.path.rpartition(".")[0] for c in chosen)
    taken = {c.container.path for c in chosen}
    extra: list[Candidate] = []
    for part in root.walk():
        parent = part.path.rpartition(".")[0]
        if parents[parent] < 2 or part.path in taken or not part.path:
            continue
        for container, parts in containers(part, listed):
            groups = reader.groups(container, parts)
            forms = [c.form for c in chosen if c.container.path.rpartition(".")[0] == parent]
            if groups and all(any(kin(g.form, form) for form in forms) for g in groups):
                extra.append(Candidate(container, parent, groups, False, True, 0))
    return extra


def _own_period(signatures: list[str]) -> int:
    """The shortest period of a list of hashes that is seen twice, or 1."""
    if len(set(signatures)) <= 1:
        return 1
    for period in range(2, len(signatures) // 2 + 1):
        if len(signatures) % period == 0 and all(
            signatures[i] == signatures[i + period] for i in range(len(signatures) - period)
        ):
            return period
    return 1


def periods(drafts: list[Draft], reader: Reader) -> list[int | None]:
    """How many blocks make a unit, for each stage: the shortest period of the hashes of its free blocks."""
    lists = [[group.signature for group in draft.free] for draft in drafts]
    found = [_own_period(signatures) for signatures in lists]
    common = max(found, default=1)
    if common > 1:
        # where one stage alternates, stages of the same kind do too, even if their resolution hides it (Swin's last
        # stage is one window large, so its shift vanishes)
        form = drafts[found.index(common)].free[0].form
        for index, draft in enumerate(drafts):
            if draft.free and kin(draft.free[0].form, form) and len(draft.free) % common == 0:
                found[index] = common
        return list(found)
    # nothing but names: where every stage holds a whole number of pairs behind separate downsampling layers, the
    # blocks may alternate (Swin's windows), which shows in no weight
    paired = all(draft.entry is None and len(draft.free) % 2 == 0 for draft in drafts)
    if reader.form == "names" and len(drafts) > 1 and paired:
        return [None] * len(drafts)
    return list(found)


def build_stages(
    drafts: list[Draft], reader: Reader, layers: Callable[[Group], int | None], transitions: dict[Draft, str]
) -> list[Stage]:
    """Turn drafts, in running order, into stages over shared containers."""
    held = Counter(draft.candidate.container for draft in drafts)
    stages = []
    for draft, period in zip(drafts, periods(drafts, reader), strict=True):
        container = draft.candidate.container
        container.source_count = len(container.children)
        slot = {child.path: child for child in container.children}

        def block(group: Group, slot: dict[str, object] = slot) -> Block:  # type: ignore[assignment]
            return Block(
                [slot[part.path] for part in group.parts],  # type: ignore[misc]
                list(group.nodes),
                group.input,
                group.output,
                layers(group),
                group.signature,
            )

        name = container.label
        if held[container] > 1:
            name = f"{name}:{draft.ordinal + 1}"
        last = draft.groups[-1].output
        stages.append(
            Stage(
                name,
                container,
                block(draft.entry) if draft.entry is not None else None,
                [block(group) for group in draft.free],
                period,
                transitions.get(draft),
                last.type.shape if last is not None and last.type is not None else None,
            )
        )
    return stages
