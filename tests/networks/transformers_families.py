"""Small random members of transformers' families: how to build one, what its stages are, what it is fed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as t
from torch import nn

SMALL: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "vocab_size": 50,
    "max_position_embeddings": 64,
}  # fmt: skip
KV: dict[str, Any] = {"num_key_value_heads": 2, **SMALL}
IDS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
VISION: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "image_size": 32, "patch_size": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """One family."""

    make: Callable[[], nn.Module]
    stages: dict[str, int]  #: blocks by stage name
    generates: bool = False


def _llama_like(config: Any, model: Any, **more: Any) -> Callable[[], nn.Module]:
    return lambda: model(config(num_hidden_layers=3, **KV, **IDS, **more))


FAMILIES: dict[str, Family] = {
    "bert": Family(lambda: t.BertModel(t.BertConfig(num_hidden_layers=3, **SMALL)), {"encoder.layer": 3}),
    "roberta": Family(
        lambda: t.RobertaForMaskedLM(t.RobertaConfig(num_hidden_layers=3, **SMALL)), {"roberta.encoder.layer": 3}
    ),
    "distilbert": Family(
        lambda: t.DistilBertForMaskedLM(
            t.DistilBertConfig(dim=32, hidden_dim=64, n_layers=3, n_heads=4, vocab_size=50, max_position_embeddings=64)
        ),
        {"distilbert.transformer.layer": 3},
    ),
    "gpt2": Family(
        lambda: t.GPT2LMHeadModel(
            t.GPT2Config(
                n_embd=32, n_layer=3, n_head=4, vocab_size=50, n_positions=64, **IDS,
                scale_attn_by_inverse_layer_idx=True,
            )
        ),
        {"transformer.h": 3}, True,
    ),
    "gpt_neo": Family(
        lambda: t.GPTNeoForCausalLM(
            t.GPTNeoConfig(
                hidden_size=32, num_layers=4, attention_types=[[["global", "local"], 2]], num_heads=4,
                vocab_size=50, max_position_embeddings=64, window_size=4, **IDS,
            )
        ),
        {"transformer.h": 4}, True,
    ),
    "gpt_neox": Family(
        lambda: t.GPTNeoXForCausalLM(t.GPTNeoXConfig(num_hidden_layers=3, **SMALL, **IDS)),
        {"gpt_neox.layers": 3}, True,
    ),
    "opt": Family(
        lambda: t.OPTForCausalLM(
            t.OPTConfig(
                hidden_size=32, ffn_dim=64, num_hidden_layers=3, num_attention_heads=4, vocab_size=50,
                max_position_embeddings=64, word_embed_proj_dim=32, **IDS,
            )
        ),
        {"model.decoder.layers": 3}, True,
    ),
    "llama": Family(_llama_like(t.LlamaConfig, t.LlamaForCausalLM), {"model.layers": 3}, True),
    "mistral": Family(
        _llama_like(t.MistralConfig, t.MistralForCausalLM, sliding_window=4), {"model.layers": 3}, True
    ),
    "qwen2": Family(_llama_like(t.Qwen2Config, t.Qwen2ForCausalLM), {"model.layers": 3}, True),
    "qwen3": Family(_llama_like(t.Qwen3Config, t.Qwen3ForCausalLM, head_dim=8), {"model.layers": 3}, True),
    "qwen3_sliding": Family(
        _llama_like(
            t.Qwen3Config, t.Qwen3ForCausalLM, head_dim=8, use_sliding_window=True, sliding_window=4,
            layer_types=["full_attention", "sliding_attention", "sliding_attention"],
        ),
        {"model.layers": 3}, True,
    ),
    "gemma": Family(_llama_like(t.GemmaConfig, t.GemmaForCausalLM, head_dim=8), {"model.layers": 3}, True),
    "gemma3": Family(
        lambda: t.Gemma3ForCausalLM(
            t.Gemma3TextConfig(
                num_hidden_layers=4, head_dim=8, sliding_window=4, **KV, **IDS,
                layer_types=["sliding_attention", "full_attention"] * 2,
            )
        ),
        {"model.layers": 4}, True,
    ),
    "phi": Family(_llama_like(t.PhiConfig, t.PhiForCausalLM), {"model.layers": 3}, True),
    "falcon": Family(
        lambda: t.FalconForCausalLM(
            t.FalconConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, vocab_size=50, **IDS)
        ),
        {"transformer.h": 3}, True,
    ),
    "mixtral": Family(
        _llama_like(t.MixtralConfig, t.MixtralForCausalLM, num_local_experts=4, num_experts_per_tok=2),
        {"model.layers": 3}, True,
    ),
    "mamba": Family(
        lambda: t.MambaForCausalLM(
            t.MambaConfig(hidden_size=32, state_size=8, num_hidden_layers=3, vocab_size=50, **IDS)
        ),
        {"backbone.layers": 3}, True,
    ),
    "vit": Family(
        lambda: t.ViTForImageClassification(t.ViTConfig(num_hidden_layers=3, **VISION)), {"vit.layers": 3}
    ),
    "swin": Family(
        lambda: t.SwinForImageClassification(
            t.SwinConfig(
                image_size=32, patch_size=2, embed_dim=16, depths=[2, 4], num_heads=[2, 4], window_size=4
            )
        ),
        {"swin.encoder.layers.0.blocks": 2, "swin.encoder.layers.1.blocks": 4},
    ),
    "convnext": Family(
        lambda: t.ConvNextForImageClassification(
            t.ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[2, 2, 3, 2], image_size=32)
        ),
        {f"convnext.encoder.stages.{i}.layers": n for i, n in enumerate((2, 2, 3, 2))},
    ),
    "t5": Family(
        lambda: t.T5ForConditionalGeneration(
            t.T5Config(
                d_model=32, d_ff=64, num_layers=3, num_decoder_layers=3, num_heads=4, d_kv=8, vocab_size=50
            )
        ),
        {"encoder.block": 3, "decoder.block": 3}, True,
    ),
    "whisper": Family(
        lambda: t.WhisperForConditionalGeneration(
            t.WhisperConfig(
                d_model=32, encoder_layers=3, decoder_layers=3, encoder_attention_heads=4,
                decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, vocab_size=50,
                num_mel_bins=8, max_source_positions=16, max_target_positions=32, **IDS,
                decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None,
            )
        ),
        {"model.encoder.layers": 3, "model.decoder.layers": 3},
    ),
    "clip": Family(
        lambda: t.CLIPModel(
            t.CLIPConfig(
                text_config={"num_hidden_layers": 3, "projection_dim": 16, **SMALL, **IDS},
                vision_config={"num_hidden_layers": 3, "projection_dim": 16, **VISION},
                projection_dim=16,
            )
        ),
        {"text_model.encoder.layers": 3, "vision_model.encoder.layers": 3},
    ),
}  # fmt: skip


def make(name: str) -> Any:
    """A model whose weights are all different, so that a layer taken for another shows."""
    torch.manual_seed(0)
    model = FAMILIES[name].make().eval()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(0.05 * torch.randn_like(tensor))
    return model
