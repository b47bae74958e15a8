"""Shapes on fake tensors: what is taken from a layer that is alike is what the layer itself gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx, nn
from torchvision.models import convnext_tiny, mobilenet_v3_small, resnet18

import elastic_ir as eir
from elastic_ir.errors import TraceError
from elastic_ir.frontends import fx as reader
from elastic_ir.frontends.fx import propagate
from elastic_ir.ir.example_inputs import Inputs


class Mixed(nn.Module):
    """Layers that differ in one thing each, in place, from views, of other dtypes and classes of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(4, 4, 3, padding=pad, padding_mode=mode)  # type: ignore[arg-type]
            for pad, mode in ((1, "zeros"), (1, "zeros"), (0, "zeros"), (1, "reflect"))
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(4, affine=affine) for affine in (True, False, True))
        self.act, self.keep = nn.ReLU(inplace=True), nn.Identity()
        self.pools = nn.ModuleList(nn.AdaptiveAvgPool2d(size) for size in ((2, 2), (1, 1), (2, 2)))
        self.linears = nn.ModuleList(
            nn.Linear(16, out, bias=bias) for out, bias in ((8, True), (8, False), (3, True))
        )

    def forward(self, x: torch.Tensor) -> Any:
        for conv in self.convs:
            x = self.keep(self.act(conv(x)))
        for norm in self.norms:
            x = norm(x.contiguous(memory_format=torch.channels_last))
        pooled = [pool(x) for pool in self.pools]
        return [linear(pooled[0].flatten(1)) for linear in self.linears], pooled


def forms(found: dict[fx.Node, Any]) -> list[Any]:
    return [
        (node.name, tuple(value.shape), value.dtype, value.stride())
        for node, value in found.items()
        if isinstance(value, torch.Tensor)
    ]


@pytest.mark.everyday(2)
@pytest.mark.parametrize("make", [Mixed, resnet18, convnext_tiny, mobilenet_v3_small])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_is_alike_gives_what_the_layer_itself_gives(
    make: Any, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.device("meta"):  # no values are needed
        model = make().eval()
    if device == "cpu":
        model = model.to_empty(device="cpu")
    channels = 4 if make is Mixed else 3
    inputs = Inputs((torch.empty(2, channels, 64, 64, device=device),))
    traced = fx.Tracer().trace(model)
    quick = forms(propagate(model, traced, inputs))
    monkeypatch.setattr(reader, "_settings_of", lambda _: None)
    assert quick == forms(propagate(model, traced, inputs))


class Odd(nn.Linear):
    """A class of somebody else's, which may do anything."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)


def test_only_plain_layers_of_torch_are_taken_for_alike() -> None:
    assert reader._settings_of(nn.Linear(2, 2)) == reader._settings_of(nn.Linear(2, 2))
    assert reader._settings_of(nn.Linear(2, 2)) != reader._settings_of(nn.Linear(2, 2).double())
    assert reader._settings_of(nn.Linear(2, 2)) != reader._settings_of(nn.Linear(2, 2, bias=False))
    assert reader._settings_of(nn.Dropout(0.5).train()) != reader._settings_of(nn.Dropout(0.5).eval())
    hooked = nn.Linear(2, 2)
    hooked.register_forward_hook(lambda *_: None)
    sparse = nn.Linear(2, 2)
    sparse.weight = nn.Parameter(sparse.weight.detach().to_sparse())
    functional = nn.Linear(2, 2)
    functional.extra = torch.relu  # type: ignore[assignment]
    for layer in (
        hooked,
        sparse,
        functional,
        Odd(2, 2),
        nn.Sequential(nn.ReLU()),
        nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
    ):
        assert reader._settings_of(layer) is None


def test_a_layer_that_does_not_fit_is_found_though_it_is_like_others() -> None:
    layers = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)), nn.Linear(5, 4))
    with pytest.raises(TraceError, match="could not be traced"):
        eir.trace(layers, torch.zeros(1, 4), frontend="fx")
