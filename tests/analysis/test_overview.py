"""What a graph and its parts show of themselves, in Python and in a notebook."""

from __future__ import annotations

import re
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


def test_a_notebook_shows_stages_and_units(graph: eir.Graph) -> None:
    stage = graph.stages[1]
    assert facts(stage._repr_html_()) == [
        "stage layer2", "blocks 2", "entry layer2.0", "free 1: layer2.1", "unit 1 block", "layers of a block 2",
        "shape 1x8x4x4",
    ]  # fmt: skip
    shown = facts(stage.units[0]._repr_html_())
    assert shown[:4] == ["unit layer2.1", "layers 2", "takes 1x8x4x4", "gives 1x8x4x4"]
    assert shown[4].startswith("operations ") and "nn.Conv2d x2" in shown[4]


def test_what_names_alone_do_not_show(tmp_path_factory: pytest.TempPathFactory) -> None:
    state = {f"blocks.{i}.{part}.weight": torch.zeros(4, 4) for i in range(4) for part in ("a", "b")}
    path = tmp_path_factory.mktemp("names") / "names.pt"
    torch.save(state, path)
    stage = eir.load(path).stages[0]
    stage.name = "<script>"
    assert "&lt;script&gt;" in stage._repr_html_() and "free 4: blocks.0 .. blocks.3" in facts(
        stage._repr_html_()
    )
    assert facts(stage.units[0]._repr_html_())[0] == "unit blocks.0"


def facts(html: str) -> list[str]:
    """The lines of a notebook's display, as text."""
    return re.sub("<[^>]*>", "", html.replace("<br>", "\n")).split("\n")
