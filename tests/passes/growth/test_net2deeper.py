"""Net2DeeperNet: layers that begin as the identity change nothing in evaluation, in real networks of every build."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import nn

import elastic_ir as eir
from elastic_ir.errors import PlanError
from elastic_ir.passes import Net2Deeper, Pipeline
from elastic_ir.tickets import magnitude_masks
from elastic_ir.zoo import CifarVGG, cifar_resnet, cifar_vgg
from tests.passes.pruned import randomise_norms


def mlp(activation: nn.Module | None = None) -> nn.Module:
    act = activation or nn.ReLU()
    return nn.Sequential(nn.Linear(8, 16), act, nn.Linear(16, 16), act, nn.Linear(16, 4))


def conv1d() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(4, 8, 4, groups=2), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv1d(8, 8, 3, dilation=2),
        nn.BatchNorm1d(8, affine=False), nn.Hardtanh(-1, 2), nn.Conv1d(8, 2, 1),
    )  # fmt: skip


#: A network, its input, and the depth before and after.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, int]] = {
    "cifar_resnet20": (lambda: cifar_resnet(20), (2, 3, 32, 32), 20, 30),
    "cifar_vgg13": (lambda: cifar_vgg(13, batch_norm=False), (2, 3, 32, 32), 11, 21),
    "resnet18": (lambda: timm.create_model("resnet18"), (2, 3, 64, 64), 18, 27),
    "resnext50": (lambda: timm.create_model("resnext50_32x4d"), (2, 3, 64, 64), 50, 83),
    "mobilenet_v2": (torchvision.models.mobilenet_v2, (2, 3, 64, 64), 53, 88),
    "mlp": (mlp, (2, 8), 3, 5),
    "conv1d": (conv1d, (2, 4, 32), 3, 5),
}


def made(name: str) -> tuple[eir.Graph, torch.Tensor]:
    build, shape, *_ = NETWORKS[name]
    torch.manual_seed(0)
    model = build().eval()
    randomise_norms(model)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return eir.trace(model, (x,)), x


def layers_of(module: nn.Module) -> int:
    return sum(isinstance(part, (nn.Conv1d, nn.Conv2d, nn.Linear)) for part in module.modules())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.everyday(2)
def test_the_function_stays_the_same_and_new_layers_learn(name: str) -> None:
    graph, x = made(name)
    *_, before, after = NETWORKS[name]
    deeper = Net2Deeper().run(graph)
    module = deeper.to_module()
    with torch.no_grad():
        wanted, got = graph.to_module().eval()(x), module.eval()(x)
    assert float((got - wanted).abs().max()) <= 1e-6 * float(wanted.abs().max())
    assert layers_of(module) - layers_of(graph.to_module()) == after - before
    if graph._structure is not None:
        assert (graph.depth, deeper.depth) == (before, after)
    module.load_state_dict(deeper.state_dict(), strict=True)
    module.train()(x).square().sum().backward()
    fresh = [parameter for name, parameter in module.named_parameters() if name not in graph.weights]
    assert fresh and all(parameter.grad is not None for parameter in fresh)
    # a conv in front of a norm has no gradient along its own scale, but some along the rest
    assert any(bool(p.grad.any()) for p in fresh if p.grad is not None and p.ndim > 1)


@pytest.mark.slow
def test_a_vgg_stays_a_vgg() -> None:
    torch.manual_seed(0)
    model = cifar_vgg(16).eval()
    randomise_norms(model)
    x = torch.randn(2, 3, 32, 32)
    graph = eir.trace(model, (x,))
    deeper = Net2Deeper(stages="features:3").run(graph)
    assert [len(stage) for stage in deeper.stages] == [2, 2, 6, 3, 3]
    module = deeper.to_module().eval()
    assert type(module) is CifarVGG
    native = CifarVGG((2, 2, 6, 3, 3)).eval()
    native.load_state_dict(deeper.state_dict(), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(native(x), model(x), rtol=1e-5, atol=1e-6)
    weight = deeper.state_dict()["features.17.weight"]
    assert torch.equal(weight, nn.init.dirac_(torch.empty_like(weight)))
    twice = Net2Deeper(stages="features:5", per_unit=1, count=2).run(graph)
    assert [len(stage) for stage in twice.stages] == [2, 2, 3, 3, 9]


def test_which_layers(tmp_path: Path) -> None:
    graph, x = made("cifar_resnet20")
    deeper = Net2Deeper(layers="layer3.*.conv1", kernel=1).run(graph)
    fresh = [name for name in deeper.weights if name not in graph.weights and name.endswith("conv1_2.weight")]
    assert fresh == [f"layer3.{block}.conv1_2.weight" for block in range(3)]
    assert deeper.weights[fresh[0]].shape == (64, 64, 1, 1) and deeper.weights[fresh[0]].prunable
    assert deeper.lineage()[fresh[0]] == "layer3.0.conv1.weight"
    assert deeper.history.reports["net2deeper"]["behind"] == {
        f"layer3.{block}.conv1": 1 for block in range(3)
    }
    eir.save(deeper, tmp_path / "deep.pt")
    again = eir.stretch(eir.load(tmp_path / "deep.pt"), to_stages=(3, 3, 4))
    assert "layer3.3.conv1_2.weight" in again.weights and again.depth == 20 + 3 + 3
    one = Pipeline.parse("net2deeper{stages=layer1,layer2 count=2}").run(graph)
    assert one.depth == 20 + 2 * 6
    with torch.no_grad():
        torch.testing.assert_close(one.to_module().eval()(x), graph.to_module().eval()(x))


def test_a_smooth_activation_gets_the_layer_in_front_of_it() -> None:
    torch.manual_seed(0)
    model, x = mlp(nn.GELU()).eval(), torch.randn(5, 8)
    graph = eir.trace(model, (x,))
    with pytest.raises(
        PlanError, match=r"nn\.GELU twice is not nn\.GELU once; linear=true puts the new layer"
    ):
        Net2Deeper().run(graph)
    module = Net2Deeper(linear=True).run(graph).to_module().eval()
    assert layers_of(module) == 5 and sum(isinstance(part, nn.GELU) for part in module.modules()) == 1
    assert torch.equal(module(x), model(x))


def test_moments_of_new_layers_begin_anew() -> None:
    model = cifar_vgg(13, batch_norm=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    deeper = Net2Deeper(layers="features.0").run(eir.trace(model))
    module = deeper.to_module()
    names = [name for name, _ in model.named_parameters()]
    state = deeper.remap_optimizer_state(optimizer.state_dict(), names)
    torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9).load_state_dict(state)
    order = [name for name, _ in module.named_parameters()]
    assert [index for index in range(len(order)) if index not in state["state"]] == [2, 3]
    assert order[2:4] == ["features.2.weight", "features.2.bias"]


@pytest.mark.slow
def test_tickets_and_what_else_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = cifar_resnet(20)
    ticket = eir.trace(model, masks=magnitude_masks(model, 0.8))
    with pytest.raises(
        PlanError, match=r"'conv1\.weight' has a mask.* almost all zero before anything is pruned"
    ):
        Net2Deeper().run(ticket)
    deeper = Net2Deeper(dense=True).run(ticket)
    assert deeper.masks().keys() == ticket.masks().keys() and deeper.sparsity() < ticket.sparsity() - 0.2
    graph = eir.trace(model)
    for options, message in (
        ({"kernel": 4}, "kernel=4 has no middle, so it cannot be the identity; give an odd size"),
        ({"count": 0}, "count and per_unit are numbers of layers, 1 or more"),
        ({"layers": "nothing.*"}, r"layers='nothing.\*' fits no layer with a weight"),
        (
            {"layers": "fc"},
            "there is no place for a layer that begins as the identity: no layer with an activation",
        ),
    ):
        with pytest.raises(PlanError, match=message):
            Net2Deeper(**options).run(graph)
    with pytest.raises(
        PlanError, match=r"was traced by torch\.export, and is written as a module of its own class"
    ):
        Net2Deeper().run(eir.trace(model, frontend="export"))
    torch.save(model.state_dict(), tmp_path / "bare.pt")
    with pytest.raises(
        PlanError, match="was read without its network, and net2deeper has to see what reads what"
    ):
        Net2Deeper().run(eir.load(tmp_path / "bare.pt"))
