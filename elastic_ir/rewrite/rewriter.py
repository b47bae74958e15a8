"""The rewriter: the only code that edits a graph.

Its bookkeeping keeps names, weights, buffers, masks, ties, structure and lineage in step. Clones get provisional
paths; when the ``with`` block ends, the children of each touched container are numbered afresh, in order, and nodes and
weights are renamed in one walk, so a pass costs time in the number of nodes however many blocks it clones. (One
rewriter through which all edits go is xDSL's idea.) The tests freeze built graphs: see ``tests/frozen_graphs.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

from elastic_ir.discovery.depth import layers_between, longest_path, path_lengths
from elastic_ir.discovery.links import staying_operands
from elastic_ir.errors import StructureError, VerifyError
from elastic_ir.ir.cloner import Places, copy_node
from elastic_ir.ir.graph import Argument, Graph, Node, Value, map_argument
from elastic_ir.ir.info import Edits
from elastic_ir.ir.naming import head_in, name_nodes, rename_path, rename_references
from elastic_ir.ir.structure import Block, Child, Container, Stage, Structure, Unit
from elastic_ir.rewrite.given import GivenAndCollected, StageEdits
from elastic_ir.rewrite.layer_edits import LayerEdits
from elastic_ir.rewrite.renumbering import Renumbering
from elastic_ir.rewrite.weight_edits import WeightEdits
from elastic_ir.tensors.weights import Storage


class Rewriter(LayerEdits, WeightEdits, StageEdits, GivenAndCollected, Renumbering):
    """Edits one graph in place; use it as a context manager, which names what was made, and measures it, at its end.

    With a ``structure`` the graph is seen by it from now on, in place of what discovery finds.
    """

    def __init__(self, graph: Graph, structure: Structure | None = None) -> None:
        self.graph = graph
        self.findings: Mapping[str, Any] | None = None  #: what the pass at work reports
        #: nodes that were linked in or read something else now, or whose operand's producer was taken out or moved
        self.edited: dict[Node, None] = {}
        if structure is not None and structure is not graph._structure:
            before = graph._structure.containers if graph._structure is not None else []
            if any(box.changed for box in before):
                graph.earlier = (*graph.earlier, tuple(before))
            graph._structure = structure
        self._read()

    def _read(self) -> None:
        """Note what there is: who reads what, which weights lie where and are tied, which blocks are of which stage."""
        graph = self.graph
        self._users: dict[Value, dict[Node, None]] = {}
        for node in graph:
            self._note_operands(node)
        structure = graph.structure_or_none  # now: what is found later would not know of the edits
        self._stays = staying_operands(structure) if structure else {}
        self._flows: dict[Node, Mapping[int, int]] = {}
        if structure and any(len(block.inputs) > 1 for stage in structure.stages for block in stage.blocks):
            from elastic_ir.rewrite.streams import flowing_operands  # most networks have one stream

            self._flows = flowing_operands(structure)
        self._stage_of: dict[Block, Stage] = {}
        self._paths: dict[str, Child] = {}
        self._homes: dict[Child, Container] = {}
        self._touched: dict[Container, None] = {}
        for stage in structure.stages if structure else ():
            for block in stage.all_blocks:
                self._stage_of[block] = stage
            for box in stage.containers:
                for child in box.children:
                    self._paths[child.path] = child
                    self._homes[child] = box
        self._weights_of: dict[str, list[str]] = {}
        self._names_of: dict[int, set[str]] = {}
        self._gone: dict[
            str, set[str]
        ] = {}  # deleted names of tied weights, and the names that these have left
        for name, weight in graph.weights.items():
            self._names_of.setdefault(id(weight.storage), set()).add(name)
            owner = self._owner(name)
            if owner is not None:
                self._weights_of.setdefault(owner, []).append(name)
        self._fresh = 0
        self._layers_changed = False
        self._blocks_of: dict[Node, list[Block]] | None = None  # made when first asked for
        #: for each value the blocks that take, give or tap it, or did: a stretch asks for them at each clone
        self._ends: dict[Value, dict[Block, None]] | None = None
        self._copied_from: dict[str, str] = {}  # a clone's provisional path -> the path it was copied from

    def __enter__(self) -> Rewriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.commit()

    def note(self, edits: Edits) -> None:
        """Put another record of the edits in place of the graph's; for what emission has to know besides."""
        self.graph.edits = edits

    def report(self, findings: Mapping[str, Any]) -> None:
        """What the pass at work found and did, as plain data; it stands in ``graph.history.reports`` by its name."""
        self.findings = findings

    def graft(self, reference: Graph, structure: Structure) -> int:
        """Take over a reference's constants, or all its nodes; see :func:`elastic_ir.rewrite.grafting.graft`."""
        from elastic_ir.rewrite.grafting import graft

        return graft(self, reference, structure)

    # -- nodes -----------------------------------------------------------------------------------------------------

    def _note_operands(self, node: Node) -> None:
        for value in node.operands():
            self._users.setdefault(value, {})[node] = None

    def users(self, value: Value) -> tuple[Node, ...]:
        """The nodes that read a value."""
        return tuple(self._users.get(value, ()))

    def insert(self, node: Node, *, after: Node) -> Node:
        """Link a new node into the graph behind another, whose block it joins; nothing reads its result yet."""
        self._note_rewired()
        self._join_blocks(node, after)
        return self._link(node, after)

    def _link(self, node: Node, after: Node) -> Node:
        self.graph._link(node, after)
        self._note_operands(node)
        self.edited[node] = None
        return node

    def erase(self, node: Node) -> None:
        """Take a node out; VerifyError where its result is still read."""
        readers = self.users(node.output)
        if readers:
            raise VerifyError(
                f"node %{node.name} cannot be erased: its result is read by %{readers[0].name}; "
                "replace its uses first"
            )
        self._note_rewired()
        self._leave_blocks(node)
        self._unlink(node)

    def _unlink(self, node: Node) -> None:
        for value in node.operands():
            self._users.get(value, {}).pop(node, None)
        self.edited.update(self._users.pop(node.output, {}))
        self.graph._unlink(node)

    def replace_uses(self, old: Value, new: Value) -> None:
        """Let every reader of ``old`` read ``new``; blocks that took or gave ``old`` take or give ``new``.

        What computes ``new`` goes on reading ``old`` if it did, so a node inserted behind a value can take its place.
        """
        self._note_rewired()
        for reader in self.users(old):
            if reader is not new.node:
                self._rewire(reader, old, new)
        for block in self._at_ends(old):
            block.replace_end(old, new)
            self._note_ends(block)

    def rewire(self, reader: Node, old: Value, new: Value) -> None:
        """Let one node read ``new`` where it read ``old``."""
        self._note_rewired()
        self._rewire(reader, old, new)

    def _rewire(self, reader: Node, old: Value, new: Value) -> None:
        def change(leaf: Argument) -> Argument:
            return new if leaf is old else leaf

        reader.args = map_argument(reader.args, change)
        reader.kwargs = map_argument(reader.kwargs, change)
        self._users.get(old, {}).pop(reader, None)
        self._users.setdefault(new, {})[reader] = None
        self.edited[reader] = None

    def _owner(self, name: str) -> str | None:
        """The path of the container child that a dotted name lies in, or None."""
        return head_in(name, self._paths)

    # -- blocks and units ------------------------------------------------------------------------------------------

    def stage_of(self, block: Block) -> Stage:
        return self._stage_of[block]

    def is_in_a_block(self, name: str) -> bool:
        """Whether a weight lies in a slot of a block, and is copied and deleted with it."""
        return self._owner(name) is not None

    def clone_block(self, block: Block, *, after: Block) -> Block:
        """Clone a block with its weights, buffers and masks; the clone runs right after ``after``.

        The clone reads what ``after`` computes, and what read that reads the clone instead.
        """
        stage = self._stage_of[after]
        self._blocks_of = None
        if block is stage.exit or after is stage.exit:
            raise StructureError(
                f"{stage.exit.path} is the last block of stage {stage.name!r} and stays the last"
            )
        if self._stage_of[block] is not stage:
            raise StructureError(f"{block.path} cannot be cloned behind {after.path}: they are of two stages")
        renames: dict[str, str] = {}
        children = []
        storages: dict[int, Storage] = {}
        own = {name for child in block.children for name in self._weights_of.get(child.path, ())}
        for child in block.children:
            self._fresh += 1
            container = self._homes[child]
            head = f"{container.path}." if container.path else ""
            twin = Child(f"{head}~{self._fresh}", child.origin, child.taken)
            children.append(twin)
            self._paths[twin.path] = twin
            self._homes[twin] = container
            renames[child.path] = twin.path
            self._copied_from[twin.path] = self._copied_from.get(child.path, child.path)
            for name in self._weights_of.get(child.path, ()):
                self._clone_weight(name, twin.path + name[len(child.path) :], own, storages, renames)
        clone = Block(children, [], after.outputs, layers=block.layers, signature=block.signature)
        for box, twins in self._by_home(children).items():
            place = box.children.index(self._by_home(after.children)[box][-1])
            if box.falling:
                box.children[place:place] = reversed(twins)
            else:
                box.children[place + 1 : place + 1] = twins
            self._touched[box] = None
        if block.nodes:
            self._clone_nodes(block, clone, after, renames)
        siblings = stage.blocks
        siblings.insert(0 if after is stage.entry else siblings.index(after) + 1, clone)
        self._stage_of[clone] = stage
        self._count_layers(block, 1)
        return clone

    def _by_home(self, children: Iterable[Child]) -> dict[Container, list[Child]]:
        """Slots by the containers that they lie in."""
        found: dict[Container, list[Child]] = {}
        for child in children:
            found.setdefault(self._homes[child], []).append(child)
        return found

    def _count_layers(self, block: Block, sign: int) -> None:
        """Without nodes the depth is a sum over the blocks; with nodes it is measured when the edit ends."""
        structure = self.graph.structure
        if structure.depth is not None and block.layers is not None and not block.nodes:
            structure.depth += sign * block.layers

    def _clone_nodes(self, block: Block, clone: Block, after: Block, renames: dict[str, str]) -> None:
        if len(set(block.inputs)) < len(block.inputs):
            from elastic_ir.rewrite.streams import check_parted

            check_parted(block, self._flows)
        values = dict(zip(block.inputs, after.outputs, strict=True))
        values |= self._clone_given(block, after)
        clone.given = tuple(values[value] for value in block.given)
        readers = {value: self.users(value) for value in (*after.outputs, *after.taps)}
        places = Places(after.nodes, [node for value in after.outputs for node in readers[value]])
        for node in block.nodes:
            stays = self._stays.get(node, frozenset())
            flows = self._flows.get(node, {})
            twin = copy_node(node, values, renames, stays, {at: after.outputs[i] for at, i in flows.items()})
            if flows:
                self._flows[twin] = flows
            if stays:
                self._stays[twin] = stays
            twin.scope = rename_path(node.scope, renames)
            self._link(twin, after=places.before(twin, self.graph._root))
            clone.nodes.append(twin)
        clone.outputs = tuple(values[value] for value in block.outputs)
        clone.taps = tuple(values[value] for value in block.taps)
        inside = {*clone.nodes, *after.nodes}
        for old, new in zip(after.outputs, clone.outputs, strict=True):
            for reader in readers[old]:
                if reader not in inside and not self._gathers(reader, old, after):
                    self._rewire(reader, old, new)
            self._hand_over(after, old, new)
        self._note_ends(clone)
        for reader in dict.fromkeys(reader for old in after.taps for reader in readers[old]):
            if reader not in inside and any(self._gathers(reader, old, after) for old in after.taps):
                self._collect(reader, clone.taps, after.taps)
        self._pass_on_taps(after, clone.taps)

    def _at_ends(self, value: Value) -> list[Block]:
        """The blocks that take, give or tap a value."""
        if self._ends is None:
            self._ends = {}
            for block in self._stage_of:
                self._note_ends(block)
        return [block for block in self._ends.get(value, ()) if block in self._stage_of]

    def _note_ends(self, block: Block) -> None:
        if self._ends is not None:
            for value in (*block.inputs, *block.outputs, *block.taps):
                self._ends.setdefault(value, {})[block] = None

    def _hand_over(self, block: Block, old: Value, new: Value) -> None:
        """Let the blocks that take what a block gives take another value instead.

        They are of its own stage, or the first of any later one: what two towers give may meet in a third (LXMERT).
        """
        stages = self.graph.structure.stages
        own = self._stage_of[block]
        for other in self._at_ends(old):
            stage = self._stage_of[other]
            if stage is own or (
                stages.index(stage) > stages.index(own) and other is (stage.entry or stage.all_blocks[0])
            ):
                other.inputs = _with(other.inputs, old, new)
                other.taps = _with(other.taps, old, new) if old not in block.taps else other.taps
                self._note_ends(other)

    def delete_block(self, block: Block) -> None:
        """Delete a free block with all that is its own; what read its output reads its input instead."""
        stage = self._stage_of[block]
        self._blocks_of = None
        if block is stage.entry or block is stage.exit:
            place = "entry" if block is stage.entry else "last block"
            raise StructureError(f"{block.path} is the {place} of stage {stage.name!r} and cannot be deleted")
        if block.nodes:
            inside = set(block.nodes)
            for reader in dict.fromkeys(reader for value in block.taps for reader in self.users(value)):
                if reader not in inside and any(self._gathers(reader, value, block) for value in block.taps):
                    self._collect(reader, block.taps, None)
            before = stage.all_blocks[: stage.all_blocks.index(block)]
            if before:
                self._pass_on_taps(block, before[-1].taps)
            for old, new in zip(block.outputs, block.inputs, strict=True):
                for reader in self.users(old):
                    if reader not in inside:
                        self._rewire(reader, old, new)
                self._hand_over(block, old, new)
            for node in reversed(block.nodes):
                self._unlink(node)
            self._delete_given(block, stage)
        for child in block.children:
            for name in self._weights_of.pop(child.path, ()):
                weight = self.graph.weights.pop(name)
                self._names_of[id(weight.storage)].discard(name)
                if self._names_of[id(weight.storage)]:
                    self._gone[name] = self._names_of[id(weight.storage)]
            home = self._homes.pop(child)
            home.children.remove(child)
            self._touched[home] = None
            self._paths.pop(child.path, None)
        stage.blocks.remove(block)
        del self._stage_of[block]
        self._count_layers(block, -1)

    def clone_unit(self, unit: Unit, *, after: Block) -> Unit:
        """Clone a unit, block by block, behind a block of its stage."""
        clones = []
        for block in unit.blocks:
            after = self.clone_block(block, after=after)
            clones.append(after)
        return Unit(tuple(clones))

    def delete_unit(self, unit: Unit) -> None:
        """Delete every block of a unit."""
        for block in unit.blocks:
            self.delete_block(block)

    # -- the end ---------------------------------------------------------------------------------------------------

    def _read_by_other_names(self) -> None:
        """Let who read a tied weight by a name that is gone read it by one that is left."""
        if self._gone:
            order = {name: place for place, name in enumerate(self.graph.weights)}
            renames = {name: min(left, key=order.__getitem__) for name, left in self._gone.items() if left}
            self.edited |= {node: None for node in self.graph if rename_references(node, renames)}
            self._gone = {}

    def commit(self) -> None:
        """Rename what was cloned or moved, measure the depth of what was changed, and name the nodes."""
        touched = bool(self._touched)
        self._read_by_other_names()
        if touched:
            self.graph.reference = None  # what stood at its positions does not stand there any more
            self._renumber()
        structure = self.graph._structure
        if len(self.graph) and structure is not None and structure.depth is not None:
            if self._layers_changed:
                lengths = path_lengths(self.graph)
                for block in structure.blocks:
                    block.layers = layers_between(block.inputs, block.outputs, lengths)
                structure.depth = longest_path(self.graph, lengths)
                self._layers_changed = False
            elif touched:  # not a sum: of parallel branches (HRNet) only the longest counts
                structure.depth = longest_path(self.graph)
        name_nodes(self.graph)


def _with(values: tuple[Value, ...], old: Value, new: Value) -> tuple[Value, ...]:
    """A tuple of values with one of them replaced; the tuple itself where that is not among them."""
    return tuple(new if value is old else value for value in values) if old in values else values
