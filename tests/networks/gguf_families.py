"""Small networks of transformers as GGUF files, with the names and orders that llama.cpp's converter gives them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers as t

from tests.networks.gguf_files import Type, add

SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 48,
    "max_position_embeddings": 64,
}  # fmt: skip
#: The square root by which scores are divided is not in a file: 256 for transformers, a head's size for llama.cpp.
GEMMA: dict[str, Any] = {**SIZES, "head_dim": 256, "sliding_window": 4}
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


GEMMA_SIZES = (
    ("attention.key_length", 256),
    ("attention.value_length", 256),
    ("attention.sliding_window", 4),
)
FAMILIES = {
    "llama": Family(
        lambda: t.LlamaConfig(num_hidden_layers=4, **SIZES), gguf.MODEL_ARCH.LLAMA, _llama, "0-3,1,2",
        (("rope.dimension_count", 16),),
    ),
    "qwen2": Family(
        lambda: t.Qwen2Config(num_hidden_layers=4, **SIZES), gguf.MODEL_ARCH.QWEN2, _as_is, "0,2,3"
    ),
    "qwen3": Family(
        lambda: t.Qwen3Config(num_hidden_layers=4, head_dim=128, **SIZES), gguf.MODEL_ARCH.QWEN3, _as_is, "0-3,1,2",
        (("attention.key_length", 128), ("attention.value_length", 128)),
    ),
    "gemma2": Family(
        lambda: t.Gemma2Config(num_hidden_layers=4, **GEMMA), gguf.MODEL_ARCH.GEMMA2,
        _gemma, "0-3,2,3", GEMMA_SIZES, 2,
    ),
    "gemma3": Family(
        lambda: t.Gemma3TextConfig(num_hidden_layers=6, **GEMMA),
        gguf.MODEL_ARCH.GEMMA3, _gemma, "0-5,0-5",
        (*GEMMA_SIZES, ("rope.freq_base", 1e6)), 6,
    ),
    "gpt2": Family(
        lambda: t.GPT2Config(n_embd=64, n_layer=4, n_head=4, vocab_size=48, n_positions=1024), gguf.MODEL_ARCH.GPT2,
        _gpt2, "0-3,1,2",
    ),
}  # fmt: skip


def write(family: Family, model: Any, path: Path) -> None:
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
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"<{number}>" for number in range(config.vocab_size)])
    writer.add_token_types([gguf.TokenType.NORMAL] * config.vocab_size)
    writer.add_token_merges(["< 0"])
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


def made(name: str, folder: Path, path: Path) -> Any:
    """A network of random weights, saved as a folder and as a file."""
    family = FAMILIES[name]
    torch.manual_seed(0)
    model = MODELS.from_config(family.config())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) / 4)
    model.save_pretrained(folder)
    write(family, model, path)
    return model
