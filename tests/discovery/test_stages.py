"""What makes a stage and a unit where the blocks alone do not show it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import elastic_ir as eir
from elastic_ir.choices import Frontend

WIDTH = 8


def outline(graph: eir.Graph) -> list[tuple[str, int, int, int | None]]:
    """Name, blocks that are kept, free blocks and period of each stage."""
    return [(stage.name, stage.fixed, len(stage.blocks), stage.period) for stage in graph.stages]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.project(x)
        return x + torch.softmax(y @ y.transpose(1, 2) + mask, -1) @ y  # type: ignore[no-any-return]


class Sliding(nn.Module):
    """Blocks that differ in the mask that their caller gives them, every ``every``-th the full one."""

    def __init__(self, depth: int, every: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Attention() for _ in range(depth))
        self.every = every

    def forward(self, x: Tensor) -> Tensor:
        ones = torch.ones(x.shape[1], x.shape[1])
        full = ones.triu(1) * -100
        sliding = full + ones.tril(-2) * -100
        for index, layer in enumerate(self.layers):
            x = layer(x, full if (index + 1) % self.every == 0 else sliding)
        return x


@pytest.mark.parametrize(("depth", "every"), [(4, 2), (6, 2), (6, 3), (8, 4)])
def test_masks_made_outside_the_blocks_show_the_period(depth: int, every: int) -> None:
    x = torch.randn(1, 5, WIDTH)
    graph = eir.trace(Sliding(depth, every).eval(), (x,), frontend="export")
    assert outline(graph) == [("layers", 0, depth, every)]
    deeper = eir.stretch(graph, to_units=depth // every + 1).to_module()
    native = Sliding(depth + every, every).eval()
    native.load_state_dict(deeper.state_dict())
    assert torch.allclose(deeper(x), native(x))


def test_masks_that_follow_no_period_leave_single_blocks() -> None:
    class Odd(Sliding):
        def forward(self, x: Tensor) -> Tensor:
            full = torch.zeros(x.shape[1], x.shape[1])
            sliding = full + 1
            for index, layer in enumerate(self.layers):
                x = layer(x, full if index in (0, 3, 4) else sliding)
            return x

    graph = eir.trace(Odd(6, 1).eval(), (torch.randn(1, 5, WIDTH),))
    assert outline(graph) == [("layers", 0, 6, 1)]


class Queries(nn.Module):
    """A norm and a projection, each one module, that the caller applies behind every block (DETR's decoders)."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Attention() for _ in range(depth))
        self.norm, self.scale = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.zeros(5, 5)
        for layer in self.layers:
            x = layer(x * self.scale(x), mask)
            x = self.norm(x)
        return x


@pytest.mark.parametrize("frontend", ["fx", "export"])
@pytest.mark.parametrize("depth", [2, 4])
def test_a_module_that_the_caller_shares_between_blocks_stays_one(frontend: Frontend, depth: int) -> None:
    x = torch.randn(1, 5, WIDTH)
    model = Queries(depth).eval()
    graph = eir.trace(model, (x,), frontend=frontend)
    assert outline(graph) == [("layers", 0, depth, 1)]
    deeper = eir.stretch(graph, to_stages={"layers": depth + 2})
    module = deeper.to_module()
    native = Queries(depth + 2).eval()
    native.load_state_dict(module.state_dict())
    assert torch.equal(module(x), native(x))
    assert torch.equal(eir.squeeze(deeper, to_stages={"layers": depth}).to_module()(x), model(x))


def test_a_norm_that_only_later_layers_have_is_theirs() -> None:
    """DnCNN: the first layer has no norm, the last one is bare, and what is between repeats."""
    middle = [
        part for _ in range(4) for part in (nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    ]
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), *middle, nn.Conv2d(8, 3, 3, padding=1))
    graph = eir.trace(model.eval(), (torch.randn(1, 8, 8, 8),))
    assert outline(graph) == [("network", 1, 4, 1)]
    assert [len(block.children) for block in graph.stages[0].all_blocks] == [2, 3, 3, 3, 3]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x).relu())  # type: ignore[no-any-return]


class Heads(nn.Module):
    """A backbone that repeats, and heads side by side that each are a layer behind another one."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*(Residual() for _ in range(3)))
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Sequential(nn.Conv2d(8, 6, 1), nn.SiLU()), nn.Sequential(nn.Conv2d(6, 6, 1), nn.SiLU()),
                nn.Conv2d(6, 2, 1),
            )
            for _ in range(2)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return torch.cat([head(x) for head in self.heads], 1)


def test_heads_side_by_side_are_not_stages() -> None:
    graph = eir.trace(Heads().eval(), (torch.randn(1, 8, 4, 4),))
    assert [stage.name for stage in graph.stages] == ["body"]


class Attributes(nn.Module):
    """``conv1``, ``bn1``, ``conv2``, ``bn2`` and so on, as attributes of the network itself."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.depth = depth
        for number in range(1, depth + 1):
            setattr(self, f"conv{number}", nn.Conv1d(WIDTH, WIDTH, 3, padding=1))
            setattr(self, f"bn{number}", nn.BatchNorm1d(WIDTH))
        self.out = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        for number in range(1, self.depth + 1):
            x = torch.relu(self.get_submodule(f"bn{number}")(self.get_submodule(f"conv{number}")(x)))
        return self.out(x.mean(-1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("depth", [3, 5])
def test_attributes_numbered_in_turn_are_lists(depth: int) -> None:
    x = torch.randn(2, WIDTH, 6)
    model = Attributes(depth).eval()
    graph = eir.trace(model, (x,))
    (stage,) = graph.stages
    assert [box.template for box in stage.containers] == ["conv{i}", "bn{i}"]
    deeper = eir.stretch(graph, to_stages=[depth + 1])
    assert (
        deeper.weights.keys()
        == dict(Attributes(depth + 1).named_parameters()).keys()
        | dict(Attributes(depth + 1).named_buffers()).keys()
    )
    assert torch.equal(eir.squeeze(deeper, to_stages=[depth]).to_module()(x), model(x))


class LongSkips(nn.Module):
    """Each block of the second half reads what its partner in the first half has computed (U-ViT)."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(depth))
        self.up = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for layer in self.down:
            x = torch.relu(layer(x))
            skips.append(x)
        for layer in self.up:
            x = torch.relu(layer(x + skips.pop()))
        return x


@pytest.mark.parametrize("depth", [3, 6])
def test_blocks_with_partners_are_refused(depth: int) -> None:
    graph = eir.trace(LongSkips(depth).eval(), (torch.randn(2, WIDTH),))
    with pytest.raises(
        eir.StructureError, match=r"each block of 'down' hands a value .* such a pair: long skips"
    ):
        graph.structure  # noqa: B018


class Forecast(nn.Module):
    """A residual and a forecast that starts as one number (N-BEATS)."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, 2 * WIDTH) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        forecast = x[:, -1:]
        for block in self.blocks:
            back, ahead = block(x).chunk(2, 1)
            x, forecast = x - back, forecast + ahead
        return forecast


def test_a_stream_that_starts_narrower_frees_the_first_block() -> None:
    x = torch.randn(3, WIDTH)
    model = Forecast(3).eval()
    graph = eir.trace(model, (x,))
    assert outline(graph) == [("blocks", 0, 3, 1)]
    deeper = eir.stretch(graph, plan=[[0, 0, 1, 2]]).to_module()
    native = Forecast(4).eval()
    native.load_state_dict(deeper.state_dict())
    assert torch.equal(deeper(x), native(x))
    assert eir.squeeze(graph, plan=[[1, 2]]).to_module()(x).shape == x.shape


class TwoStreams(nn.Module):
    """Text and image; the last block gives no text (Stable Diffusion 3)."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.out = None if last else nn.Linear(WIDTH, WIDTH)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor | None]:
        both = torch.tanh(self.image(image) + self.text(text))
        return image + both, None if self.out is None else text + self.out(both)


class Streams(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(TwoStreams(last=number == depth - 1) for number in range(depth))

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        for block in self.blocks:
            image, text = block(image, text)
        return image


@pytest.mark.parametrize("depth", [3, 5])
def test_a_last_block_that_gives_less_is_kept(depth: int) -> None:
    inputs = torch.randn(2, WIDTH), torch.randn(2, WIDTH)
    graph = eir.trace(Streams(depth).eval(), inputs)
    assert outline(graph) == [("blocks", 1, depth - 1, 1)]
    deeper = eir.stretch(graph, to_stages=[depth + 1]).to_module()
    native = Streams(depth + 1).eval()
    native.load_state_dict(deeper.state_dict())
    assert torch.equal(deeper(*inputs), native(*inputs))


class Counted(nn.Module):
    """The caller adds an embedding before the second list's first member alone (Latte)."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.space = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(depth))
        self.time = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for number, (space, time) in enumerate(zip(self.space, self.time, strict=True)):
            x = torch.relu(space(x))
            if number == 0:
                x = x + 1.0
            x = torch.relu(time(x))
        return x


def test_a_first_block_around_which_the_caller_does_more_is_kept() -> None:
    x = torch.randn(2, WIDTH)
    graph = eir.trace(Counted(4).eval(), (x,))
    assert graph.stages[0].entry is not None
    assert outline(graph) == [("space", 1, 3, 1)]
    deeper = eir.stretch(graph, to_stages=[6]).to_module()
    native = Counted(6).eval()
    native.load_state_dict(deeper.state_dict())
    assert torch.equal(deeper(x), native(x))


class Shortcut(nn.Module):
    def __init__(self, sub: nn.Module) -> None:
        super().__init__()
        self.sub = sub

    def forward(self, x: Tensor) -> Tensor:
        return x + self.sub(x)  # type: ignore[no-any-return]


def test_layers_around_a_trunk_are_not_the_stage() -> None:
    """ESRGAN: one Sequential of a convolution, the trunk with its shortcut, and two equal convolutions."""
    trunk = nn.Sequential(*(Residual() for _ in range(4)), nn.Conv2d(8, 8, 3, padding=1))
    tail = [part for _ in range(2) for part in (nn.Conv2d(8, 8, 3, padding=1), nn.LeakyReLU())]
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), Shortcut(trunk), *tail)
    graph = eir.trace(model.eval(), (torch.randn(1, 3, 8, 8),))
    assert outline(graph) == [("1.sub", 0, 4, 1)]


class Step(nn.Module):
    def __init__(self, inner: int, out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, out, 3, 1 if inner == out else 2, padding=1)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x).relu()).relu()  # type: ignore[no-any-return]


class Pyramid(nn.Module):
    """A decoder reads what each stage but the first one gets (a feature pyramid)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layer1 = nn.Sequential(*(Step(8, 8) for _ in range(3)))
        self.layer2 = nn.Sequential(Step(8, 16), Step(16, 16), Step(16, 16))
        self.layer3 = nn.Sequential(Step(16, 24), Step(24, 24), Step(24, 24))
        self.lateral = nn.ModuleList(nn.Conv2d(width, 4, 1) for width in (8, 16, 24))

    def forward(self, x: Tensor) -> Tensor:
        one = self.layer1(self.stem(x))
        two = self.layer2(one)
        three = self.layer3(two)
        found = [lateral(x) for lateral, x in zip(self.lateral, (one, two, three), strict=True)]
        return torch.stack([nn.functional.interpolate(x, size=(8, 8)) for x in found]).sum(0)


def test_stages_that_a_decoder_reads_are_all_found() -> None:
    graph = eir.trace(Pyramid().eval(), (torch.randn(1, 3, 8, 8),))
    assert outline(graph) == [("layer1", 1, 2, 1), ("layer2", 1, 2, 1), ("layer3", 1, 2, 1)]


@pytest.mark.parametrize("head", [False, True])
def test_one_norm_behind_the_last_layer_is_the_head_s(head: bool) -> None:
    body = [part for _ in range(4) for part in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    model = nn.Sequential(*body, nn.LayerNorm(WIDTH), *([nn.Linear(WIDTH, 3)] if head else []))
    graph = eir.trace(model.eval(), (torch.randn(2, WIDTH),))
    assert outline(graph) == [
        ("network", 0, 4, 1)
    ]  # the head narrows, which makes no entry of the first layer
    assert all(len(block.children) == 2 for block in graph.stages[0].blocks)


class Filled(nn.Module):
    """Writes into zeros, which depend on no input before (a spectral convolution does)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(WIDTH, WIDTH)), nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros(2, WIDTH)
        out[:, :] = x @ self.weight
        return out.relu() + self.bias


class Operator(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.skips = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(depth))
        self.convs = nn.ModuleList(Filled() for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for skip, conv in zip(self.skips, self.convs, strict=True):
            kept = skip(x)
            x = conv(x) + kept
        return x


def test_a_part_that_fills_zeros_runs_to_its_end() -> None:
    graph = eir.trace(Operator(3).eval(), (torch.randn(2, WIDTH),), frontend="export")
    (stage,) = graph.stages
    assert sorted(box.template for box in stage.containers) == ["convs.{i}", "skips.{i}"]
    assert outline(graph) == [(stage.name, 0, 3, 1)]


class WithPositions(nn.Module):
    """A projection of position gets a part of the channels, which is none where there are few (DAT)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(WIDTH, WIDTH, 3), nn.Conv2d(WIDTH, WIDTH, 3)
        self.position, self.table = nn.Linear(2, WIDTH // 16), nn.Linear(WIDTH // 16, 4)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_layers_without_channels_do_not_count(tmp_path: Path) -> None:
    model = nn.ModuleDict({"layers": nn.ModuleList(WithPositions() for _ in range(3))})
    torch.save(model.state_dict(), tmp_path / "model.pt")
    (stage,) = eir.load(tmp_path / "model.pt").stages
    assert [block.layers for block in stage.blocks] == [2, 2, 2]
