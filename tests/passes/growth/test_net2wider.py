"""Net2WiderNet: copied channels change nothing, through additions, concatenations, gates, groups and flattenings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

import elastic_ir as eir
from elastic_ir.errors import PlanError
from elastic_ir.passes import Net2Wider, Pipeline
from elastic_ir.tickets import magnitude_masks
from elastic_ir.zoo import CifarResNet, cifar_resnet
from tests.passes.pruned import pruned, same_function


def flattened() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, groups=1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4), nn.BatchNorm2d(8), nn.Hardswish(),
        nn.Flatten(), nn.Linear(8 * 4 * 4, 12), nn.GELU(), nn.Linear(12, 3),
    )  # fmt: skip


def decoder() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.ConvTranspose2d(8, 12, 2, stride=2), nn.BatchNorm2d(12),
        nn.ReLU(), nn.ConvTranspose2d(12, 8, 3, padding=1, groups=2, bias=False), nn.Tanh(), nn.Conv2d(8, 2, 1),
    )  # fmt: skip


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "cifar_resnet20": (lambda: cifar_resnet(20), (2, 3, 32, 32)),
    "seresnet": (lambda: timm.create_model("seresnet18", channels=(16, 16, 32, 32)), (2, 3, 64, 64)),
    "mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(width_mult=0.35), (2, 3, 64, 64)),
    "resnext": (
        lambda: torchvision.models.ResNet(
            torchvision.models.resnet.Bottleneck, [1, 2, 1, 1], groups=8, width_per_group=2
        ),
        (2, 3, 64, 64),
    ),
    "densenet": (
        lambda: torchvision.models.DenseNet(growth_rate=4, block_config=(2, 2), num_init_features=8),
        (2, 3, 64, 64),
    ),
    "convnext": (lambda: timm.create_model("convnext_atto", dims=(8, 16, 24, 32)), (2, 3, 64, 64)),
    "flattened": (flattened, (2, 3, 8, 8)),
    "decoder": (decoder, (2, 3, 8, 8)),
}


@pytest.mark.parametrize("options", [{}, {"factor": 1.5, "stream": True, "seed": 3}], ids=["inner", "stream"])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.everyday(1)
def test_the_function_stays_the_same(name: str, options: dict[str, Any]) -> None:
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    graph, x = pruned(build(), shape, share=0.25)
    wider = Net2Wider(**options).run(graph)
    module = same_function(graph, wider, x)
    assert wider.parameter_count() > 1.1 * graph.parameter_count()
    assert wider.history.reports["net2wider"]["layers"]
    for part in module.modules():  # what was emitted is what its layers say
        if isinstance(part, nn.ConvTranspose2d):
            assert part.weight.shape[:2] == (part.in_channels, part.out_channels // part.groups)
        elif isinstance(part, nn.Conv2d):
            assert part.weight.shape[:2] == (part.out_channels, part.in_channels // part.groups)
    again = Net2Wider(**options).run(graph).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in wider.state_dict().items())


def test_sizes_names_and_class() -> None:
    graph = eir.trace(cifar_resnet(14))
    wider = Net2Wider(factor=1.5, stages="layer2").run(graph)
    layers = wider.history.reports["net2wider"]["layers"]
    assert layers == {
        "layer2.0.conv1": [16, 16, 32, 48], "layer2.0.conv2": [32, 48, 32, 32],
        "layer2.1.conv1": [32, 32, 32, 48], "layer2.1.conv2": [32, 48, 32, 32],
    }  # fmt: skip
    module = wider.to_module()
    assert type(module) is CifarResNet and list(module.state_dict()) == list(graph.weights)
    norm = module.get_submodule("layer2.0.bn1")
    assert isinstance(norm, nn.BatchNorm2d) and norm.num_features == 48
    told = Net2Wider().summary(Net2Wider().run(graph))
    assert told is not None and told.startswith(
        "224 output channels more in 6 layers, 3 left (conv1: an addition"
    )
    whole = Net2Wider(stream=True).run(graph).to_module()
    assert whole.state_dict()["fc.weight"].shape == (10, 128)
    native = cifar_resnet(14, width=32)
    native.load_state_dict(whole.state_dict(), strict=True)


def test_copies_share_their_masks() -> None:
    torch.manual_seed(0)
    model = cifar_resnet(14)
    ticket = eir.trace(model, masks=magnitude_masks(model, 0.8))
    wider = Net2Wider(layers="layer3.1.conv1").run(ticket)
    rows = wider.weights["layer3.1.conv1.weight"].storage.data.rows  # type: ignore[attr-defined]
    assert sorted(set(rows)) == list(range(64)) and len(rows) == 128
    old, new = ticket.masks(), wider.masks()
    assert torch.equal(new["layer3.1.conv1.weight"], old["layer3.1.conv1.weight"][list(rows)])
    assert torch.equal(new["layer3.1.conv2.weight"], old["layer3.1.conv2.weight"][:, list(rows)])
    assert not wider.state_dict()["layer3.1.conv2.weight"][new["layer3.1.conv2.weight"] == 0].any()
    assert abs(wider.sparsity() - ticket.sparsity()) < 0.05


def test_what_a_column_is_divided_by() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    wider = Net2Wider(factor=3, seed=1).run(eir.trace(model))
    rows = wider.weights["0.weight"].storage.data.rows  # type: ignore[attr-defined]
    state, source = wider.state_dict(), model.state_dict()
    for column, row in enumerate(rows):
        assert torch.equal(state["0.weight"][column], source["0.weight"][row])
        torch.testing.assert_close(state["2.weight"][0, column] * rows.count(row), source["2.weight"][0, row])
    assert rows != Net2Wider(factor=3, seed=2).run(eir.trace(model)).weights["0.weight"].storage.data.rows  # type: ignore[attr-defined]


def test_noise_tells_copies_apart() -> None:
    torch.manual_seed(0)
    model, x = cifar_resnet(14).eval(), torch.randn(2, 3, 32, 32)
    graph = eir.trace(model, (x,))
    weight = {}
    for noise in (0.0, 0.01):
        wider = Net2Wider(noise=noise).run(graph)
        weight[noise] = wider.state_dict()["layer1.0.conv1.weight"]
        distance = (wider.to_module().eval()(x) - model(x)).norm() / model(x).norm()
        assert distance < (0.05 if noise else 1e-5)
    data = wider.weights["layer1.0.conv1.weight"].storage.data
    again = [i for i in range(1, 32) if data.rows[i] == data.rows[i - 1]]  # type: ignore[attr-defined]
    first = [i for i in range(32) if i not in again]
    assert len(first) == 16 and torch.equal(weight[0.0][first], weight[0.01][first])
    spread = (weight[0.01] - weight[0.0])[again].std() / model.state_dict()["layer1.0.conv1.weight"].std()
    assert 0.009 < float(spread) < 0.011


def test_then_deeper_and_trained() -> None:
    torch.manual_seed(0)
    model = cifar_resnet(14)
    graph = eir.trace(model)
    grown = Pipeline.parse("net2wider{stream=true},stretch{to-stages=3,3,3},net2deeper{stages=layer1}").run(
        graph
    )
    module = grown.to_module()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
    x, y = torch.randn(8, 3, 32, 32), torch.arange(8)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    names = [name for name, _ in model.named_parameters()]
    old = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    model(x).sum().backward()
    old.step()
    state = grown.remap_optimizer_state(old.state_dict(), names)
    torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9).load_state_dict(state)
    order = [name for name, _ in module.named_parameters()]
    assert [order[index] for index in state["state"]] == ["fc.bias"]  # the one that has no copies


def test_what_is_refused() -> None:
    graph = eir.trace(cifar_resnet(14))
    for options, message in (
        ({"factor": 0.5}, "factor is 1 or more; noise and seed are not negative"),
        (
            {"layers": "layer1.*.conv2"},
            r"there is no layer that can be widened \(conv1: an addition ties its output",
        ),
        ({"layers": "fc"}, "that can be widened: the channels that were chosen are the network's output"),
        ({"stages": "layer4"}, "there is no stage 'layer4'"),
    ):
        with pytest.raises(eir.ElasticError, match=message):
            Net2Wider(**options).run(graph)
    normed = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 2, 3))
    with pytest.raises(
        PlanError, match=r"0: its output channels have to stay: %_1 \(nn\.GroupNorm\) may mix them"
    ):
        Net2Wider().run(eir.trace(normed, (torch.randn(1, 3, 8, 8),)))
    grouped = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1, groups=2), nn.ReLU(), nn.Conv2d(6, 4, 1))
    wider = Net2Wider(factor=1.5).run(eir.trace(grouped, (torch.randn(1, 3, 8, 8),)))
    assert [wider.weights[f"{place}.weight"].shape[0] for place in (0, 1, 3)] == [
        8,
        8,
        4,
    ]  # 4 for each of 2 groups
