"""Kinds of blocks: which are alike, and what each kind is called."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import nn

import elastic_ir as eir
from elastic_ir.analysis.kinds import Kind, kinds_of
from elastic_ir.cli.app import elastic_ir


class Mixed(nn.Module):
    """A residual block of one of several kinds, by letters: convolution or attention, with experts or without."""

    def __init__(self, letters: str) -> None:
        super().__init__()
        if "c" in letters:
            self.conv = nn.Linear(8, 8)
        if "a" in letters:
            self.attn = nn.ModuleDict({"qkv": nn.Linear(8, 24), "out": nn.Linear(24, 8)})
        self.mlp = nn.ModuleDict({"up": nn.Linear(8, 16), "down": nn.Linear(16, 8)})
        if "e" in letters:
            self.mlp["router"] = nn.Linear(8, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if hasattr(self, "conv"):
            x = x + self.conv(x)
        if hasattr(self, "attn"):
            x = x + self.attn["out"](torch.tanh(self.attn["qkv"](x)))
        y = self.mlp["up"](x)
        if "router" in self.mlp:
            y = y * self.mlp["router"](x)
        result: torch.Tensor = x + self.mlp["down"](torch.relu(y))
        return result


def traced(*kinds: str) -> eir.Graph:
    return eir.trace(nn.Sequential(*map(Mixed, kinds)), torch.randn(2, 8))


def kinds(graph: eir.Graph) -> list[Kind]:
    (stage,) = graph.stages
    return kinds_of(graph, stage)


def test_alike() -> None:
    assert kinds(traced("c", "c", "c")) == [Kind("", (0, 1, 2))]


def test_a_kind_is_called_by_what_others_lack() -> None:
    assert kinds(traced("c", "a", "c", "c", "a", "c")) == [Kind("conv", (0, 2, 3, 5)), Kind("attn", (1, 4))]
    assert kinds(traced("c", "ca", "c", "ca")) == [Kind("plain", (0, 2)), Kind("attn", (1, 3))]


def test_names_go_as_deep_as_tells_kinds_apart() -> None:
    assert kinds(traced("c", "ce", "a", "ae", "c", "ce", "a", "ae")) == [
        Kind("conv", (0, 4)),
        Kind("conv+mlp.router", (1, 5)),
        Kind("attn", (2, 6)),
        Kind("attn+mlp.router", (3, 7)),
    ]


def test_by_names_and_after_a_change() -> None:
    graph = eir.stretch(traced("c", "a", "c", "a"), plan=[[0, 1, 1, 2, 3]], unit=1)
    assert kinds(graph) == [Kind("conv", (0, 3)), Kind("attn", (1, 2, 4))]


@pytest.mark.parametrize("words", [["full", "full", "sliding", "full"], ["full"] * 4])
def test_the_configuration_of_a_folder_has_words_for_layers(tmp_path: Path, words: list[str]) -> None:
    state = nn.ModuleDict({"layers": nn.Sequential(*(Mixed("c") for _ in range(4)))}).state_dict()
    save_file(state, tmp_path / "model.safetensors")
    config = {"num_hidden_layers": 4, "text_config": {"layer_types": words}, "architectures": ["Net"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    shown = CliRunner().invoke(elastic_ir, ["inspect", str(tmp_path), "--json"], prog_name="elastic-ir")
    (stage,) = json.loads(shown.stdout)["stages"]
    both = [{"name": "full", "blocks": [0, 1, 3]}, {"name": "sliding", "blocks": [2]}]
    assert stage["kinds"] == (both if len(set(words)) > 1 else [{"name": "", "blocks": [0, 1, 2, 3]}])
    table = CliRunner().invoke(elastic_ir, ["inspect", str(tmp_path)], prog_name="elastic-ir").stdout
    assert ("full: 0,1,3; sliding: 2" in table) == (len(set(words)) > 1)
