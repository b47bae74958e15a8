"""A changed GGUF file is, as transformers reads it, the network that the same change of the folder gives."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers as t

import elastic_ir as eir
from tests.networks.gguf_files import Type, add

pytestmark = pytest.mark.slow

SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 48,
    "max_position_embeddings": 64,
}  # fmt: skip
Weights = np.ndarray[Any, Any]
MODELS: Any = t.AutoModelForCausalLM  # whose methods have no types
CONFIGS: Any = t.AutoConfig


def _permuted(name: str, weights: Weights, heads: int) -> Weights:
    """Queries and keys as llama.cpp has them, pairs of a rotation side by side."""
    return (
        weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
        .swapaxes(1, 2)
        .reshape(weights.shape)
    )


def _llama(name: str, weights: Weights, config: Any) -> Weights:
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    part = name.split(".")[-2]
    return _permuted(name, weights, heads[part]) if part in heads else weights


def _gemma(name: str, weights: Weights, config: Any) -> Weights:
    return weights + 1 if name.endswith("norm.weight") else weights


def _gpt2(name: str, weights: Weights, config: Any) -> Weights:
    parts = ("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")
    return weights.T if name.endswith(parts) else weights


def _as_is(name: str, weights: Weights, config: Any) -> Weights:
    return weights


@dataclass(frozen=True)
class Family:
    """A small network, and how llama.cpp's converter writes it."""

    config: Callable[[], Any]
    arch: gguf.MODEL_ARCH
    convert: Callable[[str, Weights, Any], Weights]
    plan: str
    more: tuple[tuple[str, float | int], ...] = ()
    unit: int = 0  #: of the layers' kinds, where the file does not state it


FAMILIES = {
    "llama": Family(
        lambda: t.LlamaConfig(num_hidden_layers=4, **SIZES), gguf.MODEL_ARCH.LLAMA, _llama, "0-3,1,2",
        (("rope.dimension_count", 16),),
    ),
    "qwen2": Family(
        lambda: t.Qwen2Config(num_hidden_layers=4, **SIZES), gguf.MODEL_ARCH.QWEN2, _as_is, "0,2,3"
    ),
    "qwen3": Family(
        lambda: t.Qwen3Config(num_hidden_layers=4, head_dim=128, **SIZES), gguf.MODEL_ARCH.QWEN3, _as_is, "0-3,1,2"
    ),
    "gemma2": Family(
        lambda: t.Gemma2Config(num_hidden_layers=4, head_dim=16, sliding_window=4, **SIZES), gguf.MODEL_ARCH.GEMMA2,
        _gemma, "0-3,2,3", (("attention.key_length", 16), ("attention.sliding_window", 4)), 2,
    ),
    "gemma3": Family(
        lambda: t.Gemma3TextConfig(num_hidden_layers=6, head_dim=16, sliding_window=4, **SIZES),
        gguf.MODEL_ARCH.GEMMA3, _gemma, "0-5,0-5",
        (("attention.key_length", 16), ("attention.sliding_window", 4), ("rope.freq_base", 1e6)), 6,
    ),
    "gpt2": Family(
        lambda: t.GPT2Config(n_embd=64, n_layer=4, n_head=4, vocab_size=48, n_positions=1024), gguf.MODEL_ARCH.GPT2,
        _gpt2, "0-3,1,2",
    ),
}  # fmt: skip


def _write(family: Family, model: Any, path: Path) -> None:
    config = model.config
    arch = gguf.MODEL_ARCH_NAMES[family.arch]
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name("small")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    writer.add_feed_forward_length(inner)
    writer.add_head_count(config.num_attention_heads)
    if hasattr(config, "num_key_value_heads"):
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    else:
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_vocab_size(config.vocab_size)
    for key, value in family.more:
        if isinstance(value, int):
            writer.add_uint32(f"{arch}.{key}", value)
        else:
            writer.add_float32(f"{arch}.{key}", value)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"<{number}>" for number in range(config.vocab_size)])
    names = gguf.get_tensor_name_map(family.arch, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        base, dot, suffix = name.rpartition(".")
        theirs = names.get_name(base)
        assert theirs is not None, name
        own = f"{theirs}{dot}{suffix}"
        weights = np.ascontiguousarray(family.convert(own, tensor.numpy(), config), np.float32)
        add(writer, own, weights, Type.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _read(path: Path) -> Any:
    """The network of a file: by ``from_pretrained``, which wants accelerate, else by what that calls."""
    if importlib.util.find_spec("accelerate") is not None:
        return MODELS.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    from transformers import modeling_gguf_pytorch_utils

    load_gguf_checkpoint: Any = modeling_gguf_pytorch_utils.load_gguf_checkpoint
    model = MODELS.from_config(CONFIGS.from_pretrained(path.parent, gguf_file=path.name))
    tensors = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    missing, unknown = model.load_state_dict(tensors, strict=False)
    assert set(missing) <= {"lm_head.weight"}
    assert not unknown
    model.tie_weights()
    return model


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(torch.arange(12)[None] % 48).logits
    return found


@pytest.mark.parametrize("name", list(FAMILIES))
def test_the_file_and_the_folder_are_one_network(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    torch.manual_seed(0)
    model = MODELS.from_config(family.config())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) / 4)
    folder, file = tmp_path / "folder", tmp_path / "m.gguf"
    model.save_pretrained(folder)
    _write(family, model, file)
    as_read = _read(file)
    assert torch.allclose(_logits(as_read), _logits(model), atol=1e-5)

    eir.save(eir.stretch(eir.load(folder, headers_only=True), plan=family.plan), tmp_path / "deeper")
    unit = family.unit or None  # a period that no entry of the file states
    eir.save(eir.stretch(eir.load(file), plan=family.plan, unit=unit), tmp_path / "deeper.gguf")
    wanted = MODELS.from_pretrained(tmp_path / "deeper")
    found = _read(tmp_path / "deeper.gguf")
    assert found.config.num_hidden_layers == wanted.config.num_hidden_layers
    state, other = wanted.state_dict(), found.state_dict()
    assert state.keys() == other.keys()
    for key, tensor in state.items():
        assert torch.allclose(other[key], tensor, atol=1e-6), key
    assert torch.allclose(_logits(found), _logits(wanted), atol=1e-5)
    assert not torch.allclose(_logits(found), _logits(model), atol=1e-2)
