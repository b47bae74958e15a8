"""Networks whose source is written in the tests, and the text of one of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """Scaled dot-product attention with separate projections."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, dim = x.shape

        def split(y: Tensor) -> Tensor:
            return y.reshape(batch, length, self.heads, dim // self.heads).transpose(1, 2)

        scores = split(self.query(x)) @ split(self.key(x)).transpose(-2, -1) / (dim // self.heads) ** 0.5
        mixed = (scores.softmax(-1) @ split(self.value(x))).transpose(1, 2).reshape(batch, length, dim)
        out: Tensor = self.out(mixed)
        return out


class BertLayer(nn.Module):
    """Attention and a feed-forward network, each with a norm behind it (Devlin et al. 2019)."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = SelfAttention(dim, heads)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dense1, self.dense2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + F.dropout(self.attention(x), self.dropout, self.training))
        y = self.dense2(F.gelu(self.dense1(x)))
        out: Tensor = self.norm2(x + F.dropout(y, self.dropout, self.training))
        return out


class Bert(nn.Module):
    """A BERT encoder in plain torch."""

    def __init__(self, layers: int, dim: int = 16, heads: int = 4, dropout: float = 0.1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.places = nn.Embedding(50, dim), nn.Embedding(32, dim)
        self.norm = nn.LayerNorm(dim)
        self.layer = nn.ModuleList([BertLayer(dim, heads, dropout) for _ in range(layers)])
        self.pooler = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.norm(self.words(tokens) + self.places(places))
        for layer in self.layer:
            x = layer(x)
        return torch.tanh(self.pooler(x[:, 0]))


class Rated(nn.Module):
    """A residual block whose dropout has a rate of its own."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return x + F.dropout(F.relu(self.fc(x)), self.rate, self.training)


class Stack(nn.Module):
    """Blocks in a Sequential, and a head."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.blocks(x))
        return out


def ascending() -> nn.Module:
    """Blocks whose rates follow no rule."""
    return Stack([Rated(0.0), Rated(0.1), Rated(0.3)]).eval()


class Gated(nn.Module):
    """A residual block that a second input scales, and that reads the weights of a layer which it never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.scale = nn.Conv1d(1, 6, 1)

    def forward(self, gate: Tensor, x: Tensor) -> Tensor:
        return x + torch.tanh(self.fc(x) * self.scale.weight.flatten() + self.scale.bias) * gate


class Gates(nn.Module):
    """A list whose blocks all read one gate, and an activation in place whose result nobody takes."""

    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Gated() for _ in range(blocks)])
        self.relu = nn.ReLU(inplace=True)
        self.gate = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x)
        self.relu(gate)
        for block in self.blocks:
            x = block(gate, x)
        return x


class Aliased(nn.Module):
    """A value whose shape is read behind a layer that does nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 6))
        self.drop = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(x + self.token)
        return torch.cat([self.token.expand(x.shape[0], -1), x])


class TiedHead(nn.Module):
    """A head that shares the embedding's weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.head = nn.Linear(4, 9, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.embed(tokens))
        return out


class WithBuffers(nn.Module):
    """Buffers of every kind and a parameter of its own."""

    kept: Tensor
    table: Tensor
    factor: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.randn(6))
        self.register_buffer("kept", torch.randn(6))
        self.register_buffer("table", torch.arange(6), persistent=False)
        self.register_buffer("factor", torch.tensor([1.5, 2.0, -3.0] * 2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma * self.factor + self.table + self.kept


GOLDEN = '''\
"""CifarResNet, depth 56: a definition in plain PyTorch, written by ElasticIR.

Load its weights, a state dict, with

    model = CifarResNet()
    model.load_state_dict(torch.load("model.pt"))

Other values of ``depths`` give the deeper and shallower networks of the family.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample = (
            nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )
            if stride != 1 or in_channels != out_channels
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out)) + self.downsample(x)
        return F.relu(out)


def make_stage(in_channels: int, out_channels: int, depth: int, stride: int = 1) -> list[nn.Module]:
    return [
        BasicBlock(in_channels, out_channels, stride=stride),
        *[BasicBlock(out_channels, out_channels) for _ in range(depth - 1)],
    ]


class CifarResNet(nn.Module):
    def __init__(self, depths: tuple[int, ...] = (9, 9, 9), num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*make_stage(16, 16, depths[0]))
        self.layer2 = nn.Sequential(*make_stage(16, 32, depths[1], stride=2))
        self.layer3 = nn.Sequential(*make_stage(32, 64, depths[2], stride=2))
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
'''


class Weights(nn.Module):
    """Nothing but weights."""

    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.randn(8))
        self.register_buffer("shift", torch.randn(8))


class Odd(nn.Module):
    """A block that runs twice, a list given more than one value, weights used from outside, results in place."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = Rated(0.0)
        self.pairs = nn.ModuleList([nn.Bilinear(8, 8, 8) for _ in range(3)])
        self.owner = Weights()
        self.shared = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        first = self.twice(x)
        y = self.twice(torch.relu(first))
        for pair in self.pairs:
            y = pair(y, first)
        y += self.owner.gamma * 2
        z = self.shared(y) - self.shared(first[:, : y.shape[1]])
        q, k = z.chunk(2, dim=1)
        z = torch.cat([k, q], 1).clone()
        w = z.add_(self.owner.shift)
        return w + z, {"first": first, "y's": y}
