"""Networks of timm that repeat inside branches, in pairs, or not at all, and those that torch.fx cannot follow."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

import elastic_ir as eir
from elastic_ir.checkpoints.names import graph_of_tensors
from elastic_ir.choices import Frontend
from elastic_ir.frontends.trace import weight_table
from elastic_ir.plans.plan import Drop, Order

IMAGES = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def hrnet(name: str, blocks: dict[str, int]) -> nn.Module:
    """A network of timm with other numbers of blocks in the branches of its stages."""
    from timm.models import hrnet

    family: Any = hrnet
    settings: Any = copy.deepcopy(family.cfg_cls[name])
    for stage, count in blocks.items():
        settings[stage]["num_blocks"] = tuple(count for _ in settings[stage]["num_blocks"])
    torch.manual_seed(0)
    model: nn.Module = family.HighResolutionNet(settings).eval()
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "first"),
    [("hrnet_w18_small", []), pytest.param("hrnet_w18_small_v2", ["layer1"], marks=pytest.mark.slow)],
)
def test_branches_stretch_side_by_side(name: str, first: list[str]) -> None:
    source = hrnet(name, {})
    graph = eir.trace(source, IMAGES)
    branches = [stage for stage in graph.stages if ".branches." in stage.name]
    assert [stage.name for stage in graph.stages if stage not in branches] == first
    assert {(len(stage), stage.entry, stage.period) for stage in branches} == {(2, None, 1)}
    wanted = {stage.name: 4 for stage in branches if stage.name.startswith("stage3")}
    native = hrnet(name, {"stage3": 4})
    ways: tuple[tuple[Order, Drop], ...] = (("append", "tail"), ("interpolate", "even"))
    for order, drop in ways:
        deeper = eir.stretch(graph, to_stages=wanted, order=order)
        native.load_state_dict(deeper.state_dict())
        made = deeper.to_module()
        with torch.no_grad():
            assert torch.equal(native(IMAGES), made(IMAGES))
        assert deeper.depth == eir.trace(made, IMAGES).depth > graph.depth
        back = eir.squeeze(deeper, to_stages=dict.fromkeys(wanted, 2), drop=drop)
        assert str(back) == str(graph)


def swin() -> nn.Module:
    torch.manual_seed(0)
    make: Any = torchvision.models.SwinTransformer
    model: nn.Module = make([2, 2], 8, [2, 2, 6], [1, 2, 2], [4, 4], num_classes=4)
    model.eval()
    return model


@pytest.mark.slow
def test_one_block_of_a_pair_goes_only_when_asked_for() -> None:
    source = swin()
    graph = eir.trace(source, IMAGES)
    kept = [[0, 1], [0, 1], [0, 1, 2, 4, 5]]
    name = graph.stages[2].name
    refusals: tuple[Callable[[], eir.Graph], ...] = (
        lambda: eir.squeeze(graph, plan=kept),
        lambda: eir.squeeze(graph, to_stages=(2, 2, 5)),
        lambda: eir.squeeze(graph, to_stages=(2, 2, 5), drop=[1]),
        lambda: eir.stretch(graph, to_stages=(2, 2, 8), replicate=[1]),
    )
    for refused in refusals:
        with pytest.raises(eir.PlanError, match=r"2 blocks.*--unit 1"):
            refused()
    single = eir.squeeze(graph, plan=kept, unit=1)
    expected = copy.deepcopy(source)
    blocks = expected.get_submodule(name)
    setattr(
        expected.get_submodule("features"),
        name[-1],
        nn.Sequential(*(blocks.get_submodule(str(i)) for i in kept[2])),
    )
    with torch.no_grad():
        assert torch.equal(single.to_module()(IMAGES), expected(IMAGES))
    assert "2 blocks were found to make a unit" in single.structure.note
    assert "unit=1" in single.structure.note
    assert [stage.period for stage in graph.stages] == [2, 2, 2]  # what was given stays as it was
    assert graph.structure.note == ""
    pairs = eir.stretch(graph, to_stages=(2, 2, 8), unit=2)
    assert pairs.structure.note == ""
    with pytest.raises(eir.StructureError, match="not a multiple of unit=4"):
        graph.with_unit(4)
    assert [stage.period for stage in graph.stages] == [2, 2, 2]


@pytest.mark.parametrize("library", ["timm", "torchvision"])
@pytest.mark.slow
def test_layers_that_widen_are_said_to(library: str) -> None:
    """DenseNet: one sentence that names the container, by tracing and by names."""
    with torch.device("meta"):
        model = timm.create_model("densenet121") if library == "timm" else torchvision.models.densenet121()
    table = weight_table(model)
    bare = graph_of_tensors("bare", {name: w.storage.data for name, w in table.items() if w.persistent})
    for graph in (eir.trace(model), bare):
        with pytest.raises(eir.StructureError) as caught:
            _ = graph.stages
        message = str(caught.value)
        assert "the 24 layers of 'features.denseblock3'" in message
        assert "each is wider than the one before it (256, 288, 320 channels" in message
        assert "\n" not in message


#: name: what reads it, blocks of each stage
CONTROL_FLOW = {
    "vgg11": ("export", [1, 1, 2, 2, 2]),
    "tiny_vit_5m_224": ("export", [2, 2, 6, 2]),
    "mobilevit_xxs": ("export", [1, 3, 2, 4, 3]),
    "hiera_tiny_224": ("fx", [1, 2, 7, 2]),
    "maxvit_pico_rw_256": ("fx", [2, 2, 5, 2]),
}


@pytest.mark.parametrize("name", CONTROL_FLOW)
@pytest.mark.slow
def test_what_fx_cannot_follow_is_exported_in_silence(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Not a word from torch; the same structure as ever; and, for one that is exported, a stretch that runs."""
    frontend, counts = CONTROL_FLOW[name]
    with torch.device("meta"):
        model = timm.create_model(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph = eir.trace(model)
    assert capfd.readouterr() == ("", "")
    assert graph.info.frontend == frontend
    assert [len(stage) for stage in graph.stages] == counts


@pytest.mark.slow
@pytest.mark.parametrize(("name", "stage"), [("tiny_vit_5m_224", 2), ("mobilevit_xxs", 2), ("vgg11_bn", 3)])
def test_what_was_exported_stretches(name: str, stage: int) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    graph = eir.trace(model)
    counts = [len(s) + (2 if place == stage else 0) for place, s in enumerate(graph.stages)]
    deeper = eir.stretch(graph, to_stages=counts)
    assert deeper.depth == eir.trace(deeper.to_module()).depth > graph.depth
    back = eir.squeeze(deeper, to_stages=[len(s) for s in graph.stages]).state_dict()
    assert list(back) == list(model.state_dict())
    assert all(torch.equal(back[key], tensor) for key, tensor in model.state_dict().items())


class Caching(nn.Module):
    """A block that keeps what it computed, and lists what it was given (LeViT's attention biases)."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(6, 6)
        self.bias = nn.Parameter(torch.zeros(6))
        self.kept: dict[str, torch.Tensor] = {}
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x)
        if "bias" not in self.kept:
            self.kept["bias"] = self.bias * 2
        self.last = x
        result: torch.Tensor = x + self.mix(x) + self.kept["bias"]
        return result


@pytest.mark.parametrize("frontend", ["fx", "export"])
def test_tracing_leaves_nothing_behind(frontend: Frontend) -> None:
    model = nn.Sequential(*(Caching() for _ in range(3)))
    graph = eir.trace(model, torch.randn(2, 6), frontend=frontend)
    assert [len(stage) for stage in graph.stages] == [3]
    for block in model:
        assert isinstance(block, Caching)
        assert not block.kept
        assert not block.seen
        assert not hasattr(block, "last")


def test_a_warning_of_the_network_itself_is_passed_on() -> None:
    class Warns(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            warnings.warn("old weights", UserWarning, stacklevel=1)
            return super().forward(x)

    with pytest.warns(UserWarning, match="old weights"):
        eir.trace(nn.Sequential(Warns(6, 6), Warns(6, 6)), torch.randn(2, 6), frontend="export")
