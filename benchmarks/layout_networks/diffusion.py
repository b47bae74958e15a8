"""Networks of diffusers: transformers of one and two streams, spatial and temporal blocks by turns, U-Nets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.layout_networks.entry import Stage, Table, cls, each, floats, images

TABLE = Table()
BLOCKS = "transformer_blocks.{i}"


def model(name: str, **settings: Any) -> nn.Module:
    """A model class of diffusers, with the same weights each time."""
    torch.manual_seed(0)
    made: nn.Module = cls(f"diffusers.{name}")(**settings)
    return made


def as_tuple(inputs: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """The inputs, and that a plain tuple is to come out."""
    return lambda: {**inputs(), "return_dict": False}


def add(
    name: str,
    kinds: str,
    make: Callable[[int], nn.Module],
    inputs: Callable[[], Any],
    *stages: Stage,
    **more: Any,
) -> None:
    TABLE.add(f"diffusers_{name}", "diffusers", kinds, make, as_tuple(inputs), *stages, **more)


def time() -> torch.Tensor:
    """One step of time."""
    return torch.tensor([7])


add(
    "dit",
    "pinned ends",
    lambda n: model(
        "DiTTransformer2DModel",
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        num_layers=n,
        norm_num_groups=4,
        sample_size=8,
        num_embeds_ada_norm=10,
    ),
    lambda: {"hidden_states": images(8, 4)(), "timestep": time(), "class_labels": torch.tensor([1])},
    each(BLOCKS, of=4, pinned=[0]),
    depth=4,
    note="the first block's embedding is used once more behind the last",
)
add(
    "pixart",
    "plain list",
    lambda n: model(
        "PixArtTransformer2DModel",
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        num_layers=n,
        norm_num_groups=4,
        cross_attention_dim=16,
        sample_size=8,
        caption_channels=12,
        use_additional_conditions=False,
    ),
    lambda: {
        "hidden_states": images(8, 4)(),
        "encoder_hidden_states": floats(1, 5, 12)(),
        "timestep": time(),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    },
    each(BLOCKS, of=3),
    depth=3,
)
add(
    "sana",
    "plain list",
    lambda n: model(
        "SanaTransformer2DModel",
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=n,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=12,
        sample_size=8,
    ),
    lambda: {
        "hidden_states": images(8, 4)(),
        "encoder_hidden_states": floats(1, 5, 12)(),
        "timestep": time(),
    },
    each(BLOCKS, of=3),
    depth=3,
)
add(
    "latte",
    "sibling lists, pinned ends",
    lambda n: model(
        "LatteTransformer3DModel",
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        num_layers=n,
        cross_attention_dim=16,
        sample_size=8,
        patch_size=2,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        num_embeds_ada_norm=10,
        activation_fn="gelu-approximate",
        attention_bias=True,
        caption_channels=12,
        video_length=2,
    ),
    lambda: {
        "hidden_states": floats(1, 4, 2, 8, 8)(),
        "encoder_hidden_states": floats(1, 5, 12)(),
        "timestep": time(),
    },
    each(BLOCKS, "temporal_transformer_blocks.{i}", of=4, pinned=[0]),
    depth=4,
    note="spatial and temporal blocks by turns, in two lists; the first pair adds the frames' positions",
)
add(
    "hunyuan_dit",
    "long skips",
    lambda n: model(
        "HunyuanDiT2DModel",
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        patch_size=2,
        sample_size=8,
        hidden_size=16,
        num_layers=n,
        cross_attention_dim=12,
        cross_attention_dim_t5=16,
        pooled_projection_dim=16,
        text_len=5,
        text_len_t5=6,
        use_style_cond_and_image_meta_size=False,
    ),
    lambda: {
        "hidden_states": images(8, 4)(),
        "timestep": torch.tensor([7.0]),
        "encoder_hidden_states": floats(1, 5, 12)(),
        "text_embedding_mask": torch.ones(1, 5),
        "encoder_hidden_states_t5": floats(1, 6, 16)(),
        "text_embedding_mask_t5": torch.ones(1, 6),
        "image_rotary_emb": (torch.ones(16, 8), torch.zeros(16, 8)),
    },
    depth=6,
    step=0,
    refused="the first half's states are read by the second half's, each by its partner",
    says="partner|long skip|gets a skip from one of the units of 'blocks'",
)
add(
    "wan",
    "plain list",
    lambda n: model(
        "WanTransformer3DModel",
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=12,
        freq_dim=16,
        ffn_dim=24,
        num_layers=n,
        rope_max_seq_len=32,
    ),
    lambda: {
        "hidden_states": floats(1, 4, 2, 8, 8)(),
        "timestep": time(),
        "encoder_hidden_states": floats(1, 5, 12)(),
    },
    each("blocks.{i}", of=3),
    depth=3,
)
add(
    "ltx_video",
    "plain list",
    lambda n: model(
        "LTXVideoTransformer3DModel",
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=n,
        caption_channels=12,
    ),
    lambda: {
        "hidden_states": floats(1, 8, 4)(),
        "encoder_hidden_states": floats(1, 5, 12)(),
        "timestep": time(),
        "encoder_attention_mask": torch.ones(1, 5),
        "num_frames": 2,
        "height": 2,
        "width": 2,
    },
    each(BLOCKS, of=3),
    depth=3,
)
add(
    "lumina2",
    "plain list",
    lambda n: model(
        "Lumina2Transformer2DModel",
        sample_size=8,
        in_channels=4,
        hidden_size=24,
        num_layers=n,
        num_refiner_layers=2,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(4, 4, 4),
        axes_lens=(16, 16, 16),
        cap_feat_dim=12,
    ),
    lambda: {
        "hidden_states": images(8, 4)(),
        "timestep": torch.tensor([0.7]),
        "encoder_hidden_states": floats(1, 5, 12)(),
        "encoder_attention_mask": torch.ones(1, 5, dtype=torch.bool),
    },
    each("noise_refiner.{i}", of=2, grows=0),
    each("context_refiner.{i}", of=2, grows=0),
    each("layers.{i}", of=3),
    depth=3,
)
add(
    "unet",
    "sibling lists, long skips",
    lambda n: model(
        "UNet2DModel",
        sample_size=16,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 8),
        layers_per_block=n,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
    ),
    lambda: {"sample": images(16)(), "timestep": time()},
    depth=2,
    step=0,
    refused="each block of the way down is read by its partner on the way up",
    says="partner|long skip",
)
add(
    "autoencoder_kl",
    "several stages, two blocks a stage",
    lambda n: model(
        "AutoencoderKL",
        block_out_channels=(8, 8),
        layers_per_block=n,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ),
    lambda: {"sample": images(16)()},
    *(each(f"encoder.down_blocks.{s}.resnets.{{i}}", of=2) for s in range(2)),
    *(each(f"decoder.up_blocks.{s}.resnets.{{i}}", of=3) for s in range(2)),
    *(
        each(f"{side}.mid_block.resnets.{{i}}", of=[i], optional=True, grows=0)
        for side in ("encoder", "decoder")
        for i in (0, 1)
    ),
    depth=2,
    note="in the middle two residual blocks stand around one attention",
)
