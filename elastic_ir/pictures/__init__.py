"""Networks as people see them: drawings, and the page of ``elastic-ir report``. Nothing here changes a graph."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from elastic_ir.ir.graph import Graph
    from elastic_ir.pictures.page import Report


def report_of(
    graph: Graph,
    against: Graph | None = None,
    *,
    label: str = "",
    other: str = "",
    values: bool | None = None,
) -> Report:
    """The report of a graph; see :func:`elastic_ir.pictures.document.document_of`."""
    from elastic_ir.pictures.document import document_of
    from elastic_ir.pictures.page import Report

    return Report(document_of(graph, against, label=_shown(label), other=_shown(other), values=values))


def _shown(source: str) -> str:
    """A file's or folder's name without where it lies, which is nobody's business who gets the page."""
    return Path(source).resolve().name if source and os.path.exists(source) else source
