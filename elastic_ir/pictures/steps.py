"""How a network came to be: the changes of depth that its file records, and the passes that ran since."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from elastic_ir.checkpoints.undo import steps_of_graph
from elastic_ir.errors import SourceError
from elastic_ir.ir.graph import Graph
from elastic_ir.pictures.schema import StepEntry

_LONGEST = 200  #: characters of a value that is shown


def steps_entries(graph: Graph) -> list[StepEntry]:
    """The steps, the oldest first."""
    try:
        steps = steps_of_graph(graph)
    except SourceError as error:
        steps = []
        found = [StepEntry(kind="record", text="Damaged record", facts=[["error", str(error)]])]
    else:
        found = []
    for step in steps:
        facts = [["made of", ", ".join(step.sources)], ["by", f"ElasticIR {step.version}"]]
        facts += [[stage, plan] for stage, plan in step.plan.items()]
        facts += [["tensors renamed", str(len(step.lineage))]] if step.lineage else []
        facts += [["tensors left out", str(len(step.gone))]] if step.gone else []
        found.append(StepEntry(kind="record", text="Change of depth", facts=facts))
    for text in graph.history.pipeline:
        name = text.partition("{")[0].partition("(")[0].strip()
        found.append(StepEntry(kind="pass", text=text, facts=_facts(graph.history.reports.get(name, {}))))
    return found


def _facts(report: Mapping[str, Any]) -> list[list[str]]:
    return [[str(name), _short(str(value))] for name, value in report.items()]


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}\u2026"
