"""Minimal networks whose blocks pass several tensors on, or whose states are collected."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.layout_networks.entry import Table, each, floats
from benchmarks.layout_networks.own_blocks import Attend, D, Feed, Residual

TABLE = Table()


class Streams(nn.Module):
    """Two streams that the caller writes out."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.blocks: Any = nn.ModuleList(
            nn.ModuleDict({"a": nn.Linear(D, D), "b": nn.Linear(D, D)}) for _ in range(n)
        )
        self.out = nn.Linear(D, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for block in self.blocks:
            x, y = x + torch.relu(block["a"](y)), y + torch.relu(block["b"](x))
        result: Tensor = self.out(x + y)
        return result


TABLE.add(
    "own_two_streams_by_caller",
    "own",
    "two streams, list of lists",
    Streams,
    lambda: (floats(2, D)(), floats(2, D)()),
    each("blocks.{i}", of=3),
    depth=3,
)


class Pair(nn.Module):
    """A block that takes and gives two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(D, D), nn.Linear(D, D)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x + torch.relu(self.a(y)), y + torch.relu(self.b(x))


class Tuples(nn.Module):
    """Two streams that go from block to block."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Pair() for _ in range(n))
        self.out = nn.Linear(D, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for block in self.blocks:
            x, y = block(x, y)
        result: Tensor = self.out(x + y)
        return result


TABLE.add(
    "own_two_streams",
    "own",
    "two streams",
    Tuples,
    lambda: (floats(2, D)(), floats(2, D)()),
    each("blocks.{i}", of=3),
    depth=3,
)


class AddedBefore(nn.Module):
    """Mamba's way: the residual is passed along and added by the next block."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.embed = nn.Linear(4, D)
        self.norms = nn.ModuleList(nn.LayerNorm(D) for _ in range(n))
        self.mixers = nn.ModuleList(Feed() for _ in range(n))
        self.norm_f = nn.LayerNorm(D)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        residual: Any = None
        for norm, mixer in zip(self.norms, self.mixers, strict=True):
            residual = x if residual is None else x + residual
            x = mixer(norm(residual))
        result: Tensor = self.norm_f(x + residual)
        return result


TABLE.add(
    "own_residual_passed_along",
    "own",
    "state passed along, sibling lists",
    AddedBefore,
    floats(2, 5, 4),
    each("norms.{i}", "mixers.{i}", of=3),
    depth=3,
)


class Coupling(nn.Module):
    """An affine coupling of one half by the other."""

    def __init__(self, flip: bool) -> None:
        super().__init__()
        self.flip, self.net = flip, nn.Sequential(nn.Linear(D // 2, 16), nn.Tanh(), nn.Linear(16, D))

    def forward(self, x: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x.chunk(2, -1)
        if self.flip:
            a, b = b, a
        scale, shift = self.net(a).chunk(2, -1)
        b = b * torch.exp(torch.tanh(scale)) + shift
        return torch.cat((b, a) if self.flip else (a, b), -1), total + torch.tanh(scale).sum(-1)


class Flow(nn.Module):
    """Couplings with a log-determinant."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.flows = nn.ModuleList(Coupling(bool(i % 2)) for i in range(n))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(x.shape[0])
        for flow in self.flows:
            x, total = flow(x, total)
        return x, total


TABLE.add(
    "own_couplings",
    "own",
    "state passed along, mixed kinds",
    Flow,
    floats(3, D),
    each("flows.{i}", of=4, unit=2),
    depth=4,
    step=2,
    note="halves in turn: two couplings are a unit",
)


class Wave(nn.Module):
    """Gated dilated convolutions in lists side by side; all skips are summed."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.start = nn.Conv1d(1, D, 1)
        self.filters = nn.ModuleList(nn.Conv1d(D, D, 2, padding="same") for _ in range(n))
        self.gates = nn.ModuleList(nn.Conv1d(D, D, 2, padding="same") for _ in range(n))
        self.residuals = nn.ModuleList(nn.Conv1d(D, D, 1) for _ in range(n))
        self.skips = nn.ModuleList(nn.Conv1d(D, 2 * D, 1) for _ in range(n))
        self.end = nn.Conv1d(2 * D, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        total: Any = None
        for i in range(len(self.filters)):
            z = torch.tanh(self.filters[i](x)) * torch.sigmoid(self.gates[i](x))
            skip = self.skips[i](z)
            total = skip if total is None else total + skip
            x = x + self.residuals[i](z)
        result: Tensor = self.end(torch.relu(total))
        return result


TABLE.add(
    "own_wavenet",
    "own",
    "running sum, sibling lists",
    Wave,
    floats(2, 1, 12),
    each("filters.{i}", "gates.{i}", "skips.{i}", "residuals.{i}", of=4),
    or_stages=(each("filters.{i}", "gates.{i}", "skips.{i}", "residuals.{i}", of=4, pinned=[0]),),
    depth=4,
    note="the first block adds to nothing; the result of the last residual convolution is not used",
)


class Mean(nn.Module):
    """All states in one list, averaged at the end."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Residual() for _ in range(n))
        self.out = nn.Linear(D, 2)

    def forward(self, x: Tensor) -> Tensor:
        states = []
        for block in self.blocks:
            x = block(x)
            states.append(x)
        result: Tensor = self.out(torch.stack(states).mean(0))
        return result


TABLE.add("own_mean_of_states", "own", "running sum", Mean, floats(2, D), each("blocks.{i}", of=3), depth=3)


class Concatenated(nn.Module):
    """All states concatenated into a layer whose width says how many there are."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Residual() for _ in range(n))
        self.out = nn.Linear(n * D, 2)

    def forward(self, x: Tensor) -> Tensor:
        states = []
        for block in self.blocks:
            x = block(x)
            states.append(x)
        result: Tensor = self.out(torch.cat(states, -1))
        return result


TABLE.add(
    "own_states_concatenated",
    "own",
    "running sum",
    Concatenated,
    floats(2, D),
    each("blocks.{i}", of=3),
    depth=3,
    step=0,
    refused="the head's weight has columns for each block",
    says=r"\bout\b|as wide|columns|concatenat",
)


class LongSkips(nn.Module):
    """Each block of the first half is read by its partner in the second."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.enc = nn.ModuleList(Residual() for _ in range(n))
        self.dec = nn.ModuleList(Residual() for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for block in self.enc:
            x = block(x)
            kept.append(x)
        for block in self.dec:
            x = block(x + kept.pop())
        return x


TABLE.add(
    "own_paired_long_skips",
    "own",
    "long skips",
    LongSkips,
    floats(2, D),
    each("enc.{i}", of=3),
    each("dec.{i}", of=3),
    depth=3,
    step=0,
    refused="each block's state is read by its partner over the stack",
    says="partner|long skip",
)


class Evoformer(nn.Module):
    """A block of AlphaFold's trunk: rows of sequences and pairs of places, each of which changes the other."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Attend(), Feed(), nn.Linear(D, D), Feed()])
        self.bias = nn.Linear(D, 1)

    def forward(self, rows: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
        attend, feed, outer, mix = self.layers
        rows = rows + attend(rows)
        rows = rows + torch.softmax(self.bias(pairs).squeeze(-1), -1).unsqueeze(1) @ feed(rows)
        mean = outer(rows).mean(1)
        pairs = pairs + mean.unsqueeze(1) * mean.unsqueeze(2)
        return rows, pairs + mix(pairs)


class EvoformerTrunk(nn.Module):
    """A list of such blocks."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Evoformer() for _ in range(n))

    def forward(self, rows: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
        for block in self.blocks:
            rows, pairs = block(rows, pairs)
        return rows[:, 0], pairs


TABLE.add(
    "own_evoformer",
    "own",
    "two streams, lists inside blocks",
    EvoformerTrunk,
    lambda: (floats(1, 3, 5, D)(), floats(1, 5, 5, D)()),
    each("blocks.{i}", of=3),
    depth=3,
)


class ScalarsAndVectors(nn.Module):
    """PaiNN's way: interactions and mixings in two lists; a scalar and a vector for each atom."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.filters = nn.Linear(4, 2 * D)
        self.interactions = nn.ModuleList(
            nn.Sequential(nn.Linear(D, D), nn.SiLU(), nn.Linear(D, 2 * D)) for _ in range(n)
        )
        self.mixing = nn.ModuleList(nn.Linear(D, 2 * D, bias=False) for _ in range(n))

    def forward(self, q: Tensor, directions: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
        mu = torch.zeros(q.shape[0], 3, q.shape[1])
        filters = self.filters(basis)
        for interaction, mixing in zip(self.interactions, self.mixing, strict=True):
            dq, dmu = (interaction(q).unsqueeze(0) * filters).chunk(2, -1)
            q, mu = q + dq.sum(1), mu + (dmu.unsqueeze(2) * directions.unsqueeze(-1)).sum(1)
            v, w = mixing(mu).chunk(2, -1)
            q, mu = q + (v * w).sum(1), mu + w * q.unsqueeze(1)
        return q, mu


TABLE.add(
    "own_scalars_and_vectors",
    "own",
    "two streams, sibling lists",
    ScalarsAndVectors,
    lambda: (floats(4, D)(), floats(4, 4, 3)(), floats(4, 4, 4)()),
    each("interactions.{i}", "mixing.{i}", of=3),
    depth=3,
)
