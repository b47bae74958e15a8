"""What is known of a graph beside its nodes and weights: its source, its edits, what ran over it, how it was emitted.

Each record has one owner, which replaces it by :func:`dataclasses.replace`. A front end owes two of them: a
:class:`GraphInfo`, and an :class:`Origin`, through which emission reaches the source again. The origins of ONNX files
and checkpoint folders, which add to it, are defined beside what reads those.

A file's description may be of the right form and still say what no network can do: a convolution whose padding is a
name, an operand that is another's. What it makes fail far from its reading (in discovery, in a pass, in torch when it
is run) is reported where the file is known, see :func:`described`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from elastic_ir.errors import ElasticError, SourceError, TraceError, first_line

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from elastic_ir.ir.counts import Count
    from elastic_ir.ir.example_inputs import Inputs
    from elastic_ir.ir.graph import Graph
    from elastic_ir.tensors.gathered import ByLayer


@dataclass(frozen=True)
class GraphInfo:
    """What a front end states once, when it hands a graph out; ``graph.info``."""

    #: Whose operations the nodes are: "fx", "export" or "onnx"; "names" where there are no nodes.
    frontend: str = ""
    source_names: tuple[str, ...] = ()  #: the names of the source's weights, in its order
    ties: Mapping[str, str] = field(default_factory=dict)  #: for a name its tensor's first name, if another
    file: str = ""  #: the name of the file that described the network, and is at fault if it makes no sense
    prefix: str = ""  #: what precedes every name in the file, and is removed here
    left_behind: tuple[str, ...] = ()  #: what the file contains beside the weights, which is not kept
    lineage: Mapping[str, str] = field(default_factory=dict)  #: the weights' origins that the file states
    plan: Sequence[Sequence[object]] = ()  #: the change of depth that the file states
    steps: tuple[object, ...] = ()  #: the changes that led to the file, as it has them, the oldest first
    #: Lists that advance together, as what stands before their numbers, where names alone do not show it.
    together: tuple[tuple[str, ...], ...] = ()
    #: Pairs of lists of which the first grows without the second, where names alone do not show it.
    apart: frozenset[tuple[str, str]] = frozenset()
    sealed_note: str = ""  #: which modules count as one layer each, because no tracer reads them
    class_note: str = ""  #: why the class that the file describes was not built


@dataclass(frozen=True)
class Edits:
    """What was edited since, as far as emission has to know; ``graph.edits``, which the rewriter keeps."""

    rewired: bool = False  #: nodes were added or removed, or read something else
    edited_layers: bool = False  #: layers have other attributes than the source's
    sources: tuple[str, ...] = ()  #: the networks that weights are from by number, if there are several
    ghosts: Mapping[str, Any] = field(default_factory=dict)  #: how each kind of ghost fades, as plain data
    keep_beside: tuple[str, ...] = ()  #: names of what stays as it is beside a change of depth
    #: Lists and tensors that may have to follow that change, and the refusal unless the network shows otherwise.
    unproven_beside: Mapping[str, str] = field(default_factory=dict)
    #: the last change of depth that the source's record states was taken back
    undone: bool = False
    keep_constants: bool = False  #: rates that depend on a block's place are those of the block copied


@dataclass(frozen=True)
class History:
    """What ran over it; ``graph.history``, which passes and pipelines keep."""

    pipeline: tuple[str, ...] = ()  #: the passes in text form, after those that the file lists
    verified: tuple[Mapping[str, Any], ...] = ()  #: for each pass what running the network after it showed
    reports: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  #: plain data by the pass's name


@dataclass(frozen=True)
class Emitted:
    """What the last emission did; ``graph.emitted``."""

    unchecked: str = ""  #: why outputs were not compared
    replaced: str = ""  #: why a GraphModule stands in place of the class
    constants: Mapping[str, str] = field(default_factory=dict)  #: for each kind where its values are from
    beside: tuple[tuple[str, str], ...] = ()  #: what has become of what a checkpoint holds beside the network


@dataclass(frozen=True)
class Stated:
    """What a file states of the module and the inputs of its graph, as data; read without torch."""

    outline: Any  #: the tree of its modules, see :mod:`elastic_ir.formats.pickles.description`
    at_hand: bool  #: whether its classes are, as far as text shows it
    inputs: Mapping[str, Any] | None = None  #: the record of the example inputs


class Page(Protocol):
    """What :meth:`Graph.report` returns, of a room above this one."""

    @property
    def html(self) -> str: ...

    def save(self, path: str | os.PathLike[str]) -> Path: ...

    def _repr_html_(self) -> str: ...


def _absent() -> None:
    """In place of a default, which would stand in the class: an origin that is read late lacks the attribute."""


@dataclass(eq=False, kw_only=True)
class Origin:
    """What emission asks of any source, with the answers of one that has nothing but weights; ``graph.origin``."""

    #: Whether its tensors are copied from folder to folder, without the network.
    streamed: ClassVar[bool] = False
    #: Whether each tensor states its own type, so that layers may take the place of others of other types.
    mixed_types: ClassVar[bool] = False
    written_as: ClassVar[str] = (
        ""  #: the suffix of the only format that it can be written in, if there is one
    )
    folder_format: ClassVar[str] = "folder"  #: the format of the folders that it can be written as
    #: the live module, never changed; None if its class was not built
    module: nn.Module | None = field(default_factory=_absent)
    #: instead of the module, what a file describes: a tree of stand-ins
    described: nn.Module | None = field(default_factory=_absent)
    inputs: Inputs | None = field(default_factory=_absent)  #: example inputs that the network runs on
    stated: Stated | None = None  #: what a file describes of a module that is built when it is asked for
    from_file: bool = False  #: whether the nodes come from a file, so that the names in them are not trusted
    #: What a file's description of the class was not compared with: "wiring", or "exact" for constants in calls too.
    unproven: str = ""
    #: Builds the same network with values, if this one, a reference, was read on the meta device.
    rebuild: Callable[[], nn.Module] | None = None
    #: States the units of a graph's stages that names leave open, as far as the source's network shows them.
    learn_units: Callable[[Graph], None] | None = None
    #: For stages to which a plan gives layers of kinds that the source's network does not build in their places, by
    #: their names: the blocks that fit in each place.
    fitting: Callable[[Graph, Sequence[Sequence[int]]], Mapping[str, Sequence[frozenset[int]]]] | None = None
    #: How tensors beside a graph's stages are indexed by their layers, as far as the source's network shows it.
    by_layer: Callable[[Graph], Mapping[str, ByLayer]] | None = None
    #: What the entries of the source's configuration count, as far as its network shows it.
    counts: Callable[[Graph], Sequence[Count]] | None = None

    #: The further sources that layers come from, in the order of their numbers from 1 on.
    others: tuple[Origin, ...] = ()

    def facts(self) -> list[tuple[str, str]]:
        """What a reader wants to know of the source beside its structure: what each is called, and what it is."""
        return []

    def record_folder(self) -> Path | None:
        """The folder in which the record of its changes lies, if it is a folder."""
        return None

    def along(self) -> list[str]:
        """What its format holds beside the network, and others do not."""
        return []

    def retrace(self, module: nn.Module, frontend: str) -> Graph:
        """Another module of the kind as a graph, read in the same way on the same inputs. Raises TraceError."""
        raise TraceError(f"{type(module).__name__} was not traced, and cannot be traced again")


#: The origin of bare weights, and of a graph whose file says nothing of its module and inputs.
UNKNOWN = Origin()


@contextlib.contextmanager
def read_from(file: str) -> Iterator[None]:
    """Around the reading of a network from a file of that name: SourceError in place of what it makes fail."""
    try:
        yield
    except ElasticError:
        raise
    except Exception as error:
        if isinstance(error, OSError):
            raise
        raise damaged(file, error) from error


@contextlib.contextmanager
def described(graph: Graph) -> Iterator[None]:
    """Around work on a graph: SourceError in place of what a file's description makes fail, in the file's name."""
    with read_from(graph.info.file) if graph.info.file else contextlib.nullcontext():
        yield


def damaged(file: str, error: Exception) -> SourceError:
    """What a file's network made fail, in one line."""
    return SourceError(
        f"{file} holds a network that cannot be followed ({type(error).__name__}: {first_line(error)[:200]}); the "
        "file is damaged, or its classes are of another version than those installed here"
    )
