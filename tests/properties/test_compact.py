"""Random small networks with random dead filters, columns and norms: compact never changes what they compute."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import elastic_ir as eir
from elastic_ir.ir.verifier import verify
from elastic_ir.passes import Compact, FoldBatchNorm
from elastic_ir.zoo import cifar_resnet
from tests.passes.pruned import randomise_norms, same_function

WIDTH = 4
KINDS = ("residual", "concat", "grouped", "depthwise", "gate", "plain", "pool")
ACTIVATIONS = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "hardswish": nn.Hardswish, "none": nn.Identity}


@dataclass(frozen=True)
class Part:
    """One piece of a network, as the strategy draws it."""

    kind: str
    activation: str
    kernel: int
    padding: int
    bias: bool
    norm: bool


class Piece(nn.Module):
    """A convolution with what the part asks for, joined to its input in one of several ways."""

    def __init__(self, part: Part, width: int) -> None:
        super().__init__()
        self.kind = part.kind
        groups = {"grouped": 2, "depthwise": width}.get(part.kind, 1)
        keeps = part.kind in ("residual", "concat", "gate")
        padding = part.kernel // 2 if keeps else part.padding
        self.conv = nn.Conv2d(width, width, part.kernel, padding=padding, groups=groups, bias=part.bias)
        self.norm = nn.BatchNorm2d(width) if part.norm else nn.Identity()
        self.act = ACTIVATIONS[part.activation]()
        self.pool = nn.AvgPool2d(3, 1, 1) if part.kind == "pool" else nn.Identity()
        self.mix = nn.Conv2d(2 * width, width, 1) if part.kind == "concat" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.pool(self.act(self.norm(self.conv(x))))
        if self.kind == "residual":
            return torch.relu(x + y)
        if self.kind == "concat":
            mixed: Tensor = self.mix(torch.cat([x, y], 1))
            return mixed
        if self.kind == "gate":
            return x * torch.sigmoid(y.mean((2, 3), keepdim=True))
        return y


class Network(nn.Module):
    """A stem, the pieces, and a linear head over the flattened maps."""

    def __init__(self, parts: list[Part]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, WIDTH, 1)
        self.pieces = nn.Sequential(*(Piece(part, WIDTH) for part in parts))
        self.pool = nn.AdaptiveMaxPool2d(2)
        self.head = nn.Linear(4 * WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.flatten(self.pool(self.pieces(self.stem(x))), 1))
        return out


PARTS = st.builds(
    Part,
    kind=st.sampled_from(KINDS),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    kernel=st.sampled_from((1, 3)),
    padding=st.sampled_from((1, 2)),
    bias=st.booleans(),
    norm=st.booleans(),
)


def masks(model: nn.Module, dice: torch.Generator, rows: float, columns: float) -> dict[str, Tensor]:
    """Whole filters, whole columns and single weights pruned at random."""
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            mask = (torch.rand(module.weight.shape, generator=dice) < 0.8).double()
            mask[torch.rand(mask.shape[0], generator=dice) < rows] = 0
            mask[:, torch.rand(mask.shape[1], generator=dice) < columns] = 0
            found[f"{path}.weight"] = mask
    return found


@given(
    parts=st.lists(PARTS, min_size=1, max_size=4),
    seed=st.integers(0, 2**16),
    rows=st.sampled_from((0.0, 0.3, 0.6, 0.9)),
    columns=st.sampled_from((0.0, 0.3, 0.7)),
    shifted=st.booleans(),
    folded=st.booleans(),
)
@settings(max_examples=25)
@pytest.mark.slow
def test_compact_never_changes_the_function(
    parts: list[Part], seed: int, rows: float, columns: float, shifted: bool, folded: bool
) -> None:
    torch.manual_seed(seed)
    model = Network(parts)
    if shifted:
        randomise_norms(model, seed)
    model = model.double().eval()
    x = torch.randn(2, 2, 7, 7, dtype=torch.double)
    dice = torch.Generator().manual_seed(seed)
    graph = eir.trace(model, (x,), masks=masks(model, dice, rows, columns))
    if folded:
        graph = FoldBatchNorm().run(graph)
    done = Compact().run(graph)
    verify(done)
    assert done.parameter_count() <= graph.parameter_count() + 2 * WIDTH * len(parts)
    same_function(graph, done, x)
    again = Compact().run(done)
    same_function(graph, again, x)
    assert again.parameter_count() <= done.parameter_count()


@given(
    seed=st.integers(0, 2**16),
    dead=st.sets(st.sampled_from([f"layer{s}.{b}.conv2" for s in (1, 2, 3) for b in (0, 1, 2)]), max_size=6),
    shifted=st.sets(st.sampled_from([f"layer{s}.{b}.bn2" for s in (1, 2, 3) for b in (0, 1, 2)]), max_size=3),
    folded=st.booleans(),
)
@settings(max_examples=8)
@pytest.mark.slow
def test_units_go_exactly_where_nothing_is_added(
    seed: int, dead: set[str], shifted: set[str], folded: bool
) -> None:
    """A dead last convolution makes a dead unit, unless the norm behind it adds something."""
    torch.manual_seed(seed)
    model = cifar_resnet(20, width=4).double().eval()
    found = {f"{path}.weight": torch.zeros_like(model.get_parameter(f"{path}.weight")) for path in dead}
    with torch.no_grad():
        for path in shifted:
            model.get_parameter(f"{path}.bias").fill_(0.5)
    graph = eir.trace(model, (torch.randn(2, 3, 8, 8, dtype=torch.double),), masks=found)
    if folded:
        graph = FoldBatchNorm().run(graph)
    done = Compact().run(graph)
    free = {path.removesuffix(".conv2") for path in dead} - {path.removesuffix(".bn2") for path in shifted}
    assert set(done.history.reports["compact"]["units"]) == {path for path in free if not path.endswith(".0")}
    assert done.depth == 20 - 2 * len(done.history.reports["compact"]["units"])
    same_function(graph, done, torch.randn(2, 3, 8, 8, dtype=torch.double))
