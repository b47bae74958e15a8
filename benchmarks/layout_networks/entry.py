"""What an entry of the table of networks is: how it is built and run, and the stages that its code says it has.

A *slot* is written as a path with a running index, `layers.{i}` or `convs.{i}`; a block is the slots of one index.
Which weights a block holds follows from the paths alone, so that the table can be held against any way of writing a
structure down. Nothing here imports torch at import time but for the annotations.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from torch import nn

#: The kinds of layout; every entry stands for one or more of them.
KINDS = (
    "plain list",  # one list (or Sequential) of equal blocks, one tensor between them
    "list of lists",  # `for attn, ff in self.layers`
    "sibling lists",  # lists zipped or indexed side by side, ModuleDicts and numbered attributes too
    "module dict",
    "numbered attributes",
    "lists inside blocks",
    "registered twice",  # the same blocks under two names
    "two streams",  # blocks that take and give several tensors that all change
    "state passed along",  # a state, residual, mask or log-determinant goes from block to block
    "running sum",  # one collector of all blocks: WaveNet's skips, XLM-like sums, dense heads
    "long skips",  # paired skips over the stack
    "graph module",  # no module tree
    "parametrized",  # weight norm, spectral norm, any parametrization
    "recurrent",  # LSTM, GRU, RNN
    "raw parameters",  # tensors that are not called weight
    "flat sequential",  # the layers of all blocks in one Sequential
    "two blocks a stage",  # little repetition in each stage
    "two towers",
    "one-block levels",  # levels of one block each, decoders
    "repeats within repeats",
    "hidden states",  # an output (or input) that exists once for each block
    "mixed kinds",  # layers of several sorts in one list
    "encoder-decoder",
    "pinned ends",  # a first or last block with weights more or fewer than the rest
    "several stages",  # stages delimited by downsampling
    "k to 1",  # lists of which one advances k times as fast
    "periodic forward",  # the forward counts its blocks
    "shared block",  # one block applied many times, with or without adapters
    "shared buffer",  # one rotary table or mask for all blocks
    "nothing repeats",
)

Inputs: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
Paths: TypeAlias = tuple[str, ...]


@dataclass(frozen=True)
class Stage:
    """A stage that the code of a network says it has."""

    blocks: tuple[Paths, ...]  #: for each block, in running order, the paths of its slots
    pinned: tuple[int, ...] = ()  #: places of blocks that cannot be cloned or deleted
    unit: int = 1  #: blocks to a unit
    slots: Paths = ()  #: the templates of the slots, for a reader
    or_units: tuple[int, ...] = ()  #: other lengths of a unit that are as good
    optional: bool = False  #: one block, whose like occurs elsewhere: shown or not, both are right
    grows: int = (
        1  #: units more of this stage for each step of `deeper`; 0 where its argument leaves it alone
    )

    @property
    def name(self) -> str:
        return " + ".join(self.slots) or self.blocks[0][0]

    @property
    def free(self) -> tuple[Paths, ...]:
        kept = {place % len(self.blocks) for place in self.pinned}
        return tuple(block for place, block in enumerate(self.blocks) if place not in kept)


def each(
    *slots: str,
    of: int | Sequence[int],
    pinned: Sequence[int] = (),
    unit: int = 1,
    or_units: Sequence[int] = (),
    optional: bool = False,
    grows: int = 1,
) -> Stage:
    """A stage whose blocks are the slots of one index each: a count, or the indices in running order."""
    places = range(of) if isinstance(of, int) else of
    blocks = tuple(tuple(slot.format(i=i) for slot in slots) for i in places)
    return Stage(blocks, tuple(pinned), unit, slots, tuple(or_units), optional, grows)


def runs(
    container: str,
    *,
    of: int,
    width: int,
    start: int = 0,
    pinned: Sequence[int] = (),
    unit: int = 1,
    grows: int = 1,
) -> Stage:
    """A stage of a flat container: each block is so many children in a row."""
    dot = f"{container}." if container else ""
    blocks = tuple(tuple(f"{dot}{start + place * width + i}" for i in range(width)) for place in range(of))
    return Stage(blocks, tuple(pinned), unit, (f"{dot}{{i}}",), grows=grows)


@dataclass(frozen=True)
class Network:
    """One network of the table."""

    name: str
    library: str  #: the distribution's name; "own" for those written for the table
    kinds: Paths
    make: Callable[[int], nn.Module]  #: builds it with a depth; those without a depth argument ignore it
    inputs: Callable[[], Inputs]
    stages: tuple[Stage, ...]
    depth: int | None = None  #: the argument of `make`; None where its constructor has no depth
    step: int = (
        1  #: how much the argument rises for one unit more; 0 where that is no longer the same network deeper
    )
    refused: str = ""  #: why nothing can be changed, where that is the right answer
    may_refuse: str = (
        ""  #: why a refusal is right, where a correct change is as good (any, where no stages are given)
    )
    says: str = ""  #: a pattern for the sentence of a refusal that names the true reason
    or_stages: tuple[Stage, ...] = ()  #: another answer that is as good as `stages`
    inner: tuple[Stage, ...] = ()  #: stages of an inner level that may be asked for by name
    note: str = ""

    def build(self) -> nn.Module:
        return self.make(self.depth or 0)

    def deeper(self, units: int = 1) -> nn.Module | None:
        """The natively deeper network; None where its constructor has no depth."""
        return self.make(self.depth + units * self.step) if self.depth is not None and self.step else None

    @property
    def version(self) -> str:
        """The installed library's; "-" for a network of our own, or where the library is missing."""
        try:
            return "-" if self.library == "own" else importlib.metadata.version(self.library)
        except importlib.metadata.PackageNotFoundError:
            return "-"


@dataclass
class Table:
    """The entries of one library or topic, in order."""

    networks: list[Network] = field(default_factory=list)

    def of(self, library: str, prefix: str) -> Callable[..., None]:
        """`add` for one library, whose networks' names begin alike."""

        def add(
            name: str,
            kinds: str,
            make: Callable[[int], nn.Module],
            inputs: Callable[[], Any],
            *stages: Stage,
            **more: Any,
        ) -> None:
            self.add(prefix + name, library, kinds, make, inputs, *stages, **more)

        return add

    def add(
        self,
        name: str,
        library: str,
        kinds: str,
        make: Callable[[int], nn.Module],
        inputs: Callable[[], Any],
        *stages: Stage,
        **more: Any,
    ) -> None:
        """Add an entry; `inputs` may give a tensor, a tuple of arguments, a dict of keywords, or both as a pair."""
        chosen = tuple(kind.strip() for kind in kinds.split(","))
        unknown = set(chosen) - set(KINDS)
        if unknown:
            raise ValueError(f"{name}: unknown kinds {unknown}")
        self.networks.append(Network(name, library, chosen, make, _as_inputs(inputs), stages, **more))


def package(path: str) -> Any:
    """A module of a library, imported when a network of it is built: not every machine has them all."""
    return importlib.import_module(path)


def cls(path: str) -> Any:
    """A class or function by its dotted path."""
    module, _, name = path.rpartition(".")
    return getattr(package(module), name)


def _as_inputs(given: Callable[[], Any]) -> Callable[[], Inputs]:
    def inputs() -> Inputs:
        value = given()
        if isinstance(value, Mapping):
            return (), dict(value)
        if isinstance(value, tuple):
            if len(value) == 2 and isinstance(value[0], tuple) and isinstance(value[1], dict):
                return value
            return value, {}
        return (value,), {}

    return inputs


def images(side: int = 32, channels: int = 3, batch: int = 1) -> Callable[[], Any]:
    """Random images."""

    def make() -> Any:
        import torch

        return torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(0))

    return make


def floats(*shape: int) -> Callable[[], Any]:
    """One random tensor of a shape."""

    def make() -> Any:
        import torch

        return torch.randn(*shape, generator=torch.Generator().manual_seed(0))

    return make


def tokens(length: int = 8, vocabulary: int = 50, batch: int = 1) -> Callable[[], Any]:
    """Random token numbers."""

    def make() -> Any:
        import torch

        return torch.randint(3, vocabulary, (batch, length), generator=torch.Generator().manual_seed(0))

    return make
