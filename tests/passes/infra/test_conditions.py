"""Pre- and postconditions of passes, and the run after each pass: what breaks is named with the pass that broke it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import elastic_ir as eir
from elastic_ir.choices import Frontend
from elastic_ir.cli.app import elastic_ir
from elastic_ir.errors import PlanError, VerifyError
from elastic_ir.ir.graph import Graph
from elastic_ir.passes import Compact, FoldBatchNorm, IdentityBlocks, Pass, Pipeline, Stretch
from elastic_ir.rewrite.rewriter import Rewriter
from elastic_ir.tensors.recipes import Scaled
from elastic_ir.zoo import cifar_resnet

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def resnet(depth: int = 14) -> nn.Module:
    torch.manual_seed(0)
    return cifar_resnet(depth, width=4).eval()


@dataclasses.dataclass(frozen=True)
class Shallower(Pass):
    """Delete the last block of a stage; the depth has to fall by as much as is asked."""

    name: ClassVar[str] = "shallower"

    by: int = 2

    def precondition(self, graph: Graph) -> int:
        if len(graph.stages[-1].blocks) < 1:
            raise PlanError("the last stage has no block to spare")
        return graph.depth

    def rewrite(self, graph: Graph, rewriter: Rewriter) -> None:
        rewriter.delete_unit(graph.stages[-1].units[-1])

    def postcondition(self, graph: Graph, noted: Any) -> None:
        if graph.depth != noted - self.by:
            raise VerifyError(f"the depth is {graph.depth}, and {noted} less {self.by} was promised")


def test_conditions_hold_or_name_the_pass() -> None:
    graph = eir.trace(resnet(), (IMAGES,))
    assert Shallower().run(graph).depth == 12
    with pytest.raises(
        VerifyError, match=r"^after pass 'shallower': the depth is 12, and 14 less 3 was promised$"
    ):
        Shallower(3).run(graph)
    with pytest.raises(PlanError, match=r"^before pass 'shallower': the last stage has no block to spare$"):
        Pipeline([Shallower(), Shallower()]).run(graph)
    assert graph.depth == 14


def test_a_graph_is_copied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = eir.trace(resnet(20), (IMAGES,))
    copies = []
    copy = Graph.copy

    def counted(self: Graph) -> Graph:
        copies.append(self)
        return copy(self)

    monkeypatch.setattr(Graph, "copy", counted)
    Pipeline([Shallower(), Shallower()]).run(graph)
    assert copies == [graph]


@dataclasses.dataclass(frozen=True)
class Factor(Pass):
    """Multiply the last layer's weights."""

    name: ClassVar[str] = "factor"
    preserves_function: ClassVar[bool] = True

    by: float = 1.0

    def rewrite(self, graph: Graph, rewriter: Rewriter) -> None:
        name = next(name for name in reversed(graph.weights) if graph.weights[name].prunable)
        rewriter.set_data(name, Scaled(graph.weights[name].storage.data, self.by))


@dataclasses.dataclass(frozen=True)
class Wild(Factor):
    """Multiply the last layer's weights, and promise nothing."""

    name: ClassVar[str] = "wild"
    preserves_function: ClassVar[bool] = False


def onnx_of(folder: Path) -> Graph:
    eir.save(eir.trace(resnet(), (IMAGES,)), folder / "net.onnx")
    return eir.load(folder / "net.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["fx", "export", "onnx"])
def test_each_pass_is_run(form: Frontend | Literal["onnx"], tmp_path: Path) -> None:
    graph = onnx_of(tmp_path) if form == "onnx" else eir.trace(resnet(), (IMAGES,), frontend=form)
    items: list[Pass] = [Stretch(to_depth=20), IdentityBlocks(to_depth=32), Wild(2.0), Factor()]
    if form != "export":
        items += [FoldBatchNorm(), Compact()]
    after = Pipeline(items).run(graph, verify_each=True)
    found = after.history.verified
    assert [line["pass"] for line in found] == [item.name for item in items]
    assert [line["blocks"] for line in found] == [9, 15, 15, 15, 15, 15][: len(items)]
    assert ["drift" in line for line in found] == [item.preserves_function for item in items]
    assert all(line["drift"] <= 1e-5 < line["allowed"] for line in found if "drift" in line)
    assert not graph.history.verified


@pytest.mark.parametrize("form", ["fx", "onnx"])
@pytest.mark.slow
def test_what_breaks_is_named(form: str, tmp_path: Path) -> None:
    graph = onnx_of(tmp_path) if form == "onnx" else eir.trace(resnet(), (IMAGES,))
    with pytest.raises(
        VerifyError, match=r"^after pass 'factor': output 0 differs from before by .* is allowed, and the"
    ):
        Pipeline([Stretch(to_depth=20), Factor(1.5)]).run(graph, verify_each=True)
    with pytest.raises(
        VerifyError, match=r"^after pass 'wild': output 0 holds ([12]0) numbers that are not finite, of \1"
    ):
        Pipeline([Wild(float("inf"))]).run(graph, verify_each=True)
    Pipeline([Stretch(to_depth=20), Factor(1.5), Wild(float("inf"))]).run(graph)  # nobody looked


class Counted(nn.Module):
    """A forward that runs as many of its layers as it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3))
        self.limit = 4  # no number of blocks, so that emission cannot know

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[: self.limit]:
            x = layer(x)
        return x


def test_a_block_that_the_class_would_not_run_runs_in_a_graph_module() -> None:
    graph = eir.trace(Counted().eval(), (torch.randn(1, 4),))
    made = Pipeline([Stretch(to_stages=(5,))]).run(graph, verify_each=True)
    assert made.history.verified[0]["blocks"] == 5
    assert "1 of 5 blocks would never run, 'layers.4' first" in made.emitted.replaced


def test_what_cannot_be_run_is_refused(tmp_path: Path) -> None:
    torch.save(resnet().state_dict(), tmp_path / "bare.pt")
    graph = eir.load(tmp_path / "bare.pt")
    with pytest.raises(
        PlanError, match=r"was read without its network, so it cannot be run after each pass; pass --arch"
    ):
        Pipeline([Stretch(to_stages=(3, 3, 3))]).run(graph, verify_each=True)


def test_on_the_meta_device_blocks_are_seen_and_no_numbers() -> None:
    with torch.device("meta"):
        graph = eir.trace(cifar_resnet(14, width=4))
    after = Pipeline([Stretch(to_depth=20)]).run(graph, verify_each=True)
    assert after.history.verified == ({"pass": "stretch", "blocks": 9},)


@pytest.mark.slow
def test_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("elastic_ir.passes._loaded", {})
    eir.save(eir.trace(resnet(), (IMAGES,)), tmp_path / "net.pt")
    (tmp_path / "double.py").write_text(
        "import dataclasses\nfrom elastic_ir.passes import Pass\n"
        "@dataclasses.dataclass(frozen=True)\nclass Bad(Pass):\n    '''Lose a unit.'''\n    name = 'bad'\n"
        "    preserves_function = True\n"
        "    def rewrite(self, graph, rewriter):\n        rewriter.delete_unit(graph.stages[0].units[0])\n"
    )
    command = ["apply", str(tmp_path / "net.pt"), "--load-pass", str(tmp_path / "double.py"), "--verify-each"]
    told = CliRunner().invoke(
        elastic_ir, [*command, "--passes", "stretch{to-depth=20},fold-batchnorm", "--dry-run"]
    )
    assert told.exit_code == 0, told.output
    assert " stretch: 9 blocks ran\n" in told.output
    assert " fold-batchnorm: 9 blocks ran, outputs differ by " in told.output
    told = CliRunner().invoke(elastic_ir, [*command, "--passes", "bad", "-o", str(tmp_path / "out.pt")])
    assert told.exit_code == 1 and "after pass 'bad': output 0 differs from before" in told.output
    assert not (tmp_path / "out.pt").exists()
