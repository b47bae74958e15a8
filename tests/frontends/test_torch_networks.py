"""torch's own modules that hold layers, its transformers: read like networks, by torch.export where fx cannot."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import elastic_ir as eir

WIDTH = 16


class Stacked(nn.Module):
    """One of torch's stacks, or a list of its layers, between two linear layers."""

    def __init__(self, kind: str, count: int) -> None:
        super().__init__()
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.kind = kind
        decoder = "decoder" in kind
        layer: Any = nn.TransformerDecoderLayer if decoder else nn.TransformerEncoderLayer
        if kind.endswith("layers"):
            self.body: nn.Module = nn.ModuleList(layer(WIDTH, 2, 32, batch_first=True) for _ in range(count))
        else:
            stack: Any = nn.TransformerDecoder if decoder else nn.TransformerEncoder
            self.body = stack(layer(WIDTH, 2, 32, batch_first=True), count)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = memory = self.embed(x)
        parts = self.body if isinstance(self.body, nn.ModuleList) else [self.body]
        for part in parts:
            x = part(x, memory) if "decoder" in self.kind else part(x)
        out: torch.Tensor = self.head(x.mean(1))
        return out


KINDS = {"encoder": 4, "encoder layers": 4, "decoder": 6, "decoder layers": 6}  #: weight layers in a block


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_depth_is_that_of_export_and_a_deeper_network_takes_the_weights(kind: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 5, WIDTH)
    graph = eir.trace(Stacked(kind, 3), x)
    exported = eir.trace(Stacked(kind, 3), x, frontend="export")
    assert graph.depth == exported.depth == 2 + 3 * KINDS[kind]
    assert [len(stage.blocks) for stage in graph.stages] == [3]
    assert not graph.info.sealed_note
    deeper = eir.stretch(graph, to_depth=2 + 5 * KINDS[kind])
    module = deeper.to_module().eval()
    assert type(module) is Stacked
    by_hand = Stacked(kind, 5)
    by_hand.load_state_dict(module.state_dict(), strict=True)
    torch.testing.assert_close(module(x), by_hand.eval()(x))
    if isinstance(module.body, (nn.TransformerEncoder, nn.TransformerDecoder)):
        assert module.body.num_layers == 5


def test_an_attention_stays_one_layer_and_what_is_parametrized_too() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
            self.attention.out_proj = nn.utils.parametrizations.weight_norm(self.attention.out_proj)
            self.head = nn.Linear(WIDTH, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.head(self.attention(x, x, x)[0])
            return out

    graph = eir.trace(Attending(), torch.randn(1, 5, WIDTH))
    assert graph.info.frontend == "fx"
    assert [n.op for n in graph if n.kind == "module"] == ["nn.MultiheadAttention", "nn.Linear"]


def test_fx_alone_says_what_it_took_as_one_layer() -> None:
    graph = eir.trace(Stacked("encoder layers", 3), torch.randn(1, 5, WIDTH), frontend="fx")
    note = graph.info.sealed_note
    assert note.startswith("body.0 (nn.TransformerEncoderLayer) and 2 more: torch.fx cannot trace into it")
