"""Lists that are registered twice: both registrations grow and shrink together, as in the natively built network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import elastic_ir as eir
from elastic_ir.choices import Frontend

WIDTH = 8
X = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(0))


def block() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU())


class View(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


class Viewed(nn.Module):
    """Each block once more in something around it."""

    def __init__(self, count: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block() for _ in range(count))
        self.views = nn.ModuleList(View(part) for part in self.blocks)
        self.out = nn.Linear(WIDTH, 2)

    def forward(self, x: torch.Tensor) -> Any:
        for part in self.blocks:
            x = x + part(x)
        return self.out(x)


class ViewedFirst(Viewed):
    """The same with the views first in the state dict."""

    def __init__(self, count: int = 3) -> None:
        super().__init__(count)
        blocks = self.blocks
        del self.blocks
        self.blocks = blocks


class Kept(nn.Module):
    """A ModuleList that a Sequential runs."""

    def __init__(self, count: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block() for _ in range(count))
        self.body = nn.Sequential(*self.blocks)
        self.out = nn.Linear(WIDTH, 2)

    def forward(self, x: torch.Tensor) -> Any:
        return self.out(self.body(x))


class Encoder(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(block() for _ in range(count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


class Head(nn.Module):
    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.out = nn.Linear(WIDTH, 2)


class TwoHeads(nn.Module):
    """An encoder that two heads share."""

    def __init__(self, count: int = 3) -> None:
        super().__init__()
        encoder = Encoder(count)
        self.one, self.other = Head(encoder), Head(encoder)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.one.encoder(x)
        return torch.cat([self.one.out(x), self.other.out(x)], -1)


class Flat(nn.Module):
    """A Sequential of layers, norms and activations, whole in another place too."""

    def __init__(self, count: int = 3) -> None:
        super().__init__()
        self.net = nn.Sequential(*[part for _ in range(count) for part in block().children()])
        self.again = View(self.net)
        self.out = nn.Linear(WIDTH, 2)

    def forward(self, x: torch.Tensor) -> Any:
        return self.out(self.net(x))


KINDS: dict[type[nn.Module], list[str]] = {
    Viewed: ["blocks.{i}", "views.{i}"],
    ViewedFirst: ["views.{i}", "blocks.{i}"],
    Kept: ["body.{i}", "blocks.{i}"],
    TwoHeads: ["one.encoder.layers.{i}", "other.encoder.layers.{i}"],
    Flat: ["net.{i}", "again.inner.{i}"],
}


def tied(module: nn.Module) -> list[list[str]]:
    """The names of the state dict, those of one tensor together."""
    names: dict[int, list[str]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    return sorted(names.values())


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("frontend", ["fx", "export"])
@pytest.mark.everyday(4)
def test_both_grow_and_shrink(kind: Callable[..., nn.Module], frontend: Frontend, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    graph = eir.trace(model, (X,), frontend=frontend)
    (stage,) = graph.stages
    assert len(stage) == 3
    assert sorted(box.template for box in stage.containers) == sorted(KINDS[kind])  # type: ignore[index]
    for count in (5, 2):
        change = eir.stretch if count > 3 else eir.squeeze
        changed = change(graph, to_units=count)
        module = changed.to_module().eval()
        assert type(module) is kind
        twin = kind(count).eval()
        assert list(changed.state_dict()) == list(twin.state_dict())
        twin.load_state_dict(changed.state_dict())
        assert torch.allclose(twin(X), module(X), atol=1e-6)
        assert tied(module) == tied(twin)
        assert len(list(module.modules())) == len(
            list(twin.modules())
        )  # modules are shared too, not weights alone
        eir.save(changed, tmp_path / "net.pt")
        assert len(eir.load(tmp_path / "net.pt").stages[0]) == count
    back = eir.squeeze(eir.stretch(graph, to_units=5), to_units=3)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in back.state_dict().items())


def test_masks_stay_tied() -> None:
    mask = (torch.rand(WIDTH, WIDTH) > 0.5).float()
    graph = eir.trace(Viewed().eval(), (X,), masks={"blocks.1.0.weight": mask})
    deeper = eir.stretch(graph, plan="0,1,1,2")
    assert torch.equal(deeper.masks()["views.2.inner.0.weight"], mask)
    state = deeper.to_module().state_dict()
    assert (state["views.2.inner.0.weight"][mask == 0] == 0).all()


class Reversed(Viewed):
    """The second list the other way round: which of its members a new block would be, nothing shows."""

    def __init__(self, count: int = 3) -> None:
        super().__init__(count)
        self.views = nn.ModuleList(View(part) for part in reversed(self.blocks))


def test_a_list_in_another_order_is_refused() -> None:
    graph = eir.trace(Reversed().eval(), (X,))
    with pytest.raises(
        eir.EmitError, match="'views' holds the blocks of 'blocks' a second time, and would keep its 3"
    ):
        eir.stretch(graph, to_units=4).to_module()
