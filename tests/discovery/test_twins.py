"""What stands beside the stack and does not run: a twin grows with it, heads of training alone are asked about."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import elastic_ir as eir

WIDTH = 6
X = torch.randn(2, 4)


class Target(nn.Module):
    """A network and its target, which is averaged and runs in training alone (DQN)."""

    def __init__(self, count: int) -> None:
        super().__init__()
        layers = (layer for _ in range(count) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU()))
        self.policy = nn.ModuleDict({"net": nn.Sequential(nn.Linear(4, WIDTH), *layers)})
        self.target = copy.deepcopy(self.policy)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.policy["net"](x)
        return result


class Heads(nn.Module):
    """A head for each layer that runs in training alone."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.first = nn.Linear(4, WIDTH)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(count))
        self.heads = nn.ModuleList(nn.Linear(WIDTH, 2) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        x, results = self.first(x), []
        for layer, head in zip(self.layers, self.heads, strict=True):
            x = torch.relu(layer(x))
            if self.training:
                results.append(head(x))
        return results or x


def test_a_twin_grows_and_shrinks_with_the_network_that_runs() -> None:
    model, native = Target(3).eval(), Target(5).eval()
    with torch.no_grad():
        for parameter in model.target.parameters():  # it is no second name of the other's weights
            parameter.mul_(0.5)
    graph = eir.trace(model, (X,))
    (stage,) = graph.stages
    assert [box.path for box in stage.containers] == ["policy.net", "target.net"]
    deeper = eir.stretch(graph, to_units=5)
    native.load_state_dict(deeper.state_dict())
    assert torch.equal(deeper.to_module()(X), native(X))
    last = "net.9.weight"
    assert torch.equal(2 * native.target.get_parameter(last), native.policy.get_parameter(last))
    back = eir.squeeze(deeper, to_units=3).state_dict()
    assert back.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in back.items())


def test_heads_of_training_alone_are_asked_about() -> None:
    graph = eir.trace(Heads(3).eval(), (X,))
    with pytest.raises(eir.PlanError, match=r"'heads' \(3\) beside it does not run .* --keep-beside heads"):
        eir.stretch(graph, to_units=4)
    kept = eir.stretch(graph, to_units=4, keep_beside="heads")
    assert "heads.3.weight" not in kept.state_dict()
