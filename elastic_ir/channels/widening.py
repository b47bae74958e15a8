"""Widening: which channels may get copies, how many each gets, and the tensors that follow from it.

Net2WiderNet (Chen, Goodfellow & Shlens 2016, *Net2Net*, section 2.2) copies channels at random and divides what reads
them by their number. Here every copy stands right behind its original. So one number for each channel is enough,
through additions, concatenations, flattenings and the runs of grouped convolutions alike.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from elastic_ir.channels import Channels, Integers, LayerChannels
from elastic_ir.channels.edits import ChannelEdits, Places
from elastic_ir.channels.flow import Flow, representatives
from elastic_ir.ir.graph import Graph, Value
from elastic_ir.ir.operations import known_kind
from elastic_ir.rewrite.rewriter import Rewriter
from elastic_ir.tensors.lazy import TensorData
from elastic_ir.tensors.recipes import (
    Columns,
    Derived,
    Taken,
    double,
    index_tables,
    select_mask,
    with_values,
    written,
)


@dataclass(frozen=True)
class Widened(Derived):
    """A tensor with rows and columns several times, its inputs divided by how often their channel comes.

    An optimizer's moments begin anew: the gradients of a row that comes k times are a k-th of what they were, and a
    moment does not show whether it goes with them or with their square.
    """

    rows: tuple[int, ...]
    columns: Columns  #: for each group, as in :class:`elastic_ir.tensors.recipes.Selected`
    #: for each input how often its channel comes, one group after the other
    counts: tuple[int, ...] | None = None
    #: standard deviation of what is added to copied outputs, in standard deviations of the tensor
    noise: float = 0.0
    seed: int = 0
    inputs_first: bool = False  #: whether the inputs lie along axis 0

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), len(self.columns[0]), *self.data.shape[2:])

    def chunks(self) -> Iterator[memoryview]:
        import torch

        source = double(self.data)
        table = index_tables(self.data.shape, self.rows, self.columns)
        made = source[tuple(torch.from_numpy(part) for part in table)]
        places, columns = (np.broadcast_to(part, made.shape[:2]) for part in table)
        behind = [1] * (made.ndim - 2)
        if self.counts is not None:
            inputs = (len(self.rows), 1) if self.inputs_first else (len(self.columns), -1)
            divisors = np.asarray(self.counts, np.float64).reshape(inputs)
            divisors = divisors.repeat(made.shape[0] // len(divisors), axis=0)
            made = made / torch.from_numpy(divisors).reshape(*divisors.shape, *behind)
        if self.noise:  # on every output that is a copy, so that copies learn to differ
            axis, outputs = (1, columns) if self.inputs_first else (0, places)
            again = np.diff(outputs, axis=axis, prepend=-1) == 0
            dots = torch.randn(
                made.shape, generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64
            )
            size = self.noise * float(source.std(correction=0))
            made = made + size * dots * torch.from_numpy(again).reshape(*again.shape, *behind)
        yield from written(made, self.dtype)


class Widening:
    """The channels of a flow in groups that widen together, and the copies that each channel gets."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        count = len(flow.roots)
        # the channels of a depthwise layer come as often as those that it reads
        depthwise = [layer for layer in flow.layers if layer.is_depthwise]
        pairs = [(flow.roots[layer.inside.atoms], flow.roots[layer.outside.atoms]) for layer in depthwise]
        #: For each atom the channel that it is, and for each channel how often it comes.
        self.channel: Integers = representatives(count, pairs)[flow.roots]
        self.counts: Integers = np.ones(count, np.int64)
        made = [self.channel[layer.outside.atoms] for layer in flow.layers]
        #: For each atom the group that it widens with.
        self.group: Integers = representatives(count, [(own[:-1], own[1:]) for own in made])[self.channel]
        self._seams = self._grouped_runs()

    def _grouped_runs(self) -> dict[int, tuple[int, ...]]:
        """For channels that grouped convolutions read or make the numbers of their runs, which stay equally long."""
        found: dict[int, tuple[int, ...]] = {}
        for layer in self._grouped():
            for side in (layer.inside, layer.outside):
                for run, atoms in enumerate(side.atoms.reshape(layer.groups, -1)):
                    for channel in dict.fromkeys(self.channel[atoms].tolist()):
                        found[channel] = (*found.get(channel, ()), run)
        return found

    def _grouped(self) -> list[LayerChannels]:
        return [layer for layer in self.flow.layers if layer.groups > 1 and not layer.is_depthwise]

    # -- what may widen --------------------------------------------------------------------------------------------

    def groups(self) -> dict[int, list[LayerChannels]]:
        """For each group the layers that make its channels, in order."""
        found: dict[int, list[LayerChannels]] = {}
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
        for layer in self._grouped():
            for side in (layer.inside, layer.outside):
                runs = self.counts[self.channel[side.atoms]].reshape(layer.groups, -1).sum(1)
                if (runs != runs[0]).any():
                    self.counts[channels] = 1
                    return (
                        f"the {layer.groups} groups of {layer.name} would differ in their numbers of channels"
                    )
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


class Widener(ChannelEdits):
    """Gives every channel of a flow its copies, and divides what reads them by their number."""

    def __init__(self, graph: Graph, rewriter: Rewriter, widening: Widening, noise: float, seed: int) -> None:
        super().__init__(graph, rewriter, widening.flow)
        self.widening, self.noise, self.seed = widening, noise, seed

    def places(self, channels: Channels) -> Places:
        """The places of the channels, each as often as it comes."""
        return self.widening.spread(channels)[0]

    def taken(self, data: TensorData, axis: int, places: Places) -> TensorData:
        """A tensor with copies."""
        return Taken(data, axis, places)

    def columns(self, layer: LayerChannels, channels: Channels) -> Columns:
        """For each group the places of its channels; a depthwise layer gets a group for each copy."""
        if layer.is_depthwise:
            return ((0,),) * len(self.places(channels))
        return super().columns(layer, channels)

    def set_weight(self, layer: LayerChannels, rows: Places, columns: Columns) -> None:
        """Copy rows and columns, and divide the inputs by how often their channel comes."""
        storage = self.graph.weights[layer.weight].storage
        mask = select_mask(storage.mask, rows, columns) if storage.mask is not None else None
        counts = self.widening.spread(layer.inside)[1] if not layer.is_depthwise else None
        seed = zlib.crc32(f"{self.seed} {layer.weight}".encode())
        made = Widened(storage.data, rows, columns, counts, self.noise, seed, layer.inputs_first)
        self.rewriter.replace_tensor(layer.weight, with_values(made, storage.data), mask)
