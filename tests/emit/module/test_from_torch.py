"""GraphModules keep the order of the native network's state dict, which optimizers number parameters by."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import fx, nn

import elastic_ir as eir
from elastic_ir.emit.module import _finish
from elastic_ir.emit.module.from_torch import build_graph_module


class Block(nn.Module):
    """Registers its layers in another order than it runs them."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.first = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.rand(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x + self.last(torch.tanh(self.first(self.norm(x)))) * self.scale
        return out


class Series(nn.Module):
    """So do the network's own children; its blocks are named one by one."""

    def __init__(self, count: int = 3) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)
        self.stem = nn.Linear(4, 4)
        for number in range(1, count + 1):
            self.add_module(f"block{number}", Block())
        self.count = count

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for number in range(1, self.count + 1):
            x = self.get_submodule(f"block{number}")(x)
        out: torch.Tensor = self.head(x)
        return out


def example() -> torch.Tensor:
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(2))


def test_names_come_in_the_native_order() -> None:
    deeper = eir.stretch(eir.trace(Series(), (example(),)), to_units=5, order="interpolate")
    module, native = deeper.to_module(), Series(5)
    assert isinstance(module, fx.GraphModule)
    assert list(module.state_dict()) == list(native.state_dict()) == list(deeper.state_dict())
    assert [n for n, _ in module.named_parameters()] == [n for n, _ in native.named_parameters()]
    native.load_state_dict(module.state_dict(), strict=True)
    assert torch.equal(module(example()), native(example()))


def test_moments_reach_their_parameters() -> None:
    """Numbered by another order, moments of equal shapes would be exchanged without a word."""
    model = Series()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(example()).square().sum().backward()
    optimizer.step()
    deeper = eir.stretch(eir.trace(model, (example(),)), to_units=5)
    names = [name for name, _ in model.named_parameters()]
    module = deeper.to_module()
    fresh = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    fresh.load_state_dict(deeper.remap_optimizer_state(optimizer.state_dict(), names))
    lineage, sources = deeper.lineage(), dict(model.named_parameters())
    for name, parameter in module.named_parameters():
        wanted = optimizer.state[sources[lineage[name]]]["momentum_buffer"]
        assert torch.equal(fresh.state[parameter]["momentum_buffer"], wanted), name


def test_squeezed_back_it_is_the_source_s_class_again() -> None:
    model = Series()
    graph = eir.trace(model, (example(),))
    back = eir.squeeze(eir.stretch(graph, to_units=6), to_units=3)
    assert str(back) == str(graph)
    assert type(back.to_module()) is Series
    assert torch.equal(back.to_module()(example()), model(example()))


@pytest.mark.slow
def test_norms_that_are_called_as_functions_follow_the_mode() -> None:
    """timm's norms with an activation: fx sees the function, with the mode that was traced."""
    torch.manual_seed(0)
    x = torch.randn(4, 3, 32, 32)
    for training in (True, False):
        model = timm.create_model("mobilenetv2_035", drop_rate=0.0).train(training)
        graph = eir.trace(model, (x,))
        module = _finish(build_graph_module(graph, model), graph, masked=True)
        assert module.training is training
        for mode in (True, False):
            assert torch.equal(module.train(mode)(x), model.train(mode)(x))
        for name, tensor in model.state_dict().items():
            assert torch.equal(module.state_dict()[name], tensor), name
        assert int(module.get_buffer("bn1.num_batches_tracked")) == 1
        assert list(module.state_dict()) == list(model.state_dict())


class Counted(nn.Module):
    """A forward that counts its layers, and makes a tensor of a number in each."""

    def __init__(self, count: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(count))
        self.count = count

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        width = int(x.shape[-1])  # torch.fx stops here
        for index in range(self.count):
            x = x + torch.tanh(self.layers[index](x)) * torch.sqrt(torch.tensor([0.5])) / width
        return x


def test_constants_of_an_export_are_outside_the_state_dict() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4)
    graph = eir.trace(Counted().eval(), (x,))
    made, native = eir.stretch(graph, to_units=3).to_module(), Counted(3).eval()
    assert isinstance(made, fx.GraphModule)
    native.load_state_dict(made.state_dict())
    assert torch.equal(made(x), native(x))
