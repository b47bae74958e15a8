"""Network morphism: two convolutions for one, larger kernels, and outputs that stay the same up to the borders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

import elastic_ir as eir
from elastic_ir.errors import EmitError, PlanError
from elastic_ir.passes import Morph
from elastic_ir.tickets import magnitude_masks
from elastic_ir.zoo import CifarResNet, cifar_resnet, cifar_vgg
from tests.passes.pruned import randomise_norms, same_function

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "cifar_resnet20": (lambda: cifar_resnet(20), (2, 3, 32, 32)),
    "resnet18": (lambda: timm.create_model("resnet18", channels=(16, 16, 32, 32)), (2, 3, 64, 64)),
    "mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(width_mult=0.35), (2, 3, 64, 64)),
    "odd": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 6, (1, 5), padding="same", dilation=2), nn.ReLU(),
            nn.Conv2d(6, 8, 3, stride=2, groups=2, padding=(0, 2), bias=False), nn.Conv2d(8, 2, 4, padding="valid"),
        ),
        (2, 4, 16, 16),
    ),
}  # fmt: skip


def made(name: str) -> tuple[eir.Graph, torch.Tensor]:
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = build()
    randomise_norms(model)
    x = torch.randn(shape, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    return eir.trace(model.double().eval(), (x,)), x


def convolutions(module: nn.Module) -> int:
    return sum(isinstance(part, nn.Conv2d) for part in module.modules())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.everyday(1)
def test_two_for_one(name: str) -> None:
    graph, x = made(name)
    deeper = Morph().run(graph)
    module = same_function(graph, deeper, x)
    assert convolutions(module) == 2 * len(deeper.history.reports["morph"]["layers"])
    slopes = [part for part in module.modules() if isinstance(part, nn.PReLU)]
    assert len(slopes) == len(deeper.history.reports["morph"]["layers"]) and all(
        s.weight.grad is not None for s in slopes
    )
    for node in deeper:  # the shapes noted are those that come out
        if node.kind == "module" and node.op == "nn.Conv2d" and node.output.type is not None:
            assert node.output.type.shape[1] == node.attributes["out_channels"]
    assert eir.trace(module, (x,)).nodes[-2].output.type == deeper.nodes[-2].output.type


@pytest.mark.parametrize("options", [{"kernel": 3}, {"kernel": 3, "second": 3}, {"second": 5}, {"mid": 40}])
@pytest.mark.everyday(1)
def test_kernels_of_every_size_and_exact_borders(options: dict[str, Any]) -> None:
    graph, x = made("cifar_resnet20")
    deeper = Morph(layers="layer2.*", **options).run(graph)
    module = same_function(graph, deeper, x)
    first, second = (deeper.weights[f"layer2.1.conv1{end}.weight"].shape for end in ("", "_2"))
    wanted = {(3, None): (3, 1), (3, 3): (3, 3), (None, 5): (1, 5), (None, None): (1, 3)}
    assert (first[2], second[2]) == wanted[options.get("kernel"), options.get("second")]
    assert first[0] == second[1] == options.get("mid", {(3, 3): 89}.get((first[2], second[2]), 32))
    assert isinstance(module.get_submodule("layer2.1.conv1_act"), nn.PReLU)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar_resnet20", "odd"])
def test_larger_kernels_keep_the_class(name: str) -> None:
    graph, x = made(name)
    layers = "2" if name == "odd" else "layer*"
    larger = Morph(mode="kernel", kernel=5, layers=layers).run(graph)
    module = same_function(graph, larger, x)
    if name == "odd":
        part = module.get_submodule("2")
        assert isinstance(part, nn.Conv2d) and part.kernel_size == (5, 5) and part.padding == (1, 3)
        return
    assert type(module) is CifarResNet
    weight = larger.state_dict()["layer1.0.conv1.weight"]
    assert weight.shape == (16, 16, 5, 5)
    assert torch.equal(weight[:, :, 1:4, 1:4], graph.state_dict()["layer1.0.conv1.weight"])
    told = Morph(mode="kernel", kernel=5).summary(larger)
    assert told == "20 convolutions have kernels of 5"


def test_moments() -> None:
    model = cifar_vgg(13, batch_norm=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    names = [name for name, _ in model.named_parameters()]
    graph = eir.trace(model)
    source = optimizer.state_dict()["state"]
    larger = Morph(mode="kernel", kernel=5, layers="features.2").run(graph)
    moment = larger.remap_optimizer_state(optimizer.state_dict(), names)["state"][2]["momentum_buffer"]
    assert moment.shape[2:] == (5, 5) and torch.equal(moment[:, :, 1:4, 1:4], source[2]["momentum_buffer"])
    deeper = Morph(layers="features.2").run(graph)
    state = deeper.remap_optimizer_state(optimizer.state_dict(), names)
    module = deeper.to_module()
    torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9).load_state_dict(state)
    order = [name for name, _ in module.named_parameters()]
    fresh = [order[index] for index in range(len(order)) if index not in state["state"]]
    assert fresh == ["features.2.weight", "features.2.bias", "features.2_act.weight", "features.2_2.weight"]


def test_fewer_channels_within_a_tolerance() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
    with torch.no_grad():  # of rank four across channels
        model.get_parameter("0.weight").copy_(
            torch.einsum("oc,cikl->oikl", torch.randn(8, 4), torch.randn(4, 8, 3, 3))
        )
    x = torch.randn(2, 8, 8, 8)
    graph = eir.trace(model, (x,))
    with pytest.raises(
        PlanError, match=r"4 channels between .* cannot make every kernel of \[3, 3\]; mid=8 can"
    ):
        Morph(layers="0", kernel=3, mid=4).run(graph)
    close = Morph(layers="0", kernel=3, mid=4, tolerance=1e-4).run(graph)
    torch.testing.assert_close(close.to_module()(x), model(x), rtol=1e-3, atol=1e-3)
    far = Morph(layers="2", kernel=3, mid=4, tolerance=1e-4).run(graph)
    with pytest.raises(EmitError, match=r"two kernels miss that of 2 by 0\.\d+ of its size, more than tol"):
        far.to_module()
    rough = Morph(layers="2", kernel=3, mid=4, tolerance=0.9).run(graph).to_module()
    assert 0.05 < (rough(x) - model(x)).norm() / model(x).norm() < 0.9


def test_what_is_refused() -> None:
    torch.manual_seed(0)
    model = cifar_resnet(14)
    graph = eir.trace(model)
    for options, message in (
        ({"mode": "width"}, "mode is depth or kernel, not 'width'"),
        ({"mode": "kernel"}, "mode=kernel needs the size of the new kernels; give kernel=5"),
        ({"mid": 0}, "kernel, second and mid are 1 or more"),
        ({"layers": "fc"}, "there is no convolution that can be morphed: none was chosen"),
        ({"second": 2}, r"kernels of \[1, 1\] and \[2, 2\] do not cover one of \[3, 3\] evenly on all sides"),
        ({"mode": "kernel", "kernel": 4}, r"a kernel of \[3, 3\] does not lie in the middle of one of 4"),
        ({"mode": "kernel", "kernel": 3, "layers": "conv1"}, r"its kernel is \[3, 3\] already"),
    ):
        with pytest.raises(PlanError, match=message):
            Morph(**options).run(graph)
    ticket = eir.trace(model, masks=magnitude_masks(model, 0.8))
    with pytest.raises(
        PlanError, match="it has a mask, and which of the new weights would be pruned is not defined"
    ):
        Morph().run(ticket)
