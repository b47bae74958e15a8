"""What is known of a graph beside its nodes and weights: stated by a front end, edited, run over it, or emitted.

Each kind has one frozen record and one owner, which puts another in place of it with :func:`dataclasses.replace`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class GraphInfo:
    """What a front end states once, when it hands a graph out; ``graph.info``."""

    frontend: str = (
        ""  #: whose operations the nodes are: "fx", "export", "onnx", or "names" where there are none
    )
    source_names: tuple[str, ...] = ()  #: the names of the source's weights, in its order
    ties: Mapping[str, str] = field(default_factory=dict)  #: names that share an earlier name's tensor
    file: str = (
        ""  #: the name of the file that described the network: what makes no sense is that file's fault
    )
    prefix: str = ""  #: what the file has in front of every name, taken off here
    left_behind: tuple[str, ...] = ()  #: what the file holds beside the weights, which is not carried on
    lineage: Mapping[str, str] = field(default_factory=dict)  #: what the file says of each weight's origin
    plan: Sequence[Sequence[object]] = ()  #: the change of depth that the file says it is from
    sealed_note: str = ""  #: which modules count as one layer each, because no tracer reads them
    class_note: str = ""  #: why the class that the file describes was not built


@dataclass(frozen=True)
class Edits:
    """What was edited since, as far as emission has to know; ``graph.edits``, which the rewriter keeps."""

    rewired: bool = False  #: nodes were added, taken out, or read something else
    edited_layers: bool = False  #: layers have other attributes than the source's
    sources: tuple[str, ...] = ()  #: the networks that weights are from by number, where there are several
    ghosts: Mapping[str, Any] = field(default_factory=dict)  #: how each kind of ghost fades, as plain data
    keep_beside: tuple[str, ...] = ()  #: what stays as it is beside a change of depth
    unproven_beside: Mapping[str, str] = field(
        default_factory=dict
    )  #: lists and tensors that may have to change
    #: with it, and why that is a refusal unless the network itself shows that they do not
    keep_constants: bool = False  #: rates that go by a block's place stay those of the block that was copied


@dataclass(frozen=True)
class History:
    """What ran over it; ``graph.history``, which passes and pipelines keep."""

    pipeline: tuple[
        str, ...
    ] = ()  #: the passes, as they would be written, those that its file names included
    verified: tuple[Mapping[str, Any], ...] = ()  #: for each pass what running the network after it showed
    reports: Mapping[str, Mapping[str, Any]] = field(
        default_factory=dict
    )  #: plain data of passes, by their names


@dataclass(frozen=True)
class Emitted:
    """What the last emission as a module did; ``graph.emitted``."""

    unchecked: str = ""  #: why outputs were not compared
    replaced: str = ""  #: why a GraphModule stands in place of the class
    constants: Mapping[str, str] = field(
        default_factory=dict
    )  #: where constants of a place are from, by kind
