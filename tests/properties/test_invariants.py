"""The invariants of the design, over random small networks and random plans."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import elastic_ir as eir
from elastic_ir.plans.plan import Order

WIDTH = 4


class ResidualBlock(nn.Module):
    """Convolution, norm, shortcut; a projection where the shape changes."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, 3, stride=stride, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(outside)
        self.project = nn.Conv2d(inside, outside, 1, stride=stride) if inside != outside else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.relu(self.bn(self.conv(x)) + self.project(x))
        return out


class AttentionBlock(nn.Module):
    """A pre-norm block; its two projections may be one tensor, and its scale may be the whole network's."""

    def __init__(self, tied: bool, scale: nn.Parameter | None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, WIDTH)
        self.down = nn.Linear(WIDTH, WIDTH)
        if tied:
            self.down.weight = self.up.weight
        if scale is not None:
            self.scale = scale
        self.scaled = scale is not None

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.down(torch.tanh(self.up(self.norm(x)))) * keep
        return x + (y * self.scale if self.scaled else y)


@dataclass(frozen=True)
class Recipe:
    """What a random network is built from; the same recipe with other counts is the native deeper network."""

    kind: str
    counts: tuple[int, ...]
    tied: bool = False
    shared: bool = False

    def build(self, counts: tuple[int, ...] | None = None) -> nn.Module:
        counts = counts or self.counts
        if self.kind == "residual":
            return Residual(counts)
        if self.kind == "plain":
            return plain(counts)
        return Transformer(counts[0], self.tied, self.shared)

    def example(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        if self.kind == "transformer":
            return torch.randint(0, 7, (2, 3), generator=generator)
        return torch.randn(2, 3, 8, 8, generator=generator)


class Residual(nn.Module):
    """Stages of residual blocks, each opened by one that changes the channels."""

    def __init__(self, counts: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 3, padding=1)
        widths = [WIDTH * (index + 2) for index in range(len(counts))]
        stages = []
        for index, count in enumerate(counts):
            inside = widths[index - 1] if index else WIDTH
            blocks = [ResidualBlock(inside, widths[index], 2)]
            blocks += [ResidualBlock(widths[index], widths[index], 1) for _ in range(count - 1)]
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.head = nn.Linear(widths[-1], 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        out: torch.Tensor = self.head(x.mean((2, 3)))
        return out


def plain(counts: tuple[int, ...]) -> nn.Module:
    """A flat Sequential of convolution, norm and activation with pools between the stages (VGG's form)."""
    layers: list[nn.Module] = []
    inside = 3
    for index, count in enumerate(counts):
        width = WIDTH * (index + 1)
        for _ in range(count):
            layers += [nn.Conv2d(inside, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            inside = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(2))


class Transformer(nn.Module):
    """Tied embedding and head, blocks in a ModuleList that all read one mask."""

    def __init__(self, count: int, tied: bool, shared: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, WIDTH)
        scale = nn.Parameter(torch.rand(WIDTH)) if shared else None
        self.blocks = nn.ModuleList(AttentionBlock(tied, scale) for _ in range(count))
        self.head = nn.Linear(WIDTH, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        keep = (tokens > 0).to(self.embed.weight.dtype)[..., None]
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, keep)
        out: torch.Tensor = self.head(x)
        return out


stage_counts = st.lists(st.integers(2, 4), min_size=2, max_size=3).map(tuple)
recipes = st.one_of(
    st.builds(Recipe, st.just("residual"), stage_counts),
    st.builds(Recipe, st.just("plain"), stage_counts),
    st.builds(Recipe, st.just("transformer"), st.tuples(st.integers(2, 4)), st.booleans(), st.booleans()),
)
orders = st.sampled_from(["append", "interpolate"])


def source(recipe: Recipe) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The network, used once so that lazy layers are there, with random statistics and masks."""
    torch.manual_seed(0)
    model = recipe.build()
    model(recipe.example())
    model.eval()
    masks = {
        name: (torch.rand_like(parameter) > 0.5).float()
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1 and "embed" not in name
    }
    return model, masks


@st.composite
def plans(draw: st.DrawFn) -> tuple[Recipe, list[list[int]]]:
    """A recipe and a random plan for it: grown, shrunk or re-ordered, entries kept."""
    recipe = draw(recipes)
    plan = []
    for count in recipe.counts:
        if recipe.kind == "transformer":
            plan.append(draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=6)))
        else:
            plan.append([0, *draw(st.lists(st.integers(1, count - 1), min_size=0, max_size=5))])
    return recipe, plan


def same_bits(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return list(left) == list(right) and all(torch.equal(left[name], right[name]) for name in left)


@given(recipes)
@settings(max_examples=15)
def test_reading_and_emitting_changes_nothing(recipe: Recipe) -> None:
    """Invariant 1 and 9: names, bytes and outputs bit for bit, and no storage shared."""
    model, _ = source(recipe)
    module = eir.trace(model, (recipe.example(),)).to_module()
    assert same_bits(module.state_dict(), model.state_dict())
    assert torch.equal(module(recipe.example()), model(recipe.example()))
    ours = {tensor.data_ptr() for tensor in module.state_dict().values()}
    assert ours.isdisjoint({tensor.data_ptr() for tensor in model.state_dict().values()})


@given(plans())
@settings(max_examples=25)
def test_any_plan_gives_the_native_network(case: tuple[Recipe, list[list[int]]]) -> None:
    """Invariants 2 to 5: names, lineage, ownership, ties, masks; outputs equal the native network's."""
    recipe, plan = case
    model, masks = source(recipe)
    graph = eir.trace(model, (recipe.example(),), masks=masks)
    target = eir.stretch(graph, plan=plan)
    native = recipe.build(tuple(len(stage) for stage in plan))
    native(recipe.example())
    native.load_state_dict(target.state_dict(), strict=True)
    assert list(native.state_dict()) == list(target.state_dict())
    module = target.to_module()
    assert torch.equal(module(recipe.example()), native.eval()(recipe.example()))

    stored, written, lineage = target.state_dict(masked=False), target.state_dict(), target.lineage()
    original = model.state_dict()
    assert list(lineage) == list(written)
    assert all(torch.equal(stored[name], original[lineage[name]]) for name in stored)
    carried = target.masks()
    for name, mask in carried.items():
        assert mask.shape == written[name].shape
        assert bool(((mask == 0) | (mask == 1)).all())
        assert not bool(written[name][mask == 0].any())
    for name, origin in lineage.items():
        if origin in masks:
            assert torch.equal(carried[name], masks[origin])

    owners: dict[int, set[str]] = {}
    for name, tensor in module.state_dict().items():
        if tensor.numel():
            owners.setdefault(tensor.data_ptr(), set()).add(name)
    tied = {frozenset(names) for names in owners.values() if len(names) > 1}
    expected: set[frozenset[str]] = set()
    if recipe.kind == "transformer":
        expected.add(frozenset({"embed.weight", "head.weight"}))
        blocks = range(len(plan[0]))
        if recipe.tied:
            expected |= {frozenset({f"blocks.{i}.up.weight", f"blocks.{i}.down.weight"}) for i in blocks}
        if recipe.shared and len(plan[0]) > 1:
            expected.add(frozenset(f"blocks.{i}.scale" for i in blocks))
    assert tied == expected


@given(recipes, st.integers(0, 4), orders)
@settings(max_examples=20)
def test_the_inverse_squeeze_gives_the_source_back(recipe: Recipe, more: int, order: Order) -> None:
    """Invariant 6: text, weights and masks."""
    model, masks = source(recipe)
    graph = eir.trace(model, (recipe.example(),), masks=masks)
    deeper = eir.stretch(graph, to_stages=[count + more for count in recipe.counts], order=order)
    back = eir.squeeze(deeper, to_stages=recipe.counts, drop="tail" if order == "append" else "even")
    assert str(back) == str(graph)
    assert same_bits(back.state_dict(masked=False), dict(model.state_dict()))
    assert same_bits(back.masks(), graph.masks())


@given(recipes)
@settings(max_examples=6)
def test_both_front_ends_find_the_same(recipe: Recipe) -> None:
    """torch.fx and torch.export agree on stages and depth."""
    model, _ = source(recipe)
    left, right = (eir.trace(model, (recipe.example(),), frontend=name) for name in ("fx", "export"))
    assert left.depth == right.depth
    assert [[(block.path, block.layers) for block in stage.all_blocks] for stage in left.stages] == [
        [(block.path, block.layers) for block in stage.all_blocks] for stage in right.stages
    ]


@given(plans())
@settings(max_examples=10)
def test_gradients_reach_every_clone(case: tuple[Recipe, list[list[int]]]) -> None:
    """Each clone is a parameter of its own with a gradient of its own."""
    recipe, plan = case
    model, _ = source(recipe)
    module = eir.stretch(eir.trace(model, (recipe.example(),)), plan=plan).to_module().train()
    module(recipe.example()).square().sum().backward()
    gradients = [parameter.grad for parameter in module.parameters()]
    assert all(gradient is not None for gradient in gradients)
    assert len({gradient.data_ptr() for gradient in gradients if gradient is not None}) == len(gradients)
