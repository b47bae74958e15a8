"""What one object in many places, and branches side by side, must not hide or count twice."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import elastic_ir as eir


class Block(nn.Module):
    """A residual block whose activation is handed in."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.act = act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.act(x + self.conv2(self.act(self.conv1(x))))
        return result


class OneActivation(nn.Module):
    """The same activation object in the stem and in every block, as a default argument makes it."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        act = nn.ReLU()
        self.stem, self.act = nn.Conv2d(3, 8, 3), act
        self.blocks = nn.Sequential(*(Block(act) for _ in range(blocks)))
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.blocks(self.act(self.stem(x))).mean((2, 3)))
        return result


class Branches(nn.Module):
    """Two series of blocks side by side, summed."""

    def __init__(self, left: int, right: int) -> None:
        super().__init__()
        self.left = nn.Sequential(*(Block(nn.ReLU()) for _ in range(left)))
        self.right = nn.Sequential(*(Block(nn.GELU()) for _ in range(right)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.left(x) + self.right(x)
        return result


def test_an_activation_that_all_blocks_share_hides_nothing() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 12, 12)
    graph = eir.trace(OneActivation(3), images)
    assert [(stage.name, len(stage)) for stage in graph.stages] == [("blocks", 3)]
    assert repr(graph.stages) == "(<Stage 'blocks': 3 free blocks>,)"
    deeper = eir.stretch(graph, to_units=5)
    native = OneActivation(5)
    native.load_state_dict(deeper.state_dict())
    assert torch.equal(native(images), deeper.to_module()(images))


def test_a_linear_layer_that_all_blocks_share_stays_one() -> None:
    class Layer(nn.Module):
        def __init__(self, common: nn.Linear) -> None:
            super().__init__()
            self.own, self.common = nn.Linear(6, 6), common

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = x + self.common(self.own(x).relu())
            return result

    class Tied(nn.Module):
        def __init__(self, blocks: int) -> None:
            super().__init__()
            common = nn.Linear(6, 6)
            self.blocks = nn.Sequential(*(Layer(common) for _ in range(blocks)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.blocks(x)
            return result

    torch.manual_seed(0)
    deeper = eir.stretch(eir.trace(Tied(2), torch.randn(1, 6)), to_units=4)
    module = deeper.to_module()
    assert len(list(module.parameters())) == 2 * 4 + 2
    native = Tied(4)
    native.load_state_dict(deeper.state_dict())
    given = torch.randn(3, 6)
    assert torch.equal(native(given), module(given))


def test_of_parallel_branches_only_the_longest_counts() -> None:
    graph = eir.trace(Branches(3, 2), torch.randn(1, 8, 6, 6))
    assert graph.depth == 6
    names = [stage.name for stage in graph.stages]
    for stretched, depth in (
        (eir.stretch(graph, to_stages={names[1]: 3}), 6),
        (eir.stretch(graph, to_stages={names[1]: 5}), 10),
    ):
        retraced = eir.trace(stretched.to_module(), torch.randn(1, 8, 6, 6))
        assert stretched.depth == retraced.depth == depth
    assert eir.squeeze(eir.stretch(graph, to_stages={names[1]: 5}), to_stages={names[1]: 1}).depth == 6


class _ReadsAnEntry(nn.Module):
    """One layer, and item 3 of a parameter of its own or of a layer."""

    def __init__(self, of_layer: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.table = nn.Embedding(5, 8)
        self.scale = nn.Parameter(torch.ones(4))
        self.of_layer = of_layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        entry = self.table.weight[3] if self.of_layer else self.scale[3]
        result: torch.Tensor = self.layer(x) + entry
        return result


@pytest.mark.parametrize("of_layer", [False, True])
def test_an_item_of_a_parameter_is_no_result_of_a_fused_operator(of_layer: bool) -> None:
    graph = eir.trace(_ReadsAnEntry(of_layer), torch.randn(2, 8))
    with pytest.raises(eir.StructureError, match="nothing in _ReadsAnEntry repeats"):
        _ = graph.stages


class Residual(nn.Module):
    def __init__(self, given: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(given, channels, 3, padding=1, stride=1 if given == channels else 2)
        self.skip = None if given == channels else nn.Conv2d(given, channels, 1, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv(x) + (x if self.skip is None else self.skip(x)))


class Visual(nn.Module):
    """A stem of numbered layers, and stages of which none repeats by itself (CLIP's ResNet)."""

    def __init__(self) -> None:
        super().__init__()
        for number, (given, channels) in enumerate(((3, 4), (4, 4), (4, 6)), 1):
            self.add_module(f"conv{number}", nn.Conv2d(given, channels, 3, padding=1))
            self.add_module(f"norm{number}", nn.BatchNorm2d(channels))
        self.layer1 = nn.Sequential(Residual(6, 8), Residual(8, 8))
        self.layer2 = nn.Sequential(Residual(8, 16), Residual(16, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for number in (1, 2, 3):
            x = torch.relu(self.get_submodule(f"norm{number}")(self.get_submodule(f"conv{number}")(x)))
        result: torch.Tensor = self.layer2(self.layer1(x)).mean((2, 3))
        return result


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.visual = Visual()
        self.text = nn.Sequential(*(nn.Sequential(nn.Linear(16, 16), nn.ReLU()) for _ in range(3)))

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return self.visual(image) @ self.text(text).T  # type: ignore[no-any-return]


def test_a_stem_of_numbered_layers_hides_no_stages() -> None:
    graph = eir.trace(Pair().eval(), (torch.randn(1, 3, 8, 8), torch.randn(2, 16)))
    names = [(stage.name, len(stage), len(stage.blocks)) for stage in graph.stages]
    assert names == [("visual.layer1", 2, 1), ("visual.layer2", 2, 1), ("text", 3, 3)]
