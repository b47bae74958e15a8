"""What is known of a graph beside its nodes and weights: stated by a front end, edited, run over it, or emitted.

Each kind has one frozen record and one owner, which puts another in place of it with :func:`dataclasses.replace`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


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
