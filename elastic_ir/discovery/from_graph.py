"""Groups of a container read from the graph: who reads what, what flows from one to the next, what repeats."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from elastic_ir.discovery.bundles import Bundle, Series, Span, bundles_of
from elastic_ir.discovery.links import Links
from elastic_ir.discovery.parts import (
    Group,
    Part,
    containers,
    form_of,
    group_children,
    module_tree,
    relative_weights,
    running,
)
from elastic_ir.discovery.signatures import own_rows, signatures_of
from elastic_ir.ir.graph import Graph, Node, TensorType
from elastic_ir.ir.structure import Container

if TYPE_CHECKING:
    from elastic_ir.discovery.levels import Levels

_MOST_RANKS = 4  #: of slots that make one block together


class GraphReader:
    """Answers questions about groups from one graph; built once for a whole discovery."""

    form = "graph"

    def __init__(self, graph: Graph, every: bool = False) -> None:
        """``every`` takes all parameters for layers, where there are no others: a flow has its own kinds of them."""
        self.graph = graph
        self.plain = not every  #: whether what its layers are is known
        self.tree = module_tree(graph)
        self.nodes = list(graph)
        self.order = {node: index for index, node in enumerate(self.nodes)}
        self.users = graph.users()
        self.layer_names = {
            name for name, weight in graph.weights.items() if weight.layer or (every and weight.is_parameter)
        }
        self._names = {node: node.weight_names() for node in self.nodes}
        #: what depends on an input; weights made ready may stand anywhere before
        self.live: set[Node] = set()
        for node in self.nodes:
            if node.kind == "input" or node in self.live:
                self.live.add(node)
                self.live.update(self.users.get(node.output, ()))
        #: the nodes that read each weight
        self.readers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in self._names[node]:
                self.readers.setdefault(name, []).append(node)
        self._listed: dict[Part, list[tuple[Container, list[Part]]]] = {}
        self._levels: dict[Container, Levels] = {}
        self._bundles: dict[Container, Bundle] | None = None
        self._own_rows: set[Node] = (
            set()
        )  #: nodes that take a block's own row of a value that all blocks share
        self._slots: dict[Node, Part] = {}  #: the innermost numbered child that a node runs in
        #: containers whose blocks each have a partner in another one, with the paths of two such blocks
        self.paired: dict[Container, tuple[str, str]] = {}

    def containers(self, part: Part) -> list[tuple[Container, list[Part]]]:
        """The containers that a part is or holds, with their children in order; the same objects every time."""
        if part not in self._listed:
            self._listed[part] = list(containers(part, self.graph.modules))
            if f"{part.path}.weight_hh_l0".lstrip(".") in self.graph.weights:
                from elastic_ir.discovery.levels import levels_of, start_others

                levels = levels_of(part, self.readers)
                if levels is not None and not start_others(levels, self.users):
                    self._listed[part].append(levels.lead)
                    self._levels[levels.containers[0]] = levels
        return self._listed[part]

    def bundle(self, container: Container) -> tuple[Container, ...]:
        """The containers that advance with one, itself first."""
        bundle = self._found().get(container)
        return bundle.containers if bundle is not None else (container,)

    def follows(self, container: Container) -> bool:
        """Whether a container's slots are parts of free blocks that another container numbers."""
        bundle = self._found().get(container)
        return (
            bundle is not None
            and bundle.lead.container is not container
            and any(group.free for group in bundle.groups or ())
        )

    def groups(self, container: Container, parts: list[Part]) -> list[Group]:
        """The blocks whose numbers are those of a container, with links, shapes and signatures filled in.

        [] where nothing chains, and where the blocks are numbered by another container that advances with this one.
        """
        bundle = self._found().get(container)
        if bundle is None or bundle.lead.container is not container:
            return []
        if bundle.groups is None:
            bundle.groups = self._blocks(bundle)
        return bundle.groups

    # -- bundles -----------------------------------------------------------------------------------------------------

    def _found(self) -> dict[Container, Bundle]:
        """The bundle of each container that has groups."""
        if self._bundles is None:
            series: list[Series] = []
            self._gather(self.tree, "", series)
            for one in series:
                for part in (part for group in one.groups for part in group.parts):
                    self._slots.update(dict.fromkeys(part.nodes, part))
            found = bundles_of(series, self.nodes, self._around)
            self._bundles = {}
            for bundle in found:
                if len(bundle.series) > 1:
                    bundle.groups = self._blocks(bundle)
                    if not any(
                        group.free and not group.torn for group in bundle.groups
                    ):  # then each of its lists may still be a stack
                        alone = [Bundle([one]) for one in bundle.series if one.layered]
                        self._bundles.update((one.lead.container, one) for one in alone)
                        continue
                self._bundles.update((one.container, bundle) for one in bundle.series)
        return self._bundles

    def _around(self, node: Node, within: str) -> bool:
        """Whether a node is of the caller of some series, who runs them in the numbered module of that path."""
        slot = self._slots.get(node)
        return (slot.path if slot is not None else "") == within and self._carries(node)

    def _gather(self, part: Part, within: str, found: list[Series]) -> None:
        """The series below a part."""
        numbered: set[Part] = set()
        for container, parts in self.containers(part):
            one = self._series(container, parts, within)
            # attributes that run in turn, such as convs1 and convs2, are lists side by side and no layers
            if one is None or not container.prefix or _disjoint(one.spans):
                numbered.update(parts)
                found += [one] if one is not None else []
        for child in part.children.values():
            self._gather(child, child.path if child in numbered else within, found)

    def _series(self, container: Container, parts: list[Part], within: str) -> Series | None:
        """A container's groups in the order they run; None where they do not run in the order of their numbers."""
        layered = any(self._weighted(part) for part in parts)
        levels = self._levels.get(container)
        if levels is not None:
            groups = levels.groups()
        elif layered:
            start = next(at for at, part in enumerate(parts) if self._weighted(part))
            tables = [at for at, part in enumerate(parts[:start]) if self._holds_table(part)]
            rest = parts[tables[-1] + 1 :] if tables else parts  # an embedding is no norm of the first layer
            groups = group_children(rest, self._weighted, lambda part: bool(part.weights), self._separates)
        else:
            groups = [Group([part]) for part in parts]
        groups = running(groups, self.graph)
        if not groups:
            return None
        spans = [self._span([node for part in group.parts for node in part.nodes]) for group in groups]
        whole = (
            sum(len(group.parts) for group in groups) == len(parts)
            and not container.prefix
            and levels is None
        )
        if whole and len(spans) > 1 and spans == sorted(spans, reverse=True):
            groups = [Group(group.parts[::-1], boundary=group.boundary) for group in reversed(groups)]
            spans.reverse()
            container.falling = True
        if spans != sorted(spans):
            # a last one for another place (a head for the proposals of a first stage) stays the last
            if len(groups) < 3 or not spans[-1] < spans[0] or spans[:-1] != sorted(spans[:-1]):
                return None
            del groups[-1], spans[-1]
        inside = {part for group in groups for part in group.parts}
        beside = [node for part in parts if part not in inside for node in part.nodes]
        others = levels.containers[1:] if levels is not None else ()
        return Series(container, groups, spans, within, layered, beside, others)

    def _span(self, nodes: Sequence[Node]) -> Span:
        # what makes weights ready (dequantises them) may stand anywhere before the first node that depends on an input
        places = [self.order[node] for node in nodes]
        first = min((self.order[node] for node in nodes if node in self.live), default=min(places))
        return first, max(places)

    def _carries(self, node: Node, shared: Collection[str] = ()) -> bool:
        """Whether a node outside all slots may be part of a block: what the caller does, over shared weights."""
        return node.kind not in ("input", "output", "weight", "constant") and all(
            name in shared for name in self._names[node]
        )

    def _shared(self, spans: Sequence[Span]) -> set[str]:
        """The weights that the caller uses around every block, or every one but one.

        A norm that is applied behind every block is one module, so that a copy of a block calls it as well.
        """
        starts = [first for first, _ in spans]
        gap = max((after[0] - before[1] for before, after in itertools.pairwise(spans)), default=0)
        rows: dict[str, set[int]] = {}
        for node in self.nodes[max(spans[0][0] - gap, 0) : spans[-1][1] + gap]:
            for name in self._names[node]:
                if len(self.readers[name]) > 1:
                    rows.setdefault(name, set()).add(bisect_right(starts, self.order[node]))
        return {name for name, found in rows.items() if len(found) >= max(2, len(spans) - 1)}

    # -- blocks ------------------------------------------------------------------------------------------------------

    def _blocks(self, bundle: Bundle) -> list[Group]:
        """The blocks of a bundle: with all that the caller does between them where that links them.

        Else with what keeps the shape alone: what changes it then stands between stages.
        """
        shared = self._shared([span for _, span in bundle.blocks()])
        groups, around = self._put_together(bundle, lambda node: self._carries(node, shared))
        if around and not any(group.free and group.linked for group in groups):
            groups, _ = self._put_together(
                bundle, lambda node: self._carries(node, shared) and _keeps_extents(node)
            )
        several = (
            len(groups[0].parts) > 1
        )  # of one list, a first block that is another shows a state of its own
        if (
            around
            and several
            and len(groups) > 2
            and sum(group.free and group.linked for group in groups) < 2
        ):
            others, _ = self._put_together(bundle, lambda node: self._carries(node, shared), first_apart=True)
            if all(group.free and group.linked for group in others[1:]):
                groups = others
        chained = all(group.linked for group in groups[1:]) and all(group.sound for group in groups)
        if not chained and bundle.lead.container not in self.paired:
            # a last block that lacks something leaves the others whole by themselves
            apart = all(group.free and group.linked for group in groups[1:-1])
            groups = (
                self._several_to_one(bundle, lambda node: self._carries(node, shared), not apart) or groups
            )
        self._describe(groups)
        if len(groups) > 1 and _starts_as_it_goes_on(*groups[:2]):
            groups[0].preserving = True
        _tear_odd_ends(groups)
        return groups

    def _describe(self, groups: Sequence[Group]) -> None:
        self._own_rows |= own_rows(groups)
        for group in groups:
            group.weights = relative_weights(group.parts, self.graph)
            group.form = form_of(group)
            group.hashes = self._signatures

    def _several_to_one(
        self, bundle: Bundle, carries: Callable[[Node], bool], with_rest: bool
    ) -> list[Group]:
        """Blocks of two to four ranks of slots each, where only so nothing reaches over a block; [] where none do.

        A residual that is added behind every third layer lies across the two before it, and so does a state that every
        second layer takes up again. Where the count leaves a rest, that is a last block of fewer ranks, which is kept.
        """
        count = len(list(bundle.blocks()))
        for rest, ranks in sorted((count % ranks > 0, ranks) for ranks in range(2, _MOST_RANKS + 1)):
            if count < 2 * ranks or (rest and not with_rest):
                continue
            groups, _ = self._put_together(bundle, carries, ranks)
            whole = groups[: len(groups) - rest]
            if all(group.free for group in whole) and all(group.linked for group in groups[1:]):
                self._describe(groups)
                groups[-1].torn |= rest
                if len({group.signature for group in whole}) == 1:
                    return groups
        self.paired.pop(bundle.lead.container, None)  # larger blocks may have partners where these have none
        return []

    def _put_together(
        self, bundle: Bundle, carries: Callable[[Node], bool], ranks: int = 1, *, first_apart: bool = False
    ) -> tuple[list[Group], list[Node]]:
        """The blocks of a bundle, and what the caller does around their slots, which is dealt out to them."""
        groups: list[Group] = []
        spans: list[Span] = []
        for group, span in bundle.blocks(ranks):
            groups.append(group)
            spans.append(span)
        beside = {node for series in bundle.series for node in series.beside}
        owner: dict[Node, int] = {}
        for index, group in enumerate(groups):
            for part in group.parts:
                owner.update(dict.fromkeys(part.nodes, index))

        def belongs(node: Node) -> bool:
            return node not in beside and carries(node)

        around: list[Node] = []
        if len(groups) > 1 and _disjoint(spans):
            window = self.nodes[spans[0][0] : spans[-1][1] + 1]
            around = [node for node in window if node not in owner and belongs(node)]
        if around:
            from elastic_ir.discovery.gaps import Gaps  # many networks have none

            gaps = Gaps(spans, around, owner, belongs, self.nodes, self.order, self.users)
            gaps.deal_out(groups, first_apart=first_apart)
            if len(groups[-1].parts) < len(groups[0].parts):
                gaps.end_like(groups[0].parts, groups[-1].parts)
        for node, index in owner.items():
            groups[index].nodes.append(node)
        for group in groups:
            group.nodes.sort(key=self.order.__getitem__)
        links = Links(groups, owner, self.users, self.order)
        links.fill()
        self._pair(bundle, links)
        return groups, around

    def _pair(self, bundle: Bundle, links: Links) -> None:
        """Find out whether blocks have partners elsewhere: then none of them is sound."""
        self.paired.pop(bundle.lead.container, None)
        if not links.branching:
            return
        from elastic_ir.discovery.pairs import Pairs  # few networks need it

        pair = Pairs(links, self.users, self._slots).found()
        if pair is not None:
            self.paired[bundle.lead.container] = pair
            for group in links.groups:
                group.sound = False

    # -- questions about groups ----------------------------------------------------------------------------------------

    def on_trunk(self, groups: list[Group]) -> bool:
        """False where what enters the container is read again behind it: it is a branch beside a shortcut."""
        end = self.order[groups[-1].nodes[-1]]
        return all(
            self.order[reader] <= end for value in groups[0].inputs for reader in self.users.get(value, ())
        )

    def lends(self, groups: list[Group]) -> bool:
        """Whether something outside the container reads a layer of it: one that several blocks share (TabNet)."""
        inside = {node for group in groups for node in group.nodes}
        names = {name for node in inside for name in self._names[node] if name in self.layer_names}
        return any(node not in inside for name in names for node in self.readers[name])

    def position(self, group: Group) -> int:
        """Where the group runs, to order stages."""
        return self.order[next((node for node in group.nodes if node in self.live), group.nodes[0])]

    def leads(self, left: Group, right: Group) -> bool:
        """Whether what one group computes is needed for what flows into another that runs later."""
        start = self.order[left.nodes[0]]
        waiting = [value.node for value in right.inputs]
        seen: set[Node] = set()
        while waiting:
            node = waiting.pop()
            if node.output in left.outputs:
                return True
            if node not in seen and self.order[node] > start:
                seen.add(node)
                waiting += [value.node for value in node.operands()]
        return False

    def between(self, left: Group, right: Group) -> list[Node]:
        """The nodes that run after one group and before another."""
        return self.nodes[self.order[left.nodes[-1]] + 1 : self.order[right.nodes[0]]]

    def _weighted(self, part: Part) -> bool:
        return any(name in self.layer_names for name in part.weights)

    def _holds_table(self, part: Part) -> bool:
        return any(len(self.graph.weights[name].shape) > 1 for name in part.weights)

    def _separates(self, part: Part) -> bool:
        """Whether a part without weights changes the activation's shape."""
        if part.weights or not part.nodes:
            return False
        end = part.nodes[-1].output.type
        start = next((v.type for v in part.nodes[0].operands() if v.type is not None), None)
        return start is not None and end is not None and not _same_extents(start, end)

    def _signatures(self, group: Group) -> tuple[str, str]:
        return signatures_of(group, self.graph, self._names, self._own_rows)


def _disjoint(spans: Sequence[Span]) -> bool:
    return all(before[1] < after[0] for before, after in itertools.pairwise(spans))


def _starts_as_it_goes_on(first: Group, second: Group) -> bool:
    """Whether a first block does what a free one behind it does, with values that only broadcast to what flows later.

    N-BEATS begins with a forecast of one number, Emformer with an empty memory.
    """
    return first.sound and second.linked and second.free and first.signature == second.signature


def _tear_odd_ends(groups: list[Group]) -> None:
    """Mark a first and a last block around which the caller does other things than around all others.

    A counter in the caller's forward shows so: a position embedding before the first temporal block (Latte), a slice
    of one token in the last block (FT-Transformer).
    """
    if len(groups) < 4:
        return
    around = []
    for group in groups:
        inside = {node for part in group.parts for node in part.nodes}
        around.append([node.op for node in group.nodes if node not in inside])
    if all(operations == around[1] for operations in around[2:-1]):
        for end in (0, -1):
            groups[end].torn |= around[end] != around[1]


def _keeps_extents(node: Node) -> bool:
    source = next((value.type for value in node.operands() if value.type is not None), None)
    return node.output.type is not None and source is not None and _same_extents(source, node.output.type)


def _same_extents(left: TensorType, right: TensorType) -> bool:
    """Whether two shapes agree as far as they are known, whatever the dtypes."""
    return left.fits(TensorType(right.shape, left.dtype))
