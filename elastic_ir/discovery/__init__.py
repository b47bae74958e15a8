"""Discovery: the stages, entries, units and depth of a network that nobody has described beforehand."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection
from math import prod
from typing import TYPE_CHECKING, TypeAlias

from elastic_ir.discovery.assemble import (
    Draft,
    build_stages,
    draft_stages,
    join_last_blocks,
    keep_last_blocks,
    keep_odd_ends,
    pin_first_blocks,
)
from elastic_ir.discovery.candidates import choose, find_candidates, named_candidates, sibling_entries
from elastic_ir.discovery.depth import chain_layers, layers_between, longest_path, looks_up, path_lengths
from elastic_ir.discovery.from_graph import GraphReader
from elastic_ir.discovery.parts import Group, Part, has_idle
from elastic_ir.errors import StructureError
from elastic_ir.ir.collector import uncollected
from elastic_ir.ir.graph import Graph, Node, Value
from elastic_ir.ir.operations import recurrent_layers
from elastic_ir.ir.structure import Stage, Structure

if TYPE_CHECKING:
    from elastic_ir.discovery.from_names import NameReader

__all__ = ["Reader", "discover", "reader_of"]

Reader: TypeAlias = "GraphReader | NameReader"  #: what shows a graph's parts, by nodes or by names alone


@uncollected
def discover(
    graph: Graph, within: Collection[tuple[str, str]] | None = None, *, whole: bool = False
) -> Structure:
    """Find a graph's structure; StructureError in one sentence where nothing in it repeats.

    ``within`` names the containers that hold the stages (path and prefix), where another network has shown them: a
    network so shallow that nothing in it repeats is still known by its deeper relatives. ``whole`` then takes each
    container as one stage, block by block, whatever its blocks do to the shape. Time is linear in nodes and
    weights. The graph is read, not changed.
    """
    reader, drafts = _read(graph, within, whole)
    if not drafts:
        # a list may hold parameters that no product shows to be layers: flows, and matrices without a trace
        last, drafts = _read(graph, within, whole, every=True)
        if not drafts:
            from elastic_ir.discovery.reasons import why_nothing

            raise StructureError(f"nothing in {graph.name} repeats: {why_nothing(reader)}")
        reader = last
    tree = reader.tree
    layer_names = [name for name in graph.weights if name in reader.layer_names]
    transitions = _transitions(drafts, reader, tree)
    lengths = path_lengths(graph) if len(graph) else {}

    def layers(group: Group) -> int | None:
        if not lengths:
            return chain_layers(group, graph) if reader.plain else None
        return layers_between(group.inputs, group.outputs, lengths)

    stages = build_stages(drafts, reader, layers, transitions)
    if len({id(weight.storage) for weight in graph.weights.values()}) < len(graph.weights):
        from elastic_ir.discovery.registered_twice import add_second_registrations  # few networks tie weights

        add_second_registrations(graph, stages)
    if len(graph) and has_idle(graph):
        from elastic_ir.discovery.twins import add_twins

        add_twins(graph, stages)
    stem, head = _outside(drafts, layer_names, reader, tuple(transitions.values()))
    depth = _depth(graph, lengths, drafts, stages, layer_names)
    return Structure(stages, depth, reader.form, stem, head, _note(graph))


def _read(
    graph: Graph, within: Collection[tuple[str, str]] | None, whole: bool, every: bool = False
) -> tuple[GraphReader | NameReader, list[Draft]]:
    """What reads a graph, and the stages in the making that it shows; none where none can change."""
    reader = reader_of(graph, every)
    tree = reader.tree
    if within is not None:
        chosen = named_candidates(tree, reader, within)
    else:
        chosen = choose(find_candidates(tree, reader), reader)
    if every and within is None:
        chosen = [candidate for candidate in chosen if candidate.strong]
    if chosen and within is None:
        chosen += sibling_entries(chosen, tree, reader)
    if whole:
        drafts = [Draft(candidate, free=list(candidate.groups)) for candidate in chosen]
    else:
        drafts = [draft for candidate in chosen for draft in draft_stages(candidate)]
    drafts.sort(key=lambda draft: reader.position(draft.groups[0]))
    if not isinstance(reader, GraphReader) and not whole:
        join_last_blocks(drafts, reader)
    layer_names = [name for name in graph.weights if name in reader.layer_names]
    run = _execution_order(reader, layer_names) if within is None else {}
    _release_output_layer(drafts, run)  # that it changes the shape says nothing of other stages
    if not whole:
        pin_first_blocks(drafts)
        if reader.form == "names":  # a trace shows where the stream is normalised
            keep_last_blocks(drafts)
        else:
            keep_odd_ends(drafts)
    if within is None:
        _release_output_layer(drafts, run)
        if not any(draft.free for draft in drafts):
            drafts = []
    return reader, drafts


def _note(graph: Graph) -> str:
    """Which recurrent modules stay as they are, and why."""
    if not any(recurrent_layers(node) for node in graph):
        return ""
    from elastic_ir.discovery.levels import kept_whole

    return "; ".join(kept_whole(graph))


def reader_of(graph: Graph, every: bool = False) -> Reader:
    """What reads a graph; ``every`` also takes parameters that no product shows to be layers."""
    if len(graph):
        return GraphReader(graph, every)
    from elastic_ir.discovery.from_names import NameReader

    return NameReader(graph, every)


def _transitions(drafts: list[Draft], reader: GraphReader | NameReader, tree: Part) -> dict[Draft, str]:
    """The layers of their own that downsample between stages, by the stage that they open."""
    found: dict[Draft, str] = {}
    parts = {part.path: part for part in tree.walk()}
    owner = {node: draft for draft in drafts for group in draft.groups for node in group.nodes}
    for left, right in itertools.pairwise(drafts):
        if right.entry is not None and right.downsamples:
            continue
        if right.after_foreign is not None:
            found[right] = right.after_foreign.path
            continue
        if isinstance(reader, GraphReader):
            path = _layer_on_the_way(right, owner, reader, parts)
        else:
            path = _layer_named_between(left, right, reader, parts)
        if path is not None:
            found[right] = path
            others = [group.weights for group in right.free]
            like = right.entry is not None and (not others or right.entry.weights in others)
            if right.entry is not None and like and not right.downsamples and right.entry.free:
                right.free.insert(0, right.entry)
                right.entry = None
    return found


def _layer_on_the_way(
    right: Draft, owner: dict[Node, Draft], reader: GraphReader, parts: dict[str, Part]
) -> str | None:
    """The outermost module on the way from other stages to this one that has weights or rearranges.

    Followed from operand to operand: of branches side by side, none lies between the other and what comes next.
    """
    if not right.groups[0].inputs:
        return None
    start = right.groups[0].inputs[0]
    nodes: set[Node] = set()
    sources: dict[Draft, Value] = {}
    stack = [start]
    while stack:
        value = stack.pop()
        draft = owner.get(value.node)
        if draft is not None:
            sources[draft] = value
        elif value.node not in nodes:
            nodes.add(value.node)
            stack.extend(value.node.operands())
    if all(start.type is not None and start.type.fits(value.type) for value in sources.values()):
        return None  # as it came, or from no stage at all: the stem
    ordered = sorted(nodes, key=reader.order.__getitem__)
    scopes = [node.scope for node in ordered if node.weight_names()]
    if not scopes and any(_rearranges(value, start) for value in sources.values()):
        scopes = [
            node.scope
            for node in ordered
            if node.output.type is not None
            and node.output.is_tensor
            and any(v.type is not None and not node.output.type.fits(v.type) for v in node.operands())
        ]
    names = {name for node in ordered for name in node.weight_names()}
    inside = (*(draft.groups[-1].path for draft in sources), right.groups[0].path)
    return _outermost(scopes, inside, lambda path: _only(parts.get(path), names, reader), parts)


def _layer_named_between(left: Draft, right: Draft, reader: NameReader, parts: dict[str, Part]) -> str | None:
    """The outermost module whose weights stand between those of two stages."""
    before, after = left.groups[-1], right.groups[0]
    first, last = reader.position(before), reader.position(after)
    own = {name for part in (*before.parts, *after.parts) for name in part.weights}
    names = {n for n, index in reader.order.items() if first < index < last and n not in own}
    scopes = [n.rpartition(".")[0] for n in reader.order if n in names and n in reader.layer_names]
    inside = (before.path, after.path)
    return _outermost(scopes, inside, lambda path: _only(parts.get(path), names, reader), parts)


def _only(part: Part | None, names: set[str], reader: GraphReader | NameReader) -> bool:
    """Whether a module's convolution and linear weights are all among those named."""
    return part is not None and all(name in names for name in part.weights if name in reader.layer_names)


def _outermost(
    scopes: list[str], inside: tuple[str, ...], whole: Callable[[str], bool], parts: dict[str, Part]
) -> str | None:
    """From the first of some modules up to the outermost that holds no stage and that ``whole`` approves of."""
    if not scopes or not scopes[0]:
        return None
    path = scopes[0]
    while "." in path:
        parent = path.rpartition(".")[0]
        if any(other == parent or other.startswith(parent + ".") for other in inside):
            break
        if not whole(parent):
            break
        path = parent
    return path if path in parts else None


def _rearranges(before: Value | None, after: Value | None) -> bool:
    """Whether as many elements come out as went in, in another shape."""
    if before is None or after is None or before.type is None or after.type is None:
        return False
    return prod(before.type.shape) == prod(after.type.shape)


def _release_output_layer(drafts: list[Draft], order: dict[str, int]) -> None:
    """A last stage of one block that holds the network's last weight layer is not a stage but the head."""
    if len(drafts) < 2 or drafts[-1].free or drafts[-1].entry is None or not order:
        return
    last = max(order, key=order.__getitem__)
    if any(last in part.weights for part in drafts[-1].entry.parts):
        drafts.pop()


def _outside(
    drafts: list[Draft],
    layer_names: list[str],
    reader: GraphReader | NameReader,
    transitions: tuple[str, ...],
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Paths of the weight layers before the first stage and after the last."""
    held = set(layer_names).intersection(_inside(drafts))
    if not held:
        return (), ()
    if not isinstance(reader, GraphReader) and reader.sorted:
        between = tuple(f"{path}." for path in transitions)
        rest = [name for name in layer_names if name not in held and not name.startswith(between)]
        return _outside_by_channels(drafts, rest, reader)
    order = _execution_order(reader, layer_names)
    places = [order[name] for name in held]
    first, last = min(places), max(places)
    stem = tuple(
        dict.fromkeys(name.rpartition(".")[0] or name for name in layer_names if order[name] < first)
    )
    head = tuple(dict.fromkeys(name.rpartition(".")[0] or name for name in layer_names if order[name] > last))
    return stem, head


def _outside_by_channels(
    drafts: list[Draft], rest: list[str], reader: NameReader
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Stem and head of a file sorted by name, whose order means nothing: what feeds the first block is the stem."""
    entering = reader.channels(drafts[0].groups[0])
    shapes = {name: reader.graph.weights[name].shape for name in rest}
    stem = [
        name for name in rest if entering is not None and shapes[name][0] == entering[0] != shapes[name][1]
    ]
    head = [name for name in rest if name not in stem]
    return tuple(n.rpartition(".")[0] for n in stem), tuple(n.rpartition(".")[0] for n in head)


def _execution_order(reader: GraphReader | NameReader, layer_names: list[str]) -> dict[str, int]:
    """The place at which each weight is read first; those of layers that no node reads come last, as listed."""
    order: dict[str, int] = {}
    if isinstance(reader, GraphReader):
        order = {name: reader.order[nodes[0]] for name, nodes in reader.readers.items()}
    for place, name in enumerate(layer_names, len(reader.graph)):
        order.setdefault(name, place)
    return order


def _depth(
    graph: Graph,
    lengths: dict[Value, int],
    drafts: list[Draft],
    stages: list[Stage],
    layer_names: list[str],
) -> int | None:
    """The whole network's depth; None where names leave it unclear."""
    if lengths:
        return longest_path(graph, lengths)
    total = 0
    for stage in stages:
        for block in stage.all_blocks:
            if block.layers is None:
                return None
            total += block.layers
    from elastic_ir.discovery.levels import layer_shapes  # only names need it

    inside = _inside(drafts)
    rest = [name for name in layer_names if name not in inside and not looks_up(name)]
    return total + len(layer_shapes(rest, graph))


def _inside(drafts: list[Draft]) -> set[str]:
    """The weights that lie in a block of a stage."""
    parts = [part for draft in drafts for group in draft.groups for part in group.parts]
    return {name for part in parts for name in part.weights}
