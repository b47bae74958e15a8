"""Networks of transformers: encoder-decoders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from benchmarks.layout_networks.entry import Table, each, floats, images, package, tokens
from benchmarks.layout_networks.hugging_face import BART, SMALL, SPECIAL, model

TABLE = Table()
add = TABLE.of("transformers", "hf_")


def pair(length: int = 8) -> Callable[[], Any]:
    return lambda: {"input_ids": tokens(length)(), "decoder_input_ids": tokens(5)(), "use_cache": False}


add(
    "t5",
    "encoder-decoder, pinned ends",
    lambda n: model(
        "T5Model", d_model=32, d_kv=8, d_ff=48, num_layers=n, num_decoder_layers=n, num_heads=4, vocab_size=64
    ),
    pair(),
    each("encoder.block.{i}", of=3, pinned=[0]),
    each("decoder.block.{i}", of=3, pinned=[0]),
    depth=3,
)
add(
    "switch_transformers",
    "encoder-decoder, pinned ends, mixed kinds",
    lambda n: model(
        "SwitchTransformersModel",
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2 * n,
        num_decoder_layers=2 * n,
        num_heads=4,
        vocab_size=64,
        num_experts=2,
        num_sparse_encoder_layers=n,
        num_sparse_decoder_layers=n,
    ),
    pair(),
    each("encoder.block.{i}", of=6, pinned=[0, 1], unit=2),
    each("decoder.block.{i}", of=6, pinned=[0, 1], unit=2),
    depth=3,
    note="dense and sparse in turn; the first block has the position bias, so that the first whole unit is pinned",
)
add(
    "bart",
    "encoder-decoder",
    lambda n: model("BartModel", **BART, encoder_layers=n, decoder_layers=n + 1, vocab_size=64),
    pair(),
    each("encoder.layers.{i}", of=3),
    each("decoder.layers.{i}", of=4),
    depth=3,
)
add(
    "marian",
    "encoder-decoder",
    lambda n: model(
        "MarianModel",
        **BART,
        encoder_layers=n,
        decoder_layers=n,
        vocab_size=64,
        pad_token_id=0,
        decoder_start_token_id=0,
    ),
    pair(),
    each("encoder.layers.{i}", of=3),
    each("decoder.layers.{i}", of=3),
    depth=3,
)
add(
    "whisper",
    "encoder-decoder",
    lambda n: model(
        "WhisperModel",
        **BART,
        **SPECIAL,
        encoder_layers=n,
        decoder_layers=n,
        vocab_size=64,
        num_mel_bins=8,
        decoder_start_token_id=1,
        max_source_positions=10,
        max_target_positions=12,
    ),
    lambda: {"input_features": floats(1, 8, 20)(), "decoder_input_ids": tokens(5)(), "use_cache": False},
    each("encoder.layers.{i}", of=3),
    each("decoder.layers.{i}", of=3),
    depth=3,
)
add(
    "prophetnet",
    "encoder-decoder, two streams",
    lambda n: model(
        "ProphetNetModel",
        hidden_size=32,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        num_encoder_layers=n,
        num_decoder_layers=n,
        num_encoder_attention_heads=4,
        num_decoder_attention_heads=4,
        vocab_size=64,
        max_position_embeddings=32,
    ),
    pair(),
    each("encoder.layers.{i}", of=3),
    each("decoder.layers.{i}", of=3),
    depth=3,
)
add(
    "encoder_decoder_berts",
    "encoder-decoder",
    lambda n: _bert_pair(n),
    pair(),
    each("encoder.encoder.layer.{i}", of=3),
    each("decoder.bert.encoder.layer.{i}", of=3),
    depth=3,
)


def _bert_pair(n: int) -> nn.Module:
    t = package("transformers")

    parts = [
        t.BertConfig(**SMALL, num_hidden_layers=n, is_decoder=d, add_cross_attention=d) for d in (False, True)
    ]
    config = t.EncoderDecoderConfig.from_encoder_decoder_configs(*parts)
    made: nn.Module = t.EncoderDecoderModel(config)
    return made


def _detr_config(name: str, n: int, **more: Any) -> Any:
    t = package("transformers")

    backbone = t.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 16, 32],
        depths=[1, 1, 2, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"] if more.pop("levels", False) else ["stage4"],
    )
    return getattr(t, f"{name}Config")(
        backbone_config=backbone,
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        **BART,
        encoder_layers=n,
        decoder_layers=n,
        num_queries=5,
        **more,
    )


def _detr(name: str, n: int, **more: Any) -> nn.Module:
    t = package("transformers")

    made: nn.Module = getattr(t, f"{name}ForObjectDetection")(_detr_config(name, n, **more))
    return made


add(
    "detr",
    "encoder-decoder, hidden states",
    lambda n: _detr("Detr", n),
    lambda: {"pixel_values": images(64)()},
    each("model.encoder.layers.{i}", of=3),
    each("model.decoder.layers.{i}", of=3),
    depth=3,
    note="the backbone's stages have one block each, its third two, of which one is the entry",
)
add(
    "conditional_detr",
    "encoder-decoder, pinned ends",
    lambda n: _detr("ConditionalDetr", n),
    lambda: {"pixel_values": images(64)()},
    each("model.encoder.layers.{i}", of=3),
    each("model.decoder.layers.{i}", of=4 - 1, pinned=[0]),
    depth=3,
    note="only the first decoder layer has a projection of the query's position",
)
add(
    "deformable_detr",
    "encoder-decoder, hidden states, sibling lists",
    lambda n: _detr(
        "DeformableDetr",
        n,
        levels=True,
        num_feature_levels=3,
        with_box_refine=True,
        disable_custom_kernels=True,
    ),
    lambda: {"pixel_values": images(64)()},
    each("model.encoder.layers.{i}", of=3),
    each(
        "model.decoder.layers.{i}",
        "bbox_embed.{i}",
        "class_embed.{i}",
        "model.decoder.bbox_embed.{i}",
        of=3,
        pinned=[0],
    ),
    depth=3,
    note="reference points have two coordinates before the first layer, four behind it; heads in lists beside",
)
