"""A small U-Net by hand: stages of residual blocks, and long skips from the encoder to the decoder."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import nn

WIDTHS = (4, 8, 16)


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = x + self.conv2(self.norm(self.conv1(x)).relu())
        return result


class UNet(nn.Module):
    """``form`` is sequential or list; ``join`` is cat or add; ``middle`` takes encoder 1's skip behind that block."""

    def __init__(
        self, encoder: Sequence[int] = (2, 3, 2), decoder: Sequence[int] = (2, 2), form: str = "sequential",
        join: str = "cat", middle: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.form, self.join, self.middle = form, join, middle
        self.stem = nn.Conv2d(3, WIDTHS[0], 3, padding=1)
        self.encoder = nn.ModuleList(self.stage(n, w) for n, w in zip(encoder, WIDTHS, strict=True))
        steps = list(itertools.pairwise(WIDTHS))
        self.down = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in steps)
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in steps)
        if join == "cat":
            self.merge = nn.ModuleList(nn.Conv2d(2 * a, a, 1) for a, _ in steps)
        self.decoder = nn.ModuleList(self.stage(n, w) for n, w in zip(decoder, WIDTHS[:-1], strict=True))
        self.head = nn.Conv2d(WIDTHS[0], 5, 1)

    def stage(self, count: int, width: int) -> nn.Module:
        blocks = [Residual(width) for _ in range(count)]
        return nn.Sequential(*blocks) if self.form == "sequential" else nn.ModuleList(blocks)

    def run(self, stage: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if isinstance(stage, nn.Sequential):
            result: torch.Tensor = stage(x)
            return result
        for block in stage.children():
            x = block(x)
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        skips: list[torch.Tensor] = []
        for level, stage in enumerate(self.encoder):
            if level == 1 and self.middle is not None:
                for number, block in enumerate(stage.children()):
                    x = block(x)
                    if number == self.middle:
                        skips.append(x)
            else:
                x = self.run(stage, x)
                skips.append(x)
            if level < len(self.down):
                x = self.down[level](x)
        skips.pop()
        for level in reversed(range(len(self.decoder))):
            x, skip = self.up[level](x), skips.pop()
            x = self.merge[level](torch.cat([x, skip], 1)) if self.join == "cat" else x + skip
            x = self.run(self.decoder[level], x)
        result: torch.Tensor = self.head(x)
        return result


def unet(encoder: Sequence[int] = (2, 3, 2), decoder: Sequence[int] = (2, 2), **form: object) -> UNet:
    """One in evaluation mode, with weights large enough that a misplaced block shows."""
    torch.manual_seed(0)
    model = UNet(encoder, decoder, **form).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model
