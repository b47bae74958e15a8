"""Networks with whole filters pruned, and what every test of a function-preserving pass asks of its result."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import elastic_ir as eir

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)


def randomise_norms(model: nn.Module, seed: int = 0) -> None:
    """Statistics as after training, so that no constant is zero by chance."""
    dice = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, _NORMS):
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.normal_(generator=dice)
                module.running_var.uniform_(0.5, 2, generator=dice)
                if module.affine:
                    module.weight.uniform_(0.5, 1.5, generator=dice)
                    module.bias.normal_(generator=dice)


def dead_filters(
    model: nn.Module, share: float = 0.5, seed: int = 0, keep: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """Masks that empty a share of the filters of every layer but the last and those in ``keep``."""
    dice = torch.Generator().manual_seed(seed)
    layers = {path: module for path, module in model.named_modules() if isinstance(module, _LAYERS)}
    masks = {}
    for path, module in layers.items():
        if path != list(layers)[-1] and path not in keep:
            dead = torch.rand(module.weight.shape[0], generator=dice) < share
            mask = torch.ones_like(module.weight)
            mask[dead] = 0
            masks[f"{path}.weight"] = mask
    return masks


def pruned(
    model: nn.Module, shape: tuple[int, ...], share: float = 0.5, seed: int = 0, norms: bool = True
) -> tuple[eir.Graph, Tensor]:
    """A network in double precision with dead filters, traced, and an input."""
    if norms:
        randomise_norms(model, seed)
    model = model.double().eval()
    x = torch.randn(shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed + 1))
    return eir.trace(model, (x,), masks=dead_filters(model, share, seed)), x


def same_function(before: eir.Graph, after: eir.Graph, x: Tensor) -> nn.Module:
    """Equal outputs but for rounding in double precision; the module made loads strictly and trains."""
    with torch.no_grad():
        wanted = before.to_module().eval()(x)
        module = after.to_module()
        got = module.eval()(x)
    torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-11 * float(wanted.abs().max()))
    module.load_state_dict(after.state_dict(), strict=True)
    module.train()(x).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in module.parameters() if p.requires_grad)
    return module.eval()
