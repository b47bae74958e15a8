"""compact on real networks: the zoo's and torchvision's, units that compute nothing, files and optimizers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import elastic_ir as eir
from elastic_ir.analysis.cost import cost
from elastic_ir.passes import Compact
from elastic_ir.zoo import cifar_resnet, cifar_vgg
from tests.passes.pruned import pruned, same_function


def compact(graph: eir.Graph) -> eir.Graph:
    return Compact().run(graph)


@pytest.mark.parametrize("depth", [20, 56])
def test_resnets_of_the_zoo(depth: int) -> None:
    graph, x = pruned(cifar_resnet(depth, width=8), (2, 3, 16, 16))
    done = compact(graph)
    assert done.parameter_count() < graph.parameter_count()
    same_function(graph, done, x)


@pytest.mark.parametrize("names", ["torchvision", "open_lth"])
def test_a_vgg_of_the_zoo(names: str) -> None:
    graph, x = pruned(cifar_vgg(13, names=names), (1, 3, 32, 32))  # type: ignore[arg-type]
    done = compact(graph)
    assert done.parameter_count() < 0.6 * graph.parameter_count()
    module = same_function(graph, done, x)
    assert type(module) is type(graph.origin.module)


def test_fresh_norms_leave_no_constant_behind() -> None:
    """At a rewind to the start every norm maps a dead filter to zero: exactly the native narrow network is left."""
    model = cifar_vgg(13)
    masks = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            masks[f"{path}.weight"] = torch.ones_like(module.weight)
            masks[f"{path}.weight"][::2] = 0
            nn.init.zeros_(module.bias) if module.bias is not None else None
    graph = eir.trace(model.eval(), (torch.zeros(1, 3, 32, 32),), masks=masks)
    done = compact(graph)
    assert not done.history.reports["compact"]["constant"]
    for name, weight in done.weights.items():
        whole = graph.weights[name].shape
        assert not whole or weight.shape[0] == (whole[0] if name.startswith("classifier") else whole[0] // 2)


TORCHVISION = ["resnet18", "mobilenet_v2", "squeezenet1_1"]
LARGE = ["resnet50", "densenet121", "resnext50_32x4d", "mobilenet_v3_small", "shufflenet_v2_x0_5"]


def torchvision_network(name: str) -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    graph, x = pruned(getattr(models, name)(num_classes=10), (2, 3, 64, 64), share=0.4)
    done = compact(graph)
    assert done.parameter_count() < graph.parameter_count()
    module = same_function(graph, done, x)
    assert type(module) is type(graph.origin.module)
    assert cost(done).flops < cost(graph).flops  # type: ignore[operator]


@pytest.mark.parametrize("name", TORCHVISION)
@pytest.mark.everyday(1)
def test_torchvision(name: str) -> None:
    """Residual additions, depthwise convolutions, concatenations."""
    torchvision_network(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_more_of_torchvision(name: str) -> None:
    """Bottlenecks, dense concatenations, grouped convolutions, gates, shuffled channels."""
    torchvision_network(name)


def dead_branch(depth: int = 20) -> tuple[eir.Graph, Tensor]:
    """The branch of layer2.1 ends in a dead convolution, and in a norm that adds nothing."""
    torch.manual_seed(0)
    model = cifar_resnet(depth, width=4).double().eval()
    mask = {"layer2.1.conv2.weight": torch.zeros(8, 8, 3, 3)}
    x = torch.randn(2, 3, 16, 16, dtype=torch.double)
    return eir.trace(model, (x,), masks=mask), x


@pytest.mark.slow
def test_a_unit_that_adds_nothing_is_removed() -> None:
    graph, x = dead_branch()
    done = compact(graph)
    assert done.history.reports["compact"]["units"] == ["layer2.1"]
    assert [len(stage) for stage in done.stages] == [3, 2, 3]
    assert done.depth == 18
    assert done.lineage()["layer2.1.conv1.weight"] == "layer2.2.conv1.weight"
    same_function(graph, done, x)
    with torch.no_grad():
        assert torch.equal(done.to_module().eval()(x), graph.to_module().eval()(x))
    # the entry of a stage stays whatever it computes
    kept = Compact(units=False).run(graph)
    assert kept.depth == graph.depth
    assert kept.weights["layer2.1.conv1.weight"].shape[0] == 1


def test_a_unit_whose_norm_adds_something_stays() -> None:
    graph, x = dead_branch()
    assert graph.origin.module is not None
    with torch.no_grad():
        graph.origin.module.get_parameter("layer2.1.bn2.bias").fill_(0.5)
    done = compact(graph)
    assert done.history.reports["compact"]["units"] == []
    same_function(graph, done, x)


def test_files_and_optimizers(tmp_path: Path) -> None:
    """What is written loads again, and momentum is cut as its weights are."""
    graph, x = pruned(cifar_resnet(14, width=4), (2, 3, 16, 16))
    done = compact(graph)
    for name in ("small.pt", "small.safetensors"):
        eir.save(done, tmp_path / name)
        again = eir.load(tmp_path / name)
        assert {n: w.shape for n, w in again.weights.items()} == {n: w.shape for n, w in done.weights.items()}
        assert torch.equal(again.to_module().eval()(x), done.to_module().eval()(x))
    source = graph.to_module()
    optimizer = torch.optim.SGD(source.parameters(), lr=0.1, momentum=0.9)
    source(x).sum().backward()
    optimizer.step()
    names = [name for name, _ in source.named_parameters()]
    target = done.to_module()
    moved = torch.optim.SGD(target.parameters(), lr=0.1, momentum=0.9)
    moved.load_state_dict(done.remap_optimizer_state(optimizer.state_dict(), names))
    for parameter in target.parameters():
        assert moved.state[parameter]["momentum_buffer"].shape == parameter.shape
    target(x).sum().backward()
    moved.step()


def test_a_compacted_network_can_be_stretched() -> None:
    graph, x = pruned(cifar_resnet(14, width=4), (1, 3, 16, 16))
    deeper = eir.stretch(compact(graph), to_stages=(3, 3, 3))
    assert deeper.depth == 20
    deeper.to_module().eval()(x)


class Named(nn.Module):
    """A forward that names its blocks one by one, and pools over a size that it asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.b1, self.b2, self.b3 = (nn.Conv2d(6, 6, 3, padding=1) for _ in range(3))
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.b1(x))
        x = torch.relu(x + self.b2(x))
        x = torch.relu(x + self.b3(x))
        x = torch.nn.functional.avg_pool2d(x, x.size()[3])
        out: Tensor = self.head(x.view(x.size(0), -1))
        return out


def test_a_forward_that_names_its_units() -> None:
    """Where a unit goes, a graph module is made; channels alone leave the class."""
    torch.manual_seed(0)
    model, x = Named().double().eval(), torch.randn(2, 3, 6, 6, dtype=torch.double)
    with torch.no_grad():
        model.b2.bias.zero_()  # type: ignore[union-attr]
    masks = {
        f"{name}.weight": torch.ones_like(getattr(model, name).weight) for name in ("stem", "b1", "b2", "b3")
    }
    for name, bias in (("stem", model.stem.bias), ("b1", model.b1.bias), ("b3", model.b3.bias)):
        masks[f"{name}.weight"][[1, 4]] = 0
        with torch.no_grad():
            bias[[1, 4]] = -1  # type: ignore[index]
    masks["b2.weight"][:] = 0
    graph = eir.trace(model, (x,), masks=masks)
    done = compact(graph)
    assert done.history.reports["compact"]["units"] == ["b2"]
    assert done.weights["b2.weight"].shape == (4, 4, 3, 3)
    assert done.lineage()["b2.weight"] == "b3.weight"
    assert isinstance(same_function(graph, done, x), torch.fx.GraphModule)
    only_channels = Compact(units=False).run(graph)
    assert only_channels.weights["b2.weight"].shape == (4, 4, 3, 3)
    assert type(same_function(graph, only_channels, x)) is Named
