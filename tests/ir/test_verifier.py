"""The verifier's words on structure, and on what no pass should leave behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import elastic_ir as eir
from elastic_ir.errors import VerifyError
from elastic_ir.ir.graph import Node
from elastic_ir.ir.structure import Child
from elastic_ir.ir.verifier import verify
from elastic_ir.rewrite.rewriter import Rewriter


def small() -> eir.Graph:
    """A graph of one's own with one stage of three blocks, its structure found."""
    layers = [nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3)]
    graph = eir.trace(nn.Sequential(nn.Sequential(*layers), nn.Linear(4, 2)), (torch.zeros(2, 4),))
    assert [len(stage) for stage in graph.stages] == [3]
    verify(graph)
    return graph


def test_a_block_s_child_must_lie_in_its_container() -> None:
    graph = small()
    graph.stages[0].blocks[1].children[0] = Child("elsewhere.1", "elsewhere.1")
    with pytest.raises(VerifyError, match=r"stage '0': elsewhere\.1 is not a child of '0'"):
        verify(graph)


def test_something_is_left_of_a_stage() -> None:
    graph = small()
    graph.stages[0].blocks.clear()
    with pytest.raises(
        VerifyError, match=r"after pass 'rash': nothing is left of stage '0'; one of its blocks"
    ):
        verify(graph, after="rash")


def test_a_block_holds_no_erased_node() -> None:
    graph = small()
    stray = Node("stray", "torch.relu")
    graph.stages[0].blocks[1].nodes.append(stray)
    with pytest.raises(VerifyError, match=r"block 0\.1 holds %stray, which was erased"):
        verify(graph)


def test_a_block_reads_what_the_one_before_computes() -> None:
    graph = small()
    first, second, third = graph.stages[0].blocks
    third.inputs = first.outputs
    with pytest.raises(VerifyError, match=r"block 0\.2 does not read what 0\.1 computes"):
        verify(graph)
    assert second.input is first.output


def test_a_graph_has_one_output() -> None:
    graph = small()
    graph.append(Node("again", "output", (graph.nodes[0].output,), kind="output"))
    with pytest.raises(VerifyError, match="a graph has one output node, this one has 2"):
        verify(graph, after="mine")
    with pytest.raises(VerifyError, match=r"^after pass 'mine': a graph has one output"):
        verify(graph, after="mine")


def test_two_weights_never_get_one_name() -> None:
    """Numbering children afresh refuses to overwrite a weight that stands in the way."""
    graph = small().copy()
    blocks = graph.stages[0].blocks
    graph.weights["0.3.0.weight"] = graph.weights["1.weight"].renamed("0.3.0.weight")
    rewriter = Rewriter(graph)
    rewriter.clone_block(blocks[0], after=blocks[2])
    with pytest.raises(VerifyError, match=r"two weights would be named '0\.3\.0\.weight'"):
        rewriter.commit()
