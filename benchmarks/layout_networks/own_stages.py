"""Minimal networks of several stages, kinds, levels or towers, and of blocks that are shared."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.layout_networks.entry import Table, each, floats, images, runs
from benchmarks.layout_networks.own_blocks import Attend, Bottle, D, Feed, Residual

TABLE = Table()


def trailing_norm(n: int) -> nn.Module:
    return nn.Sequential(nn.Linear(4, D), *[Residual() for _ in range(n)], nn.LayerNorm(D), nn.Linear(D, 2))


def flat(n: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, D, 3, padding=1), nn.ReLU()]
    for _ in range(n):
        layers += [nn.Conv2d(D, D, 3, padding=1, bias=False), nn.BatchNorm2d(D), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(D, 3, 3, padding=1))


def flat_norm_first(n: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Linear(4, D)]
    for _ in range(n):
        layers += [nn.LayerNorm(D), nn.Linear(D, D), nn.GELU()]
    return nn.Sequential(*layers, nn.LayerNorm(D), nn.Linear(D, 2))


TABLE.add(
    "own_trailing_norm",
    "own",
    "flat sequential",
    trailing_norm,
    floats(2, 5, 4),
    each("{i}", of=[1, 2, 3]),
    depth=3,
    note="the norm and the layer behind the blocks are renumbered",
)
TABLE.add(
    "own_flat_sequential",
    "own",
    "flat sequential",
    flat,
    images(8),
    runs("", of=4, width=3, start=2),
    depth=4,
    note="DnCNN's body: convolution, norm, activation",
)
TABLE.add(
    "own_flat_norm_first",
    "own",
    "flat sequential",
    flat_norm_first,
    floats(2, 5, 4),
    runs("", of=3, width=3, start=1),
    depth=3,
)


class Levels(nn.Module):
    """Stages of two blocks each, with layers of their own that downsample between them."""

    def __init__(self, per_stage: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.downs = nn.ModuleList(nn.Conv2d(8 * 2**i, 16 * 2**i, 2, 2) for i in range(3))
        self.stages: Any = nn.ModuleList(
            nn.ModuleList(Bottle(8 * 2**i) for _ in range(per_stage)) for i in range(4)
        )
        self.head = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i, stage in enumerate(self.stages):
            for block in stage:
                x = block(x)
            if i < len(self.downs):
                x = self.downs[i](x)
        result: Tensor = self.head(x.mean((2, 3)))
        return result


TABLE.add(
    "own_two_blocks_a_stage",
    "own",
    "two blocks a stage, several stages",
    Levels,
    images(16),
    *(each(f"stages.{s}.{{i}}", of=2) for s in range(4)),
    depth=2,
)


class Towers(nn.Module):
    """Two towers, stepped in one loop and not connected; the second is one block deep."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.left = nn.ModuleList(Residual() for _ in range(n))
        self.right = nn.ModuleList(Feed() for _ in range(n))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for left, right in zip(self.left, self.right, strict=True):
            x, y = left(x), y + right(y)
        return (x * y).sum(-1)


TABLE.add(
    "own_towers_in_one_loop",
    "own",
    "two towers, sibling lists",
    Towers,
    lambda: (floats(2, D)(), floats(2, D)()),
    each("left.{i}", of=3),
    each("right.{i}", of=3),
    depth=3,
    note="not connected: two stages, that one loop steps through",
)


class Decoder(nn.Module):
    """An encoder whose levels repeat and a decoder of one block for each level."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.enc = nn.ModuleList(nn.Sequential(*[Bottle(8 * 2**i) for _ in range(n)]) for i in range(3))
        self.down = nn.ModuleList(nn.Conv2d(8 * 2**i, 16 * 2**i, 2, 2) for i in range(2))
        self.up = nn.ModuleList(nn.ConvTranspose2d(16 * 2**i, 8 * 2**i, 2, 2) for i in (1, 0))
        self.dec = nn.ModuleList(Bottle(8 * 2**i) for i in (1, 0))

    def forward(self, x: Tensor) -> Tensor:
        x, kept = self.stem(x), []
        for i, level in enumerate(self.enc):
            x = level(x)
            if i < len(self.down):
                kept.append(x)
                x = self.down[i](x)
        for up, block in zip(self.up, self.dec, strict=True):
            x = block(up(x) + kept.pop())
        return x


TABLE.add(
    "own_one_block_levels",
    "own",
    "one-block levels, several stages",
    Decoder,
    images(16),
    *(each(f"enc.{s}.{{i}}", of=2) for s in range(3)),
    depth=2,
)


class Group(nn.Module):
    """Inner blocks and a layer behind them."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.body, self.tail = nn.Sequential(*[Residual() for _ in range(inner)]), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.tail(self.body(x))
        return result


TABLE.add(
    "own_repeats_within_repeats",
    "own",
    "repeats within repeats",
    lambda n: nn.Sequential(nn.Linear(4, D), nn.Sequential(*[Group(5) for _ in range(n)]), nn.Linear(D, 2)),
    floats(2, 4),
    each("1.{i}", of=3),
    depth=3,
    inner=tuple(each(f"1.{g}.body.{{i}}", of=5) for g in range(3)),
)


class Hidden(nn.Module):
    """Hands out every block's state in a list, or its attention map."""

    def __init__(self, n: int, maps: bool) -> None:
        super().__init__()
        self.maps = maps
        self.blocks = nn.ModuleList(nn.Linear(D, D) for _ in range(n))
        self.out = nn.Linear(D, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        kept = []
        for block in self.blocks:
            weights = torch.softmax(block(x), -1)
            x = x + weights
            kept.append(weights if self.maps else x)
        return self.out(x), kept


TABLE.add(
    "own_hidden_states",
    "own",
    "hidden states",
    lambda n: Hidden(n, False),
    floats(2, D),
    each("blocks.{i}", of=3),
    depth=3,
)
TABLE.add(
    "own_attention_maps",
    "own",
    "hidden states",
    lambda n: Hidden(n, True),
    floats(2, D),
    each("blocks.{i}", of=3),
    depth=3,
)


class Heads(nn.Module):
    """A head for each layer, as in DETR: all results are handed out."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Residual() for _ in range(n))
        self.heads = nn.ModuleList(nn.Linear(D, 3) for _ in range(n))

    def forward(self, x: Tensor) -> list[Tensor]:
        results = []
        for layer, head in zip(self.layers, self.heads, strict=True):
            x = layer(x)
            results.append(head(x))
        return results


TABLE.add(
    "own_head_for_each_layer",
    "own",
    "hidden states, sibling lists",
    Heads,
    floats(2, D),
    each("layers.{i}", "heads.{i}", of=3),
    depth=3,
)


class Mixed(nn.Module):
    """Layers of two kinds in one list."""

    def __init__(self, kinds: str) -> None:
        super().__init__()
        self.inp = nn.Linear(4, D)
        self.layers = nn.ModuleList({"A": Wrapped(Attend()), "B": Wrapped(Feed())}[k] for k in kinds)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        for layer in self.layers:
            x = layer(x)
        return x


class Wrapped(nn.Module):
    """A residual around a layer."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.inner(x)
        return result


def mixed(kinds: str, deeper: str, n: int) -> nn.Module:
    """The layers of a string, or those of the deeper network."""
    return Mixed(deeper if n > 1 else kinds)


for _kinds, _unit, _deep in (
    ("ABABAB", 2, "ABABABAB"),
    ("AABAAB", 3, "AABAABAAB"),
    ("AAABAB", 1, ""),
    ("AABAAABA", 4, ""),
):
    TABLE.add(
        f"own_mixed_{_kinds}",
        "own",
        "mixed kinds",
        functools.partial(mixed, _kinds, _deep),
        floats(2, 5, 4),
        each("layers.{i}", of=len(_kinds), unit=_unit),
        depth=1 if _deep else None,
    )


class Periodic(nn.Module):
    """InceptionTime's way: a residual over every third block, counted in the forward."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.inp = nn.Linear(4, D)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(D, D), nn.Tanh()) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        x = kept = self.inp(x)
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i % 3 == 2:
                x = kept = x + kept
        return x


TABLE.add(
    "own_periodic_forward",
    "own",
    "periodic forward",
    Periodic,
    floats(2, 4),
    each("blocks.{i}", of=6, unit=3),
    depth=6,
    step=3,
)


class Memory(nn.Module):
    """An encoder whose memory stays the same in every unit of the decoder."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(Residual() for _ in range(n))
        self.decoder = nn.ModuleList(Cross() for _ in range(n))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for block in self.encoder:
            x = block(x)
        for block in self.decoder:
            y = block(y, x)
        return y


class Cross(nn.Module):
    """A decoder block that reads a memory."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.feed = nn.Linear(D, D), nn.Linear(D, 2 * D), Feed()

    def forward(self, y: Tensor, memory: Tensor) -> Tensor:
        k, v = self.kv(memory).chunk(2, -1)
        y = y + torch.softmax(self.q(y) @ k.transpose(-1, -2), -1) @ v
        result: Tensor = y + self.feed(y)
        return result


TABLE.add(
    "own_encoder_decoder",
    "own",
    "encoder-decoder",
    Memory,
    lambda: (floats(2, 5, D)(), floats(2, 3, D)()),
    each("encoder.{i}", of=3),
    each("decoder.{i}", of=3),
    depth=3,
)
TABLE.add(
    "own_nothing_repeats",
    "own",
    "nothing repeats",
    lambda n: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2)),
    floats(2, 4),
    refused="no two layers are alike",
    says="no two blocks in a row have equal operations and weight shapes",
)
