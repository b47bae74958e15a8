"""Edits of single layers: another configuration, another tensor, one weight more or less.

The rewriter's second half, for passes that change what a layer is and not how many there are. As with the other
edits, masks, ties and the table of which weights lie in which block stay in step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from elastic_ir.errors import VerifyError
from elastic_ir.graph import Argument, Graph, Node, TensorType, Value
from elastic_ir.tensors import Mask, TensorData
from elastic_ir.weights import Storage, Weight


class LayerEdits:
    """What the rewriter can do to one node or one weight."""

    graph: Graph
    _weights_of: dict[str, list[str]]
    _names_of: dict[int, set[str]]

    def _owner(self, name: str) -> str | None:
        raise NotImplementedError

    def set_attributes(self, node: Node, **attributes: Argument) -> None:
        """Change some of a layer's attributes; those that it lacks are an error."""
        for name, value in attributes.items():
            if name not in node.attributes:
                raise VerifyError(f"node %{node.name} ({node.op}) has no attribute {name!r}")
            node.attributes[name] = value
        self.graph.metadata["edited_layers"] = True  # emission brings the source's own layers into step

    def become(self, node: Node, op: str, attributes: Mapping[str, Argument] | None = None) -> None:
        """Turn a layer into one of another kind without weights, in its place and under its path."""
        for name in list(node.weights.values()):
            self.remove_weight(name)
        node.weights = {}
        node.op, node.attributes = op, dict(attributes or {})
        self.graph.metadata["edited_layers"] = True

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
        fresh: dict[str, Weight] = {}
        last = list(node.weights.values())[-1]
        for old, weight in self.graph.weights.items():
            fresh[old] = weight
            if old == last:
                like = replace(weight, name=name, storage=Storage(data), origin=origin, prunable=False)
                fresh[name] = like
                self._names_of.setdefault(id(like.storage), set()).add(name)
        self.graph.weights = fresh
        node.weights[role] = name
        owner = self._owner(name)
        if owner is not None:
            self._weights_of.setdefault(owner, []).append(name)
        return name

    def remove_weight(self, name: str) -> None:
        """Take a weight out of the network; the caller sees to it that no node uses it."""
        weight = self.graph.weights.pop(name)
        self._names_of[id(weight.storage)].discard(name)
        owner = self._owner(name)
        if owner is not None and name in self._weights_of.get(owner, ()):
            self._weights_of[owner].remove(name)
