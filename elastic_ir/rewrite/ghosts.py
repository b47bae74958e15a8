"""Ghosts: parts of a network that are there while it trains, fade by a schedule, and are taken out again.

A ghost's calls carry a mark among their attributes, and its factor is a buffer outside the state dict, so copies of a
block have ghosts of their own and no name of a weight changes. How each kind of factor moves, the fields of its
:class:`Decay`, is kept in ``graph.edits.ghosts``, which is written with the graph. (The idea, and the word, are
those of Jaiswal et al. 2022, *Training Your Sparse Neural Network Better with Any Mask*.)
"""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Iterable, Mapping
from typing import Literal, TypeAlias

from elastic_ir.choices import check_choice
from elastic_ir.errors import PlanError, SourceError
from elastic_ir.ir.graph import FRESH, Argument, Graph, Node, Value, WeightRef
from elastic_ir.rewrite.rewriter import Rewriter
from elastic_ir.tensors.lazy import InlineData

MARK = "ghost"  #: the attribute of a ghost's calls; its value is the kind
JOINS = "joins"  #: the attribute of the call whose result stands in place of its first operand
#: an attribute of the call that joins: how what it stands on was kept from working in place
RESTORE = "restore"
#: Shapes that go to 0; a geometric one only comes near.
Fading: TypeAlias = Literal["linear", "cosine", "step"]
Shape: TypeAlias = Literal[Fading, "geometric"]


@dataclasses.dataclass(frozen=True)
class Decay:
    """How a factor moves from ``start`` to ``end`` over the first ``share`` of the training, and then stays.

    ``linear``, ``cosine`` (half a period: slow, fast, slow), ``geometric`` (equal ratios; both ends have one sign), or
    ``step`` (``start`` until the share is over). Raises PlanError for anything else.
    """

    start: float
    end: float
    shape: Shape = "cosine"
    share: float = 0.5

    def __post_init__(self) -> None:
        check_choice("decay", self.shape, Shape)
        if not 0 < self.share <= 1:
            raise PlanError(
                f"share={self.share} is not a share of the training; it is above 0, and at most 1"
            )
        if not (math.isfinite(self.start) and math.isfinite(self.end)):
            raise PlanError(f"a factor cannot move from {self.start} to {self.end}")
        if self.shape == "geometric" and self.start * self.end <= 0:
            raise PlanError(
                f"decay=geometric cannot go from {self.start} to {self.end}; take linear or cosine"
            )

    def at(self, progress: float) -> float:
        """The factor at a point of the training, 0 at its start and 1 at its end; exactly ``end`` from the share on.

        >>> [Decay(1.0, 0.0, "linear", 0.5).at(progress) for progress in (0, 0.25, 0.5, 1)]
        [1.0, 0.5, 0.0, 0.0]
        """
        if progress >= self.share:
            return self.end
        part = progress / self.share
        if self.shape == "step":
            return self.start
        if self.shape == "geometric":
            return float(self.start * (self.end / self.start) ** part)
        if self.shape == "cosine":
            part = (1 - math.cos(math.pi * part)) / 2
        return self.start + (self.end - self.start) * part


def record(graph: Graph, **decays: Decay) -> None:
    """Keep how the ghosts of some kinds move, for schedules and files."""
    fields = {kind: dataclasses.asdict(decay) for kind, decay in decays.items()}
    graph.edits = dataclasses.replace(graph.edits, ghosts={**graph.edits.ghosts, **fields})


def decays(graph: Graph) -> dict[str, Decay]:
    """For each kind of ghost how its factor moves; SourceError where a file's record is none."""
    found = graph.edits.ghosts
    try:
        return {str(kind): Decay(**fields) for kind, fields in found.items()}
    except (AttributeError, TypeError, PlanError) as error:
        raise SourceError(f"the schedule of the ghosts of {graph.name} is damaged ({error})") from error


def kind_of_ghost(node: Node) -> str | None:
    """The kind of ghost that a call belongs to, or None."""
    kind = node.attributes.get(MARK) if node.kind == "function" else None
    return kind if isinstance(kind, str) else None


def factors(graph: Graph) -> dict[str, list[str]]:
    """For each kind of ghost the names of its buffers, in the order they are used."""
    found: dict[str, dict[str, None]] = {}
    for node in graph:
        kind = kind_of_ghost(node)
        if kind is not None:
            for name in node.weight_names():
                found.setdefault(kind, {})[name] = None
    return {kind: list(names) for kind, names in found.items()}


class Ghostwriter:
    """Puts ghosts into a graph, through a rewriter: calls that are marked, and factors beside the layers they serve."""

    def __init__(self, graph: Graph, rewriter: Rewriter) -> None:
        self.graph, self.rewriter = graph, rewriter
        self.paths: dict[Node, tuple[str, ...]] = {}  #: of the children of the block that a node lies in
        for block in graph.blocks:
            children = tuple(child.path for child in block.children)
            self.paths.update(dict.fromkeys(block.nodes, children))

    def factor(self, node: Node, name: str, start: float) -> WeightRef:
        """A buffer of no dimension for a node, in the part of the network that is cloned with it."""
        children = self.paths.get(node, ())
        home = node.scope
        if children and not any(home == path or home.startswith(f"{path}.") for path in children):
            home = children[
                -1
            ]  # what a container's caller runs between its children is cloned with one of them
        head = f"{home}." if home else ""
        path, count = f"{head}{name}", 1
        while path in self.graph.weights:
            count += 1
            path = f"{head}{name}_{count}"
        data = InlineData((), "float32", struct.pack("<f", start))
        return WeightRef(self.rewriter.add_buffer(path, data, beside=self._neighbour(home, children)))

    def _neighbour(self, home: str, children: tuple[str, ...]) -> str:
        """The weight behind which a factor is listed, where it changes the order of no module that has weights.

        The last of its own child of a container or of those before it; else of the innermost module that has any.
        """
        own = next((place for place, path in enumerate(children) if f"{home}.".startswith(f"{path}.")), -1)
        for path in reversed(children[: own + 1]):
            below = [name for name in self.graph.weights if name.startswith(f"{path}.")]
            if below:
                return below[-1]
        while home:
            below = [name for name in self.graph.weights if name.startswith(f"{home}.")]
            if below:
                return below[-1]
            home = home.rpartition(".")[0]
        return next(reversed(self.graph.weights))

    def call(
        self, op: str, *args: Argument, kind: str, like: Value, behind: Node, beside: Node | None = None,
        joins: bool = False, keeps: Iterable[Node] = (), kwargs: Mapping[str, Argument] | None = None,
        restore: str = "",
    ) -> Node:  # fmt: skip
        """A marked call behind a node, in the scope of ``beside``.

        Where it joins, what read its first operand reads it instead, but for ``keeps``, calls of the same ghost;
        ``restore`` is what :func:`out_of_place` returned for the activation that it stands on.
        """
        marks: dict[str, Argument] = {MARK: kind}
        if joins:
            marks[JOINS] = True
        if restore:
            marks[RESTORE] = restore
        scope = (beside or behind).scope
        node = self.rewriter.insert_call(
            op, args, like=like, behind=behind, kwargs=kwargs, scope=scope, attributes=marks
        )
        node.origin = FRESH
        if joins:
            assert isinstance(args[0], Value)
            self.rewriter.replace_uses(args[0], node.output)
            for user in keeps:
                self.rewriter.rewire(user, node.output, args[0])
        return node


def out_of_place(node: Node, rewriter: Rewriter) -> str:
    """Let an activation leave its input as it is, which a ghost reads too; how, or "" where it did already."""
    if node.kind == "module":
        if not node.attributes.get("inplace"):
            return ""
        rewriter.set_attributes(node, inplace=False)
        return "attribute"
    if node.op.endswith("_"):
        rewriter.become(node, node.op.removesuffix("_"))
        return "name"
    if node.kwargs.get("inplace") is True:
        rewriter.set_keyword(node, "inplace", False)
        return "keyword"
    if len(node.args) > 1 and node.args[1] is True:
        rewriter.set_operand(node, 1, False)
        return "operand"
    return ""


def _in_place_again(node: Node, how: Argument, rewriter: Rewriter) -> None:
    """Undo :func:`out_of_place`."""
    if how == "attribute":
        rewriter.set_attributes(node, inplace=True)
    elif how == "name":
        rewriter.become(node, f"{node.op}_")
    elif how == "keyword":
        rewriter.set_keyword(node, "inplace", True)
    elif how == "operand":
        rewriter.set_operand(node, 1, True)


def lay(graph: Graph, rewriter: Rewriter) -> dict[str, int]:
    """Take all ghosts out; returns how many of each kind there were. What they stood on is as it was before them."""
    gone: dict[str, int] = {}
    buffers = [name for names in factors(graph).values() for name in names]
    for node in reversed(graph.nodes):
        kind = kind_of_ghost(node)
        if kind is None:
            continue
        if node.attributes.get(JOINS):
            gone[kind] = gone.get(kind, 0) + 1
            into = node.args[0]
            if not isinstance(into, Value):
                raise SourceError(f"the ghost %{node.name} of {graph.name} is damaged: it stands on no value")
            _in_place_again(into.node, node.attributes.get(RESTORE), rewriter)
            rewriter.dissolve(node, into)
        else:
            rewriter.erase(node)
    rewriter.drop_weights(buffers)
    graph.edits = dataclasses.replace(graph.edits, ghosts={})
    return gone


def without_ghosts(graph: Graph) -> Graph:
    """A copy without ghosts, or the graph itself where it has none."""
    if not factors(graph):
        return graph
    plain = graph.copy()
    with Rewriter(plain) as rewriter:
        lay(plain, rewriter)
    return plain
