"""The guard that is active in all tests: an edit of a built graph outside the rewriter fails with file and line."""

from __future__ import annotations

import dataclasses
from types import CodeType

import pytest

import elastic_ir as eir
from elastic_ir.ir.graph import Graph, Node
from elastic_ir.ir.info import Origin
from elastic_ir.rewrite.rewriter import Rewriter
from elastic_ir.zoo import cifar_resnet
from tests.frozen_graphs import REFUSED

#: One edit of each part of a graph, as a pass might attempt it.
EDITS = [
    "node.args = ()",
    "node.op = 'nn.Identity'",
    "node.attributes['stride'] = 2",
    "node.weights.pop('weight')",
    "node.kwargs.update(inplace=True)",
    "node.output.type = None",
    "graph.append(Node('late', 'torch.relu'))",
    "graph.weights.clear()",
    "graph.weights = {}",
    "graph.weights['fc.weight'].storage.mask = None",
    "graph.edits = dataclasses.replace(graph.edits, rewired=True)",
    "graph.info = dataclasses.replace(graph.info, frontend='onnx')",
    "graph.modules = {}",
    "graph.modules['layer9'] = []",
    "graph.reference = graph",
    "graph._structure = None",
    "graph.structure.note = 'mine'",
    "graph.structure.stages.pop()",
    "graph.stages[0].period = 2",
    "graph.stages[0].blocks.pop()",
    "graph.stages[0].blocks[0].nodes.clear()",
    "graph.stages[0].blocks[0].input = None",
    "graph.stages[0].container.tail += 1",
    "graph.stages[0].container.children[0].path = 'elsewhere'",
]


def _made(kind: str) -> Graph:
    graph = eir.trace(cifar_resnet(14, width=2))
    graph.structure  # noqa: B018 - discovered, so that there is something to edit
    if kind == "stretched":
        return eir.stretch(graph, to_depth=20)
    return graph.copy()


def _pass(edit: str) -> CodeType:
    return compile(edit, "somebodys_pass.py", "exec")


@pytest.mark.parametrize("kind", ["copied", "stretched"])
def test_every_edit_beside_the_rewriter_is_refused(kind: str) -> None:
    graph = _made(kind)
    node = next(node for node in graph if node.kind == "module")
    before = str(graph)
    names = {"__name__": "somebodys_pass", "Node": Node, "dataclasses": dataclasses}
    for edit in EDITS:
        with Rewriter(graph), pytest.raises(AssertionError, match=r"^somebodys_pass\.py:1 changes"):
            exec(_pass(edit), {**names, "graph": graph, "node": node})
        assert REFUSED.pop().startswith("somebodys_pass.py:1 ")
    assert str(graph) == before


@pytest.mark.slow
def test_the_rewriter_and_notes_are_free() -> None:
    graph = _made("copied")
    code = "rewriter.set_attributes(node, bias=True); rewriter.report({'layers': 3}); graph.origin = Origin()"
    node = next(node for node in graph if "bias" in node.attributes)
    with Rewriter(graph) as rewriter:
        names = {"graph": graph, "node": node, "rewriter": rewriter, "Origin": Origin}
        exec(_pass(code), {"__name__": "somebodys_pass", **names})
    assert node.attributes["bias"] is True and rewriter.findings == {"layers": 3}
