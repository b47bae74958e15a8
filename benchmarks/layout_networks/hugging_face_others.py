"""Networks of transformers: sibling lists, several stages, two towers, speech and time series."""

from __future__ import annotations

from typing import Any

from torch import nn

from benchmarks.layout_networks.entry import Table, each, floats, images, package, tokens
from benchmarks.layout_networks.hugging_face import SMALL, SPECIAL, model

TABLE = Table()
add = TABLE.of("transformers", "hf_")


XLM: dict[str, Any] = {
    "vocab_size": 64,
    "emb_dim": 16,
    "n_heads": 2,
    "max_position_embeddings": 32,
    "n_langs": 1,
}
XLM_SLOTS = ("attentions.{i}", "layer_norm1.{i}", "ffns.{i}", "layer_norm2.{i}")
add(
    "xlm",
    "sibling lists",
    lambda n: model("XLMModel", **XLM, n_layers=n),
    lambda: {"input_ids": tokens()(), "use_cache": False},
    each(*XLM_SLOTS, of=3),
    depth=3,
)
add(
    "flaubert",
    "sibling lists",
    lambda n: model("FlaubertModel", **XLM, n_layers=n),
    lambda: {"input_ids": tokens()(), "use_cache": False},
    each(*XLM_SLOTS, of=3),
    depth=3,
)
add(
    "segformer",
    "list of lists, several stages, two blocks a stage",
    lambda n: model(
        "SegformerModel",
        depths=[n] * 4,
        hidden_sizes=[8, 16, 16, 32],
        num_attention_heads=[1, 2, 2, 4],
        decoder_hidden_size=16,
    ),
    lambda: {"pixel_values": images(64)()},
    *(each(f"stages.{s}.blocks.{{i}}", of=2) for s in range(4)),
    depth=2,
)
add(
    "pvt_v2",
    "several stages, two blocks a stage",
    lambda n: model(
        "PvtV2Model", hidden_sizes=[8, 16, 16, 32], depths=[n] * 4, num_attention_heads=[1, 2, 2, 4]
    ),
    lambda: {"pixel_values": images(64)()},
    *(each(f"encoder.layers.{s}.blocks.{{i}}", of=2) for s in range(4)),
    depth=2,
)
add(
    "swin_2222",
    "two blocks a stage, several stages",
    lambda n: model(
        "SwinModel",
        image_size=64,
        patch_size=4,
        embed_dim=8,
        depths=[2 * n] * 4,
        num_heads=[1, 2, 2, 4],
        window_size=2,
    ),
    lambda: {"pixel_values": images(64)()},
    *(
        each(f"encoder.layers.{s}.blocks.{{i}}", of=2, unit=2, or_units=[1] if s == 3 else [])
        for s in range(4)
    ),
    depth=1,
    note="shifted pairs, one to a stage; the last stage has one window and no shift",
)
add(
    "clip",
    "two towers",
    lambda n: _clip(n),
    lambda: {"input_ids": tokens()(), "pixel_values": images(32)()},
    each("text_model.encoder.layers.{i}", of=3),
    each("vision_model.encoder.layers.{i}", of=3),
    depth=3,
)


def _clip(n: int) -> nn.Module:
    t = package("transformers")

    text = {**SMALL, **SPECIAL, "num_hidden_layers": n, "max_position_embeddings": 16, "projection_dim": 16}
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_hidden_layers": n,
        "image_size": 32,
        "patch_size": 16,
    }
    made: nn.Module = t.CLIPModel(t.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    return made


add(
    "lxmert",
    "two streams, two towers",
    lambda n: model("LxmertModel", **SMALL, l_layers=n, r_layers=n, x_layers=n, visual_feat_dim=16),
    lambda: {"input_ids": tokens()(), "visual_feats": floats(1, 4, 16)(), "visual_pos": floats(1, 4, 4)()},
    each("encoder.layer.{i}", of=3),
    each("encoder.r_layers.{i}", of=3),
    each("encoder.x_layers.{i}", of=3),
    depth=3,
)
add(
    "deberta_v2",
    "shared buffer",
    lambda n: model(
        "DebertaV2Model",
        **SMALL,
        num_hidden_layers=n,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        max_position_embeddings=32,
    ),
    lambda: {"input_ids": tokens()()},
    each("encoder.layer.{i}", of=3),
    depth=3,
    note="one table of relative positions for all layers",
)
add(
    "perceiver",
    "repeats within repeats, shared block",
    lambda n: _perceiver(n),
    lambda: {"inputs": floats(1, 12, 16)()},
    each("encoder.self_attends.{i}", of=3),
    depth=3,
)


def _perceiver(n: int) -> nn.Module:
    t = package("transformers")

    made: nn.Module = t.PerceiverModel(
        t.PerceiverConfig(
            num_latents=4,
            d_latents=16,
            d_model=16,
            num_blocks=1,
            num_self_attends_per_block=n,
            num_self_attention_heads=2,
            num_cross_attention_heads=2,
        )
    )
    return made


add(
    "dpt_taps",
    "hidden states",
    lambda n: model(
        "DPTForDepthEstimation",
        "DPTConfig",
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        num_hidden_layers=8,
        image_size=32,
        patch_size=8,
        backbone_out_indices=[1, 3, 5, 7],
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8,
        is_hybrid=False,
        reassemble_factors=[4, 2, 1, 0.5],
    ),
    lambda: {"pixel_values": images(32)()},
    each("dpt.encoder.layer.{i}", of=8, pinned=[1, 3, 5, 7]),
    may_refuse="every second layer's state is taken by the neck, by number",
    says="neck|by number|one by one",
    or_stages=(
        each("dpt.encoder.layer.{i}", of=1),
        *(
            each("dpt.encoder.layer.{i}", of=range(first, end), pinned=[0])
            for first, end in ((1, 3), (3, 5), (5, 8))
        ),
        *(
            each(
                f"neck.fusion_stage.layers.{level}.residual_layer{{i}}", of=(1, 2), pinned=[1], optional=True
            )
            for level in (1, 2, 3)
        ),
    ),
    note="some units are tapped: those are pinned, and each opens a stage",
)
add(
    "mobilevit",
    "repeats within repeats, several stages",
    lambda n: model(
        "MobileViTModel",
        hidden_sizes=[16, 24, 32],
        neck_hidden_sizes=[8, 8, 8, 16, 16, 16, 32],
        num_attention_heads=2,
        image_size=64,
    ),
    lambda: {"pixel_values": images(64)()},
    each("encoder.layer.1.layer.{i}", of=3, pinned=[0]),
    each("encoder.layer.2.transformer.layer.{i}", of=2),
    each("encoder.layer.3.transformer.layer.{i}", of=4),
    each("encoder.layer.4.transformer.layer.{i}", of=3),
)
add(
    "hiera",
    "several stages, hidden states",
    lambda n: model(
        "HieraModel",
        embed_dim=8,
        depths=[2, 2, 3, 2],
        num_heads=[1, 2, 2, 4],
        image_size=[64, 64],
        masked_unit_size=[8, 8],
    ),
    lambda: {"pixel_values": images(64)()},
    *(each(f"encoder.stages.{s}.layers.{{i}}", of=c, pinned=[0]) for s, c in enumerate((2, 2, 3, 2))),
)

# speech, time series ------------------------------------------------------------------------------------------

add(
    "wav2vec2",
    "parametrized",
    lambda n: model(
        "Wav2Vec2Model",
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        num_hidden_layers=n,
        conv_dim=(16, 16, 16, 16),
        conv_stride=(5, 2, 2, 2),
        conv_kernel=(10, 3, 3, 3),
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        num_feat_extract_layers=4,
        vocab_size=32,
        feat_extract_norm="group",
    ),
    lambda: {"input_values": floats(1, 400)()},
    each("encoder.layers.{i}", of=3),
    depth=3,
    note="a convolution with weight norm gives the positions; those of the feature extractor downsample, every one",
)
add(
    "wav2vec2_conformer",
    "plain list",
    lambda n: model(
        "Wav2Vec2ConformerModel",
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        num_hidden_layers=n,
        conv_dim=(16,),
        conv_stride=(5,),
        conv_kernel=(10,),
        num_feat_extract_layers=1,
        vocab_size=32,
        position_embeddings_type="rotary",
        conv_depthwise_kernel_size=3,
    ),
    lambda: {"input_values": floats(1, 200)()},
    each("encoder.layers.{i}", of=3),
    depth=3,
)
add(
    "encodec",
    "recurrent, parametrized, several stages",
    lambda n: model(
        "EncodecModel",
        num_filters=4,
        hidden_size=16,
        codebook_dim=16,
        num_lstm_layers=n,
        codebook_size=16,
        num_residual_layers=1,
    ),
    lambda: {"input_values": floats(1, 1, 640)()},
    *(
        each(
            *(
                f"{side}.layers.{at}.lstm.{w}_l{{i}}"
                for w in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            ),
            of=2,
        )
        for side, at in (("encoder", 13), ("decoder", 1))
    ),
    depth=2,
    note="the two-layer LSTMs of encoder and decoder repeat; the convolutions' widths differ at every level",
)
add(
    "patchtst",
    "plain list",
    lambda n: model(
        "PatchTSTModel",
        num_input_channels=2,
        context_length=16,
        patch_length=4,
        patch_stride=4,
        d_model=16,
        num_attention_heads=2,
        ffn_dim=24,
        num_hidden_layers=n,
    ),
    lambda: {"past_values": floats(1, 16, 2)()},
    each("encoder.layers.{i}", of=3),
    depth=3,
)
add(
    "patchtsmixer",
    "plain list",
    lambda n: model(
        "PatchTSMixerModel",
        num_input_channels=2,
        context_length=16,
        patch_length=4,
        patch_stride=4,
        d_model=8,
        num_layers=n,
    ),
    lambda: {"past_values": floats(1, 16, 2)()},
    each("encoder.mlp_mixer_encoder.mixers.{i}", of=3),
    depth=3,
)
add(
    "albert",
    "shared block",
    lambda n: model("AlbertModel", **SMALL, embedding_size=16, num_hidden_layers=4),
    lambda: {"input_ids": tokens()()},
    refused="one layer is applied many times",
    says=r"runs \d+ times over the same weights",
)
