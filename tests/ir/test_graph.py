"""The IR itself: the rewriter, the verifier's messages, and the golden text of a small network."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import pytest
import torch
from torch import nn

import elastic_ir as eir
from elastic_ir.errors import VerifyError
from elastic_ir.ir.verifier import verify
from elastic_ir.passes import Pass, find_pass, registered
from elastic_ir.rewrite.rewriter import Rewriter
from elastic_ir.tensors.lazy import Mask


class Residual(nn.Module):
    """The smallest residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.relu(self.fc(x))


def small(blocks: int = 2) -> eir.Graph:
    model = nn.Sequential(
        nn.Linear(3, 4), nn.Sequential(*(Residual() for _ in range(blocks))), nn.Linear(4, 2)
    )
    masks = {"1.1.fc.weight": torch.eye(4)}
    return eir.trace(model, (torch.zeros(2, 3),), masks=masks)


GOLDEN = """\
graph Sequential
  depth 5
  stage 1: 3 blocks, free [1.0, 1.1, 1.2], shape [2, 4]
weights
  @0.weight : f32[4, 3]
  @0.bias : f32[4]
  @1.0.fc.weight : f32[4, 4]
  @1.0.fc.bias : f32[4]
  @1.1.fc.weight : f32[4, 4] mask(12 of 16 pruned)
  @1.1.fc.bias : f32[4]
  @1.2.fc.weight : f32[4, 4] mask(12 of 16 pruned) from @1.1.fc.weight
  @1.2.fc.bias : f32[4] from @1.1.fc.bias
  @2.weight : f32[2, 4]
  @2.bias : f32[2]
nodes
  %input = input() : f32[2, 3]
  %_0 = nn.Linear(%input) {in_features=3, out_features=4, bias=True} in 0 : f32[2, 4]
  %_1_0_fc = nn.Linear(%_0) {in_features=4, out_features=4, bias=True} in 1.0.fc : f32[2, 4]
  %relu = torch.relu(%_1_0_fc) in 1.0 : f32[2, 4]
  %add = operator.add(%_0, %relu) in 1.0 : f32[2, 4]
  %_1_1_fc = nn.Linear(%add) {in_features=4, out_features=4, bias=True} in 1.1.fc : f32[2, 4]
  %relu_1 = torch.relu(%_1_1_fc) in 1.1 : f32[2, 4]
  %add_1 = operator.add(%add, %relu_1) in 1.1 : f32[2, 4]
  %_1_2_fc = nn.Linear(%add_1) {in_features=4, out_features=4, bias=True} in 1.2.fc : f32[2, 4]
  %relu_2 = torch.relu(%_1_2_fc) in 1.2 : f32[2, 4]
  %add_2 = operator.add(%add_1, %relu_2) in 1.2 : f32[2, 4]
  %_2 = nn.Linear(%add_2) {in_features=4, out_features=2, bias=True} in 2 : f32[2, 2]
  %output = output(%_2) : f32[2, 2]
"""


def test_golden_text_of_a_stretched_network() -> None:
    """Names, masks, origins and wiring after one clone, to the letter."""
    assert str(eir.stretch(small(), plan=[0, 1, 1])) == GOLDEN


def test_the_source_stays_as_it_was() -> None:
    graph = small()
    before = str(graph)
    eir.stretch(graph, to_units=6)
    eir.squeeze(graph, to_units=1)
    assert str(graph) == before


def test_a_clone_stands_in_for_what_is_deleted_before_it() -> None:
    graph = small().copy()
    first, second = graph.stages[0].blocks
    with Rewriter(graph) as rewriter:
        rewriter.clone_block(first, after=second)
        rewriter.delete_block(second)
    verify(graph)
    assert graph.lineage()["1.1.fc.weight"] == "1.0.fc.weight"


def test_units_are_cloned_and_deleted_whole() -> None:
    graph = small().copy()
    (stage,) = graph.stages
    with Rewriter(graph) as rewriter:
        clone = rewriter.clone_unit(stage.units[0], after=stage.blocks[1])
        rewriter.delete_unit(stage.units[0])
    verify(graph)
    assert clone.path == "1.1"
    assert [block.origin for block in stage.blocks] == ["1.1", "1.0"]


def test_the_entry_is_neither_cloned_across_stages_nor_deleted() -> None:
    from elastic_ir.zoo import cifar_resnet

    graph = eir.trace(cifar_resnet(14, width=4)).copy()
    left, right = graph.stages[:2]
    assert left.entry is not None
    with pytest.raises(eir.StructureError, match="is the entry of stage 'layer1' and cannot be deleted"):
        Rewriter(graph).delete_block(left.entry)
    with pytest.raises(eir.StructureError, match="they are of two stages"):
        Rewriter(graph).clone_block(left.blocks[0], after=right.blocks[0])


def test_a_node_that_is_read_is_not_erased() -> None:
    graph = small().copy()
    rewriter = Rewriter(graph)
    with pytest.raises(VerifyError, match=r"%_0 cannot be erased: its result is read by %_1_0_fc"):
        rewriter.erase(graph.nodes[1])
    rewriter.replace_uses(graph.nodes[4].output, graph.nodes[1].output)
    rewriter.erase(graph.nodes[4])
    assert len(graph) == 9


def test_masks_and_data_keep_their_shapes() -> None:
    graph = small().copy()
    rewriter = Rewriter(graph)
    with pytest.raises(VerifyError, match=r"the mask of '0\.weight' has shape \(2,\)"):
        rewriter.set_mask("0.weight", Mask((2,), b"\0"))
    rewriter.set_mask("0.weight", Mask((4, 3), b"\xff\xf0"))
    assert graph.weights["0.weight"].mask is not None
    with pytest.raises(VerifyError, match="the new tensor of"):
        rewriter.set_data("0.weight", graph.weights["2.weight"].storage.data)


def test_verifier_messages() -> None:
    """Each broken invariant is named with its place."""
    graph = small().copy()
    nodes = graph.nodes
    nodes[2].name = "_0"
    with pytest.raises(VerifyError, match="two nodes are named %_0"):
        verify(graph)
    graph = small().copy()
    graph._unlink(graph.nodes[3])
    with pytest.raises(
        VerifyError, match=r"node %add \(operator.add\) reads %relu, which is not in the graph"
    ):
        verify(graph)
    graph = small().copy()
    relu, last = graph.nodes[3], graph.nodes[-1]
    graph._unlink(relu)
    graph._link(relu, after=last)
    with pytest.raises(VerifyError, match="reads %relu, which runs later; insert the producer first"):
        verify(graph)
    graph = small().copy()
    del graph.weights["0.bias"]
    with pytest.raises(VerifyError, match=r"uses weight '0\.bias', which the graph lacks"):
        verify(graph)
    graph = small().copy()
    graph.weights["0.weight"] = graph.weights["0.weight"].renamed("other")
    with pytest.raises(VerifyError, match=r"weight 'other' is listed as '0\.weight'"):
        verify(graph)
    graph = small().copy()
    graph.weights["0.weight"].storage.mask = Mask((2,), b"\0")
    with pytest.raises(
        VerifyError, match=r"the mask of '0\.weight' has shape \(2,\), its weight has \(4, 3\)"
    ):
        verify(graph)
    graph = small().copy()
    graph.weights["0.weight"] = dataclasses.replace(graph.weights["0.weight"], origin="")
    with pytest.raises(VerifyError, match=r"weight '0\.weight' has no origin"):
        verify(graph)
    graph = small().copy()
    _ = graph.stages
    graph = graph.copy()
    graph.stages[0].container.children[0].path = "1.7"
    with pytest.raises(VerifyError, match=r"child 0 is named 1\.7, the native network names it 1\.0"):
        verify(graph)
    graph = small().copy()
    graph.stages[0].blocks.reverse()
    with pytest.raises(VerifyError, match=r"1\.0 stands before the block it follows"):
        verify(graph)
    graph = small().copy()
    graph.stages[0].period = 3
    with pytest.raises(VerifyError, match="2 free blocks, not a multiple of its unit of 3"):
        verify(graph)
    graph = small().copy()
    graph._unlink(graph.nodes[-1])
    with pytest.raises(VerifyError, match="one output node, this one has 0"):
        verify(graph)


@dataclasses.dataclass(frozen=True)
class Break(Pass):
    """A pass that leaves a graph broken."""

    name: ClassVar[str] = "break"

    def rewrite(self, graph: eir.Graph, rewriter: Rewriter) -> None:
        del graph.weights["0.bias"]


def test_the_verifier_runs_after_every_pass_and_names_it() -> None:
    with pytest.raises(VerifyError, match="after pass 'break': node %_0"):
        Break().run(small())


def test_passes_are_found_by_name() -> None:
    assert set(registered()) >= {"stretch", "squeeze"}
    assert find_pass("stretch").help().startswith("Clone repeatable units")
    assert ("to-depth", "whole number", "none") in find_pass("squeeze").options()
    with pytest.raises(eir.PlanError, match="there is no pass 'shrink'; the passes are"):
        find_pass("shrink")
