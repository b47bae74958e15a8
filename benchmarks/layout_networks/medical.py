"""MONAI, segmentation-models-pytorch, kornia, dynamic-network-architectures."""

from __future__ import annotations

from typing import Any

from torch import nn

from benchmarks.layout_networks.entry import Stage, Table, cls, each, images, package, tokens

TABLE = Table()


def monai(name: str, **settings: Any) -> Any:
    """A network of MONAI, also one that its package does not list."""
    found = getattr(package("monai.networks.nets"), name, None)
    return (found or cls(f"monai.networks.nets.{name.lower()}.{name}"))(**settings)


def add(
    name: str, kinds: str, make: Any, inputs: Any, *stages: Any, library: str = "monai", **more: Any
) -> None:
    TABLE.add(
        f"{library.split('-')[0].replace('segmentation', 'smp')}_{name}",
        library,
        kinds,
        make,
        inputs,
        *stages,
        **more,
    )


add(
    "vit",
    "hidden states",
    lambda n: monai(
        "ViT",
        in_channels=1,
        img_size=16,
        patch_size=8,
        hidden_size=16,
        mlp_dim=24,
        num_layers=n,
        num_heads=2,
        spatial_dims=2,
    ),
    images(16, 1),
    each("blocks.{i}", of=3),
    depth=3,
    note="hands out every block's state in a list",
)
add(
    "unetr",
    "hidden states, one-block levels",
    lambda n: monai(
        "UNETR",
        in_channels=1,
        out_channels=2,
        img_size=32,
        feature_size=4,
        hidden_size=16,
        mlp_dim=24,
        num_heads=2,
        spatial_dims=2,
    ),
    images(32, 1),
    each("vit.blocks.{i}", of=12, pinned=[3, 6, 9]),
    may_refuse="the states of blocks 3, 6 and 9 are taken by number",
    says="by number|one by one|encoder2|collect",
    or_stages=(
        each("vit.blocks.{i}", of=3),
        *(each("vit.blocks.{i}", of=range(first, first + 3), pinned=[0]) for first in (3, 6, 9)),
        *(Stage(((f"encoder2.blocks.{i}.1",),), optional=True) for i in range(2)),
    ),
    note="twelve blocks, always; a block whose state is taken opens a stage, and is kept",
)
add(
    "swin_unetr",
    "two blocks a stage, several stages, long skips",
    lambda n: monai(
        "SwinUNETR",
        in_channels=1,
        out_channels=2,
        depths=(2, 2, 2, 2),
        num_heads=(1, 2, 2, 4),
        window_size=2,
        feature_size=12,
        spatial_dims=2,
    ),
    images(64, 1),
    *(each(f"swinViT.layers{s + 1}.0.blocks.{{i}}", of=2, unit=2) for s in range(4)),
)
add(
    "segresnet",
    "one-block levels, several stages",
    lambda n: monai(
        "SegResNet", spatial_dims=2, init_filters=8, blocks_down=(1, n, n, n + 1), blocks_up=(1, 1, 1)
    ),
    images(32, 1),
    each("down_layers.0.{i}", of=[1], optional=True, grows=0),
    each("down_layers.1.{i}", of=[1, 2]),
    each("down_layers.2.{i}", of=[1, 2]),
    each("down_layers.3.{i}", of=[1, 2, 3]),
    *(each(f"up_layers.{s}.{{i}}", of=1, optional=True, grows=0) for s in range(3)),
    depth=2,
    note="the first level and the way up have one block each; a convolution opens each level",
)
add(
    "resnet",
    "several stages, two blocks a stage",
    lambda n: monai(
        "ResNet",
        block="basic",
        layers=[n, n, n, n],
        block_inplanes=[8, 16, 16, 32],
        spatial_dims=2,
        n_input_channels=1,
        num_classes=3,
    ),
    images(64, 1),
    *(each(f"layer{s}.{{i}}", of=2, pinned=[0]) for s in (1, 2, 3, 4)),
    depth=2,
)
add(
    "decoder_only",
    "plain list",
    lambda n: monai(
        "DecoderOnlyTransformer",
        num_tokens=50,
        max_seq_len=16,
        attn_layers_dim=16,
        attn_layers_depth=n,
        attn_layers_heads=2,
    ),
    tokens(8),
    each("blocks.{i}", of=3),
    depth=3,
)
add(
    "restormer",
    "several stages, long skips",
    lambda n: monai(
        "Restormer",
        in_channels=3,
        out_channels=3,
        dim=8,
        num_blocks=(n, n, n),
        heads=(1, 2, 2),
        num_refinement_blocks=2,
    ),
    images(32),
    *(each(f"encoder_levels.{s}.{{i}}", of=2) for s in range(2)),
    each("latent.{i}", of=2),
    *(each(f"decoder_levels.{s}.{{i}}", of=2) for s in range(2)),
    each("refinement.{i}", of=2, grows=0),
    depth=2,
)
add(
    "mednext",
    "several stages, two blocks a stage, long skips",
    lambda n: monai(
        "MedNeXt",
        spatial_dims=2,
        init_filters=8,
        blocks_down=(n, n),
        blocks_bottleneck=n,
        blocks_up=(n, n),
        kernel_size=3,
        use_residual_connection=True,
    ),
    images(32, 1),
    *(each(f"enc_stages.{s}.{{i}}", of=2) for s in range(2)),
    each("bottleneck.{i}", of=2),
    *(each(f"dec_stages.{s}.{{i}}", of=2) for s in range(2)),
    depth=2,
)
add(
    "basic_unet",
    "one-block levels, long skips",
    lambda n: monai("BasicUNet", spatial_dims=2, features=(4, 4, 8, 16, 32, 4)),
    images(32, 1),
    may_refuse="each level has its own width, and one block of two convolutions",
    says="wider|width",
)


def smp(name: str, encoder: str, **settings: Any) -> Any:
    def make(n: int) -> nn.Module:
        made: nn.Module = cls(f"segmentation_models_pytorch.{name}")(
            encoder, encoder_weights=None, classes=2, **settings
        )
        return made

    return make


SMP = "segmentation-models-pytorch"
RESNET18 = tuple(each(f"encoder.layer{s}.{{i}}", of=2, pinned=[0]) for s in (1, 2, 3, 4))
RESNET34 = tuple(
    each(f"encoder.layer{s}.{{i}}", of=c, pinned=[0]) for s, c in ((1, 3), (2, 4), (3, 6), (4, 3))
)
add(
    "unet",
    "several stages, long skips, one-block levels",
    smp("Unet", "resnet18", decoder_channels=(16, 16, 8, 8, 4)),
    images(64),
    *RESNET18,
    library=SMP,
    note="the decoder's blocks have a level each",
)
add("fpn", "several stages, one-block levels", smp("FPN", "resnet34"), images(64), *RESNET34, library=SMP)
add(
    "deeplab",
    "several stages, lists inside blocks",
    smp("DeepLabV3Plus", "resnet34"),
    images(64, batch=2),
    *RESNET34,
    library=SMP,
    note="parallel dilated convolutions in one list",
)
add(
    "segformer",
    "several stages, two blocks a stage, numbered attributes",
    smp("Segformer", "mit_b0"),
    images(64),
    *(each(f"encoder.block{s}.{{i}}", of=2) for s in (1, 2, 3, 4)),
    library=SMP,
    note="a numbered list for each stage: block1 to block4",
)


def plain_unet(n: int) -> nn.Module:
    made: nn.Module = cls("dynamic_network_architectures.architectures.unet.ResidualEncoderUNet")(
        1,
        3,
        [8, 16, 16],
        nn.Conv2d,
        3,
        [1, 2, 2],
        n,
        2,
        [1, 1],
        conv_bias=True,
        norm_op=nn.InstanceNorm2d,
        norm_op_kwargs={"affine": True},
        nonlin=nn.ReLU,
    )
    return made


TABLE.add(
    "nnunet_residual_encoder",
    "dynamic-network-architectures",
    "several stages, one-block levels, registered twice",
    plain_unet,
    images(16, 1),
    *(
        each(f"encoder.stages.{s}.blocks.{{i}}", f"decoder.encoder.stages.{s}.blocks.{{i}}", of=3, pinned=[0])
        for s in range(3)
    ),
    depth=3,
    note="the decoder holds the encoder a second time; the first block of a stage downsamples",
)


def kornia_vit(n: int) -> Any:
    return cls("kornia.models.vit.VisionTransformer")(
        image_size=16, patch_size=8, embed_dim=16, depth=n, num_heads=2
    )


TABLE.add(
    "kornia_vit", "kornia", "hidden states", kornia_vit, images(16), each("encoder.blocks.{i}", of=3), depth=3
)


def kornia_tiny_vit(n: int) -> Any:
    return cls("kornia.models.tiny_vit.TinyViT")(
        img_size=64,
        embed_dims=[16, 16, 32, 32],
        depths=[n, n, n, n],
        num_heads=[1, 2, 2, 2],
        window_sizes=[4, 4, 4, 2],
    )


TABLE.add(
    "kornia_tiny_vit",
    "kornia",
    "several stages, two blocks a stage",
    kornia_tiny_vit,
    images(64),
    each("layers.0.blocks.{i}", of=2),
    *(each(f"layers.{s}.blocks.{{i}}", of=2) for s in (1, 2, 3)),
    depth=2,
)
