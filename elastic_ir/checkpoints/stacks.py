"""Stacks: the layers of one container before and after an edit, as numbers. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from elastic_ir.ir.numbering import Series
from elastic_ir.ir.structure import Container

if TYPE_CHECKING:
    from elastic_ir.ir.graph import Graph


@dataclass(frozen=True)
class Stack:
    """A container's blocks before and after: for each target block the number of its source block."""

    path: str
    prefix: str
    base: int
    before: int
    order: tuple[int, ...]
    #: for each target block the number of another source, and of its block there, where its tensors are of one
    taken: tuple[tuple[int, int] | None, ...] = ()
    tail: int = 0  #: layers behind the last, which no number counts and which stay there
    width: int = 1  #: digits of the numbers where they are padded with zeros
    suffix: str = ""

    @staticmethod
    def of(container: Container) -> Stack:
        """The stack that a container has become; only edits make it another than the source's."""
        children = container.children[: len(container.children) - container.tail]
        order = tuple(container.source_index(child.origin) for child in children)
        taken = tuple(
            (child.taken[0], container.source_index(child.taken[1])) if child.taken is not None else None
            for child in children
        )
        base, count = container.base, container.source_count
        return Stack(
            container.path, container.prefix, base, count, order, taken, container.tail, container.width,
            container.suffix,
        )  # fmt: skip

    @staticmethod
    def all_of(graph: Graph) -> list[Stack]:
        """The stacks of a graph; none where nothing repeats."""
        structure = graph.structure_or_none
        return [Stack.of(container) for container in structure.containers] if structure else []

    @property
    def series(self) -> Series:
        """How its layers are named."""
        return Series(self.path, self.prefix, self.width, self.suffix)

    @property
    def changed(self) -> bool:
        return self.order != tuple(range(self.before)) or any(self.taken)

    def places(self) -> list[tuple[int, int]]:
        """For each target block the number of its source, and of its block there."""
        return [
            taken or (0, source)
            for source, taken in zip(self.order, self.taken or (None,) * len(self.order), strict=True)
        ]

    @property
    def sources(self) -> tuple[int, ...]:
        """For each target layer the number of its source layer, those of the tail included."""
        return *self.order, *range(self.before, self.before + self.tail)

    def contents(self, names: Iterable[str]) -> list[dict[str, str]]:
        """For each source layer, the tail left out, its tensors: the end of the name inside the layer, the name."""
        found: list[dict[str, str]] = [{} for _ in range(self.before)]
        for name in names:
            number = self.series.number(name)
            if number is not None and 0 <= number - self.base < self.before:
                found[number - self.base][name[len(self.series.name(number)) + 1 :]] = name
        return found

    def kinds(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
        """For each source layer a number that layers with the same names and shapes of tensors share."""
        seen: dict[tuple[tuple[str, tuple[int, ...]], ...], int] = {}
        held = [{end: shapes[name] for end, name in layer.items()} for layer in self.contents(shapes)]
        return tuple(seen.setdefault(tuple(sorted(layer.items())), len(seen)) for layer in held)

    @property
    def label(self) -> str:
        return ".".join(part for part in (self.path, self.prefix.rstrip("_.")) if part) or "network"


def layer_of(name: str, stacks: Iterable[Stack]) -> tuple[str, int] | None:
    """The label of the stack that a tensor lies in, and the number of its layer; None beside the stacks."""
    for stack in stacks:
        number = stack.series.number(name)
        if number is not None:
            return stack.label, number
    return None


def first_places(names: Iterable[str], stacks: Sequence[Stack]) -> dict[str, int]:
    """For each stack, by its label, the place of the first of the names that lies in it."""
    first: dict[str, int] = {}
    for place, name in enumerate(names):
        layer = layer_of(name, stacks)
        if layer is not None:
            first.setdefault(layer[0], place)
    return first


def in_module_order(origins: Mapping[str, str], names: Sequence[str], stacks: Sequence[Stack]) -> list[str]:
    """The target's names as its module would list them: as the source has ``names``, layers by their new numbers.

    ``origins`` has the name in the source of each.
    """
    place = {name: number for number, name in enumerate(names)}
    first = first_places(place, stacks)

    def key(name: str) -> tuple[int, int, int]:
        layer, own = layer_of(name, stacks), place[origins[name]]
        return (own, 0, 0) if layer is None else (first.get(layer[0], own), layer[1], own)

    return sorted(origins, key=key)
