"""Blocks of several slots where values reach over one, streams that meet now and then, layers of two forms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import elastic_ir as eir

WIDTH = 8


def linears(count: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(count))


class Periodic(nn.Module):
    """A residual behind every third layer."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = linears(3 * count)

    def forward(self, x: Tensor) -> Tensor:
        kept = x
        for index, layer in enumerate(self.layers):
            x = torch.relu(layer(x))
            if index % 3 == 2:
                x = kept = x + kept
        return x


class Shortcuts(nn.Module):
    """A list of layers, and one of shortcuts behind every third of them (InceptionTime)."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers, self.shortcuts = linears(3 * count), linears(count)

    def forward(self, x: Tensor) -> Tensor:
        kept = x
        for index, layer in enumerate(self.layers):
            x = torch.relu(layer(x))
            if index % 3 == 2:
                x = kept = x + self.shortcuts[index // 3](kept)
        return x


class Taken(nn.Module):
    """A state that every second layer takes up again, and the others leave alone (EGNN's global tokens)."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers, self.start = linears(2 * count), nn.Parameter(torch.randn(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        state = self.start.expand_as(x)
        for index, layer in enumerate(self.layers):
            if index % 2:
                x = x + torch.tanh(layer(x))
            else:
                x, state = x + torch.relu(layer(state)), torch.tanh(layer(x) * state)
        return x + state


@pytest.mark.parametrize(
    ("make", "slots"),
    [(Periodic, 3), (Shortcuts, 4), (Taken, 2)],
    ids=lambda item: getattr(item, "__name__", ""),
)
def test_slots_that_values_reach_over_are_one_block(make: Callable[[int], nn.Module], slots: int) -> None:
    model, x = make(3).eval(), torch.randn(2, WIDTH)
    graph = eir.trace(model, (x,))
    (stage,) = graph.stages
    assert [len(block.children) for block in stage.blocks] == [slots] * 3
    deeper, native = eir.stretch(graph, to_stages=[4]), make(4).eval()
    native.load_state_dict(deeper.state_dict())
    assert torch.allclose(deeper.to_module()(x), native(x), atol=1e-6)
    assert torch.equal(eir.squeeze(deeper, to_stages=[3]).to_module()(x), model(x))


class Meeting(nn.Module):
    """Two streams that meet in every second block alone (Demucs)."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.left, self.right = linears(2 * count), linears(2 * count)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for index, (left, right) in enumerate(zip(self.left, self.right, strict=True)):
            if index % 2:
                x, y = x + torch.relu(left(y)), y + torch.relu(right(x))
            else:
                x, y = x + torch.tanh(left(x)), y + torch.tanh(right(y))
        return x + y


def test_streams_that_meet_in_every_second_block_are_of_one_stage() -> None:
    x, y = torch.randn(2, WIDTH), torch.randn(2, WIDTH)
    graph = eir.trace(Meeting(2).eval(), (x, y))
    (stage,) = graph.stages
    assert [box.template for box in stage.containers] == ["left.{i}", "right.{i}"]
    assert [len(block.children) for block in stage.blocks] == [4, 4]
    native = Meeting(3).eval()
    deeper = eir.stretch(graph, to_stages=[3])
    native.load_state_dict(deeper.state_dict())
    assert torch.allclose(deeper.to_module()(x, y), native(x, y), atol=1e-6)


class Rows(nn.Module):
    """Layer i takes row i of what is looked up for all of them at once (Gemma 3n)."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.rows, self.layers = nn.Linear(WIDTH, count * WIDTH), linears(count)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.rows(x).reshape(-1, len(self.layers), WIDTH)
        for index, layer in enumerate(self.layers):
            x = x + torch.relu(layer(x * rows[:, index]))
        return x


def test_a_row_for_each_block_makes_them_no_less_alike() -> None:
    model, x = Rows(4).eval(), torch.randn(2, WIDTH)
    graph = eir.trace(model, (x,))
    (stage,) = graph.stages
    assert len({block.signature for block in stage.blocks}) == 1
    deeper = eir.stretch(graph, to_stages=[5])
    assert torch.equal(eir.squeeze(deeper, to_stages=[4]).to_module()(x), model(x))


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.layer(x))


class Shared(nn.Module):
    """Beside its own layer one that all of its kind have."""

    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self.common, self.down, self.up = shared, nn.Linear(WIDTH, 4), nn.Linear(4, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(torch.tanh(self.down(self.common(x))))  # type: ignore[no-any-return]


def hybrid(count: int) -> nn.Module:
    common = nn.Linear(WIDTH, WIDTH)
    return nn.Sequential(*(layer for _ in range(count) for layer in (Plain(), Plain(), Shared(common))))


def test_layers_without_a_name_in_common_are_of_one_stage_where_they_alternate() -> None:
    graph, x = eir.trace(hybrid(2).eval(), (torch.randn(2, WIDTH),)), torch.randn(2, WIDTH)
    (stage,) = graph.stages
    assert (len(stage), stage.period) == (6, 3)
    native = hybrid(3).eval()
    deeper = eir.stretch(graph, to_stages=[9])
    native.load_state_dict(deeper.state_dict())
    assert torch.allclose(deeper.to_module()(x), native(x), atol=1e-6)


def test_a_layer_of_another_form_that_occurs_once_is_of_no_stage() -> None:
    graph = eir.trace(nn.Sequential(Plain(), Plain(), Shared(nn.Linear(WIDTH, WIDTH)), Plain(), Plain()))
    assert [[block.path for block in stage.blocks] for stage in graph.stages] == [["0", "1"], ["3", "4"]]


def norms_first(count: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Linear(4, WIDTH)]
    for _ in range(count):
        layers += [nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.GELU()]
    return nn.Sequential(*layers, nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2))


def test_a_norm_alone_behind_the_first_layer_is_the_next_one_s() -> None:
    x = torch.randn(2, 4)
    graph = eir.trace(norms_first(3).eval(), (x,))
    (stage,) = graph.stages
    assert stage.entry is None
    assert [[child.path for child in block.children] for block in stage.blocks] == [
        ["1", "2", "3"],
        ["4", "5", "6"],
        ["7", "8", "9"],
    ]
    native = norms_first(4).eval()
    deeper = eir.stretch(graph, to_stages=[4])
    native.load_state_dict(deeper.state_dict())
    assert torch.allclose(deeper.to_module()(x), native(x), atol=1e-6)


class Joined(nn.Module):
    """Two towers whose results meet in a third list (LXMERT)."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.first, self.second = linears(count), linears(count)
        self.third, self.cross = linears(count), linears(count)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for layer in self.first:
            x = x + torch.relu(layer(x))
        for layer in self.second:
            y = y + torch.relu(layer(y))
        for layer, cross in zip(self.third, self.cross, strict=True):
            x, y = x + torch.relu(layer(y)), y + torch.relu(cross(x))
        return x + y


def test_both_towers_grow_below_the_list_in_which_they_meet() -> None:
    x, y = torch.randn(2, WIDTH), torch.randn(2, WIDTH)
    graph = eir.trace(Joined(2).eval(), (x, y))
    assert len(graph.stages) == 3
    native = Joined(3).eval()
    deeper = eir.stretch(graph, to_stages=[3, 3, 3])
    native.load_state_dict(deeper.state_dict())
    assert torch.allclose(deeper.to_module()(x, y), native(x, y), atol=1e-6)


class Halves(nn.Module):
    """One list, whose second half reads what the first half took (SimpleUViT)."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [nn.Linear(WIDTH * (1 + (2 * at >= depth)), WIDTH), Plain(), Shared(nn.Linear(WIDTH, WIDTH))]
            )
            for at in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for at, (join, one, other) in enumerate(layer.children() for layer in self.layers):
            if 2 * at < len(self.layers):
                skips.append(x)
                x = join(x)
            else:
                x = join(torch.cat((x, skips.pop()), dim=-1))
            x = other(one(x))
        return x


@pytest.mark.parametrize("depth", [4, 6])
def test_halves_of_a_list_that_are_partners_are_refused(depth: int) -> None:
    graph = eir.trace(Halves(depth).eval(), (torch.randn(2, WIDTH),))
    with pytest.raises(eir.StructureError, match=r"each block of 'layers' hands a value .* long skips"):
        graph.structure  # noqa: B018


class Middle(nn.Module):
    """One list, whose last two layers add what went into the second and the third (HunyuanDiT)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Plain() for _ in range(7))

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for at, layer in enumerate(self.layers):
            x = layer(x + skips.pop() if at > 4 else x)
            if at < 2:
                skips.append(x)
        return x


def test_blocks_between_partners_are_no_stage() -> None:
    graph = eir.trace(Middle().eval(), (torch.randn(2, WIDTH),))
    with pytest.raises(eir.StructureError, match=r"\(layers\.5 and layers\.1 are such a pair: long skips"):
        graph.structure  # noqa: B018


class Concatenated(nn.Module):
    """A head over the results of all blocks, side by side."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.blocks, self.out = nn.ModuleList(Plain() for _ in range(count)), nn.Linear(count * WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for block in self.blocks:
            x = block(x)
            found.append(x)
        return self.out(torch.cat(found, dim=-1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("count", [2, 4])
def test_a_layer_as_wide_as_all_results_together_is_the_reason(count: int) -> None:
    graph = eir.trace(Concatenated(3).eval(), (torch.randn(2, WIDTH),))
    change = eir.stretch if count > 3 else eir.squeeze
    with pytest.raises(
        eir.StructureError, match=r"concatenated \(%cat\), and 'out.weight' has columns for each"
    ):
        change(graph, to_stages=[count])


class Levels(nn.Module):
    """Stages of two blocks, and a list of the layers that downsample between them."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.ModuleList(nn.Linear(WIDTH // 2**at, WIDTH // 2**at) for _ in range(2)) for at in range(3)
        )
        self.downs = nn.ModuleList(nn.Linear(WIDTH // 2**at, WIDTH // 2 ** (at + 1)) for at in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for at, stage in enumerate(self.stages):
            for layer in stage.children():
                x = x + torch.relu(layer(x))
            x = self.downs[at](x) if at < len(self.downs) else x
        return x


def test_a_last_stage_without_a_layer_behind_it_makes_no_block_of_the_others() -> None:
    graph = eir.trace(Levels().eval(), (torch.randn(2, WIDTH),))
    assert [(stage.name, len(stage.blocks)) for stage in graph.stages] == [
        ("stages.0", 2),
        ("stages.1", 2),
        ("stages.2", 2),
    ]


def test_an_embedding_before_the_blocks_is_no_norm_of_the_first() -> None:
    """One Sequential from the embedding to the head (PaLM)."""

    def network(count: int) -> nn.Module:
        blocks = (nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6)) for _ in range(count))
        return nn.Sequential(nn.Embedding(9, 6), *blocks, nn.LayerNorm(6), nn.Linear(6, 9)).eval()

    tokens = torch.tensor([[1, 2, 3]])
    graph = eir.trace(network(3), (tokens,))
    (stage,) = graph.stages
    assert [block.path for block in stage.blocks] == ["1", "2", "3"]
    deeper, native = eir.stretch(graph, to_units=4), network(4)
    native.load_state_dict(deeper.state_dict())
    assert torch.equal(deeper.to_module()(tokens), native(tokens))
