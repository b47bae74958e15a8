"""Networks of diffusers: transformers of two streams, text and image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.layout_networks.diffusion import BLOCKS, as_tuple, model, time
from benchmarks.layout_networks.entry import Stage, Table, each, floats, images

TABLE = Table()


def add(
    name: str,
    kinds: str,
    make: Callable[[int], nn.Module],
    inputs: Callable[[], Any],
    *stages: Stage,
    **more: Any,
) -> None:
    TABLE.add(f"diffusers_{name}", "diffusers", kinds, make, as_tuple(inputs), *stages, **more)


add(
    "sd3",
    "two streams, pinned ends",
    lambda n: model(
        "SD3Transformer2DModel",
        sample_size=8,
        in_channels=4,
        num_layers=n,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        out_channels=4,
        pos_embed_max_size=8,
    ),
    lambda: {
        "hidden_states": images(8, 4)(),
        "encoder_hidden_states": floats(1, 5, 12)(),
        "pooled_projections": floats(1, 10)(),
        "timestep": time(),
    },
    each(BLOCKS, of=4, pinned=[-1]),
    depth=4,
    note="the last block gives up the text's stream",
)
add(
    "sd35_dual_attention",
    "two streams, pinned ends, mixed kinds",
    lambda n: model(
        "SD3Transformer2DModel",
        sample_size=8,
        in_channels=4,
        num_layers=n,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        out_channels=4,
        pos_embed_max_size=8,
        dual_attention_layers=(0, 1),
        qk_norm="rms_norm",
    ),
    lambda: {
        "hidden_states": images(8, 4)(),
        "encoder_hidden_states": floats(1, 5, 12)(),
        "pooled_projections": floats(1, 10)(),
        "timestep": time(),
    },
    each(BLOCKS, of=5, pinned=[-1]),
    depth=5,
    step=0,
    note="the first two blocks have a second attention",
)
add(
    "flux",
    "two streams",
    lambda n: model(
        "FluxTransformer2DModel",
        in_channels=4,
        num_layers=n,
        num_single_layers=n,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        axes_dims_rope=(4, 4, 8),
    ),
    lambda: {
        "hidden_states": floats(1, 6, 4)(),
        "encoder_hidden_states": floats(1, 5, 12)(),
        "pooled_projections": floats(1, 10)(),
        "timestep": torch.tensor([0.7]),
        "img_ids": torch.zeros(6, 3),
        "txt_ids": torch.zeros(5, 3),
    },
    each(BLOCKS, of=3),
    each("single_transformer_blocks.{i}", of=3),
    depth=3,
)
add(
    "auraflow",
    "two streams",
    lambda n: model(
        "AuraFlowTransformer2DModel",
        sample_size=8,
        in_channels=4,
        num_mmdit_layers=n,
        num_single_dit_layers=n,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pos_embed_max_size=16,
    ),
    lambda: {
        "hidden_states": images(8, 4)(),
        "encoder_hidden_states": floats(1, 5, 12)(),
        "timestep": torch.tensor([0.7]),
    },
    each("joint_transformer_blocks.{i}", of=3),
    each("single_transformer_blocks.{i}", of=3),
    depth=3,
)
add(
    "cogvideox",
    "two streams",
    lambda n: model(
        "CogVideoXTransformer3DModel",
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=12,
        num_layers=n,
        sample_width=8,
        sample_height=8,
        sample_frames=5,
        max_text_seq_length=5,
    ),
    lambda: {
        "hidden_states": floats(1, 2, 4, 8, 8)(),
        "encoder_hidden_states": floats(1, 5, 12)(),
        "timestep": time(),
    },
    each(BLOCKS, of=3),
    depth=3,
)
add(
    "mochi",
    "two streams, pinned ends",
    lambda n: model(
        "MochiTransformer3DModel",
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=n,
        pooled_projection_dim=16,
        in_channels=4,
        text_embed_dim=16,
        time_embed_dim=4,
        max_sequence_length=5,
    ),
    lambda: {
        "hidden_states": floats(1, 4, 2, 8, 8)(),
        "encoder_hidden_states": floats(1, 5, 16)(),
        "timestep": time(),
        "encoder_attention_mask": torch.ones(1, 5, dtype=torch.bool),
    },
    each(BLOCKS, of=4, pinned=[-1]),
    depth=4,
)
add(
    "hunyuan_video",
    "two streams, lists inside blocks",
    lambda n: model(
        "HunyuanVideoTransformer3DModel",
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=n,
        num_single_layers=n,
        num_refiner_layers=n,
        text_embed_dim=12,
        pooled_projection_dim=10,
        rope_axes_dim=(4, 4, 4),
    ),
    lambda: {
        "hidden_states": floats(1, 4, 2, 8, 8)(),
        "encoder_hidden_states": floats(1, 5, 12)(),
        "timestep": time(),
        "encoder_attention_mask": torch.ones(1, 5),
        "pooled_projections": floats(1, 10)(),
        "guidance": torch.tensor([600.0]),
    },
    each("context_embedder.token_refiner.refiner_blocks.{i}", of=3),
    each(BLOCKS, of=3),
    each("single_transformer_blocks.{i}", of=3),
    depth=3,
)
