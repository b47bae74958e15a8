"""A model of sentence-transformers at another depth, as that library itself saves and loads it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.checkpoints.folders import run


@pytest.mark.slow
def test_a_model_of_sentence_transformers_encodes_at_another_depth(tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.models")
    from transformers import BertConfig, BertModel, BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "deep", "network"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(tmp_path / "bert")
    BertTokenizer(vocab=str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    inner = modules.Transformer(str(tmp_path / "bert"))
    pooling = modules.Pooling(16)
    dense = modules.Dense(16, 8)
    model = library.SentenceTransformer(modules=[inner, pooling, dense], device="cpu")
    model.save(str(tmp_path / "source"))
    result = run("stretch", tmp_path / "source", "--to-units", "5", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    deeper = library.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert deeper[0].auto_model.config.num_hidden_layers == 5
    assert torch.equal(deeper[2].linear.weight, dense.linear.weight)
    found = deeper.encode(["a deep network"])
    assert found.shape == (1, 8)
