"""What names leave open of a checkpoint's structure, and its network shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers as t

import elastic_ir as eir
from elastic_ir.errors import PlanError
from tests.checkpoints.folders import config, llama, write
from tests.checkpoints.oracle.test_comparison import compared

NEEDED = "elastic_ir.checkpoints.libraries.of_transformers.Transformers.imports"


def xlm(kind: Any, folder: Path) -> Path:
    """A network that steps through four lists at once."""
    kind[1](
        kind[0](emb_dim=32, n_layers=3, n_heads=4, vocab_size=60, n_langs=1, pad_index=1)
    ).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "kind",
    [
        (t.XLMConfig, t.XLMModel),
        pytest.param((t.FlaubertConfig, t.FlaubertModel), marks=pytest.mark.slow),
    ],
    ids=["xlm", "flaubert"],
)
@pytest.mark.slow
def test_lists_that_one_count_makes_longer(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = eir.load(xlm(kind, tmp_path / "source"), headers_only=True)
    (stage,) = graph.stages
    assert {box.label for box in stage.containers} == {"attentions", "layer_norm1", "ffns", "layer_norm2"}
    deeper = eir.stretch(graph, to_units=5)
    assert compared(deeper).kind == kind[1].__name__
    eir.save(deeper, tmp_path / "out")
    loaded, report = kind[1].from_pretrained(tmp_path / "out", output_loading_info=True)
    assert loaded.config.n_layers == 5 and not report["missing_keys"] and not report["unexpected_keys"]
    back = eir.squeeze(eir.load(tmp_path / "out", headers_only=True), to_units=3)
    assert {n: w.shape for n, w in back.weights.items()} == {n: w.shape for n, w in graph.weights.items()}
    monkeypatch.setattr(NEEDED, "no_such_library")
    alone = eir.load(tmp_path / "source", headers_only=True)
    with pytest.raises(
        PlanError, match="names alone do not show whether the forward steps through them together"
    ):
        eir.stretch(alone, to_stages={stage.name: 5 for stage in alone.stages[:1]})


@pytest.mark.slow
def test_lists_of_one_length_that_are_counted_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network's second stack beside the first, of the same length and width."""
    settings = t.BlenderbotSmallConfig(
        d_model=32, encoder_layers=3, decoder_layers=3, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=48, decoder_ffn_dim=48, vocab_size=60, max_position_embeddings=30,
    )  # fmt: skip
    t.BlenderbotSmallModel(settings).save_pretrained(tmp_path / "source")
    graph = eir.load(tmp_path / "source", headers_only=True)
    deeper = eir.stretch(graph, to_stages={"decoder.layers": 5})
    assert [len(stage) for stage in deeper.stages] == [5, 3]
    eir.save(deeper, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (written["encoder_layers"], written["decoder_layers"]) == (3, 5)


def test_a_valid_folder_whose_counts_look_like_anothers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two stacks of 16 layers each, of which the configuration counts the loops around them."""
    folder = write(tmp_path / "source", llama(), config(6))
    monkeypatch.setattr(NEEDED, "no_such_library")
    with pytest.raises(eir.ElasticError, match="states num_hidden_layers = 6, but the weights hold 4 layers"):
        eir.load(folder, headers_only=True)
    monkeypatch.setattr("elastic_ir.checkpoints.read.vouched", lambda *_: True)
    assert len(eir.load(folder, headers_only=True).stages[0]) == 4
    monkeypatch.setattr("elastic_ir.checkpoints.read.vouched", lambda *_: False)
    with pytest.raises(eir.ElasticError, match="one of the two belongs to another model"):
        eir.load(folder, headers_only=True)
