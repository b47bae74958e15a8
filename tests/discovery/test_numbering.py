"""How blocks are numbered: in the middle of names, as parameters, with gaps, twice in a row, in several series."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import elastic_ir as eir
from elastic_ir.choices import Frontend

WIDTH = 6
X = torch.randn(2, WIDTH)


def linear() -> nn.Linear:
    return nn.Linear(WIDTH, WIDTH)


class Middle(nn.Module):
    """``layer0_norm``, ``layer0_fc``, ``layer1_norm`` ..."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        for at in range(count):
            self.add_module(f"layer{at}_norm", nn.LayerNorm(WIDTH))
            self.add_module(f"layer{at}_fc", linear())

    def forward(self, x: Tensor) -> Tensor:
        for at in range(self.count):
            x = x + torch.tanh(getattr(self, f"layer{at}_fc")(getattr(self, f"layer{at}_norm")(x)))
        return x


class Parameters(nn.Module):
    """Matrices, shifts and scales as numbered attributes of the network, the scales for a list beside them."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(linear() for _ in range(count))
        for at in range(count):
            self.register_parameter(f"W{at}", nn.Parameter(torch.randn(WIDTH, WIDTH)))
            self.register_parameter(f"b{at}", nn.Parameter(torch.randn(WIDTH)))
            self.register_buffer(f"scale_{at}", torch.rand(WIDTH))
        self.out = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        for at, layer in enumerate(self.layers):
            x = x + torch.tanh(x @ getattr(self, f"W{at}") + getattr(self, f"b{at}"))
            x = x + layer(x * getattr(self, f"scale_{at}"))
        result: Tensor = self.out(x)
        return result


class Keyed(nn.Module):
    """A dictionary with the number of every second layer."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(linear() for _ in range(count))
        self.cross = nn.ModuleDict({str(at): linear() for at in range(0, count, 2)})

    def forward(self, x: Tensor) -> Tensor:
        for at, layer in enumerate(self.layers):
            if str(at) in self.cross:
                x = x + torch.tanh(self.cross[str(at)](x))
            x = x + torch.relu(layer(x))
        return x


class MiddleOfThree(nn.Module):
    """Of three layers the second is followed by one of another list."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(linear() for _ in range(count))
        self.cross = nn.ModuleList(linear() for _ in range(count // 3))

    def forward(self, x: Tensor) -> Tensor:
        for at, layer in enumerate(self.layers):
            x = x + torch.relu(layer(x))
            if at % 3 == 1:
                x = x + torch.tanh(self.cross[at // 3](x))
        return x


class Twice(nn.Module):
    """Each layer stands twice in the list (MobileLLM)."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer for layer in (linear() for _ in range(count)) for _ in "ab")

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return x


class Shard(nn.Module):
    """The layers of a later part of a pipeline, under the numbers that they have in the whole."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({str(at): linear() for at in range(12, 12 + count)})

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers.values():
            x = x + torch.tanh(layer(x))
        return x


class Between(nn.Module):
    """Modules without weights stand between the layers and do not run; behind the last layer stands none."""

    def __init__(self, count: int) -> None:
        super().__init__()
        pairs = [part for _ in range(count) for part in (linear(), nn.Identity())]
        self.layers = nn.ModuleList(pairs[:-1])

    def forward(self, x: Tensor) -> Tensor:
        for at in range(0, len(self.layers), 2):
            x = x + torch.tanh(self.layers[at](x))
        return x


def test_slots_that_run_nothing_go_with_the_layer_before_them() -> None:
    model, native = Between(4).eval(), Between(5).eval()
    graph = eir.trace(model, (X,))
    (stage,) = graph.stages
    assert (len(stage), len(stage.blocks)) == (4, 3)  # the last one has no such slot, and stays the last
    deeper = eir.stretch(graph, to_stages=[5])
    native.load_state_dict(deeper.state_dict())
    assert torch.equal(deeper.to_module()(X), native(X))
    assert torch.equal(eir.squeeze(deeper, to_stages=[4]).to_module()(X), model(X))


@pytest.mark.parametrize(
    ("make", "count", "step"),
    [(Middle, 4, 1), (Parameters, 4, 1), (Keyed, 6, 2), (MiddleOfThree, 9, 3), (Twice, 3, 1), (Shard, 3, 1)],
)
def test_a_deeper_one_is_the_native_one(make: Callable[[int], nn.Module], count: int, step: int) -> None:
    model, native = make(count).eval(), make(count + step).eval()
    graph = eir.trace(model, (X,))
    (stage,) = graph.stages
    assert len(stage.blocks) == count // step
    deeper = eir.stretch(graph, to_units=count // step + 1)
    native.load_state_dict(deeper.state_dict())
    assert torch.allclose(deeper.to_module()(X), native(X), atol=1e-6)
    back = eir.squeeze(deeper, to_units=count // step)
    assert back.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in back.state_dict().items())
    assert torch.equal(back.to_module()(X), model(X))


class Series(nn.Module):
    """Two series of attributes of one module (VGG's names)."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__()
        self.counts = first, second
        for at in range(1, first + 1):
            self.add_module(f"fc1_{at}", linear())
        self.wider = nn.Linear(WIDTH, 2 * WIDTH)
        for at in range(1, second + 1):
            self.add_module(f"fc2_{at}", nn.Linear(2 * WIDTH, 2 * WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        for at in range(1, self.counts[0] + 1):
            x = torch.relu(getattr(self, f"fc1_{at}")(x))
        x = self.wider(x)
        for at in range(1, self.counts[1] + 1):
            x = torch.relu(getattr(self, f"fc2_{at}")(x))
        return x


def test_series_of_one_module_are_a_stage_each() -> None:
    graph = eir.trace(Series(3, 4).eval(), (X,))
    assert [(stage.name, len(stage.blocks)) for stage in graph.stages] == [("fc1", 3), ("fc2", 4)]
    deeper, native = eir.stretch(graph, to_stages=[4, 5]), Series(4, 5).eval()
    native.load_state_dict(deeper.state_dict())
    assert torch.equal(deeper.to_module()(X), native(X))


class FromItsEnd(nn.Module):
    """Lists that are run from their last block to the first, which has a number of its own and a row of a tensor."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(linear() for _ in range(count))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(count))
        self.gains = nn.Parameter(torch.randn(count, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        for at in reversed(range(len(self.layers))):
            x = x + torch.relu(self.layers[at](self.norms[at](x) * self.gains[at]))
        return x


def test_lists_that_are_run_from_their_end(tmp_path: Path) -> None:
    model, native = FromItsEnd(4).eval(), FromItsEnd(6).eval()
    graph = eir.trace(model, (X,))
    (stage,) = graph.stages
    assert [block.path for block in stage.all_blocks] == [f"layers.{at}" for at in (3, 2, 1, 0)]
    deeper = eir.stretch(graph, to_stages=[6])
    assert (
        deeper.lineage()["layers.1.weight"] == "layers.3.weight"
    )  # the copies run last, and have the first numbers
    native.load_state_dict(deeper.state_dict())
    assert list(deeper.state_dict()) == list(native.state_dict())
    made = deeper.to_module()
    assert type(made) is FromItsEnd
    assert torch.equal(made(X), native(X))
    eir.save(deeper, tmp_path / "deeper.pt")
    back = eir.squeeze(eir.load(tmp_path / "deeper.pt"), to_stages=[4])
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in back.state_dict().items())
    assert torch.equal(back.to_module()(X), model(X))


class Coupling(nn.Module):
    """A step of a flow that changes one half by the other."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(WIDTH // 2, WIDTH)

    def inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log = torch.zeros(x.shape[0])
        left, right = x.chunk(2, 1)
        scale, shift = self.net(left).chunk(2, 1)
        return torch.cat([left, (right - shift) * torch.sigmoid(-scale)], 1), log - scale.sum(1)


class Swap(nn.Module):
    """The two halves change places."""

    def inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        left, right = x.chunk(2, 1)
        return torch.cat([right, left], 1), torch.zeros(x.shape[0])


class Density(nn.Module):
    """A flow's density, which runs its steps from the last to the first; every second one has no weights."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.flows = nn.ModuleList(step for _ in range(count) for step in (Coupling(), Swap()))

    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros(x.shape[0])
        for flow in reversed(self.flows):
            x, log = flow.inverse(x)  # type: ignore[operator]
            total = total + log
        return total - x.pow(2).sum(1)


@pytest.mark.parametrize("frontend", ["fx", "export"])
def test_steps_without_weights_between_those_of_a_list_that_is_run_from_its_end(frontend: Frontend) -> None:
    model, native = Density(3).eval(), Density(4).eval()
    graph = eir.trace(model, (X,), frontend=frontend)
    (stage,) = graph.stages
    assert [[child.path for child in block.children] for block in stage.blocks] == [
        [f"flows.{at}", f"flows.{at - 1}"] for at in (5, 3, 1)
    ]
    deeper = eir.stretch(graph, to_stages=[4])
    native.load_state_dict(deeper.state_dict())
    assert torch.equal(deeper.to_module()(X), native(X))
    back = eir.squeeze(deeper, to_stages=[3])
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in back.state_dict().items())
