"""The source's class with more or fewer blocks, where others stand beside them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import fx, nn

import elastic_ir as eir


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x + torch.tanh(self.fc(x))
        return out


class Framed(nn.Sequential):
    """Blocks between a stem and a head in one Sequential, by name."""

    def __init__(self, count: int = 3) -> None:
        super().__init__()
        self.add_module("stem", nn.Linear(8, 8))
        for number in range(count):
            self.add_module(f"block_{number}", Block())
        self.add_module("head", nn.Linear(8, 5))


class FramedByName(Framed):
    """The same with a forward that names them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in ("stem", "block_0", "block_1", "block_2", "head"):
            x = getattr(self, name)(x)
        return x


def test_a_sequential_with_other_children_beside_its_blocks_keeps_its_class(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, example = Framed().eval(), torch.randn(4, 8)
    graph = eir.trace(model, (example,))
    for count in (5, 2):
        made = eir.stretch(graph, to_units=count) if count > 3 else eir.squeeze(graph, to_units=count)
        module, native = made.to_module().eval(), Framed(count).eval()
        assert type(module) is Framed
        assert list(module._modules) == list(native._modules)
        native.load_state_dict(made.state_dict())
        assert torch.equal(module(example), native(example))
        eir.save(made, tmp_path / "net.pt")
        assert torch.equal(eir.load(tmp_path / "net.pt").to_module().eval()(example), native(example))
    other = eir.stretch(eir.trace(FramedByName().eval(), (example,)), to_units=4).to_module()
    assert isinstance(other, fx.GraphModule)


class Counted(nn.Module):
    """A count that includes the layers before and behind the list, and a second list that is one longer."""

    def __init__(self, depth: int = 5) -> None:
        super().__init__()
        self.depth = depth
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(depth - 2))
        self.activations = nn.ModuleList(nn.Tanh() for _ in range(depth - 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.activations[0](self.first(x))
        for number in range(self.depth - 2):
            x = self.activations[number + 1](self.layers[number](x))
        out: torch.Tensor = self.last(x)
        return out


def test_a_count_that_includes_layers_around_the_list_follows() -> None:
    torch.manual_seed(0)
    model, example = Counted().eval(), torch.randn(4, 8)
    graph = eir.trace(model, (example,))
    for count in (2, 4, 5):
        made = (eir.stretch if count > 3 else eir.squeeze)(graph, to_units=count)
        module, native = made.to_module().eval(), Counted(count + 2).eval()
        assert isinstance(module, Counted)
        assert module.depth == count + 2
        native.load_state_dict(made.state_dict())
        assert torch.equal(module(example), native(example))
    assert model.depth == 5
