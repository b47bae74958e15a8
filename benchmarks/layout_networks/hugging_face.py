"""How networks of transformers are built small: a model class with its configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from benchmarks.layout_networks.entry import package, tokens

SMALL: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "vocab_size": 64,
}  # fmt: skip
SPECIAL: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BART: dict[str, Any] = {
    "d_model": 32, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
}  # fmt: skip
_ENDS = ("ForCausalLM", "ForConditionalGeneration", "TextModel", "EncoderModel", "VisionModel", "Model")


def model(name: str, config: str = "", **settings: Any) -> nn.Module:
    """A model class with its configuration (`XModel` with `XConfig`, unless another is named)."""
    transformers = package("transformers")
    end = next((end for end in _ENDS if name.endswith(end)), "")
    kind = getattr(transformers, config or f"{name.removesuffix(end)}Config")
    made: nn.Module = getattr(transformers, name)(kind(**settings))
    return made


def ids(length: int = 8, **more: Any) -> Callable[[], Any]:
    """Token numbers, without a cache."""
    return lambda: {"input_ids": tokens(length)(), "use_cache": False, **more}
