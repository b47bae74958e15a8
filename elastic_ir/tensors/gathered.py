"""Tensors beside a stack that have an entry for each of its layers: how they are indexed, what a plan makes of them.

A weighted sum of all layers, an embedding for each layer and what stands between layers follow a plan: a copy of a
layer gets its source's entry. Of a softmaxed sum copies share their source's weight, so that what is summed stays the
same. :class:`ByLayer` says how a tensor is indexed, :class:`Gathering` which entries a plan takes, and
:class:`Gathered` is the tensor, unread, which is streamed as any other. No torch here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import log, prod
from typing import TYPE_CHECKING, Any

from elastic_ir.errors import VerifyError
from elastic_ir.tensors.lazy import Mask, TensorData, item_size
from elastic_ir.tensors.recipes import Derived, carried

if TYPE_CHECKING:
    import torch

_PIECE = 1 << 20  #: bytes of rows that are gathered at once


@dataclass(frozen=True)
class Gathering:
    """Which entries of a tensor another one has along an axis, in order."""

    axis: int
    entries: tuple[int, ...]
    size: int = 1  #: how many places of the axis are one entry
    #: whether the entries are logarithms of weights, of which those of one entry get an equal share each
    shared: bool = False

    def data(self) -> dict[str, Any]:
        """As a record has it."""
        return {"axis": self.axis, "entries": list(self.entries), "size": self.size, "shared": self.shared}

    @staticmethod
    def of(data: Any) -> Gathering:
        """The gathering that :meth:`data` gave; ValueError for anything else."""
        if isinstance(data, Mapping) and data.keys() == {"axis", "entries", "size", "shared"}:
            numbers = (
                [data["axis"], data["size"], *data["entries"]] if isinstance(data["entries"], list) else [-1]
            )
            if (
                all(type(n) is int and n >= 0 for n in numbers)
                and data["size"]
                and type(data["shared"]) is bool
            ):
                return Gathering(data["axis"], tuple(data["entries"]), data["size"], data["shared"])
        raise ValueError(f"{data!r} does not say which entries of a tensor are taken")

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether a tensor of that shape has all the entries."""
        if self.axis >= len(shape) or (self.shared and (len(shape) > 1 or self.size > 1)):
            return False
        count, rest = divmod(shape[self.axis], self.size)
        return not rest and max(self.entries, default=-1) < count

    def shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of what is gathered from a tensor of that shape."""
        return (*shape[: self.axis], len(self.entries) * self.size, *shape[self.axis + 1 :])

    def mask(self, mask: Mask) -> Mask:
        """A mask gathered as its tensor is."""
        import numpy as np

        return Mask.from_array(np.take(mask.array(), self.places(), self.axis), dtype=mask.dtype)

    def follows(self, order: Sequence[int], before: int) -> bool:
        """Whether these are the entries that a plan takes of a stack of so many layers, in one of the ways."""
        ways = [ByLayer("", self.axis, self.size, more, self.shared) for more in (-1, 0, 1)]
        return any(way.gathering(order, before) == self for way in ways)

    def within(self, before: Gathering, name: str) -> Gathering:
        """The same entries, taken from what another gathering has; VerifyError where that lacks one."""
        missing = set(self.entries) - set(before.entries)
        if missing:
            raise VerifyError(f"the mask of {name!r} has no entry {min(missing)} any more")
        return replace(self, entries=tuple(before.entries.index(entry) for entry in self.entries))

    def places(self) -> list[int]:
        """The places along the axis, one by one."""
        return [entry * self.size + at for entry in self.entries for at in range(self.size)]


@dataclass(frozen=True)
class ByLayer:
    """How a tensor beside a stack is indexed by the stack's layers."""

    head: str  #: what stands before the numbers of the layers: ``encoder.layers.``
    axis: int
    size: int = 1  #: how many places of the axis are one layer's
    #: 1 where an entry for what goes into the first layer precedes the layers', -1 where the entries are of what
    #: stands between two layers, 0 where there are as many as layers
    more: int = 0
    softmaxed: bool = False  #: whether the entries are weights only after a softmax over all of them
    also: tuple[str, ...] = ()  #: heads of other lists that it becomes longer with
    unclear: str = ""  #: why the meaning of the entries is not known, where it is not

    @property
    def heads(self) -> set[str]:
        """The heads of all lists that it becomes longer with."""
        return {self.head, *self.also}

    def gathering(self, order: Sequence[int], before: int) -> Gathering:
        """What a plan's layers take, given by their sources, of which there are ``before``."""
        entries = list(order)
        if self.more > 0:
            entries = [0, *(layer + 1 for layer in order)]
        elif self.more < 0:  # behind its layer; the last layer has none, so what precedes the next one, or it
            entries = [min(layer, before - 2) for layer in order[:-1]]
        return Gathering(self.axis, tuple(entries), self.size, self.softmaxed)


@dataclass(frozen=True)
class Gathered(Derived):
    """Some entries of a tensor along one axis; a few rows of it are in memory at a time."""

    gathering: Gathering

    @property
    def shape(self) -> tuple[int, ...]:
        return self.gathering.shape(self.data.shape)

    def chunks(self) -> Iterator[memoryview]:
        how = self.gathering
        item = item_size(self.dtype) * prod(self.data.shape[how.axis + 1 :])
        if how.shared:
            yield self._shared()
        elif how.axis == 0:
            for first, last in _runs(how.entries):
                yield from _between(self.data, first * how.size * item, (last + 1) * how.size * item)
        else:
            yield from self._rows(self.data.shape[how.axis] * item, how.size * item)

    def _rows(self, row: int, entry: int) -> Iterator[memoryview]:
        """What lies along the axis, for each place of the axes before it."""
        import numpy as np

        entries = np.asarray(self.gathering.entries, np.int64)
        rest = b""
        for chunk in self.data.chunks():
            view, at = chunk.cast("B"), 0
            while at < len(view):
                step = max(_PIECE // row, 1) * row - len(rest)
                rest, at = rest + bytes(view[at : at + step]), at + step
                whole = len(rest) // row * row
                if whole:
                    rows = np.frombuffer(rest, np.uint8, whole).reshape(-1, row // entry, entry)
                    yield np.ascontiguousarray(rows[:, entries]).reshape(-1).data
                    rest = rest[whole:]

    def _shared(self) -> memoryview:
        """Logarithms of weights, each less that of the number of those that share it; computed in double precision."""
        import numpy as np

        from elastic_ir.tensors.arrays import as_array

        array = as_array(self.data)
        entries = self.gathering.entries
        often = Counter(entries)
        less = np.asarray([log(often[entry]) for entry in entries])
        values: Any = array.astype(np.float64)[list(entries)] - less
        return np.ascontiguousarray(values.astype(array.dtype)).view(np.uint8).data

    def carried(self, moment: torch.Tensor) -> torch.Tensor | None:
        """The moment gathered as the tensor is."""
        import torch

        inner = carried(self.data, moment)
        if inner is None or tuple(inner.shape) != self.data.shape:
            return None
        places = torch.tensor(self.gathering.places(), device=inner.device)
        return inner.index_select(self.gathering.axis, places)


def gathering_of(data: TensorData) -> Gathering | None:
    """Which entries of its source a lazy tensor has; None where it has them all."""
    return data.gathering if isinstance(data, Gathered) else None


def regathered(mask: Mask, name: str, before: Gathering | None, after: Gathering | None) -> Mask:
    """The mask of what is gathered in one way, for what is gathered in another; None has all entries."""
    if before is not None:
        every = max(before.entries) + 1
        after = (after or replace(before, entries=tuple(range(every)))).within(before, name)
    return mask if after is None else after.mask(mask)


def _runs(entries: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The first and last of entries that follow each other."""
    first = last = None
    for entry in entries:
        if first is None or last is None:
            first = last = entry
        elif entry == last + 1:
            last = entry
        else:
            yield first, last
            first = last = entry
    if first is not None and last is not None:
        yield first, last


def _between(data: TensorData, begin: int, end: int) -> Iterator[memoryview]:
    """A tensor's bytes from one place to another."""
    at = 0
    for chunk in data.chunks():
        view = chunk.cast("B")
        piece = view[max(begin - at, 0) : max(end - at, 0)]
        at += len(view)
        if piece:
            yield piece
        if at >= end:
            return
