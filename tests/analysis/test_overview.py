"""What a graph and its parts show of themselves, in Python and in a notebook."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
import torch
from torch import nn

import elastic_ir as eir
from elastic_ir.tickets import magnitude_masks
from elastic_ir.zoo import cifar_resnet
from tests.cli.test_cli import good


@pytest.fixture(scope="module")
def graph() -> eir.Graph:
    model = cifar_resnet(14, width=4)
    return eir.trace(model, (torch.zeros(1, 3, 8, 8),), masks=magnitude_masks(model, 0.5))


def test_the_summary_is_the_table_of_inspect(
    graph: eir.Graph, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("model") / "model.pt"
    eir.save(graph, path)
    facts, _, table = graph.summary().partition("\n\n")
    assert good("inspect", str(path)).partition("\n\n")[2].rstrip() == table
    assert facts.splitlines()[:2] == ["network:    CifarResNet", "depth:      14"]
    assert "sparsity:   50.0 %" in facts


def test_a_notebook_shows_the_same_table(graph: eir.Graph) -> None:
    page = ElementTree.fromstring(graph._repr_html_().replace("<br>", "<br/>"))
    rows = [["".join(cell.itertext()) for cell in row] for row in page.iter("tr")]
    shown = [line.split()[0] for line in graph.summary().partition("\n\n")[2].splitlines()]
    assert [row[0] for row in rows] == shown
    assert len(graph._repr_html_()) < 10_000


def test_a_network_in_which_nothing_repeats_says_so() -> None:
    single = eir.trace(nn.Sequential(nn.Linear(2, 2)), (torch.zeros(1, 2),))
    single.name = "<script>"
    assert "structure:" in single.summary() and "parameters: 6" in single.summary()
    assert "&lt;script&gt;" in single._repr_html_() and "<script>" not in single._repr_html_()


def test_parts_are_shown_in_a_line_each(graph: eir.Graph) -> None:
    deeper = eir.stretch(graph, to_depth=20)
    assert repr(deeper.stages[1].units) == repr(list(deeper.stages[1].units)).replace("[", "(").replace(
        "]", ")"
    )
    assert repr(deeper.stages[1].units[0]) == "<Unit 'layer2.1': 2 layers>"
    assert repr(deeper.stages[1].blocks[0]) == "<Block 'layer2.1': 2 layers>"
    assert repr(deeper.weights) == f"<{len(deeper.weights)} weights, 17,947 elements>"
    assert repr(deeper.weights["fc.weight"]).startswith("<Weight 'fc.weight': float32 [10, 16], ")
    assert repr(graph.weights["bn1.weight"]) == "<Weight 'bn1.weight': float32 [4]>"
