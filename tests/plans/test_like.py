"""Refusals of a reference: each says which stage, what both sides hold, and which weights have no counterpart."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import elastic_ir as eir
from elastic_ir.errors import PlanError
from elastic_ir.zoo import cifar_resnet


class Block(nn.Module):
    """A residual block, with a norm at its end if wanted."""

    def __init__(self, channels: int, norm: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels) if norm else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = x + self.conv2(self.conv1(x).relu())
        return y if self.norm is None else self.norm(y)


class Net(nn.Module):
    """A series of blocks, some of which have a norm."""

    def __init__(
        self, norms: str, channels: int = 8, classes: int = 4, pool: type[nn.Module] = nn.AvgPool2d
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3)
        self.pool = pool(2)
        self.blocks = nn.Sequential(*(Block(channels, letter == "n") for letter in norms))
        self.head = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.blocks(self.pool(self.stem(x))).mean((2, 3)))
        return result


def traced(*args: object, **kwargs: object) -> eir.Graph:
    torch.manual_seed(0)
    return eir.trace(Net(*args, **kwargs), torch.randn(2, 3, 16, 16))  # type: ignore[arg-type]


def plan(graph: eir.Graph) -> list[list[int | str]]:
    return [list(stage) for stage in graph.resequenced.plan]


@pytest.mark.slow
def test_each_place_takes_a_block_of_its_kind() -> None:
    source = traced("..n..n")
    assert plan(eir.stretch(source, like=traced("..n..n..n..n"))) == [[0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]]
    assert plan(eir.stretch(source, like=traced(".......n"))) == [[0, 1, 3, 4, 0, 1, 3, 2]]
    assert plan(eir.squeeze(source, like=traced("n.n"))) == [[2, 0, 5]]
    deeper = eir.stretch(source, like=Net("..n.....n"), order="interpolate")
    native = Net("..n.....n")
    native.load_state_dict(deeper.state_dict())
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(native.eval()(images), deeper.to_module().eval()(images))


def test_a_block_that_holds_more_than_is_needed_gives_what_is_needed() -> None:
    source = traced("nn")
    deeper = eir.stretch(source, like=Net(".n.n"))
    native = Net(".n.n")
    native.load_state_dict(deeper.state_dict())
    images = torch.randn(2, 3, 16, 16)
    module = deeper.to_module().eval()
    assert torch.equal(native.eval()(images), module(images))
    assert module.get_submodule("blocks.1.norm") is not None
    assert module.get_submodule("blocks.0").norm is None


def test_a_weight_without_counterpart_is_named() -> None:
    with pytest.raises(PlanError) as caught:
        eir.stretch(traced("..."), like=traced("...n."))
    assert str(caught.value) == (
        "stage 1 cannot be matched: the source has blocks (3 blocks), the reference blocks (5 blocks); block 3 of the "
        "reference needs norm.bias [8], norm.num_batches_tracked, norm.running_mean [8] and 2 more, which no block of "
        "the source's stage has"
    )


def test_other_channels_are_a_refusal() -> None:
    with pytest.raises(
        PlanError, match=r"block 0 of the reference needs conv1.bias \[16\], conv1.weight \[16, 16, 3, 3\]"
    ):
        eir.stretch(traced("..."), like=traced("....", channels=16))


def test_the_output_layer_stays_the_source_s() -> None:
    deeper = eir.stretch(traced("..", classes=3), like=traced("....", classes=1000))
    assert deeper.state_dict()["head.weight"].shape == (3, 8)
    assert deeper.to_module()(torch.randn(1, 3, 16, 16)).shape == (1, 3)


def test_another_layer_outside_the_blocks_is_more_than_depth() -> None:
    with pytest.raises(PlanError, match=r"differ in more than their depth: pool is AvgPool2d.* MaxPool2d"):
        eir.stretch(traced("..."), like=traced("....", pool=nn.MaxPool2d))


@pytest.mark.slow
def test_the_direction_has_to_be_the_true_one() -> None:
    with pytest.raises(
        PlanError, match=r"with stages 2 is shallower than the source \(stages 3\): that is a squeeze"
    ):
        eir.stretch(traced("..."), like=traced(".."))
    with pytest.raises(
        PlanError, match=r"deeper than the source .*: that is a stretch, use 'stretch' for it"
    ):
        eir.squeeze(traced("..."), like=traced("...."))
    with pytest.raises(PlanError, match="drop is tail or even"):
        eir.squeeze(traced("..."), like=traced(".."), drop=[1])


def test_a_network_too_shallow_to_repeat_is_known_by_its_reference() -> None:
    single = traced(".")
    with pytest.raises(eir.StructureError, match="nothing in Net repeats"):
        eir.stretch(single, to_stages=[3])
    deeper = eir.stretch(single, like=traced("..."))
    assert plan(deeper) == [[0, 0, 0]]
    assert deeper.lineage()["blocks.2.conv1.weight"] == "blocks.0.conv1.weight"
    again = eir.squeeze(deeper, like=traced("."))
    assert all(torch.equal(t, single.state_dict()[n]) for n, t in again.state_dict().items())


def test_masks_follow_a_reference() -> None:
    model = cifar_resnet(20)
    masks = {
        n: (torch.rand_like(p) > 0.5).float()
        for n, p in model.named_parameters()
        if n.endswith("conv1.weight")
    }
    deeper = eir.stretch(eir.trace(model, masks=masks), like=eir.trace(cifar_resnet(32)))
    lineage = deeper.lineage()
    assert len(deeper.masks()) > len(masks)
    assert all(torch.equal(mask, masks[lineage[name]]) for name, mask in deeper.masks().items())


def test_a_state_dict_follows_a_state_dict() -> None:
    from elastic_ir.checkpoints.names import graph_of_tensors
    from elastic_ir.tensors.torch_bridge import TorchData

    def bare(norms: str) -> eir.Graph:
        return graph_of_tensors("net", {n: TorchData(t) for n, t in Net(norms).state_dict().items()})

    assert plan(eir.stretch(bare("..n"), like=bare("..n..n"))) == [[0, 1, 2, 0, 1, 2]]
