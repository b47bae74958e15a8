"""Minimal networks whose blocks lie in several lists, dictionaries or numbered attributes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.layout_networks.entry import Stage, Table, each, floats, tokens
from benchmarks.layout_networks.own_blocks import Attend, D, Feed, Residual

TABLE = Table()


class ListOfLists(nn.Module):
    """Attention and feed-forward in a list of their own in each layer."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.layers: Any = nn.ModuleList(nn.ModuleList([Attend(), Feed()]) for _ in range(n))
        self.norm = nn.LayerNorm(D)

    def forward(self, x: Tensor) -> Tensor:
        for attend, feed in self.layers:
            x = attend(x) + x
            x = feed(x) + x
        result: Tensor = self.norm(x)
        return result


TABLE.add(
    "own_list_of_lists",
    "own",
    "list of lists",
    ListOfLists,
    floats(2, 5, D),
    each("layers.{i}", of=3),
    depth=3,
)


class ListOfThree(nn.Module):
    """Three in a slot, one of which may be missing, as in perceivers and axial transformers."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.stem = nn.Linear(4, D)
        self.layers: Any = nn.ModuleList(
            nn.ModuleList([nn.LayerNorm(D), Attend(), nn.ModuleList([Feed(), Feed()])]) for _ in range(n)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, attend, (left, right) in self.layers:
            x = norm(x + attend(x))
            x = x + left(x) * torch.sigmoid(right(x))
        return x.mean(1)


TABLE.add(
    "own_list_of_three",
    "own",
    "list of lists, lists inside blocks",
    ListOfThree,
    floats(2, 5, 4),
    each("layers.{i}", of=3),
    depth=3,
)


class Zipped(nn.Module):
    """Convolutions and norms in lists side by side, as graph networks have them."""

    def __init__(self, n: int, last_norm: bool = True) -> None:
        super().__init__()
        self.stem = nn.Linear(4, D)
        self.convs = nn.ModuleList(nn.Linear(D, D) for _ in range(n))
        self.norms = nn.ModuleList(nn.BatchNorm1d(D) for _ in range(n if last_norm else n - 1))
        self.out = nn.Linear(D, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i, conv in enumerate(self.convs):
            x = conv(x)
            if i < len(self.norms):
                x = torch.relu(self.norms[i](x))
        result: Tensor = self.out(x)
        return result


TABLE.add(
    "own_zipped", "own", "sibling lists", Zipped, floats(4, 4), each("convs.{i}", "norms.{i}", of=3), depth=3
)
TABLE.add(
    "own_zipped_last_without_norm",
    "own",
    "sibling lists, pinned ends",
    lambda n: Zipped(n, False),
    floats(4, 4),
    each("convs.{i}", "norms.{i}", of=4, pinned=[-1]),
    depth=4,
)


class Indexed(nn.Module):
    """Four lists indexed in forward, as in XLM."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, D)
        self.attentions = nn.ModuleList(Attend() for _ in range(n))
        self.layer_norm1 = nn.ModuleList(nn.LayerNorm(D) for _ in range(n))
        self.ffns = nn.ModuleList(Feed() for _ in range(n))
        self.layer_norm2 = nn.ModuleList(nn.LayerNorm(D) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for i in range(len(self.attentions)):
            x = self.layer_norm1[i](x + self.attentions[i](x))
            x = self.layer_norm2[i](x + self.ffns[i](x))
        return x


TABLE.add(
    "own_indexed",
    "own",
    "sibling lists",
    Indexed,
    tokens(6),
    each("attentions.{i}", "layer_norm1.{i}", "ffns.{i}", "layer_norm2.{i}", of=3),
    depth=3,
)


class Dicts(nn.Module):
    """Blocks in a ModuleDict, and parts of one block in two."""

    def __init__(self, n: int, split: bool) -> None:
        super().__init__()
        self.split = split
        self.layers = nn.ModuleDict({f"layer{i}": Residual() for i in range(n)})
        if split:
            self.norms = nn.ModuleDict({f"norm{i}": nn.LayerNorm(D) for i in range(n)})

    def forward(self, x: Tensor) -> Tensor:
        for i in range(len(self.layers)):
            x = self.layers[f"layer{i}"](x)
            if self.split:
                x = self.norms[f"norm{i}"](x)
        return x


TABLE.add(
    "own_module_dict",
    "own",
    "module dict",
    lambda n: Dicts(n, False),
    floats(2, D),
    each("layers.layer{i}", of=3),
    depth=3,
)
TABLE.add(
    "own_module_dicts_side_by_side",
    "own",
    "module dict, sibling lists",
    lambda n: Dicts(n, True),
    floats(2, D),
    each("layers.layer{i}", "norms.norm{i}", of=3),
    depth=3,
)


class Attributes(nn.Module):
    """conv1, bn1, conv2, bn2 ... as attributes of the network."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n
        for i in range(1, n + 1):
            setattr(self, f"conv{i}", nn.Conv1d(D, D, 3, padding=1))
            setattr(self, f"bn{i}", nn.BatchNorm1d(D))
        self.fc = nn.Linear(D, 2)

    def forward(self, x: Tensor) -> Tensor:
        for i in range(1, self.n + 1):
            x = torch.relu(getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x)))
        result: Tensor = self.fc(x.mean(-1))
        return result


TABLE.add(
    "own_numbered_attributes",
    "own",
    "numbered attributes, sibling lists",
    Attributes,
    floats(2, D, 6),
    each("conv{i}", "bn{i}", of=[1, 2, 3, 4]),
    depth=4,
)


class Branches(nn.Module):
    """A block that holds a list: branches of one input, joined."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv1d(D, D, 2 * k + 1, padding=k) for k in range(width))
        self.mix = nn.Conv1d(width * D, D, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.mix(torch.cat([branch(x) for branch in self.branches], 1).relu())
        return result


class ListInBlock(nn.Module):
    """A list of blocks that hold lists."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Branches() for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


TABLE.add(
    "own_list_in_block",
    "own",
    "lists inside blocks",
    ListInBlock,
    floats(2, D, 6),
    each("blocks.{i}", of=3),
    depth=3,
)


class View(nn.Module):
    """Another name for a block."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block


class Twice(nn.Module):
    """The same blocks under two names: both grow."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Residual() for _ in range(n))
        self.views = nn.ModuleList(View(block) for block in self.blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


TABLE.add(
    "own_registered_twice",
    "own",
    "registered twice",
    Twice,
    floats(2, D),
    each("blocks.{i}", "views.{i}.block", of=3),
    depth=3,
)


class TwoToOne(nn.Module):
    """Six attentions and three MLPs in two lists."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(Attend() for _ in range(2 * n))
        self.mlps = nn.ModuleList(Feed() for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        for i, mlp in enumerate(self.mlps):
            x = x + self.attentions[2 * i](x)
            x = x + self.attentions[2 * i + 1](x)
            x = x + mlp(x)
        return x


TABLE.add(
    "own_two_to_one",
    "own",
    "k to 1, sibling lists",
    TwoToOne,
    floats(2, 5, D),
    Stage(
        tuple((f"attentions.{2 * i}", f"attentions.{2 * i + 1}", f"mlps.{i}") for i in range(3)),
        slots=("attentions.{2i}", "attentions.{2i+1}", "mlps.{i}"),
    ),
    depth=3,
)
