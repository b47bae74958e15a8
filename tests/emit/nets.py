"""Small networks and tickets that the tests of files are made of."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

import elastic_ir as eir
from elastic_ir.ir.graph import Graph
from elastic_ir.zoo import cifar_resnet

IMAGE = ((1, 3, 16, 16),)


def network(depth: int = 14, seed: int = 0) -> nn.Module:
    """A narrow CIFAR ResNet whose batch-norm statistics are its own."""
    torch.manual_seed(seed)
    model = cifar_resnet(depth, width=4)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]  # it has one
            nn.init.uniform_(module.weight)
    return model.eval()


def some_masks(model: nn.Module, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A random mask for every convolution and linear layer."""
    dice = torch.Generator().manual_seed(3)
    return {
        f"{path}.weight": (torch.rand(module.weight.shape, generator=dice) < 0.3).to(dtype)
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }


def ticket(depth: int = 14, dtype: torch.dtype = torch.float32) -> Graph:
    """A traced network with masks."""
    model = network(depth)
    return eir.trace(model, masks=some_masks(model, dtype), input_shape=IMAGE)


def image(seed: int = 5) -> Tensor:
    return torch.randn((2, 3, 16, 16), generator=torch.Generator().manual_seed(seed))


def same_tensors(made: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """The same names in the same order, and the same bytes."""
    assert list(made) == list(wanted)
    for name, tensor in wanted.items():
        assert made[name].dtype == tensor.dtype, name
        assert made[name].shape == tensor.shape, name
        ours, theirs = (t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (made[name], tensor))
        assert torch.equal(ours, theirs), name


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones included, with its bytes."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
