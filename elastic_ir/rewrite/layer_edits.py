"""Edits of single layers: another configuration, another tensor, one weight more or less.

The rewriter's second half, for passes that change what a layer is and not how many there are. As with the other
edits, masks, ties and the table of which weights lie in which block stay in step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from elastic_ir.errors import VerifyError
from elastic_ir.ir.graph import FRESH, Argument, Graph, Node, TensorType, Value, WeightRef, map_argument
from elastic_ir.ir.operations import Slot
from elastic_ir.ir.structure import Block
from elastic_ir.tensors.lazy import Mask, TensorData
from elastic_ir.tensors.weights import Storage, Weight, Weights

if TYPE_CHECKING:
    from elastic_ir.tensors.gathered import Gathering


class LayerEdits:
    """What the rewriter can do to one node or one weight."""

    graph: Graph
    _weights_of: dict[str, list[str]]
    _names_of: dict[int, set[str]]
    _users: dict[Value, dict[Node, None]]
    edited: dict[Node, None]
    _blocks_of: dict[Node, list[Block]] | None
    _layers_changed: bool

    def _owner(self, name: str) -> str | None:
        raise NotImplementedError

    def _note_operands(self, node: Node) -> None:
        raise NotImplementedError

    def replace_uses(self, old: Value, new: Value) -> None:
        raise NotImplementedError

    def erase(self, node: Node) -> None:
        raise NotImplementedError

    def gather(self, name: str, gathering: Gathering | None) -> None:
        """Give a weight some entries of its source's tensor, in place of those that it has; None gives it all.

        VerifyError where the source's tensor, or the mask that there is now, does not have them.
        """
        from elastic_ir.tensors.gathered import Gathered, gathering_of, regathered
        from elastic_ir.tensors.recipes import with_values

        storage = self.graph.weights[name].storage
        before = gathering_of(storage.data)
        whole = storage.data.data if isinstance(storage.data, Gathered) else storage.data
        if gathering is not None and not gathering.fits(whole.shape):
            raise VerifyError(f"{name!r} is {list(whole.shape)}, and does not have the entries {gathering}")
        if storage.mask is not None and (before is not None or gathering is not None):
            storage.mask = regathered(storage.mask, name, before, gathering)
        storage.data = whole if gathering is None else with_values(Gathered(whole, gathering), whole)

    def insert(self, node: Node, *, after: Node) -> Node:
        raise NotImplementedError

    def _note_rewired(self) -> None:
        if not self.graph.edits.rewired:
            self.graph.edits = replace(self.graph.edits, rewired=True)

    def _note_edited_layers(self) -> None:
        """So that emission brings the source's own layers into step."""
        if not self.graph.edits.edited_layers:
            self.graph.edits = replace(self.graph.edits, edited_layers=True)

    def set_attributes(self, node: Node, **attributes: Argument) -> None:
        """Change some of a layer's attributes; those that it lacks are an error."""
        for name, value in attributes.items():
            if name not in node.attributes:
                raise VerifyError(f"node %{node.name} ({node.op}) has no attribute {name!r}")
            node.attributes[name] = value
        self._note_edited_layers()

    def become(
        self, node: Node, op: str, attributes: Mapping[str, Argument] | None = None, *,
        args: tuple[Argument, ...] | None = None,
    ) -> None:  # fmt: skip
        """Turn a layer into one of another kind without weights, in its place, with other operands where ``args`` are.

        It keeps its path, unless other nodes run the same module (one ReLU for a whole block): then it gets one beside.
        """
        for name in list(node.weights.values()):
            self.remove_weight(name)
        node.weights = {}
        if node.kind == "module" and any(
            other is not node and other.kind == "module" and other.scope == node.scope for other in self.graph
        ):
            node.scope, node.origin = self.fresh_path(node.scope), FRESH
            self._list_module(node.scope)
            self._note_rewired()
        node.op, node.attributes = op, dict(attributes or {})
        if args is not None:
            self._set_arguments(node, args, node.kwargs)
        self._note_edited_layers()

    def _set_arguments(self, node: Node, args: tuple[Argument, ...], kwargs: dict[str, Argument]) -> None:
        """Let a node read something else; who reads what stays in step."""
        for value in node.operands():
            self._users.get(value, {}).pop(node, None)
        node.args, node.kwargs = args, kwargs
        self._note_operands(node)
        self.edited[node] = None

    def set_arguments(self, node: Node, args: tuple[Argument, ...]) -> None:
        """Give a node other arguments that are no values, as the network's own forward has them after a plan.

        What rewires the network is :meth:`set_operand`.
        """
        if Node("", "", args).operands() != Node("", "", node.args).operands():
            raise VerifyError(f"the arguments of %{node.name} are values; replace their uses instead")
        node.args = args
        self.edited[node] = None

    def join(self, node: Node, block: Block) -> None:
        """Put a node of no block before the first one of a block that reads it, as one of the block's nodes."""
        first = next(other for other in block.nodes if node.output in other.operands())
        assert first._prev is not None
        self.graph._unlink(node)
        self.graph._link(node, after=first._prev)
        self.edited |= {node: None} | self._users.get(node.output, {})
        block.nodes.insert(block.nodes.index(first), node)
        self._blocks_of = None

    def set_size(self, node: Node, role: str, size: int) -> None:
        """Give a layer another size, as the network's own has it whose tensors got that size by a plan."""
        node.attributes[role] = size

    def insert_layer(
        self, op: str, value: Value, *, path: str, attributes: Mapping[str, Argument],
        weights: Mapping[str, TensorData] | None = None, buffers: Collection[str] = (), beside: str = "",
        prunable: Collection[str] = (), behind: Node | None = None, origins: Mapping[str, str] | None = None,
    ) -> Node:  # fmt: skip
        """Put a new layer (``nn.Conv2d``) on a value, and let everything that read the value read its result.

        ``path`` is what the module is called; where that is taken, a number is put behind. ``weights`` are its tensors
        by role, those in ``buffers`` no parameters, those in ``prunable`` the weights of layers; they are listed behind
        the weight ``beside``, whose origin is theirs but for those that ``origins`` gives by role. ``behind`` is the
        node after which it runs, where the value is not all that it waits for. The result's type is the value's; change
        it by :meth:`set_shape`.
        """
        path = self.fresh_path(path)
        node = Node(path, op, (value,), kind="module", attributes=attributes, scope=path, origin=FRESH)
        node.output.type = value.type
        for role, data in (weights or {}).items():
            name = f"{path}.{role}"
            fresh = Weight(
                name,
                Storage(data),
                (origins or {}).get(role, self.graph.weights[beside].origin),
                role not in buffers,
                True,
                role in prunable,
                layer=role in prunable,
            )
            self._list_weight(fresh, beside)
            node.weights[role] = beside = name
        self._list_module(path)
        self.insert(node, after=behind or value.node)
        self.replace_uses(value, node.output)
        self._layers_changed = True
        return node

    def insert_call(
        self, op: str, args: tuple[Argument, ...], *, like: Value, behind: Node, kind: str = "function",
        kwargs: Mapping[str, Argument] | None = None, scope: str | None = None,
        attributes: Mapping[str, Argument] | None = None,
    ) -> Node:  # fmt: skip
        """Put a function or method call behind a node; its result is of the type of ``like``, and not read yet.

        It stands in the scope that ran ``behind``, or in ``scope``. ``attributes`` are marks that its copies keep.
        """
        node = Node(op.rpartition(".")[2], op, args, kwargs, kind=kind, attributes=attributes)
        outer = behind.scope.rpartition(".")[0] if behind.kind == "module" else behind.scope
        node.scope = outer if scope is None else scope
        node.output.type, node.output.is_tensor = like.type, like.is_tensor
        return self.insert(node, after=behind)

    def add_buffer(self, name: str, data: TensorData, *, beside: str, persistent: bool = False) -> str:
        """A tensor that no source has (a ghost's factor), listed behind a weight, which is its recorded origin."""
        if name in self.graph.weights:
            raise VerifyError(f"there is a weight {name!r} already")
        origin = self.graph.weights[beside].origin
        self._list_weight(Weight(name, Storage(data), origin, False, persistent), beside)
        return name

    def fresh_path(self, path: str) -> str:
        """A module's path that nothing has: the one given, or with the first number behind it that is free."""
        parent, _, last = path.rpartition(".")
        taken = set(self.graph.modules.get(parent, ()))
        taken |= {node.scope[len(parent) + bool(parent) :].partition(".")[0] for node in self.graph
                  if not parent or node.scope.startswith(f"{parent}.")}  # fmt: skip
        name, count = last, 1
        while name in taken:
            count += 1
            name = f"{last}_{count}"
        return f"{parent}.{name}" if parent else name

    def _list_module(self, path: str) -> None:
        """Enter a module into the front end's list, behind its siblings."""
        listed = self.graph.modules
        if listed:
            parent, _, last = path.rpartition(".")
            self.graph.modules = {**listed, parent: [*listed.get(parent, ()), last], path: []}

    def set_operand(self, node: Node, place: int, operand: Argument) -> None:
        """Give a node another weight or literal as an operand; places before it that it lacks are left out."""
        args = list(node.args) + [None] * (place + 1 - len(node.args))
        if isinstance(args[place], Value) or isinstance(operand, Value):
            raise VerifyError(f"operand {place} of %{node.name} is a value; replace its uses instead")
        args[place] = operand
        self.set_arguments(node, tuple(args))
        self._note_rewired()

    def set_keyword(self, node: Node, name: str, value: Argument) -> None:
        """Give a call another keyword argument in place of one that it has; neither may be a value."""
        if name not in node.kwargs or isinstance(node.kwargs[name], Value) or isinstance(value, Value):
            raise VerifyError(f"%{node.name} has no keyword {name!r} that is plain data")
        node.kwargs[name] = value
        self._note_rewired()

    def drop_operand(self, node: Node, place: int) -> None:
        """Let a node do without its last operand, a value; what computed it goes where nobody else reads it."""
        value = node.args[place]
        if not isinstance(value, Value) or place != len(node.args) - 1:
            raise VerifyError(f"operand {place} of %{node.name} is not its last, or no value")
        node.args = node.args[:-1]
        self.edited[node] = None
        if value not in node.operands():
            self._users.get(value, {}).pop(node, None)
        self._note_rewired()
        if not self._users.get(value):
            self.erase(value.node)

    def dissolve(self, node: Node, into: Value) -> None:
        """Take out a node that does nothing any more; its readers and its block's output become ``into``."""
        self.replace_uses(node.output, into)
        self.erase(node)

    def substitute(self, value: Value, constant: Argument) -> None:
        """Let every reader of a value read a constant instead (a number, sizes, a literal, a weight).

        VerifyError where a block takes or gives the value: a constant is not an activation.
        """
        for block in self.graph.blocks:
            if value in block.ends:
                raise VerifyError(
                    f"%{value.name} passes between blocks, by {block.path}; it is not a constant"
                )

        def change(leaf: Argument) -> Argument:
            return constant if leaf is value else leaf

        for reader in list(self._users.get(value, ())):
            reader.args = map_argument(reader.args, change)
            reader.kwargs = map_argument(reader.kwargs, change)
            self.edited[reader] = None
        self._users.pop(value, None)
        self._note_rewired()

    def _memberships(self) -> dict[Node, list[Block]]:
        """For each node the blocks that it lies in."""
        if self._blocks_of is None:
            self._blocks_of = {}
            for block in self.graph.blocks:
                for node in block.nodes:
                    self._blocks_of.setdefault(node, []).append(block)
        return self._blocks_of

    def _join_blocks(self, node: Node, beside: Node) -> None:
        blocks = self._memberships().get(beside)
        if blocks:
            self._memberships()[node] = list(blocks)
            for block in blocks:
                block.nodes.insert(block.nodes.index(beside) + 1, node)

    def _leave_blocks(self, node: Node) -> None:
        for block in self._memberships().pop(node, ()):
            block.nodes.remove(node)

    def set_shape(self, value: Value, shape: tuple[int, ...]) -> None:
        """Give a value another shape, and the stages whose activations it is."""
        assert value.type is not None
        value.type = TensorType(shape, value.type.dtype)
        structure = self.graph._structure
        for stage in structure.stages if structure is not None else ():
            if stage.shape is not None and any(block.output is value for block in stage.all_blocks):
                stage.shape = shape

    def replace_tensor(self, name: str, data: TensorData, mask: Mask | None = None) -> None:
        """Give a weight a tensor derived from its own, of any shape, and the mask that belongs to it."""
        if mask is not None and mask.shape != data.shape:
            raise VerifyError(f"the mask of {name!r} has shape {mask.shape}, its new tensor {data.shape}")
        storage = self.graph.weights[name].storage
        storage.data, storage.mask = data, mask

    def add_weight(self, node: Node, role: str, data: TensorData, *, origin: str) -> str:
        """Give a layer a parameter that it did not have, listed behind its last one; its name is returned."""
        name = f"{node.scope}.{role}"
        if name in self.graph.weights:
            raise VerifyError(f"node %{node.name} cannot get a weight {name!r}: there is one already")
        last = self.graph.weights[list(node.weights.values())[-1]]
        self._list_weight(
            replace(last, name=name, storage=Storage(data), origin=origin, prunable=False, layer=False),
            last.name,
        )
        node.weights[role] = name
        return name

    def add_operand(self, node: Node, place: int, data: TensorData, *, beside: str, origin: str) -> str:
        """Give a node a weight as an operand, called a bias and listed behind another weight; its name is returned."""
        stem = f"{beside.rpartition('.')[0]}.bias" if "." in beside else f"{beside}_bias"
        name, count = stem, 1
        while name in self.graph.weights:
            count += 1
            name = f"{stem}_{count}"
        last = self.graph.weights[beside]
        self._list_weight(
            replace(last, name=name, storage=Storage(data), origin=origin, prunable=False, layer=False),
            beside,
        )
        self.set_operand(node, place, WeightRef(name))
        return name

    def give_tensor(self, node: Node, slot: Slot, data: TensorData, *, beside: str, origin: str) -> str:
        """Give a node a tensor that it did not have, by :meth:`add_weight` or :meth:`add_operand`; returns its name."""
        if isinstance(slot, int):
            return self.add_operand(node, slot, data, beside=beside, origin=origin)
        if slot in node.attributes:
            self.set_attributes(node, **{slot: True})
        return self.add_weight(node, slot, data, origin=origin)

    def own_tensor(self, node: Node, slot: Slot, reads: Counter[str]) -> str:
        """The name of the tensor in a slot, a module's or one that :meth:`own_operand` makes this operand's own."""
        return node.weights[slot] if isinstance(slot, str) else self.own_operand(node, slot, reads)

    def own_operand(self, node: Node, place: int, reads: Counter[str]) -> str:
        """The name of a weight that only this operand reads: where others do too, it gets a tensor of its own.

        ``reads`` counts the readers of each name; it is kept in step.
        """
        given = node.args[place]
        assert isinstance(given, WeightRef)
        weight = self.graph.weights[given.name]
        names = self._names_of[id(weight.storage)]
        if sum(reads[name] for name in names) < 2:
            return given.name
        storage = weight.storage.clone()
        if reads[given.name] < 2:  # tied with others under their names, as an exporter leaves what was equal
            names.discard(given.name)
            self.graph.weights[given.name] = replace(weight, storage=storage)
            self._names_of[id(storage)] = {given.name}
            return given.name
        name, count = f"{given.name}_2", 2
        while name in self.graph.weights:
            count += 1
            name = f"{given.name}_{count}"
        self._list_weight(replace(weight, name=name, storage=storage), given.name)
        self.set_operand(node, place, WeightRef(name))
        reads[given.name] -= 1
        reads[name] += 1
        return name

    def _list_weight(self, fresh: Weight, behind: str) -> None:
        """Put a new weight into the tables, behind another one."""
        listed: dict[str, Weight] = {}
        for old, weight in self.graph.weights.items():
            listed[old] = weight
            if old == behind:
                listed[fresh.name] = fresh
        self.graph.weights = Weights(listed)
        self._names_of.setdefault(id(fresh.storage), set()).add(fresh.name)
        owner = self._owner(fresh.name)
        if owner is not None:
            self._weights_of.setdefault(owner, []).append(fresh.name)

    def remove_weight(self, name: str) -> None:
        """Take a weight out of the network; the caller sees to it that no node uses it."""
        weight = self.graph.weights.pop(name)
        self._names_of[id(weight.storage)].discard(name)
        owner = self._owner(name)
        if owner is not None and name in self._weights_of.get(owner, ()):
            self._weights_of[owner].remove(name)
