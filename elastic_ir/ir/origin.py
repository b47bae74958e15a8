"""Where a graph was read from: what emission may need again of its source, and what a source without it says instead.

Every front end hands its graph out with an :class:`Origin`; the classes of ONNX files and checkpoint folders, which
add to it, lie beside what reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from elastic_ir.errors import TraceError

if TYPE_CHECKING:
    from torch import nn

    from elastic_ir.ir.example_inputs import Inputs
    from elastic_ir.ir.graph import Graph


@dataclass(eq=False, kw_only=True)
class Origin:
    """What emission asks of any source, with the answers of one that has nothing but weights."""

    module: nn.Module | None = (
        None  #: the live module, which is never changed; None where its class was not built
    )
    described: nn.Module | None = None  #: in place of the module, what a file says of it: a tree of stand-ins
    inputs: Inputs | None = None  #: example inputs that the network runs on
    from_file: bool = False  #: whether the nodes come from a file, so that the names in them are not trusted
    #: What a file's description of the class was not compared with: "wiring", or "exact" for constants in calls too.
    unproven: str = ""
    #: Makes the same network with values, where this one, a reference, was read on the meta device.
    rebuild: Callable[[], nn.Module] | None = None

    def retrace(self, module: nn.Module, frontend: str) -> Graph:
        """Another module of the kind as a graph, read in the same way on the same inputs; TraceError where it is not
        possible.
        """
        raise TraceError(f"{type(module).__name__} was not traced, and cannot be traced again")


#: The origin of bare weights, and of a graph whose file says nothing of its module and inputs.
UNKNOWN = Origin()
