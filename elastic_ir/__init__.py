"""ElasticIR: a graph-IR compiler that changes a network's depth together with its weights and sparse masks."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

# In a clone whose symbolic links git has written as text files (Windows), the folders that they name are found here.
if os.path.isfile(os.path.join(os.path.dirname(__file__), "cli")):
    __path__.append(os.path.dirname(os.path.dirname(__file__)))

from elastic_ir.errors import (
    BlockedError,
    ElasticError,
    EmitError,
    MaskError,
    OutputError,
    PlanError,
    SourceChangedError,
    SourceError,
    StructureError,
    TraceError,
    UntrustedError,
    VerifyError,
)
from elastic_ir.lazy_names import lazy_names
from elastic_ir.version import __version__

if TYPE_CHECKING:
    from elastic_ir.api import (
        follow,
        load,
        merge,
        report,
        save,
        save_training,
        squeeze,
        stretch,
        trace,
        undo,
        verify_checkpoint,
        with_weights,
    )
    from elastic_ir.ir.graph import Graph
    from elastic_ir.ir.structure import Block, Stage, Unit

__all__ = [
    "Block", "BlockedError", "ElasticError", "EmitError", "Graph", "MaskError", "OutputError", "PlanError",
    "SourceChangedError", "SourceError", "Stage", "StructureError", "TraceError", "Unit", "UntrustedError",
    "VerifyError", "__version__", "follow", "load", "merge", "report", "save", "save_training", "squeeze", "stretch",
    "trace", "undo", "verify_checkpoint", "with_weights",
]  # fmt: skip

#: All but the errors is imported when first used: what reads a checkpoint needs no torch, and help needs no graph.
_HOMES = {
    **dict.fromkeys(
        (
            "follow",
            "load",
            "merge",
            "report",
            "save",
            "save_training",
            "squeeze",
            "stretch",
            "trace",
            "undo",
            "verify_checkpoint",
            "with_weights",
        ),
        "api",
    ),
    **dict.fromkeys(("Block", "Stage", "Unit"), "ir.structure"),
    "Graph": "ir.graph",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
