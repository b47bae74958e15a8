"""The graph IR: SSA nodes and values with shapes, dtypes and module scopes, beside named weights.

Operands are values; a weight is not a value but a :class:`WeightRef` argument, so that the flow of activations is the
flow of values and nothing else. Attributes are plain data only (numbers, strings, :class:`Symbol` for torch's named
constants), which is why a graph can be written to a file without a pickle. Nodes form a doubly linked list: inserting
before any node costs constant time. Only :mod:`elastic_ir.rewrite` edits a graph that has been built.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, TypeAlias, Union

from elastic_ir.errors import StructureError
from elastic_ir.ir.info import UNKNOWN, Edits, Emitted, GraphInfo, History, Origin, Page
from elastic_ir.ir.structure import Block, Container, Resequenced, Stage, Structure
from elastic_ir.tensors.weights import Weights

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray


@dataclass(frozen=True)
class TensorType:
    """Shape and dtype of a value; the dtype is torch's name for it, without the ``torch.``. An open extent is -1."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def is_closed(self) -> bool:
        """Whether no extent is open."""
        return min(self.shape, default=0) >= 0

    def fits(self, other: TensorType | None) -> bool:
        """Whether two types are equal. An open batch fits any; another open extent fits none: it may hide a stride."""
        return (
            other is not None
            and self.dtype == other.dtype
            and len(self.shape) == len(other.shape)
            and all(
                (a == b and a >= 0) or (axis == 0 and min(a, b) < 0)
                for axis, (a, b) in enumerate(zip(self.shape, other.shape, strict=True))
            )
        )


@dataclass(frozen=True)
class Symbol:
    """A named constant of a framework (``torch.float32``, ``torch.channels_last``), kept as its name."""

    name: str


@dataclass(frozen=True)
class WeightRef:
    """An argument that is a weight, by its name in :attr:`Graph.weights`."""

    name: str


@dataclass(frozen=True)
class Literal:
    """A small constant tensor that is part of the program, not a weight (ONNX's shapes, axes and factors)."""

    dtype: str
    shape: tuple[int, ...]
    values: tuple[bool | int | float, ...]  #: flat, in C order

    def array(self) -> NDArray[np.generic]:
        """Its numbers as an array of its shape and dtype."""
        import numpy as np

        return np.array(self.values, np.dtype(self.dtype)).reshape(self.shape)


#: The attribute of an output node with the names that the source has for its results, one for each; a new result has
#: that of its like.
RESULTS = "results"
#: The origin of a node that a pass has made, and that is not a copy of one of the source's.
FRESH = "new"


@dataclass(eq=False)
class Value:
    """The result of one node; ``type`` is None for what is not a tensor (a size, a tuple), or is not known."""

    node: Node
    type: TensorType | None = None
    is_tensor: bool = True

    @property
    def name(self) -> str:
        return self.node.name

    def __repr__(self) -> str:
        return f"%{self.node.name}"


#: What a node may read: values, weights, and plain data, nested in tuples, lists, dicts and slices.
Argument: TypeAlias = Union[
    bool, int, float, complex, str, Symbol, Literal, WeightRef, Value, slice, "tuple[Argument, ...]", "list[Argument]",
    "dict[str, Argument]", None,
]  # fmt: skip


class Node:
    """One operation. ``op`` is its dialect and name: ``nn.Conv2d``, ``torch.flatten``, ``aten.add.Tensor``."""

    __slots__ = (
        "_next",
        "_prev",
        "args",
        "attributes",
        "kind",
        "kwargs",
        "name",
        "op",
        "origin",
        "output",
        "scope",
        "weights",
    )

    def __init__(
        self,
        name: str,
        op: str,
        args: tuple[Argument, ...] = (),
        kwargs: Mapping[str, Argument] | None = None,
        *,
        kind: str = "call",
        attributes: Mapping[str, Argument] | None = None,
        weights: Mapping[str, str] | None = None,
        scope: str = "",
        origin: str = "",
    ) -> None:
        self.name = name
        self.op = op
        self.args = args
        self.kwargs: dict[str, Argument] = dict(kwargs or {})
        #: "input", "module" (a leaf module), "function", "method", "onnx", "weight" (a weight as a value), "output"
        self.kind = kind
        self.attributes: dict[str, Argument] = dict(attributes or {})  #: a leaf module's configuration
        self.weights: dict[str, str] = dict(weights or {})  #: a leaf module's parameters and buffers, by role
        self.scope = scope  #: path of the module whose forward ran it; for a leaf module its own path
        #: which node of the source it is, or was copied from, where the source numbers them
        self.origin = origin
        self.output = Value(self)
        self._prev: Node | None = None
        self._next: Node | None = None

    def operands(self) -> list[Value]:
        """The values it reads, in order, with repetitions."""
        found: list[Value] = []
        _gather(self.args, Value, found)
        if self.kwargs:
            _gather(self.kwargs.values(), Value, found)
        return found

    def weight_names(self) -> list[str]:
        """The names of all weights it uses, by role first, then as arguments."""
        references: list[WeightRef] = []
        _gather(self.args, WeightRef, references)
        if self.kwargs:
            _gather(self.kwargs.values(), WeightRef, references)
        names = list(self.weights.values())
        return names + [reference.name for reference in references] if references else names

    def reads(self) -> list[Value | WeightRef]:
        """The values and weights among its arguments, in order, with repetitions; roles' weights are not arguments."""
        found: list[Value | WeightRef] = []
        _gather(self.args, (Value, WeightRef), found)
        if self.kwargs:
            _gather(self.kwargs.values(), (Value, WeightRef), found)
        return found

    def __repr__(self) -> str:
        return f"<{self.op} %{self.name}>"


#: What most arguments are that hold no others.
_LEAVES = frozenset({Value, WeightRef, int, bool, str, float, type(None)})


def _gather(items: Iterable[Any], kind: type[Any] | tuple[type[Any], ...], found: list[Any]) -> None:
    """The leaves of some kind among arguments, in order; every pass asks this of every node, so nothing is built."""
    for item in items:
        if isinstance(item, kind):
            found.append(item)
        elif type(item) in _LEAVES:
            continue
        elif isinstance(item, (tuple, list)):
            _gather(item, kind, found)
        elif isinstance(item, dict):
            _gather(item.values(), kind, found)
        elif isinstance(item, slice):
            _gather((item.start, item.stop, item.step), kind, found)


def map_argument(argument: Any, change: Callable[[Argument], Argument]) -> Any:
    """Rebuild an argument with ``change`` applied to each leaf (everything but tuples, lists, dicts and slices)."""
    if isinstance(argument, tuple):
        return tuple(map_argument(item, change) for item in argument)
    if isinstance(argument, list):
        return [map_argument(item, change) for item in argument]
    if isinstance(argument, dict):
        return {key: map_argument(item, change) for key, item in argument.items()}
    if isinstance(argument, slice):
        return slice(*(map_argument(part, change) for part in (argument.start, argument.stop, argument.step)))
    return change(argument)


class Graph:
    """A network: nodes (none, where only a state dict is at hand), weights, and the structure found in them."""

    def __init__(self, name: str, info: GraphInfo | None = None) -> None:
        self.name = name
        self.info = info or GraphInfo()  #: what its front end states
        self.edits = Edits()  #: what the rewriter did since
        self.history = History()  #: which passes ran, and what they report
        self.emitted = Emitted()  #: what became of it as a module
        #: The names of the children of each module of the source by its path; none where no modules are known.
        self.modules: dict[str, list[str]] = {}
        self.weights = Weights()
        #: what emission needs again of the source: its module, its example inputs
        self.origin: Origin = UNKNOWN
        #: The graph whose depth this one was given (``like=``); emission takes position constants from its module.
        self.reference: Graph | None = None
        self.resequenced = Resequenced()  #: what the last change of depth made of the stages, for a reader
        #: containers changed under structures that others have taken the place of, in that order; for emission
        self.earlier: tuple[tuple[Container, ...], ...] = ()
        self._structure: Structure | None = None
        self._root = Node("", "root")  # the sentinel that closes the ring
        self._root._prev = self._root._next = self._root
        self._count = 0

    # -- nodes -----------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Node]:
        node = self._root._next
        while node is not None and node is not self._root:
            following = node._next  # taken first, so that the node may be erased by who iterates
            yield node
            node = following

    def __len__(self) -> int:
        return self._count

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes in the order they run."""
        return tuple(self)

    @property
    def is_program(self) -> bool:
        """Whether its nodes are operations of PyTorch, from which a module can be built without the network's class."""
        return self._count > 0 and self.info.frontend in ("fx", "export")

    def _link(self, node: Node, after: Node) -> None:
        following = after._next
        assert following is not None
        node._prev, node._next = after, following
        after._next = following._prev = node
        self._count += 1

    def _unlink(self, node: Node) -> None:
        assert node._prev is not None and node._next is not None
        node._prev._next, node._next._prev = node._next, node._prev
        node._prev = node._next = None
        self._count -= 1

    def append(self, node: Node) -> Node:
        """Add a node at the end; for front ends, which build graphs. Passes use the rewriter."""
        assert self._root._prev is not None
        self._link(node, self._root._prev)
        return node

    def users(self) -> dict[Value, list[Node]]:
        """For each value the nodes that read it, in order."""
        table: dict[Value, list[Node]] = {}
        for node in self:
            for value in dict.fromkeys(node.operands()):
                table.setdefault(value, []).append(node)
        return table

    # -- structure -------------------------------------------------------------------------------------------------

    @property
    def blocks(self) -> list[Block]:
        """Every block of the structure as far as it has been discovered; none where nothing repeats."""
        return self._structure.blocks if self._structure is not None else []

    @property
    def structure(self) -> Structure:
        """Stages and depth; StructureError where nothing repeats."""
        if self._structure is None:
            from elastic_ir.discovery import discover
            from elastic_ir.ir.info import described

            with described(self):
                self._structure = discover(self)
        return self._structure

    @property
    def structure_or_none(self) -> Structure | None:
        """The structure, or None where nothing repeats."""
        try:
            return self.structure
        except StructureError:
            return None

    @property
    def stages(self) -> tuple[Stage, ...]:
        return tuple(self.structure.stages)

    @property
    def depth(self) -> int:
        """Weight layers on the longest path; StructureError where names alone do not show it."""
        depth = self.structure.depth
        if depth is None:
            raise StructureError(
                "the depth does not show from names alone; address stages with --to-stages or --to-units, "
                "or pass --arch SOURCE"
            )
        return depth

    def with_unit(self, blocks: int) -> Graph:
        """Set the unit size, in blocks, of every stage that has free blocks. Returns self.

        It states what names alone did not show, and overrides what was found: ``unit=1`` lets single blocks of a pair
        (Swin's shifted windows) be cloned and dropped. Where it cuts units apart, the structure's note says so.
        """
        importlib.import_module("elastic_ir.rewrite.rewriter").Rewriter(self).set_unit(blocks)
        return self

    def at(self, *lists: str) -> Graph:
        """A copy whose stages are those of the named lists, in place of the level that was found.

        Of repeats within repeats (a list of groups, each a list of blocks) the outer level is found as a rule;
        ``graph.at("body.0.body")`` has the blocks of the first group as its stage, ``graph.at("body.*.body")`` those
        of every group. StructureError for a name that is no list of blocks.
        """
        twin = self.copy()
        found = importlib.import_module("elastic_ir.discovery.named_lists").structure_at(twin, lists)
        importlib.import_module("elastic_ir.rewrite.rewriter").Rewriter(twin, found)
        return twin

    # -- weights ---------------------------------------------------------------------------------------------------

    def lineage(self) -> dict[str, str]:
        """For each name in the state dict the name in the source whose tensor it holds.

        A tensor of another source than the first has that source's name before its own: ``b/layers.3.weight``.
        """
        sources = self.edits.sources
        return {
            name: f"{sources[weight.source]}/{weight.origin}" if weight.source else weight.origin
            for name, weight in self.weights.items()
            if weight.persistent
        }

    def sparsity(self) -> float:
        """The share of zeros that the masks make in all prunable weights (0.9 = 90 % pruned), and in masked layers."""
        seen: dict[int, tuple[int, int]] = {}
        for weight in self.weights.values():
            if weight.counted:
                seen[id(weight.storage)] = (weight.mask.zeros if weight.mask else 0, prod(weight.shape))
        total = sum(size for _, size in seen.values())
        return sum(zeros for zeros, _ in seen.values()) / total if total else 0.0

    def parameter_count(self) -> int:
        """How many parameters it has; tied ones count once."""
        return sum({id(w.storage): prod(w.shape) for w in self.weights.values() if w.is_parameter}.values())

    # -- the public face: emission, delegated so that the IR itself stays free of torch ------------------------------

    def to_module(self, masked: bool = True, check: bool = True) -> torch.nn.Module:
        """A trainable module that shares no storage with the source (see :func:`elastic_ir.emit.to_module`).

        ``check`` runs what was changed on two inputs: every unit has to execute, and the outputs to be the graph's.
        """
        emit = importlib.import_module("elastic_ir.emit")
        module: torch.nn.Module = emit.to_module(self, masked=masked, check=check)
        return module

    def _module_for_shapes(self) -> torch.nn.Module:
        """The module unchecked, and on the meta device where the weights are: for counting, and never handed out."""
        module: torch.nn.Module = importlib.import_module("elastic_ir.emit.module").build_module(self)
        return module

    def state_dict(self, masked: bool = True) -> dict[str, torch.Tensor]:
        """The target's state dict, tensors of its own, zero wherever a mask is 0 unless ``masked`` is False."""
        state: dict[str, torch.Tensor] = importlib.import_module("elastic_ir.emit").state_dict(
            self, masked=masked
        )
        return state

    def masks(self) -> dict[str, torch.Tensor]:
        """The masks by weight name, in the dtype they were given in."""
        masks: dict[str, torch.Tensor] = importlib.import_module("elastic_ir.emit").masks(self)
        return masks

    def remap_optimizer_state(self, state: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
        """An optimizer's ``state_dict()`` carried through the same clones and deletions.

        ``names`` are the source's parameter names in the optimizer's order; the result fits an optimizer over
        ``to_module().named_parameters()`` order (within each parameter group).
        """
        remapped: dict[str, Any] = importlib.import_module("elastic_ir.emit").remap_optimizer_state(
            self, state, names
        )
        return remapped

    def report(self, against: Graph | None = None) -> Page:
        """A page that shows it, beside ``against`` if that is given (see :func:`elastic_ir.pictures.report_of`).

        A notebook shows what is returned; its ``save`` writes it to a file.
        """
        page: Page = importlib.import_module("elastic_ir.pictures").report_of(self, against)
        return page

    def summary(self) -> str:
        """Depth, parameters, sparsity, and the table of stages that ``elastic-ir inspect`` prints (docs/inspect.md)."""
        text: str = importlib.import_module("elastic_ir.analysis.overview").as_text(self)
        return text

    def _repr_html_(self) -> str:
        """What a notebook shows: :meth:`summary` as a table."""
        html: str = importlib.import_module("elastic_ir.analysis.overview").as_html(self)
        return html

    def __str__(self) -> str:
        from elastic_ir.ir.printer import format_graph

        return format_graph(self)

    def __repr__(self) -> str:
        return f"<Graph {self.name!r}: {len(self)} nodes, {len(self.weights)} weights>"

    def copy(self) -> Graph:
        """An independent graph: nodes, weights, structure copied; lazy tensors and the source shared."""
        from elastic_ir.ir.cloner import copy_graph

        return copy_graph(self)
