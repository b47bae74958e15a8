"""vit-pytorch: vision transformers with lists of lists."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from benchmarks.layout_networks.entry import Stage, Table, cls, each, floats, images

TABLE = Table()
VIT = {
    "image_size": 16,
    "patch_size": 4,
    "num_classes": 5,
    "dim": 16,
    "heads": 2,
    "mlp_dim": 24,
    "dim_head": 8,
}
LAYERS = "transformer.layers.{i}"


def vit(
    name: str,
    path: str,
    *stages: Stage,
    kinds: str = "list of lists",
    inputs: Callable[[], Any] | None = None,
    make: Callable[[int], nn.Module] | None = None,
    depth: int = 3,
    step: int = 1,
    **more: Any,
) -> None:
    TABLE.add(
        f"vit_pytorch_{name}",
        "vit-pytorch",
        kinds,
        make or (lambda n: cls(f"vit_pytorch.{path}")(**VIT, depth=n)),
        inputs or images(16),
        *(stages or (each(LAYERS, of=3),)),
        depth=depth,
        step=step,
        **more,
    )


vit("vit", "vit.ViT")
vit("simple_vit", "simple_vit.SimpleViT")
vit("parallel_vit", "parallel_vit.ViT", kinds="list of lists, lists inside blocks")
vit("deepvit", "deepvit.DeepViT", make=lambda n: cls("vit_pytorch.deepvit.DeepViT")(**VIT, depth=n))
vit("qk_norm", "simple_vit_with_qk_norm.SimpleViT")
vit("register_tokens", "simple_vit_with_register_tokens.SimpleViT")
vit(
    "value_residual",
    "simple_vit_with_value_residual.SimpleViT",
    each(LAYERS, of=4, pinned=[0]),
    depth=4,
    kinds="list of lists, state passed along, pinned ends",
    note="the first layer's values are kept for all others, which have a layer more to mix them in",
)
vit(
    "cait",
    "cait.CaiT",
    each("patch_transformer.layers.{i}", of=3),
    each("cls_transformer.layers.{i}", of=2, grows=0),
    make=lambda n: cls("vit_pytorch.cait.CaiT")(**VIT, depth=n, cls_depth=2),
)
vit(
    "cross_vit",
    "cross_vit.CrossViT",
    each("multi_scale_encoder.layers.{i}", of=3),
    or_stages=tuple(
        each(f"multi_scale_encoder.layers.{s}.{t}.layers.{{i}}", of=2, grows=0)
        for s in range(3)
        for t in (1, 2)
    ),
    inputs=images(32),
    make=lambda n: cls("vit_pytorch.cross_vit.CrossViT")(
        image_size=32,
        num_classes=5,
        sm_dim=16,
        lg_dim=24,
        sm_patch_size=8,
        sm_enc_depth=1,
        sm_enc_heads=2,
        sm_enc_mlp_dim=24,
        sm_enc_dim_head=8,
        lg_patch_size=16,
        lg_enc_depth=2,
        lg_enc_heads=2,
        lg_enc_mlp_dim=24,
        lg_enc_dim_head=8,
        cross_attn_depth=2,
        cross_attn_heads=2,
        cross_attn_dim_head=8,
        depth=n,
    ),
    kinds="list of lists, two streams, repeats within repeats",
)
vit(
    "simple_uvit",
    "simple_uvit.SimpleUViT",
    each(LAYERS, of=4, pinned=range(4)),
    depth=4,
    step=0,
    kinds="list of lists, long skips",
    refused="the first half's states are read by the second half's, each by its partner",
    says="partner|long skip",
)
vit(
    "look_vit",
    "look_vit.LookViT",
    each("layers.{i}", of=3),
    kinds="list of lists, two streams, pinned ends",
    make=lambda n: cls("vit_pytorch.look_vit.LookViT")(
        image_size=32,
        num_classes=5,
        patch_size=8,
        highres_patch_size=4,
        dim=16,
        depth=n,
        heads=2,
        mlp_factor=2,
        dim_head=8,
        cross_attn_heads=2,
        cross_attn_dim_head=8,
    ),
    inputs=images(32),
)
vit(
    "twins_svt",
    "twins_svt.TwinsSVT",
    *(each(f"layers.{s}.3.layers.{{i}}", of=3) for s in range(4)),
    *(each(f"layers.{s}.1.layers.{{i}}", of=1, optional=True, grows=0) for s in range(4)),
    inputs=images(64),
    make=lambda n: cls("vit_pytorch.twins_svt.TwinsSVT")(
        num_classes=5,
        s1_emb_dim=8,
        s1_local_patch_size=2,
        s1_global_k=2,
        s1_depth=n,
        s2_emb_dim=16,
        s2_local_patch_size=2,
        s2_global_k=2,
        s2_depth=n,
        s3_emb_dim=16,
        s3_local_patch_size=2,
        s3_global_k=2,
        s3_depth=n,
        s4_emb_dim=24,
        s4_local_patch_size=2,
        s4_global_k=2,
        s4_depth=n,
        s4_patch_size=2,
    ),
    kinds="list of lists, several stages",
    note="one block before and three behind a positional convolution at each stage",
)
vit(
    "regionvit",
    "regionvit.RegionViT",
    *(each(f"layers.{s}.2.layers.{{i}}", of=2) for s in range(4)),
    inputs=images(64),
    depth=2,
    make=lambda n: cls("vit_pytorch.regionvit.RegionViT")(
        dim=(8, 8, 16, 16), depth=(n, n, n, n), window_size=2, num_classes=5, tokenize_local_3_conv=False
    ),
    kinds="list of lists, two streams, several stages, two blocks a stage",
)
vit(
    "vivit",
    "vivit.ViViT",
    each("spatial_transformer.layers.{i}", of=3),
    each("temporal_transformer.layers.{i}", of=2, grows=0),
    make=lambda n: cls("vit_pytorch.vivit.ViViT")(
        image_size=16,
        frames=4,
        image_patch_size=8,
        frame_patch_size=2,
        num_classes=5,
        dim=16,
        spatial_depth=n,
        temporal_depth=2,
        heads=2,
        mlp_dim=24,
        dim_head=8,
    ),
    inputs=floats(1, 3, 4, 16, 16),
)
vit(
    "hyper_connections",
    "simple_vit_with_hyper_connections.SimpleViT",
    make=lambda n: cls("vit_pytorch.simple_vit_with_hyper_connections.SimpleViT")(
        **VIT, depth=n, num_residual_streams=2
    ),
    kinds="list of lists, two streams",
)
vit(
    "max_vit",
    "max_vit.MaxViT",
    each("layers.{i}", of=3, pinned=[0]),
    each("layers.{i}", of=[3, 4, 5], pinned=[0]),
    inputs=images(64),
    depth=3,
    step=0,
    make=lambda n: cls("vit_pytorch.max_vit.MaxViT")(
        num_classes=5, dim=16, depth=(3, 3), dim_head=8, dim_conv_stem=8, window_size=4
    ),
    kinds="several stages, flat sequential",
    note="the blocks of all stages in one list; the first of a stage downsamples",
)
