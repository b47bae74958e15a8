"""The zoo's networks are the published ones: sizes, depths, names, shapes; and they trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import fx, nn

from elastic_ir import zoo
from elastic_ir.errors import PlanError

NAMINGS = get_args(zoo.Names)

#: Parameters by depth: millions as in He et al. 2016, table 6, and exactly. The exact counts include the two projection
#: shortcuts (2,752 parameters), which the paper's own networks do without.
RESNET_SIZES = [
    (20, 0.27, 269_722 + 2_752),
    (32, 0.46, 464_154 + 2_752),
    (44, 0.66, 658_586 + 2_752),
    (56, 0.85, 853_018 + 2_752),
    (110, 1.7, 1_727_962 + 2_752),
]
RESNETS = [14, 20, 32, 44, 56, 110]
VGG_CONVOLUTIONS = {13: 10, 16: 13, 19: 16}


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def weight_layers(model: nn.Module) -> list[str]:
    """Names of convolutions and linear layers, projection shortcuts left out."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and "downsample" not in name and "shortcut" not in name
    ]


@pytest.mark.parametrize("names", NAMINGS)
@pytest.mark.parametrize(("depth", "millions", "exact"), RESNET_SIZES)
def test_resnet_sizes(depth: int, millions: float, exact: int, names: zoo.Names) -> None:
    count = parameters(zoo.cifar_resnet(depth, names=names))
    assert count == exact
    assert count / 1e6 == pytest.approx(millions, rel=0.02)


@pytest.mark.parametrize("names", NAMINGS)
@pytest.mark.parametrize("depth", [8, *RESNETS])
def test_resnet_depth_is_its_weight_layers(depth: int, names: zoo.Names) -> None:
    assert len(weight_layers(zoo.cifar_resnet(depth, names=names))) == depth


@pytest.mark.slow
def test_the_deepest_published_resnet_is_there() -> None:
    with torch.device("meta"):
        model = zoo.cifar_resnet1202()
    assert len(weight_layers(model)) == 1202
    assert parameters(model) / 1e6 == pytest.approx(19.4, abs=0.05)


@pytest.mark.parametrize("names", NAMINGS)
@pytest.mark.parametrize(("depth", "convolutions"), VGG_CONVOLUTIONS.items())
def test_vgg_weight_layers(depth: int, convolutions: int, names: zoo.Names) -> None:
    layers = weight_layers(zoo.cifar_vgg(depth, names=names))
    assert len(layers) == convolutions + 1  # one linear head instead of ImageNet's three


@pytest.mark.parametrize("names", NAMINGS)
@pytest.mark.parametrize(("depth", "exact"), [(13, 9_416_010), (16, 14_728_266), (19, 20_040_522)])
def test_vgg_sizes(depth: int, exact: int, names: zoo.Names) -> None:
    assert parameters(zoo.cifar_vgg(depth, names=names)) == exact


def test_usual_resnet_names() -> None:
    state = zoo.cifar_resnet(14).state_dict()
    modules = list(dict.fromkeys(name.rpartition(".")[0] for name in state))
    assert modules == [
        "conv1", "bn1",
        "layer1.0.conv1", "layer1.0.bn1", "layer1.0.conv2", "layer1.0.bn2",
        "layer1.1.conv1", "layer1.1.bn1", "layer1.1.conv2", "layer1.1.bn2",
        "layer2.0.conv1", "layer2.0.bn1", "layer2.0.conv2", "layer2.0.bn2",
        "layer2.0.downsample.0", "layer2.0.downsample.1",
        "layer2.1.conv1", "layer2.1.bn1", "layer2.1.conv2", "layer2.1.bn2",
        "layer3.0.conv1", "layer3.0.bn1", "layer3.0.conv2", "layer3.0.bn2",
        "layer3.0.downsample.0", "layer3.0.downsample.1",
        "layer3.1.conv1", "layer3.1.bn1", "layer3.1.conv2", "layer3.1.bn2",
        "fc",
    ]  # fmt: skip


def test_open_lth_resnet_names() -> None:
    state = zoo.cifar_resnet(14, names="open_lth").state_dict()
    modules = list(dict.fromkeys(name.rpartition(".")[0] for name in state))
    assert modules == [
        "conv", "bn",
        "blocks.0.conv1", "blocks.0.bn1", "blocks.0.conv2", "blocks.0.bn2",
        "blocks.1.conv1", "blocks.1.bn1", "blocks.1.conv2", "blocks.1.bn2",
        "blocks.2.conv1", "blocks.2.bn1", "blocks.2.conv2", "blocks.2.bn2",
        "blocks.2.shortcut.0", "blocks.2.shortcut.1",
        "blocks.3.conv1", "blocks.3.bn1", "blocks.3.conv2", "blocks.3.bn2",
        "blocks.4.conv1", "blocks.4.bn1", "blocks.4.conv2", "blocks.4.bn2",
        "blocks.4.shortcut.0", "blocks.4.shortcut.1",
        "blocks.5.conv1", "blocks.5.bn1", "blocks.5.conv2", "blocks.5.bn2",
        "fc",
    ]  # fmt: skip


@pytest.mark.parametrize("names", ["torchvision", "open_lth"])
def test_a_narrow_vgg(names: zoo.Names) -> None:
    model = zoo.cifar_vgg(16, names=names, width=8)
    channels = [layer.out_channels for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    assert channels == [8, 8, 16, 16, 32, 32, 32, *[64] * 6]
    size = 32 if names == "torchvision" else 28
    assert model.eval()(torch.zeros(2, 3, size, size)).shape == (2, 10)


def test_usual_vgg_names() -> None:
    state = zoo.cifar_vgg(13).state_dict()
    convolutions = [name for name, tensor in state.items() if tensor.dim() == 4]
    indices = [0, 3, 7, 10, 14, 17, 21, 24, 28, 31]  # conv, norm, activation; a pool after every second one
    assert convolutions == [f"features.{index}.weight" for index in indices]
    assert list(state)[-2:] == ["classifier.weight", "classifier.bias"]


def test_usual_vgg_names_without_norm() -> None:
    state = zoo.cifar_vgg(13, batch_norm=False).state_dict()
    convolutions = [name for name, tensor in state.items() if tensor.dim() == 4]
    indices = [0, 2, 5, 7, 10, 12, 15, 17, 20, 22]
    assert convolutions == [f"features.{index}.weight" for index in indices]


def test_open_lth_vgg_names() -> None:
    state = zoo.cifar_vgg(13, names="open_lth").state_dict()
    modules = list(dict.fromkeys(name.rpartition(".")[0] for name in state))
    indices = [0, 1, 3, 4, 6, 7, 9, 10, 12, 13]  # a pool between the stages, none at the end
    assert modules == [f"layers.{i}.{part}" for i in indices for part in ("conv", "bn")] + ["fc"]


def renamed(model: nn.Module, like: nn.Module) -> dict[str, torch.Tensor]:
    """The state of one under the names of the other; both hold the same tensors in the same order."""
    return dict(zip(like.state_dict(), model.state_dict().values(), strict=True))


def test_both_resnet_namings_are_one_network() -> None:
    usual, open_lth = zoo.cifar_resnet14(), zoo.cifar_resnet14(names="open_lth")
    open_lth.load_state_dict(renamed(usual, open_lth))
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(usual.eval()(x), open_lth.eval()(x))


@pytest.mark.parametrize("names", NAMINGS)
@pytest.mark.parametrize("factory", [zoo.cifar_resnet20, zoo.cifar_vgg13])
@pytest.mark.parametrize("size", [32, 48])
def test_forward_shape(factory: Callable[..., nn.Module], names: zoo.Names, size: int) -> None:
    model = factory(num_classes=7, names=names)
    assert model(torch.randn(2, 3, size, size)).shape == (2, 7)


@pytest.mark.parametrize("names", NAMINGS)
def test_width(names: zoo.Names) -> None:
    model = zoo.cifar_resnet(14, width=4, names=names)
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    assert last.in_features == 16
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize("names", NAMINGS)
@pytest.mark.parametrize("factory", [zoo.cifar_resnet14, zoo.cifar_vgg13])
def test_traces(factory: Callable[..., nn.Module], names: zoo.Names) -> None:
    model = factory(names=names).eval()
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(fx.symbolic_trace(model)(x), model(x))


@pytest.mark.parametrize("depth", [*RESNETS, 1202])
def test_resnet_factory_of_each_depth(depth: int) -> None:
    with torch.device("meta"):
        model = getattr(zoo, f"cifar_resnet{depth}")()
    assert len(weight_layers(model)) == depth


@pytest.mark.parametrize("depth", VGG_CONVOLUTIONS)
def test_vgg_factory_of_each_depth(depth: int) -> None:
    with torch.device("meta"):
        model = getattr(zoo, f"cifar_vgg{depth}")()
    assert len(weight_layers(model)) == VGG_CONVOLUTIONS[depth] + 1


@pytest.mark.parametrize(
    ("depth", "nearest"),
    [
        (21, "nearest is 20"),
        (25, "nearest is 26"),
        (23, "nearest are 20 and 26"),
        (2, "nearest is 8"),
        (-5, "nearest is 8"),
    ],
)
def test_a_depth_that_a_resnet_cannot_have(depth: int, nearest: str) -> None:
    with pytest.raises(PlanError, match=rf"6n \+ 2.* {depth} is not; the {nearest}$"):
        zoo.cifar_resnet(depth)


@pytest.mark.parametrize(("depth", "nearest"), [(11, 13), (17, 16), (50, 19)])
def test_a_depth_that_a_vgg_cannot_have(depth: int, nearest: int) -> None:
    with pytest.raises(PlanError, match=f"no CIFAR VGG-{depth}.* nearest is {nearest}$"):
        zoo.cifar_vgg(depth)


@pytest.mark.parametrize("factory", [zoo.cifar_resnet, zoo.cifar_vgg])
def test_unknown_naming(factory: Callable[..., nn.Module]) -> None:
    with pytest.raises(PlanError, match="names is torchvision or open_lth, not 'keras'"):
        factory(20, names="keras")


def test_open_lth_has_no_vgg_without_norm() -> None:
    with pytest.raises(PlanError, match="always have batch norm"):
        zoo.cifar_vgg(16, batch_norm=False, names="open_lth")
