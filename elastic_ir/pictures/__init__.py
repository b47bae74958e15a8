"""Networks as people see them: drawings, and the page of ``elastic-ir report``. Nothing here changes a graph."""

from __future__ import annotations

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

    return Report(document_of(graph, against, label=label, other=other, values=values))
