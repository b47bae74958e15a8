"""Channels: how they flow, which are dead, and cutting, folding and widening them, for PyTorch and ONNX graphs.

Here is what is known of the channels of one value, of one layer, and of where an operation puts them. Every channel
that a layer makes is an *atom*; beside each atom stands the number that the channel is everywhere, where it is one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from elastic_ir.ir.graph import Node
from elastic_ir.ir.operations import Layer, Slot
from elastic_ir.onnx_model.layers import label

if TYPE_CHECKING:
    from numpy.typing import NDArray

Bools: TypeAlias = "NDArray[np.bool_]"
Floats: TypeAlias = "NDArray[np.float64]"
Integers: TypeAlias = "NDArray[np.int64]"


@dataclass(frozen=True)
class Channels:
    """A value's channels: along which axis, of which atoms, and the number each is everywhere (NaN: it varies)."""

    axis: int
    atoms: Integers
    constants: Floats


def unchanged(constants: Floats) -> Floats:
    """Constants that an operation leaves as they are."""
    return constants


def only(number: float) -> Callable[[Floats], Floats]:
    """Constants of which an operation leaves one number as it is, and nothing is known of the others."""
    return lambda constants: np.where(constants == number, number, math.nan)


@dataclass(frozen=True)
class Place:
    """Where the channels of the one tensor that an operation reads are in its result."""

    axis: int
    times: int = 1  #: each comes so often in a row
    counts: tuple[tuple[int, int], ...] = ()  #: literals that count them: operand and index
    constants: Callable[[Floats], Floats] = unchanged  #: what becomes of constant channels


@dataclass(frozen=True)
class LayerChannels:
    """A layer's channels: what enters, what leaves, and which weights are not masked."""

    node: Node
    layer: Layer
    weight: str  #: by name
    inside: Channels
    outside: Channels
    used: Bools | None  #: rows of the weight by input channels of their group; None: no mask, all are used
    #: input channels that add nothing but a number to each row, and that number can be folded
    absorbed: Bools
    taker: tuple[Node, Slot] | None  #: what can take over what constants add

    @property
    def name(self) -> str:
        """For a reader: the layer's path, or its weight where that is stored elsewhere."""
        return label(self.node) if self.weight in self.node.weight_names() else self.weight

    @property
    def groups(self) -> int:
        return self.layer.groups

    @property
    def inputs_first(self) -> bool:
        """Whether the weight has its inputs along axis 0."""
        return self.layer.inputs == 0

    @property
    def is_depthwise(self) -> bool:
        """Whether each output channel reads one input channel, which is its own."""
        return 1 < self.groups == len(self.inside.atoms) == len(self.outside.atoms)

    def grid(self, flags: Bools) -> Bools:
        """Flags of input channels, or of output channels, by group."""
        return flags.reshape(self.groups, -1)

    def needed(self, rows: Bools) -> Bools:
        """Which input channels the given output channels need."""
        if self.used is None:
            hit = np.any(self.grid(rows), axis=1)[:, None].repeat(len(self.absorbed) // self.groups, 1)
        else:
            hit = np.any((self.used & rows[:, None]).reshape(self.groups, -1, self.used.shape[1]), axis=1)
        needed: Bools = hit.reshape(-1) & ~self.absorbed
        return needed


#: A weight beside a tensor that has one number for each channel: where it is held, along which axis.
Meeting: TypeAlias = "tuple[Node, Slot, int, Channels]"
#: A number that counts channels: an attribute by its name, or an index into the literal at an operand's place.
Count: TypeAlias = "tuple[Node, Slot, int, Channels]"
