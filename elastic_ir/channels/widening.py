"""Widening: which channels may get copies, how many each gets, and the tensors that follow from it.

Net2WiderNet (Chen, Goodfellow & Shlens 2016, *Net2Net*, section 2.2) copies channels at random and divides what reads
them by their number. Here every copy stands right behind its original. So one number for each channel says all, through
additions, concatenations, flattenings and the runs of grouped convolutions alike.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from elastic_ir.channels.flow import Channels, Flow, Integers, Layer
from elastic_ir.ir.graph import Value
from elastic_ir.ir.operations import known_kind
from elastic_ir.tensors.lazy import TensorData
from elastic_ir.tensors.recipes import Columns, Recipe, _double, _written, index_tables

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Widened(Recipe):
    """A tensor with rows and columns several times, columns divided by how often their channel comes.

    An optimizer's moments begin anew: the gradients of a row that comes k times are a k-th of what they were, and a
    moment does not tell whether it goes with them or with their square.
    """

    data: TensorData
    rows: tuple[int, ...] | None = None
    columns: Columns | None = None  #: for each group, as in :class:`elastic_ir.tensors.recipes.Selected`
    counts: Columns | None = None  #: how often each of these columns' channel comes
    noise: float = (
        0.0  #: standard deviation of what is added to copied rows, in standard deviations of the tensor
    )
    seed: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        height = self.data.shape[0] if self.rows is None else len(self.rows)
        width = self.data.shape[1:2] if self.columns is None else (len(self.columns[0]),)
        return (height, *width, *self.data.shape[2:])

    @property
    def dtype(self) -> str:
        return self.data.dtype

    def chunks(self) -> Iterator[memoryview]:
        import torch

        source = _double(self.data)
        table = index_tables(self.data.shape, self.rows, self.columns)
        made = source[tuple(torch.from_numpy(part) for part in table)]
        if self.counts is not None:
            divisors = np.asarray(self.counts, np.float64).repeat(made.shape[0] // len(self.counts), axis=0)
            made = made / torch.from_numpy(divisors).reshape(*made.shape[:2], *[1] * (made.ndim - 2))
        if self.noise and self.rows is not None:
            made = self._disturbed(made, source)
        yield from _written(made, self.dtype)

    def _disturbed(self, made: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        """Noise on every row that is a copy, so that copies learn to differ."""
        import torch

        dice = torch.Generator().manual_seed(self.seed)
        places = np.asarray(self.rows, np.int64)
        again = torch.from_numpy(np.r_[False, places[1:] == places[:-1]])
        dots = torch.randn(made.shape, generator=dice, dtype=torch.float64)
        size = self.noise * float(source.std(correction=0))
        return made + size * dots * again.reshape(-1, *[1] * (made.ndim - 1))


class Widening:
    """The channels of a flow in groups that widen together, and the copies that each channel gets."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self._parent = np.arange(len(flow.roots))
        for layer in flow.layers:
            if is_depthwise(layer):  # its channels come as often as those that it reads
                for one, other in zip(
                    flow.roots[layer.inside.atoms], flow.roots[layer.outside.atoms], strict=True
                ):
                    self._join(int(one), int(other))
        #: For each atom the channel that it is, and for each channel how often it comes.
        self.channel: Integers = np.array([self._find(int(root)) for root in flow.roots], np.int64)
        self.counts: Integers = np.ones(len(flow.roots), np.int64)
        for layer in flow.layers:
            first, *others = self.channel[layer.outside.atoms]
            for other in others:
                self._join(int(first), int(other))
        #: For each atom the group that it widens with.
        self.group: Integers = np.array([self._find(int(one)) for one in self.channel], np.int64)
        self._seams = self._grouped_runs()

    def _find(self, atom: int) -> int:
        while self._parent[atom] != atom:
            self._parent[atom] = self._parent[self._parent[atom]]
            atom = int(self._parent[atom])
        return atom

    def _join(self, one: int, other: int) -> None:
        first, second = sorted((self._find(one), self._find(other)))
        self._parent[second] = first

    def _grouped_runs(self) -> dict[int, tuple[int, ...]]:
        """For channels that grouped convolutions read or make the numbers of their runs, which stay equally long."""
        found: dict[int, tuple[int, ...]] = {}
        for layer in self.flow.layers:
            if layer.groups == 1 or is_depthwise(layer):
                continue
            for side in (layer.inside, layer.outside):
                for run, atoms in enumerate(side.atoms.reshape(layer.groups, -1)):
                    for channel in dict.fromkeys(self.channel[atoms].tolist()):
                        found[channel] = (*found.get(channel, ()), run)
        return found

    # -- what may widen --------------------------------------------------------------------------------------------

    def groups(self) -> dict[int, list[Layer]]:
        """For each group the layers that make its channels, in order."""
        found: dict[int, list[Layer]] = {}
        for layer in self.flow.layers:
            found.setdefault(int(self.group[layer.outside.atoms[0]]), []).append(layer)
        return found

    def pinned(self) -> dict[int, str]:
        """For each group that has to stay as it is the reason; "" where it is the network's output."""
        found: dict[int, str] = {}
        for node in self.flow.graph:
            if node.kind != "output" and self.flow.channels(node.output) is not None:
                continue
            for value in node.operands():
                for group in self._groups_of(value):
                    found.setdefault(
                        group, "" if node.kind == "output" else f"%{node.name} ({node.op}) may mix them"
                    )
        held = {int(self.group[atom]) for atom in self.flow.pinned}
        return {group: found.get(group, "something reads them along another axis") for group in sorted(held)}

    def summed(self) -> set[int]:
        """The groups whose channels an addition ties: residual streams."""
        found: set[int] = set()
        for node in self.flow.graph:
            if known_kind(node) in ("add", "sub"):
                values = [value for value in node.args if isinstance(value, Value)]
                if len(values) == 2:
                    found.update(*(self._groups_of(value) for value in values))
        return found

    def _groups_of(self, value: Value) -> set[int]:
        known = self.flow.channels(value)
        return set(self.group[known.atoms].tolist()) if known is not None else set()

    # -- copies ----------------------------------------------------------------------------------------------------

    def widen(self, group: int, factor: float, seed: int, name: str) -> str:
        """Give a group's channels copies at random, ``factor`` times as many in all; the reason where it cannot be.

        ``name`` sets the draw apart from those of other groups.
        """
        channels = sorted(set(self.channel[self.group == group].tolist()))
        cells: dict[tuple[int, ...], list[int]] = {}
        for channel in channels:
            cells.setdefault(self._seams.get(channel, ()), []).append(channel)
        dice = np.random.default_rng([seed, zlib.crc32(name.encode())])
        for cell in cells.values():
            more = round(len(cell) * factor) - len(cell)
            copies = np.bincount(dice.integers(0, len(cell), more), minlength=len(cell))
            self.counts[cell] = 1 + copies
        for layer in self.flow.layers:
            sides = [] if layer.groups == 1 or is_depthwise(layer) else [layer.inside, layer.outside]
            for side in sides:
                runs = self.counts[self.channel[side.atoms]].reshape(layer.groups, -1).sum(1)
                if (runs != runs[0]).any():
                    self.counts[channels] = 1
                    return f"the {layer.groups} groups of {layer.node.scope} would differ in their numbers of channels"
        return ""

    def spread(self, channels: Channels) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The places of a value's channels when each comes as often as it does, and how often each of these comes.

        A channel that takes several places in a row, one for each pixel of a flattened image, is repeated as a whole.
        """
        places: list[int] = []
        counts: list[int] = []
        atoms = channels.atoms
        begin = 0
        for end in range(1, len(atoms) + 1):
            if end < len(atoms) and atoms[end] == atoms[begin]:
                continue
            count = int(self.counts[self.channel[atoms[begin]]])
            places += list(range(begin, end)) * count
            counts += [count] * (count * (end - begin))
            begin = end
        return tuple(places), tuple(counts)

    def by_group(self, layer: Layer) -> tuple[Columns, Columns]:
        """The columns of a layer's weight for each of its groups, and how often each column's channel comes."""
        parts = [
            self.spread(Channels(layer.inside.axis, atoms, np.zeros(0)))
            for atoms in layer.inside.atoms.reshape(layer.groups, -1)
        ]
        return tuple(places for places, _ in parts), tuple(counts for _, counts in parts)


def is_depthwise(layer: Layer) -> bool:
    """Whether each output channel reads one input channel, which is its own."""
    return 1 < layer.groups == len(layer.inside.atoms) == len(layer.outside.atoms)
