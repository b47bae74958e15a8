"""Constants that depend on a block's position and are no weights, with a reference and without one."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import timm
import torch
from torch import nn

import elastic_ir as eir


def rates_and_factors(module: nn.Module) -> dict[tuple[str, str], float]:
    return {
        (path, name): value
        for path, part in module.named_modules()
        for name, value in vars(part).items()
        if type(value) is float
    }


def made(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: nn.Module = timm.create_model(name, **options)
    return model


def assert_native(graph: eir.Graph, native: nn.Module, images: torch.Tensor) -> None:
    """The emitted module is the native one: constants, and outputs in training too, where rates show."""
    module = graph.to_module()
    ours, theirs = rates_and_factors(module), rates_and_factors(native)
    assert ours.keys() == theirs.keys()
    assert list(ours.values()) == pytest.approx(list(theirs.values()), abs=1e-7)
    native.load_state_dict(graph.state_dict())
    for mode in (False, True):
        results = []
        for model in (module, native):
            torch.manual_seed(1)
            results.append(model.train(mode)(images))
        assert torch.allclose(results[0], results[1], atol=1e-6), f"training={mode}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shallow", "deep", "rule"),
    [
        (
            "nf_resnet26",
            "nf_resnet50",
            {"beta": "by the variance since the last entry", "drop_prob": "evenly from first to last"},
        ),
        ("resnet26", "resnet50", {"drop_prob": "evenly from first to last"}),
        ("convnext_atto", {"depths": (2, 2, 9, 2)}, {"drop_prob": "evenly from first to last"}),
    ],
)
def test_without_a_reference_evident_rules_go_on(
    shallow: str, deep: str | dict[str, Any], rule: dict[str, str]
) -> None:
    images = torch.randn(2, 3, 64, 64)
    small = made(shallow, drop_path_rate=0.2)
    large = (
        made(deep, drop_path_rate=0.2) if isinstance(deep, str) else made(shallow, drop_path_rate=0.2, **deep)
    )
    source, native = eir.trace(small, images), eir.trace(large, images)
    counts = [len(stage) for stage in native.stages]
    deeper = eir.stretch(source, to_stages=counts)
    assert_native(deeper, large, images)
    assert deeper.emitted.constants == rule
    shallower = eir.squeeze(native, to_stages=[len(stage) for stage in source.stages])
    assert_native(shallower, small, images)


@pytest.mark.slow
def test_with_a_reference_the_target_has_what_the_reference_has() -> None:
    images = torch.randn(2, 3, 64, 64)
    source = eir.trace(made("convnext_atto"), images)  # no stochastic depth: identities in its place
    native = made("convnext_atto", depths=(3, 3, 12, 3), drop_path_rate=0.3)
    deeper = eir.stretch(source, like=native)
    assert_native(deeper, native, images)
    assert deeper.emitted.constants["DropPath"] == "as the reference has it"
    back = eir.squeeze(deeper, like=source)
    assert_native(back, made("convnext_atto"), images)


def test_a_constant_without_a_rule_stays_with_its_block() -> None:
    class Block(nn.Module):
        def __init__(self, gain: float) -> None:
            super().__init__()
            self.layer, self.gain = nn.Linear(4, 4), gain

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = x + self.gain * self.layer(x)
            return result

    model = nn.Sequential(*(Block(gain) for gain in (0.3, 0.9, 0.1)))
    deeper = eir.stretch(eir.trace(model, torch.randn(1, 4)), to_units=5)
    gains = [block.gain for block in deeper.to_module().children()]
    assert gains == [0.3, 0.9, 0.1, 0.3, 0.9]
    assert deeper.emitted.constants == {"gain": "kept from the source"}


@pytest.mark.slow
def test_a_reference_without_values_gives_no_buffer_without_values() -> None:
    """Swin's masks and position indices are in no state dict, and empty where the reference is on the meta device."""
    small = made("swin_tiny_patch4_window7_224", img_size=112, embed_dim=24, num_heads=(1, 2, 2, 2))
    with torch.device("meta"):
        large = made(
            "swin_tiny_patch4_window7_224",
            img_size=112,
            embed_dim=24,
            num_heads=(1, 2, 2, 2),
            depths=(2, 2, 10, 2),
        )
    images = torch.randn(1, 3, 112, 112)
    module = eir.stretch(eir.trace(small, images), like=large).to_module()
    assert not any(buffer.is_meta for buffer in module.buffers())
    assert module.eval()(images).isfinite().all()
