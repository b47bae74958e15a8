"""Edits of weights as they are: another mask or tensor, another network's, a copy for a clone, or none.

The rewriter's part for passes that change neither nodes nor blocks; ties and the table of which weights lie in which
block stay in step.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from elastic_ir.errors import VerifyError
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.structure import Block
from elastic_ir.tensors.lazy import Mask, TensorData
from elastic_ir.tensors.weights import Storage, Weight


class WeightEdits:
    """What the rewriter can do to weights."""

    graph: Graph
    _weights_of: dict[str, list[str]]
    _names_of: dict[int, set[str]]

    def _owner(self, name: str) -> str | None:
        raise NotImplementedError

    def set_mask(self, name: str, mask: Any) -> None:
        """Give a weight another mask of its shape, or none.

        ``mask`` is a :class:`Mask`, a numpy array or torch tensor of zeros and ones, or None. Raises VerifyError for an
        unknown name or another shape, MaskError for what is not a mask.
        """
        weight = self._weight(name)
        made = None if mask is None else Mask.of(mask, name)
        if made is not None and made.shape != weight.shape:
            raise VerifyError(f"the mask of {name!r} has shape {made.shape}, its weight {weight.shape}")
        weight.storage.mask = made

    def set_data(self, name: str, data: TensorData) -> None:
        """Give a weight another lazy tensor of the same shape; VerifyError for an unknown name or what does not fit."""
        weight = self._weight(name)
        if not hasattr(data, "chunks"):
            raise VerifyError(
                f"the new tensor of {name!r} is of type {type(data).__name__}, not lazy; give a recipe of "
                "elastic_ir.tensors.recipes, or elastic_ir.tensors.torch_bridge.TorchData(tensor)"
            )
        if data.shape != weight.shape:
            raise VerifyError(f"the new tensor of {name!r} has shape {data.shape}, its weight {weight.shape}")
        weight.storage.data = data

    def _weight(self, name: str) -> Weight:
        weight = self.graph.weights.get(name)
        if weight is not None:
            return weight
        near = difflib.get_close_matches(str(name), self.graph.weights, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise VerifyError(f"{self.graph.name} has no weight {name!r}{hint}")

    def take_over(self, block: Block, other: Graph, twin: Block, source: int) -> None:
        """Give a block the tensors and masks of its like in another network, the source of that number.

        Names stay; lineage records where each tensor is from. VerifyError where the two differ in names, shapes or
        dtypes, or where a weight is tied with one outside of the block.
        """
        own = {name for child in block.children for name in self._weights_of.get(child.path, ())}
        for mine, theirs in zip(block.children, twin.children, strict=True):
            mine.taken = source, theirs.path
            for name in self._weights_of.get(mine.path, ()):
                self.take_weight(name, other, theirs.path + name[len(mine.path) :], source, own)

    def take_weight(
        self, name: str, other: Graph, theirs: str, source: int, own: Iterable[str] | None = None
    ) -> None:
        """Give a weight the tensor and mask of another network's, the source of that number.

        VerifyError where shapes or dtypes differ (shapes alone where each tensor states its own type), or where it is
        tied with a weight that is not among ``own``.
        """
        weight, taken = self.graph.weights[name], other.weights.get(theirs)
        mixed = self.graph.origin.mixed_types
        if taken is None or taken.shape != weight.shape or (taken.dtype != weight.dtype and not mixed):
            raise VerifyError(
                f"the weight {name!r} cannot become {other.name}'s {theirs!r}, which is another"
            )
        tied = self._names_of[id(weight.storage)].difference(own or (), (name,))
        if tied:
            raise VerifyError(
                f"the weight {name!r} is tied with {min(tied)!r}, and cannot be taken by itself"
            )
        weight.storage.data, weight.storage.mask = taken.storage.data, taken.storage.mask
        self.graph.weights[name] = replace(weight, origin=theirs, source=source)

    def drop_weights(self, names: Iterable[str]) -> None:
        """Take out weights that no node uses; VerifyError where one does."""
        doomed = set(names)
        for node in self.graph:
            for name in doomed.intersection(node.weight_names()):
                raise VerifyError(f"weight {name!r} cannot be dropped: node %{node.name} uses it")
        for name in doomed:
            weight = self.graph.weights.pop(name)
            self._names_of[id(weight.storage)].discard(name)
            owner = self._owner(name)
            if owner is not None:
                self._weights_of[owner].remove(name)

    def _clone_weight(
        self, name: str, new: str, own: set[str], storages: dict[int, Storage], renames: dict[str, str]
    ) -> None:
        weight = self.graph.weights[name]
        key = id(weight.storage)
        if self._names_of[key] <= own:  # tied at most within the block: the clone owns its storage
            storage = storages.setdefault(key, weight.storage.clone())
        else:  # tied with a name outside the block: stays tied with it
            storage = weight.storage
        self.graph.weights[new] = replace(weight, name=new, storage=storage)
        self._names_of.setdefault(id(storage), set()).add(new)
        self._weights_of.setdefault(self._owner(new) or new, []).append(new)
        renames[name] = new
