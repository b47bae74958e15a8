"""Heads that run behind a loop on the state of each block are parts of the blocks, once or in both places."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import elastic_ir as eir
from elastic_ir.choices import Frontend
from elastic_ir.ir.graph import Graph

D = 8


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.feed = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D)
        self.norm = nn.LayerNorm(D)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(memory).transpose(1, 2)
        result: Tensor = self.norm(x + self.feed(torch.softmax(scores, -1) @ memory))
        return result


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, 4)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in itertools.islice(self.layers, 2):
            x = torch.relu(layer(x))
        result: Tensor = self.layers[2](x)
        return result


def inverse(x: Tensor) -> Tensor:
    return torch.log(x.clamp(min=1e-3) / (1 - x).clamp(min=1e-3))


class Detector(nn.Module):
    """A decoder whose heads for boxes may refine them in its loop, and run behind it on the states of all layers."""

    def __init__(
        self, n: int, *, refine: bool = True, stack: bool = True, tied: bool = False, proposals: bool = False
    ) -> None:
        super().__init__()
        self.refine, self.stack, self.proposals = refine, stack, proposals
        self.embed, self.start = nn.Linear(4, D), nn.Linear(D, 4)
        self.layers = nn.ModuleList(Layer() for _ in range(n))
        kinds, boxes = nn.Linear(D, 3), Head()
        count = n + proposals
        self.kinds = nn.ModuleList(kinds if tied else copy.deepcopy(kinds) for _ in range(count))
        self.boxes = nn.ModuleList(boxes if tied else copy.deepcopy(boxes) for _ in range(count))

    def forward(self, x: Tensor) -> tuple[Any, Any]:
        memory = self.embed(x)
        state = memory[:, :5]
        box = torch.sigmoid(self.boxes[-1](state) if self.proposals else self.start(state))
        states, references = [], [box]
        for at, layer in enumerate(self.layers):
            state = layer(state, memory)
            if self.refine:
                box = torch.sigmoid(self.boxes[at](state) + inverse(box)).detach()
            states.append(state)
            references.append(box)
        rows: Any = torch.stack(states, 1) if self.stack else states
        kinds, boxes = [], []
        for at in range(len(self.layers)):
            state = rows[:, at] if self.stack else rows[at]
            kinds.append(self.kinds[at](state))
            boxes.append(torch.sigmoid(self.boxes[at](state) + inverse(references[at])))
        return torch.stack(kinds), boxes


X = torch.linspace(-1, 1, 2 * 7 * 4).reshape(2, 7, 4)


def equal(left: nn.Module, right: nn.Module) -> bool:
    mine, theirs = tree_leaves(left.eval()(X)), tree_leaves(right.eval()(X))
    return len(mine) == len(theirs) and all(map(torch.allclose, mine, theirs))


def layers_of(graph: Graph) -> Any:
    (stage,) = graph.stages
    assert stage.container.template == "layers.{i}"
    assert {"kinds.{i}", "boxes.{i}"} <= {box.template for box in stage.containers}
    assert len(stage) == 3
    return stage


@pytest.mark.parametrize("frontend", ["fx", "export"])
@pytest.mark.parametrize("tied", [False, True], ids=["cloned", "tied"])
@pytest.mark.parametrize(
    "how",
    [{}, {"stack": False}, {"refine": False}, {"proposals": True}],
    ids=["refined", "in a list", "behind alone", "one head more for proposals"],
)
@pytest.mark.slow
def test_the_natively_deeper_and_the_shallower_network_give_equal_outputs(
    how: dict[str, bool], tied: bool, frontend: Frontend
) -> None:
    torch.manual_seed(0)
    source = Detector(3, tied=tied, **how).eval()
    graph = eir.trace(source, (X,), frontend=frontend)
    layers_of(graph)
    for count, changed in ((4, eir.stretch(graph, to_stages=[4])), (2, eir.squeeze(graph, to_stages=[2]))):
        native = Detector(count, tied=tied, **how)
        module = changed.to_module()
        assert tied or type(module) is Detector
        native.load_state_dict(module.state_dict(), strict=True)
        assert equal(module, native)


def test_back_again_it_is_what_it_was() -> None:
    torch.manual_seed(0)
    source = Detector(3).eval()
    graph = eir.trace(source, (X,))
    back = eir.squeeze(eir.stretch(graph, to_stages=[4]), to_stages=[3])
    assert str(back) == str(graph)
    assert equal(back.to_module(), source)


class Taps(nn.Module):
    """Heads on states of other shapes each, as a pyramid has them, and one that mixes two states."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(2 * i, 2 * i + 2, 1) for i in range(1, 5))
        self.heads = nn.ModuleList(nn.Conv2d(2 * i, 3, 1) for i in range(2, 6))

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for layer in self.layers:
            x = torch.relu(layer(x))
            found.append(x)
        results = [head(one) for head, one in zip(self.heads, found, strict=True)]
        return torch.stack(results).sum(0)


def test_heads_without_a_like_stay_behind() -> None:
    graph = eir.trace(Taps(), (torch.zeros(1, 2, 4, 4),), frontend="fx")
    scopes = [node.scope for node in graph if node.weight_names()]
    assert scopes == [*(f"layers.{i}" for i in range(4)), *(f"heads.{i}" for i in range(4))]


class Written(nn.Module):
    """A forward that writes into the states before the heads read them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(D, D) for _ in range(3))
        self.heads = nn.ModuleList(nn.Linear(D, 3) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        states = []
        for layer in self.layers:
            x = layer(x)
            states.append(x)
        for state in states:
            state.mul_(2)
        return torch.stack([head(state) for head, state in zip(self.heads, states, strict=True)])


@pytest.mark.slow
def test_what_is_written_into_before_a_head_reads_it_stays_where_it_is() -> None:
    graph = eir.trace(Written(), (torch.zeros(2, D),), frontend="fx")
    scopes = [node.scope for node in graph if node.weight_names()]
    assert scopes == [*(f"layers.{i}" for i in range(3)), *(f"heads.{i}" for i in range(3))]
