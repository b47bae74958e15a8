"""Blocks whose slots lie in several lists, or that pass several tensors on: found, cloned and deleted as one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import elastic_ir as eir
from elastic_ir.choices import Frontend
from elastic_ir.passes.depth.drop_by_similarity import DropBySimilarity

WIDTH = 8


def linears(count: int, inputs: int = WIDTH, outputs: int = WIDTH) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(inputs, outputs) for _ in range(count))


def norms(count: int) -> nn.ModuleList:
    return nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(count))


class Mixer(nn.Module):
    """A feed-forward network with a norm before it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 12), nn.GELU(), nn.Linear(12, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]


class Pairs(nn.Module):
    """``for attn, ff in self.layers``: the blocks are lists of their own."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleList([Mixer(), Mixer()]) for _ in range(count))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            attention, feed_forward = layer.children()
            x = attention(x) + x
            x = feed_forward(x) + x
        return self.norm(x)  # type: ignore[no-any-return]


class Zipped(nn.Module):
    """A graph network's convolutions and norms, in two lists that are zipped."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.convs, self.norms, self.out = linears(count), norms(count), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = torch.relu(norm(conv(x)))
        return self.out(x)  # type: ignore[no-any-return]


class Indexed(nn.Module):
    """Four lists side by side, as XLM has them, with the norms before the layers."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.norm1, self.attentions = norms(count), linears(count)
        self.norm2, self.ffns = norms(count), nn.ModuleList(Mixer() for _ in range(count))
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        for place in range(len(self.attentions)):
            x = x + self.attentions[place](self.norm1[place](x))
            x = x + self.ffns[place](self.norm2[place](x))
        return self.head(x)  # type: ignore[no-any-return]


class TwoToOne(nn.Module):
    """Two layers of one list for each of the other."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.attentions, self.ffns = linears(2 * count), nn.ModuleList(Mixer() for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        for place, feed_forward in enumerate(self.ffns):
            x = x + self.attentions[2 * place](x)
            x = x + torch.tanh(self.attentions[2 * place + 1](x))
            x = x + feed_forward(x)
        return x


class Named(nn.Module):
    """Convolutions and norms in dictionaries with numbered keys."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.convs = nn.ModuleDict({f"conv{at}": nn.Linear(WIDTH, WIDTH) for at in range(count)})
        self.norms = nn.ModuleDict({f"norm{at}": nn.LayerNorm(WIDTH) for at in range(count)})
        self.out = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs.values(), self.norms.values(), strict=True):
            x = x + torch.relu(norm(conv(x)))
        return self.out(x)  # type: ignore[no-any-return]


class Streams(nn.Module):
    """Blocks that take and give two tensors."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return x + torch.relu(self.left(y)), y + torch.relu(self.right(x))

    def __init__(self, count: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Block() for _ in range(count))
        self.out = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.sin(x)
        for block in self.blocks:
            x, y = block(x, y)
        return self.out(x - y)  # type: ignore[no-any-return]


class Waves(nn.Module):
    """WaveNet's form: a residual stream, and a running sum of skips that alone is read at the end."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.dilated, self.skips, self.residuals = linears(count), linears(count), linears(count)

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = 0  # type: ignore[assignment]
        for dilated, skip, residual in zip(self.dilated, self.skips, self.residuals, strict=True):
            inner = torch.tanh(dilated(x))
            total = skip(inner) + total
            x = x + residual(inner)
        return torch.relu(total)


class Hidden(nn.Module):
    """All hidden states, side by side, are the result."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Mixer() for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        states = []
        for block in self.blocks:
            x = x + block(x)
            states.append(x)
        return torch.stack(states).sum(0)


class Unlike(nn.Module):
    """A graph network whose last layer has no norm."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.convs, self.norms = linears(count), norms(count - 1)

    def forward(self, x: Tensor) -> Tensor:
        last = len(self.convs) - 1
        for place, conv in enumerate(self.convs):
            x = conv(x)
            if place < last:
                x = torch.relu(self.norms[place](x))
        return x


class Activated(nn.Module):
    """Layers with an activation between them, but none behind the last."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = linears(count)

    def forward(self, x: Tensor) -> Tensor:
        for place, layer in enumerate(self.layers):
            x = layer(x if place == 0 else torch.relu(x))
        return x


class Towers(nn.Module):
    """Two towers that one loop steps; nothing joins them before the end."""

    def __init__(self, left: int, right: int) -> None:
        super().__init__()
        self.left, self.right = nn.ModuleList(Mixer() for _ in range(left)), linears(right)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cos(x)
        for place in range(max(len(self.left), len(self.right))):
            if place < len(self.left):
                x = x + self.left[place](x)
            if place < len(self.right):
                y = torch.relu(self.right[place](y))
        return x * y


KINDS: list[tuple[type[nn.Module], list[str]]] = [
    (Pairs, ["layers"]),
    (Zipped, ["convs", "norms"]),
    (Indexed, ["attentions", "norm1", "norm2", "ffns"]),
    (TwoToOne, ["ffns", "attentions"]),
    (Named, ["convs", "norms"]),
    (Streams, ["blocks"]),
    (Waves, ["dilated", "skips", "residuals"]),
    (Hidden, ["blocks"]),
    (Unlike, ["convs", "norms"]),
    (Activated, ["layers"]),
]


def traced(model: nn.Module, frontend: Frontend = "fx") -> eir.Graph:
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return eir.trace(model.eval(), (torch.randn(2, WIDTH),), frontend=frontend)


@pytest.mark.parametrize("frontend", ["fx", "export"])
@pytest.mark.parametrize(("kind", "lists"), KINDS, ids=lambda item: getattr(item, "__name__", ""))
@pytest.mark.everyday(6)
def test_a_deeper_one_is_the_native_one(
    kind: Callable[[int], nn.Module], lists: list[str], frontend: Frontend
) -> None:
    """One stage over all lists; deeper it loads into the native network, and shallower again it is the source."""
    model = kind(4)
    graph = traced(model, frontend)
    (stage,) = graph.stages
    assert len(stage) == 4
    assert [box.path for box in stage.containers] == lists
    deeper = eir.stretch(graph, to_stages={stage.name: 5})
    made = deeper.to_module()
    assert type(made) is kind
    native = kind(5).eval()
    native.load_state_dict(deeper.state_dict())
    x = torch.randn(3, WIDTH) if frontend == "fx" else torch.randn(2, WIDTH)
    assert torch.equal(made(x), native(x))
    back = eir.squeeze(deeper, to_stages={stage.name: 4})
    assert back.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in back.state_dict().items())
    assert torch.equal(back.to_module()(x), model(x))


@settings(max_examples=15, deadline=None)
@given(st.sampled_from([kind for kind, _ in KINDS]), st.data())
def test_any_plan_gives_every_list_the_same_layers(
    kind: Callable[[int], nn.Module], data: st.DataObject
) -> None:
    graph = traced(kind(3))
    (stage,) = graph.stages
    free = list(range(stage.pinned, 3 - (stage.exit is not None)))
    middle = data.draw(st.lists(st.sampled_from(free), min_size=1, max_size=5))
    plan = [*range(stage.pinned), *middle, *range(3 - (stage.exit is not None), 3)]
    made = eir.stretch(graph, plan=[plan])
    native = kind(len(plan)).eval()
    native.load_state_dict(made.state_dict())
    for box in made.stages[0].containers:
        step = len(box.children) // len(plan) or 1
        numbers = [
            int("".join(filter(str.isdigit, child.origin.rpartition(".")[2]))) for child in box.children
        ]
        expected = [index * step + part for index in plan for part in range(step)][: len(numbers)]
        assert numbers == expected


def test_towers_that_one_loop_steps_are_two_stages() -> None:
    """Equal numbers prove nothing: no flow inside of a block joins the two, so each grows by itself."""
    graph = traced(Towers(3, 3))
    assert [(stage.name, len(stage), len(stage.containers)) for stage in graph.stages] == [
        ("left", 3, 1),
        ("right", 3, 1),
    ]
    deeper = eir.stretch(graph, to_stages={"left": 5})
    native = Towers(5, 3).eval()
    native.load_state_dict(deeper.state_dict())
    x = torch.randn(2, WIDTH)
    assert torch.equal(deeper.to_module()(x), native(x))


@pytest.mark.parametrize("index", [0, 3])
def test_a_last_block_that_lacks_something_stays_the_last(index: int) -> None:
    graph = traced(Unlike(4))
    plan = [0, 1, 2, 3]
    plan.insert(index, 3)
    with pytest.raises(
        eir.PlanError, match=r"stage 'convs': the plan clones block 3, which lacks what the others have"
    ):
        eir.stretch(graph, plan=[plan])
    with pytest.raises(eir.PlanError, match=r"stage 'convs': the plan does not end with block 3"):
        eir.squeeze(graph, plan=[[0, 1, 2]])
    with pytest.raises(eir.PlanError, match="block 3 of stage 'convs' is its last"):
        eir.squeeze(graph, drop=[3])


def test_influence_is_measured_on_one_stream() -> None:
    with pytest.raises(
        eir.PlanError, match=r"2 tensors flow into blocks\.0, and what a unit does is measured on one"
    ):
        DropBySimilarity(count=1).run(traced(Streams(4)))


def test_inspect_shows_the_names_of_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from elastic_ir.cli.app import elastic_ir

    eir.save(traced(Zipped(3)), tmp_path / "net.pt")
    elastic_ir(["inspect", str(tmp_path / "net.pt")], standalone_mode=False)
    assert "convs.{i}, norms.{i}" in capsys.readouterr().out
