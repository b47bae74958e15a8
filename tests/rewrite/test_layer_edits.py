"""Layers that a pass adds, turns into others or takes out: what is emitted computes what the graph says."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import fx, nn

import elastic_ir as eir
from elastic_ir.ir.graph import Graph, Node, Value
from elastic_ir.passes import Pass
from elastic_ir.rewrite.rewriter import Rewriter
from elastic_ir.tensors.torch_bridge import TorchData
from elastic_ir.zoo import CifarResNet, cifar_resnet

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@dataclasses.dataclass(frozen=True)
class Insert(Pass):
    """A pointwise convolution behind the first convolution of each free block, doubling what it is given."""

    name: ClassVar[str] = "insert"

    def rewrite(self, graph: Graph, rewriter: Rewriter) -> None:
        for stage in graph.stages:
            for block in stage.blocks:
                first = next(node for node in block.nodes if node.op == "nn.Conv2d")
                assert first.output.type is not None
                width = first.output.type.shape[1]
                rewriter.insert_layer(
                    "nn.Conv2d", first.output, path=first.scope, beside=first.weights["weight"],
                    attributes={"in_channels": width, "out_channels": width, "kernel_size": (1, 1), "bias": False},
                    weights={"weight": TorchData(2 * torch.eye(width)[:, :, None, None])}, prunable={"weight"},
                )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Smooth(Pass):
    """Every ReLU that is a module becomes a SiLU; ``first`` limits it to the first call."""

    name: ClassVar[str] = "smooth"
    needs_structure: ClassVar[bool] = False

    first: bool = False

    def rewrite(self, graph: Graph, rewriter: Rewriter) -> None:
        for node in graph:
            if node.op == "nn.ReLU":
                rewriter.become(node, "nn.SiLU")
                if self.first:
                    return


def resnet() -> nn.Module:
    torch.manual_seed(0)
    model = cifar_resnet(14, width=4)
    model.eval()
    return model


def with_doubled_convolutions(model: nn.Module) -> nn.Module:
    for path, part in model.named_modules():
        if path.startswith("layer") and path.endswith("1.conv1"):
            part.weight.data *= 2
    return model


def test_an_inserted_layer_runs_and_is_listed_behind_what_it_stands_beside() -> None:
    graph = eir.trace(resnet(), (IMAGES,))
    deeper = Insert().run(graph)
    names = list(deeper.weights)
    assert names[names.index("layer2.1.conv1.weight") + 1] == "layer2.1.conv1_2.weight"
    assert deeper.depth == 17 and [block.layers for block in deeper.stages[0].blocks] == [3]
    assert graph.depth == 14 and "layer1.1.conv1_2.weight" not in graph.weights
    module = deeper.to_module().eval()
    assert isinstance(module, fx.GraphModule) and list(module.state_dict()) == names
    torch.testing.assert_close(module(IMAGES), with_doubled_convolutions(resnet())(IMAGES))


def test_inserted_layers_are_cloned_saved_and_read_again(tmp_path: Path) -> None:
    deeper = eir.stretch(Insert().run(eir.trace(resnet(), (IMAGES,))), to_stages=(3, 3, 3))
    assert "layer3.2.conv1_2.weight" in deeper.weights and deeper.depth == 26
    eir.save(deeper, tmp_path / "net.pt")
    again = eir.load(tmp_path / "net.pt")
    assert again.depth == 26 and [len(stage) for stage in again.stages] == [3, 3, 3]
    module, reread = deeper.to_module().eval(), again.to_module().eval()
    assert torch.equal(module(IMAGES), reread(IMAGES))
    assert torch.equal(eir.squeeze(again, to_stages=(2, 2, 2)).to_module().eval()(IMAGES),
                       Insert().run(eir.trace(resnet(), (IMAGES,))).to_module().eval()(IMAGES))  # fmt: skip


def test_a_layer_of_another_kind_keeps_the_class() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()).eval()
    smooth = Smooth().run_on(eir.trace(model, (IMAGES,)))
    assert "%_1 = nn.SiLU" in str(smooth)
    made = smooth.to_module()
    assert type(made) is nn.Sequential and type(made[1]) is nn.SiLU and type(made[3]) is nn.SiLU
    x = model[0](IMAGES)
    torch.testing.assert_close(made(IMAGES), nn.functional.silu(model[2](nn.functional.silu(x))))


class Shared(nn.Module):
    """One activation for two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.act = nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.act(self.two(self.act(self.one(x))))
        return out


def test_one_call_of_a_shared_module_can_become_another() -> None:
    model, x = Shared().eval(), torch.randn(3, 4)
    made = Smooth(first=True).run_on(eir.trace(model, (x,))).to_module()
    assert isinstance(made.act, nn.ReLU) and isinstance(made.act_2, nn.SiLU)
    expected = model.two(nn.functional.silu(model.one(x))).relu()
    torch.testing.assert_close(made(x), expected)


@dataclasses.dataclass(frozen=True)
class Restride(Pass):
    """Another stride for every pool."""

    name: ClassVar[str] = "restride"
    needs_structure: ClassVar[bool] = False

    def rewrite(self, graph: Graph, rewriter: Rewriter) -> None:
        for node in graph:
            if node.op == "nn.MaxPool2d":
                rewriter.set_attributes(node, stride=1)


def test_an_attribute_that_is_no_size_reaches_the_module() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3)).eval()
    made = Restride().run_on(eir.trace(model, (IMAGES,))).to_module()
    assert type(made) is nn.Sequential and made[1].stride == 1 and made(IMAGES).shape[-1] == 27


@dataclasses.dataclass(frozen=True)
class Rewire(Pass):
    """Nodes of one operation go, and come back if wanted."""

    name: ClassVar[str] = "rewire"

    op: str = ""
    back: bool = False

    def rewrite(self, graph: Graph, rewriter: Rewriter) -> None:
        for node in graph:
            if node.op == self.op:
                source: Value = node.operands()[0]
                if self.back:
                    twin = rewriter.insert_call(
                        node.op, node.args, like=node.output, behind=node, kwargs=node.kwargs
                    )
                    rewriter.replace_uses(node.output, twin.output)
                else:
                    rewriter.replace_uses(node.output, source)
                rewriter.erase(node)


def test_the_class_stays_where_its_forward_still_computes_the_graph() -> None:
    graph = eir.trace(resnet(), (IMAGES,))
    op = "torch.nn.functional.relu"
    assert any(node.op == op for node in graph)
    assert isinstance(Rewire(op, back=True).run(graph).to_module(), CifarResNet)
    linear = Rewire(op).run(graph)
    assert not any(node.op == op for node in linear)
    made = linear.to_module()
    assert isinstance(made, fx.GraphModule)
    assert not torch.allclose(made.eval()(IMAGES), resnet()(IMAGES))
    for stage in linear.stages:
        for block in stage.all_blocks:
            assert block.output is not None and block.output.node in block.nodes


@pytest.mark.slow
def test_a_rewired_network_that_only_export_reads_becomes_its_operations() -> None:
    model = resnet().eval()
    graph = eir.trace(model, (IMAGES,), frontend="export")
    relu = next(node.op for node in graph if "relu" in node.op)
    rewired = Rewire(relu).run(graph)
    made = rewired.to_module()
    assert isinstance(made, torch.fx.GraphModule)
    assert "computes something else than the graph does, which a pass has rewired" in rewired.emitted.replaced
    assert made.state_dict().keys() == model.state_dict().keys()
    assert not torch.allclose(made(IMAGES), model(IMAGES))


def test_insert_needs_a_name_that_is_free() -> None:
    graph = eir.trace(resnet(), (IMAGES,)).copy()
    rewriter = Rewriter(graph)
    assert rewriter.fresh_path("layer1.0.conv1") == "layer1.0.conv1_2"
    assert rewriter.fresh_path("layer1.0.fresh") == "layer1.0.fresh"
    assert rewriter.fresh_path("fc") == "fc_2"
    node: Node = next(node for node in graph if node.op == "nn.Conv2d")
    added = rewriter.add_buffer("ghost.factor", TorchData(torch.ones(())), beside=node.weights["weight"])
    assert not graph.weights[added].is_parameter and not graph.weights[added].persistent
    with pytest.raises(eir.VerifyError, match=r"there is a weight .ghost\.factor. already"):
        rewriter.add_buffer("ghost.factor", TorchData(torch.ones(())), beside=node.weights["weight"])
