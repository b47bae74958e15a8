"""open_clip, ultralytics, super-resolution (spandrel), pytorchcv, efficientnet_pytorch, fastai."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from torch import nn

from benchmarks.layout_networks.entry import Table, cls, each, images, package, runs, tokens

TABLE = Table()


# two towers ----------------------------------------------------------------------------------------------------

TEXT = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2}
VISION = {"width": 16, "head_width": 8, "patch_size": 8, "image_size": 16}


def clip(n: int, vision: dict[str, Any] | None = None) -> nn.Module:
    settings = vision or {**VISION, "layers": n}
    made: nn.Module = cls("open_clip.model.CLIP")(
        16,
        cls("open_clip.model.CLIPVisionCfg")(**settings),
        cls("open_clip.model.CLIPTextCfg")(**TEXT, layers=n),
    )
    return made


TABLE.add(
    "open_clip_vit",
    "open_clip_torch",
    "two towers",
    clip,
    lambda: (images(16)(), tokens(8)()),
    each("visual.transformer.resblocks.{i}", of=3),
    each("transformer.resblocks.{i}", of=3),
    depth=3,
)
TABLE.add(
    "open_clip_resnet",
    "open_clip_torch",
    "two towers, several stages, two blocks a stage",
    lambda n: clip(n, {"layers": (2, 2, 2, 2), "width": 8, "head_width": 32, "image_size": 64}),
    lambda: (images(64)(), tokens(8)()),
    *(each(f"visual.layer{s}.{{i}}", of=2, pinned=[0], grows=0) for s in (1, 2, 3, 4)),
    each("transformer.resblocks.{i}", of=3),
    depth=3,
)
TABLE.add(
    "open_clip_coca",
    "open_clip_torch",
    "two towers, sibling lists",
    lambda n: cls("open_clip.coca_model.CoCa")(
        16,
        cls("open_clip.coca_model.MultimodalCfg")(
            width=16, heads=2, layers=n, context_length=9, vocab_size=50
        ),
        cls("open_clip.model.CLIPTextCfg")(**TEXT, layers=n, embed_cls=True, output_tokens=True),
        cls("open_clip.model.CLIPVisionCfg")(
            **VISION,
            layers=n,
            attentional_pool=True,
            attn_pooler_queries=4,
            attn_pooler_heads=2,
            output_tokens=True,
        ),
    ),
    lambda: (images(16)(), tokens(8)()),
    each("visual.transformer.resblocks.{i}", of=3),
    each("text.transformer.resblocks.{i}", of=3),
    each("text_decoder.resblocks.{i}", "text_decoder.cross_attn.{i}", of=3),
    depth=3,
    note="self and cross attention of the decoder in two lists, zipped",
)

# detectors -----------------------------------------------------------------------------------------------------


def yolo(name: str, depth: float) -> Any:
    found = next(Path(package("ultralytics").__file__).parent.rglob(f"cfg/models/*/{name}.yaml"))
    config = yaml.safe_load(found.read_text())
    config.update(scales={"n": [depth, 0.125, 1024]}, scale="n", nc=2)
    kind = "ClassificationModel" if name.endswith("cls") else "DetectionModel"
    return cls(f"ultralytics.nn.tasks.{kind}")(config, ch=3, nc=2, verbose=False)


_C3 = {2: 2, 4: 4, 6: 6, 8: 2, 13: 2, 17: 2, 20: 2, 23: 2}
TABLE.add(
    "yolov5",
    "ultralytics",
    "repeats within repeats, several stages, numbered attributes, flat sequential",
    lambda n: yolo("yolov5", n / 3),
    images(64),
    *(each(f"model.{at}.m.{{i}}", of=count, grows=count // 2) for at, count in _C3.items()),
    depth=2,
    note="bottlenecks in a list inside each C3 block, whose parallel convolutions are numbered attributes",
)
TABLE.add(
    "yolov8_cls",
    "ultralytics",
    "running sum, repeats within repeats, flat sequential",
    lambda n: yolo("yolov8-cls", n / 3),
    images(64),
    *(each(f"model.{at}", of=1, optional=True) for at in (2, 4, 6, 8)),
    depth=2,
    step=0,
    may_refuse="a convolution behind the bottlenecks has columns for each of them",
    says="cv2|as wide|columns|concatenat",
    note="a whole C2f block may be cloned",
)

# super-resolution ----------------------------------------------------------------------------------------------


def spandrel(path: str, **settings: Any) -> nn.Module:
    made: nn.Module = cls(f"spandrel.architectures.{path}")(**settings)
    return made


def add(name: str, kinds: str, make: Any, *stages: Any, **more: Any) -> None:
    TABLE.add(
        f"spandrel_{name}",
        "spandrel",
        kinds,
        make,
        images(more.pop("side", 16), more.pop("channels", 3)),
        *stages,
        **more,
    )


add(
    "swinir",
    "repeats within repeats",
    lambda n: spandrel(
        "SwinIR.__arch.SwinIR.SwinIR",
        img_size=16,
        embed_dim=12,
        depths=[2] * n,
        num_heads=[2] * n,
        window_size=4,
        mlp_ratio=2.0,
    ),
    each("layers.{i}", of=3),
    depth=3,
    inner=tuple(each(f"layers.{g}.residual_group.blocks.{{i}}", of=2, unit=2) for g in range(3)),
)
add(
    "hat",
    "repeats within repeats",
    lambda n: spandrel(
        "HAT.__arch.HAT.HAT",
        img_size=16,
        embed_dim=12,
        depths=(2,) * n,
        num_heads=(2,) * n,
        window_size=4,
        squeeze_factor=4,
        upsampler="pixelshuffle",
        upscale=2,
    ),
    each("layers.{i}", of=3),
    depth=3,
)
add(
    "dat",
    "repeats within repeats, mixed kinds",
    lambda n: spandrel(
        "DAT.__arch.DAT.DAT",
        img_size=16,
        embed_dim=16,
        split_size=[2, 4],
        depth=[2] * 2 * n,
        num_heads=[2] * 2 * n,
        expansion_factor=2.0,
    ),
    each("layers.{i}", of=4, unit=2),
    depth=2,
    note="every second group has windows that are shifted, and masks for them",
)
add(
    "rrdb",
    "flat sequential, repeats within repeats, numbered attributes",
    lambda n: spandrel("ESRGAN.__arch.RRDB.RRDBNet", num_filters=8, num_blocks=n, scale=2),
    each("model.1.sub.{i}", of=3),
    depth=3,
    note="a convolution ends the list of blocks",
)
add(
    "rcan",
    "repeats within repeats, flat sequential",
    lambda n: spandrel(
        "RCAN.__arch.rcan_arch.RCAN", scale=2, n_resgroups=n, n_resblocks=4, n_feats=16, reduction=4
    ),
    each("body.{i}", of=3),
    depth=3,
    inner=tuple(each(f"body.{g}.body.{{i}}", of=4) for g in range(3)),
    note="a convolution ends each list, of groups and of blocks",
)
add(
    "compact",
    "flat sequential",
    lambda n: spandrel("Compact.__arch.SRVGG.SRVGGNetCompact", num_feat=8, num_conv=n, upscale=2),
    runs("body", of=4, width=2, start=2),
    depth=4,
)
add(
    "dncnn",
    "flat sequential",
    lambda n: spandrel("DnCNN.__arch.network_dncnn.DnCNN", nc=8, nb=n + 2, act_mode="BR"),
    runs("model", of=4, width=3, start=2),
    depth=4,
    channels=1,
)
add(
    "nafnet",
    "several stages, two blocks a stage, long skips",
    lambda n: spandrel(
        "NAFNet.__arch.NAFNet_arch.NAFNet",
        width=8,
        middle_blk_num=n,
        enc_blk_nums=[n, n],
        dec_blk_nums=[n, n],
    ),
    *(each(f"encoders.{s}.{{i}}", of=2) for s in range(2)),
    each("middle_blks.{i}", of=2),
    *(each(f"decoders.{s}.{{i}}", of=2) for s in range(2)),
    depth=2,
)
add(
    "safmn",
    "plain list",
    lambda n: spandrel("SAFMN.__arch.safmn.SAFMN", dim=8, n_blocks=n, upscaling_factor=2),
    each("feats.{i}", of=3),
    depth=3,
)
add(
    "plksr",
    "flat sequential",
    lambda n: spandrel("PLKSR.__arch.PLKSR.PLKSR", dim=16, n_blocks=n, upscaling_factor=2, kernel_size=5),
    each("feats.{i}", of=[1, 2, 3]),
    depth=3,
    note="stem, blocks and the last convolution in one Sequential",
)

# others --------------------------------------------------------------------------------------------------------

UNIT = "features.stage{s}.unit{{i}}"
TABLE.add(
    "pytorchcv_resnet_cifar",
    "pytorchcv",
    "numbered attributes, several stages",
    lambda n: cls("pytorchcv.models.resnet_cifar.get_resnet_cifar")(
        num_classes=10, blocks=6 * n + 2, bottleneck=False
    ),
    images(32),
    *(each(UNIT.format(s=s), of=[1, 2, 3], pinned=[0]) for s in (1, 2, 3)),
    depth=3,
)
TABLE.add(
    "pytorchcv_rir_cifar",
    "pytorchcv",
    "two streams, numbered attributes, several stages",
    lambda n: cls("pytorchcv.models.rir_cifar.get_rir_cifar")(num_classes=10),
    images(32),
    *(each(UNIT.format(s=s), of=range(1, count + 1), pinned=[0]) for s, count in ((1, 4), (2, 6), (3, 6))),
    note="a residual and a transient stream",
)
TABLE.add(
    "efficientnet_b0",
    "efficientnet_pytorch",
    "several stages, flat sequential",
    lambda n: cls("efficientnet_pytorch.EfficientNet").from_name(
        "efficientnet-b0", override_params={"image_size": 64, "num_classes": 3}
    ),
    images(64),
    *(
        each("_blocks.{i}", of=range(a, b), pinned=[0])
        for a, b in ((1, 3), (3, 5), (5, 8), (8, 11), (11, 15))
    ),
    note="all stages in one list",
)
TABLE.add(
    "fastai_xresnet",
    "fastai",
    "several stages, flat sequential, two blocks a stage",
    lambda n: cls("fastai.vision.models.xresnet.XResNet")(
        cls("fastai.layers.ResBlock"), 1, [n, n, n, n], widen=0.25, n_out=3
    ),
    images(64),
    *(each(f"{at}.{{i}}", of=2, pinned=[0]) for at in (4, 5, 6, 7)),
    depth=2,
)
