"""Networks as people write them in their own scripts: classes that no package has, with what such classes keep."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        z: Tensor = functional.relu(self.bn2(self.conv2(y)) + self.shortcut(x))
        return z


class ResNet(nn.Module):
    """A CIFAR ResNet whose layers are made as most repositories make them; its stem is frozen."""

    def __init__(self, blocks: int = 3, width: int = 4) -> None:
        super().__init__()
        self.in_planes = width
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = self._make(width, blocks, 1)
        self.layer2 = self._make(2 * width, blocks, 2)
        self.layer3 = self._make(4 * width, blocks, 2)
        self.fc = nn.Linear(4 * width, 10)
        self.conv1.requires_grad_(False)

    def _make(self, width: int, blocks: int, stride: int) -> nn.Sequential:
        layers = []
        for step in (stride, *[1] * (blocks - 1)):
            layers.append(BasicBlock(self.in_planes, width, step))
            self.in_planes = width
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        y: Tensor = self.fc(functional.avg_pool2d(x, x.shape[-1]).flatten(1))
        return y


class DropPath(nn.Module):
    """Stochastic depth, which only training has."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        kept = torch.rand(x.shape[0], 1, 1, device=x.device) >= self.rate
        return x * kept / (1 - self.rate)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, rate: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        ).unbind(0)
        weights = (q @ k.transpose(-2, -1) / math.sqrt(width // self.heads)).softmax(-1)
        weights = functional.dropout(weights, self.rate, self.training)
        y: Tensor = self.proj((weights @ v).transpose(1, 2).reshape(batch, length, width))
        return y


class Layer(nn.Module):
    def __init__(self, width: int, index: int, rate: float) -> None:
        super().__init__()
        self.layer_idx = index
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, 2, 0.1)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * width, width)
        )
        self.drop_path = DropPath(rate)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        y: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return y


class ViT(nn.Module):
    """Class token, position embedding, dropouts, stochastic depth that grows with the depth, indices in its layers."""

    def __init__(self, depth: int = 4, width: int = 8, rates: float = 0.2) -> None:
        super().__init__()
        self.depth = depth
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, 17, width) * 0.02)
        self.drop = nn.Dropout(0.1)
        self.blocks = nn.ModuleList(Layer(width, i, rates * i / (depth - 1)) for i in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1)
        x = self.drop(x + self.pos_embed)
        for block in self.blocks:
            x = block(x)
        y: Tensor = self.head(self.norm(x)[:, 0])
        return y


class VGG(nn.Module):
    """One flat list; its hyperparameters in a dict, its activation a function."""

    def __init__(self, count: int = 3) -> None:
        super().__init__()
        self.settings = {"count": count, "rates": [0.1, 0.2], "name": "vgg"}
        layers: list[nn.Module] = [nn.Conv2d(3, 6, 3, 1, 1), nn.BatchNorm2d(6), nn.ReLU(inplace=True)]
        for _ in range(count):
            layers += [nn.Conv2d(6, 6, 3, 1, 1), nn.BatchNorm2d(6), nn.ReLU(inplace=True)]
        self.features = nn.Sequential(*layers, nn.MaxPool2d(2))
        self.act = functional.relu
        self.classifier = nn.Sequential(nn.Linear(6, 12), nn.Dropout(), nn.Linear(12, 4))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.classifier(self.act(self.features(x).mean((2, 3))))
        return y


class MixerBlock(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(tokens, 6), nn.GELU(), nn.Linear(6, tokens))
        self.channels = nn.Sequential(nn.Linear(width, 12), nn.GELU(), nn.Linear(12, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        y: Tensor = x + self.channels(self.norm2(x))
        return y


class Mixer(nn.Module):
    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.blocks = nn.Sequential(*(MixerBlock(16, 8) for _ in range(depth)))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.blocks(self.stem(x).flatten(2).transpose(1, 2)).mean(1))
        return y


@dataclass
class Config:
    """What nanoGPT and its kin keep: a class of data of their own."""

    vocabulary: int = 16
    length: int = 8
    width: int = 8
    n_layer: int = 3
    names: list[str] = field(default_factory=lambda: ["a", "b"])


class GPTBlock(nn.Module):
    def __init__(self, config: Config, index: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = index
        self.ln = nn.LayerNorm(config.width)
        self.attn = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)
        self.drop = nn.Dropout(0.1)
        self.register_buffer("mask", torch.tril(torch.ones(config.length, config.length)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.attn(self.ln(x)).split(self.config.width, -1)
        length = x.shape[1]
        mask: Any = self.mask
        scores = (q @ k.transpose(-2, -1)).masked_fill(mask[:length, :length] == 0, -1e4)
        y: Tensor = x + self.drop(self.proj(scores.softmax(-1) @ v))
        return y


class GPT(nn.Module):
    """Token ids by keyword, a tied head, a configuration of its own; it asserts what torch.fx cannot follow."""

    def __init__(self, config: Config | None = None) -> None:
        super().__init__()
        self.config = config or Config()
        self.wte = nn.Embedding(self.config.vocabulary, self.config.width)
        self.wpe = nn.Embedding(self.config.length, self.config.width)
        self.h = nn.ModuleList(GPTBlock(self.config, i) for i in range(self.config.n_layer))
        self.ln_f = nn.LayerNorm(self.config.width)
        self.lm_head = nn.Linear(self.config.width, self.config.vocabulary, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, idx: Tensor, scale: float = 1.0) -> Tensor:
        length = idx.size(1)
        assert length <= self.config.length, "the sequence is too long"
        x = self.wte(idx) + self.wpe(torch.arange(length, device=idx.device))
        for block in self.h:
            x = block(x)
        y: Tensor = self.lm_head(self.ln_f(x)) * scale
        return y


class Translator(nn.Module):
    """Two inputs, an encoder and a decoder, a padding mask, buffers in the state dict."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.encoder = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(depth)
        )
        self.decoder = nn.ModuleList(
            nn.TransformerDecoderLayer(8, 2, 16, batch_first=True) for _ in range(depth)
        )
        self.register_buffer("scale", torch.tensor(3.0))
        self.out = nn.Linear(8, 12)

    def forward(self, source: Tensor, target: Tensor, padding: Tensor | None = None) -> Tensor:
        memory, x = self.embed(source) * self.scale, self.embed(target)
        for layer in self.encoder:
            memory = layer(memory, src_key_padding_mask=padding)
        for layer in self.decoder:
            x = layer(x, memory, memory_key_padding_mask=padding)
        y: Tensor = self.out(x)
        return y


class Nested(nn.Module):
    """Inputs in a dictionary and a pair, an int and a bool."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 8), nn.Linear(3, 8)
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(depth)))
        self.head = nn.Linear(8, 2)

    def forward(self, batch: dict[str, Any], times: int, *, flip: bool = False) -> Tensor:
        x = self.left(batch["a"]) + self.right(batch["pair"][0]) + self.right(batch["pair"][1])
        x = self.blocks(x) * times
        y: Tensor = self.head(x.neg() if flip else x)
        return y


def image(extent: int = 16) -> Tensor:
    return torch.randn((2, 3, extent, extent), generator=torch.Generator().manual_seed(1))


def pruned_vgg() -> nn.Module:
    """Masks of ``torch.nn.utils.prune``, still on it."""
    model = VGG()
    for part in model.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            prune.l1_unstructured(part, "weight", 0.6)  # type: ignore[no-untyped-call]
    return model


#: By name: how a network is made, positional and keyword inputs.
OWN: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...], dict[str, Any]]] = {
    "resnet": (ResNet, (image(),), {}),
    "vit": (ViT, (image(),), {}),
    "vgg": (VGG, (image(),), {}),
    "pruned": (pruned_vgg, (image(),), {}),
    "mixer": (Mixer, (image(),), {}),
    "gpt": (GPT, (), {"idx": torch.tensor([[3, 1, 4, 1], [5, 9, 2, 6]]), "scale": 0.5}),
    "translator": (
        Translator,
        (torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([[7, 8], [9, 10]])),
        {"padding": torch.tensor([[False, False, False], [False, False, True]])},
    ),
    "nested": (
        Nested,
        ({"a": torch.randn(2, 4), "pair": (torch.randn(2, 3), torch.randn(2, 3))}, 3),
        {"flip": True},
    ),
}  # fmt: skip


def own(name: str, *, training: bool = False) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    """A network of one's own with statistics that are not those of a fresh one, and its inputs."""
    make, args, kwargs = OWN[name]
    torch.manual_seed(0)
    model = make()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean, 0, 0.1)  # type: ignore[arg-type]  # it has one
            nn.init.uniform_(part.weight)
    return model.train(training), args, kwargs
