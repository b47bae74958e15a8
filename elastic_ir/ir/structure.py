"""Structure: what repeats in a network, as stages of blocks that live in containers.

A :class:`Container` is a module whose numbered children run in order (``Sequential``, ``ModuleList``, RegNet's
``b1..bN``), or one kind of the numbered parameters of a recurrent module (``weight_ih_l0``, ``weight_ih_l1``). A
:class:`Block` has such children, its slots: a run of one container, or those of one rank in several containers that
advance together (``zip(convs, norms)``), with what runs between them. Blocks whose inputs and outputs have the same
types form a :class:`Stage`. The words are those of the design: the *entry* is the downsampling block that
opens a stage and is never cloned or deleted; a *transition* is a layer of its own between two stages; a *unit* is what
is cloned or deleted as a whole, one block or several (Swin's shifted pair).
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from elastic_ir.errors import StructureError
from elastic_ir.ir.numbering import Series

if TYPE_CHECKING:
    from elastic_ir.ir.graph import Node, Value


@dataclass(eq=False)
class Child:
    """One numbered slot of a container; ``origin`` is its path in the source, whatever it is called now."""

    path: str
    origin: str
    #: the number of the source that its tensors are of, and its path there, where that is not the first source
    taken: tuple[int, str] | None = None


@dataclass(eq=False)
class Container:
    """A module whose numbered children run in order; they are listed by number, and named as :attr:`series` says."""

    path: str
    prefix: str
    base: int
    children: list[Child] = field(default_factory=list)
    source_count: int = 0  #: how many children it had in the source, the tail left out
    tail: int = 0  #: children at its end that are not blocks of a stage: they stay last and are never cloned
    native: bool = True  #: False where other children stand beside them: its forward names them one by one
    width: int = 1  #: digits of the numbers where they are padded with zeros
    suffix: str = ""  #: what stands behind the number in a parameter's name: ``_reverse``
    parameters: bool = False  #: its children are no modules but parameters of one: ``rnn.weight_ih_l{i}``
    falling: bool = False  #: its user runs it from the last child to the first (``reversed(self.blocks)``)

    @property
    def changed(self) -> bool:
        """Whether it holds other children than in the source, or in another order."""
        return len(self.children) != self.source_count or any(
            child.path != child.origin for child in self.children
        )

    def emptied(self, path: str) -> Container:
        """Another one at a path, as this one but for its children, of which it has none yet."""
        return Container(
            path,
            self.prefix,
            self.base,
            source_count=self.source_count,
            tail=self.tail,
            native=self.native,
            width=self.width,
            suffix=self.suffix,
            parameters=self.parameters,
            falling=self.falling,
        )

    def child_path(self, index: int) -> str:
        """The path of the child at a position, as the natively built network names it."""
        return self.series.name(self.base + index)

    @property
    def series(self) -> Series:
        """How its children are named."""
        return Series(self.path, self.prefix, self.width, self.suffix)

    def source_index(self, origin: str) -> int:
        """The position that a child of the source had, from its path there."""
        number = self.series.number(origin)
        if number is None:
            raise StructureError(f"{origin!r} is not a numbered child of {self.label!r}")
        return number - self.base

    @property
    def template(self) -> str:
        """How its children are named, with ``{i}`` in place of the number."""
        return f"{self.series.head}{{i}}{self.suffix}"

    @property
    def label(self) -> str:
        """The container's path for a reader; the root's series goes by its prefix."""
        parts = [part for part in (self.path, self.prefix.rstrip("_.")) if part]
        return parts[0] if self.path else (parts[0] if parts else "network")


@dataclass(eq=False, repr=False)
class Block:
    """The slots of one rank and the nodes that run in them; no nodes where the graph came from names alone.

    What flows from block to block is a tuple, usually of one value: ``inputs[k]`` of a block is ``outputs[k]`` of the
    one before it. Both are empty where that is not known.
    """

    children: list[Child]
    nodes: list[Node] = field(default_factory=list)
    inputs: tuple[Value, ...] = ()
    outputs: tuple[Value, ...] = ()
    #: values that something outside collects from every block in turn: what it makes, or what flows into it
    taps: tuple[Value, ...] = ()
    #: inputs of the network that this block alone reads, as each of its like has its own: a past key and value
    given: tuple[Value, ...] = ()
    layers: int | None = None  #: weight layers on its longest path; None where names do not show it
    signature: str = ""  #: hash of operations, attributes and weight shapes

    def __repr__(self) -> str:
        return f"<Block {self.path!r}{_layers_text(self.layers)}>"

    @property
    def path(self) -> str:
        """The path of its first child, which names it in messages."""
        return self.children[0].path

    @property
    def origin(self) -> str:
        return self.children[0].origin

    @property
    def input(self) -> Value | None:
        """The one value that flows in; None where there are several, or it is not known."""
        return self.inputs[0] if len(self.inputs) == 1 else None

    @property
    def output(self) -> Value | None:
        """The one value that flows out; None where there are several, or it is not known."""
        return self.outputs[0] if len(self.outputs) == 1 else None

    @property
    def ends(self) -> tuple[Value, ...]:
        """The values that pass between it and its neighbours: what it takes, and what it gives; none by names alone."""
        return (*self.inputs, *self.outputs)

    def replace_end(self, old: Value, new: Value) -> None:
        """Let it take and give ``new`` where it took or gave ``old``."""
        self.inputs = tuple(new if value is old else value for value in self.inputs)
        self.outputs = tuple(new if value is old else value for value in self.outputs)

    @property
    def preserving(self) -> bool:
        """Whether what flows has the same types before and behind it; False where that is not known."""
        return fit(self.inputs, self.outputs)


def _layers_text(layers: int | None) -> str:
    return "" if layers is None else f": {layers} layer{'s' if layers != 1 else ''}"


def fit(inputs: Sequence[Value], outputs: Sequence[Value]) -> bool:
    """Whether the values of two tuples have equal types, one by one; False where a type is not known."""
    return len(inputs) == len(outputs) > 0 and all(
        before.type is not None and before.type.fits(after.type)
        for before, after in zip(inputs, outputs, strict=True)
    )


@dataclass(frozen=True, eq=False, repr=False)
class Unit:
    """The smallest thing that is cloned or deleted: a tuple of blocks, usually of one."""

    blocks: tuple[Block, ...]

    def __repr__(self) -> str:
        more = f" and {len(self.blocks) - 1} more" if len(self.blocks) > 1 else ""
        return f"<Unit {self.path!r}{more}{_layers_text(self.layers)}>"

    def _repr_html_(self) -> str:
        html: str = importlib.import_module("elastic_ir.analysis.overview").unit_as_html(self)
        return html

    @property
    def path(self) -> str:
        return self.blocks[0].path

    @property
    def ends(self) -> tuple[Value, ...]:
        """The values that pass between it and its neighbours: what its first block takes, and its last one gives."""
        return (*self.blocks[0].inputs, *self.blocks[-1].outputs)

    @property
    def layers(self) -> int | None:
        counts = [block.layers for block in self.blocks]
        return None if None in counts else sum(count or 0 for count in counts)


@dataclass(eq=False, repr=False)
class Stage:
    """Blocks that share one activation shape. ``len(stage)`` counts blocks, those that are kept included."""

    name: str
    containers: tuple[Container, ...]  #: those that its slots lie in, in the order in which a block runs them
    entry: Block | None
    blocks: list[Block]  #: the free blocks, in order
    period: int | None = 1  #: blocks in a unit; None where names alone do not show it
    transition: str | None = None  #: path of the layer that downsamples before it, if it is not a block
    shape: tuple[int, ...] | None = None  #: of the activation between its blocks, where it is known
    exit: Block | None = None  #: its last block, where that lacks what the others have; kept as the entry is

    @property
    def alike(self) -> bool:
        """Whether all free blocks compute the same, so that the blocks of a unit differ only in what they read beside.

        Full and sliding attention differ in their masks so. A plan may part them; a copy reads what its source reads.
        """
        return bool(self.blocks) and all(
            block.nodes and block.signature == self.blocks[0].signature for block in self.blocks
        )

    def __repr__(self) -> str:
        """Short, since ``graph.stages`` is what people print first; the parts are attributes."""
        ends = (("entry", self.entry), ("last", self.exit))
        kept = "".join(f"{what} {block.path!r}, " for what, block in ends if block is not None)
        unit = {1: "", None: ", unit unknown"}.get(self.period, f", {self.period} to a unit")
        return f"<Stage {self.name!r}: {kept}{len(self.blocks)} free blocks{unit}>"

    def _repr_html_(self) -> str:
        html: str = importlib.import_module("elastic_ir.analysis.overview").stage_as_html(self)
        return html

    def __len__(self) -> int:
        return len(self.all_blocks)

    @property
    def container(self) -> Container:
        """The first of its containers, whose numbers are those of the blocks."""
        return self.containers[0]

    @property
    def all_blocks(self) -> list[Block]:
        """Every block in order, those that are kept among them: what plans index."""
        first, last = ([block] if block is not None else [] for block in (self.entry, self.exit))
        return [*first, *self.blocks, *last]

    @property
    def pinned(self) -> int:
        """How many leading blocks a plan has to keep as they are (0 or 1)."""
        return int(self.entry is not None)

    @property
    def fixed(self) -> int:
        """How many blocks a plan has to keep as they are, at both ends (0 to 2)."""
        return self.pinned + (self.exit is not None)

    @property
    def units(self) -> tuple[Unit, ...]:
        """The free units, in order; StructureError where the period is not known."""
        if self.period is None:
            raise StructureError(
                f"stage {self.name!r}: names alone do not show how many blocks make a unit; "
                "pass --unit N (unit=N) or --arch SOURCE"
            )
        step = self.period
        return tuple(Unit(tuple(self.blocks[i : i + step])) for i in range(0, len(self.blocks), step))


@dataclass(frozen=True)
class Resequenced:
    """What a change of depth made of the stages, for each of them; empty where there was no change."""

    plan: tuple[
        tuple[int | str, ...], ...
    ] = ()  #: source blocks by place; "b/3" for a layer of another network
    before: tuple[int, ...] = ()  #: how many blocks there were


@dataclass(eq=False)
class Structure:
    """All that was discovered: the stages in the order they run, and the depth."""

    stages: list[Stage]
    depth: int | None
    form: str  #: how it was found: "graph" or "names"
    stem: tuple[str, ...] = ()  #: paths of the weight layers before the first stage
    head: tuple[str, ...] = ()  #: paths of the weight layers after the last stage
    note: str = ""  #: what a reader should know about its limits

    @property
    def blocks(self) -> list[Block]:
        """Every block of every stage, in order."""
        return [block for stage in self.stages for block in stage.all_blocks]

    @property
    def containers(self) -> list[Container]:
        """The containers that hold stages, each once, in order."""
        return list(dict.fromkeys(box for stage in self.stages for box in stage.containers))

    def stage(self, name: str) -> Stage:
        """The stage of that name, or StructureError that lists the names there are."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise StructureError(
            f"there is no stage {name!r}; the stages are {', '.join(repr(s.name) for s in self.stages)}"
        )
