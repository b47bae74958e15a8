"""What compact leaves of a network whose filters were pruned by half, against the natively narrow network.

Parameters and FLOPs must be those of the narrow network exactly; the latency must be its own within 1.15 times, by
torch and by onnxruntime. The two are run in turn.

Run: ``python -m benchmarks.compact``.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

import elastic_ir as eir
from benchmarks.figures import PAIRS, Figures, wall
from elastic_ir.analysis.cost import cost
from elastic_ir.emit.latency import compare_latency
from elastic_ir.passes import Compact
from elastic_ir.zoo import cifar_resnet

LIMIT = 1.15
BATCH = 8


def half_pruned(model: nn.Module) -> dict[str, Tensor]:
    """Masks that empty every second filter of every convolution, in such a way that residual streams agree."""
    masks = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            masks[f"{path}.weight"] = torch.ones_like(module.weight)
            masks[f"{path}.weight"][1::2] = 0
    return masks


def vgg(width: int) -> nn.Module:
    """VGG-16's convolutions at any width, with a linear head behind the flattened maps."""
    layers: list[nn.Module] = []
    inside = 3
    for count, factor in ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8)):
        for _ in range(count):
            layers += [
                nn.Conv2d(inside, factor * width, 3, padding=1),
                nn.BatchNorm2d(factor * width),
                nn.ReLU(),
            ]
            nn.init.kaiming_normal_(layers[-3].weight)  # type: ignore[arg-type]  # signals reach the output
            nn.init.zeros_(layers[-3].bias)  # type: ignore[arg-type]  # it has one
            inside = factor * width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(inside, 10))


def torch_latency(figures: Figures, name: str, ours: nn.Module, native: nn.Module, x: Tensor) -> None:
    """The ratio of the two networks' latencies, in torch."""
    what = (
        f"latency in torch after `compact` of a half-pruned {name}, relative to the natively narrow network"
    )
    with torch.inference_mode():
        figures.ratio(
            what, lambda: wall(lambda: ours(x)), lambda: wall(lambda: native(x)), limit=LIMIT, rounds=41
        )


def onnxruntime_latency(figures: Figures, name: str, ours: eir.Graph, native: eir.Graph) -> None:
    """The same ratio in onnxruntime, on one thread; each round is a median of many runs in turn."""
    what = f"latency in onnxruntime after `compact` of a half-pruned {name}, relative to the natively narrow network"
    figures.add(what, [compare_latency(native, ours).ratio for _ in range(PAIRS)], limit=LIMIT)


def measure(figures: Figures, name: str, wide: nn.Module, narrow: nn.Module) -> bool:
    """Compact the half-pruned wide network and compare it with the narrow one; whether size and outputs are right."""
    x = torch.randn(BATCH, 3, 32, 32)
    graph = eir.trace(wide.eval(), (x,), masks=half_pruned(wide))
    begin = time.perf_counter()
    done = Compact().run(graph)
    seconds = time.perf_counter() - begin
    twin = eir.trace(narrow.eval(), (x,))
    before, after, native = cost(graph), cost(done), cost(twin)
    ours = done.to_module().eval()
    with torch.inference_mode():
        wanted = graph.to_module().eval()(x)
        error = float((ours(x) - wanted).abs().max() / wanted.abs().max())
    print(f"{name}: compact took {seconds:.2f} s, largest difference {error:.1e} of the largest output")
    print(f"  parameters: {before.parameters:,} -> {after.parameters:,}, natively {native.parameters:,}")
    assert before.flops is not None and after.flops is not None and native.flops is not None
    print(f"  FLOPs: {before.flops:,} -> {after.flops:,}, natively {native.flops:,}")
    torch_latency(figures, name, ours, narrow, x)
    onnxruntime_latency(figures, name, done, twin)
    return (after.parameters, after.flops) == (native.parameters, native.flops) and error < 1e-4


def main() -> int:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    figures = Figures()
    good = [
        measure(figures, "ResNet-20", cifar_resnet(20, width=64), cifar_resnet(20, width=32)),
        measure(figures, "VGG-16", vgg(64), vgg(32)),
    ]
    return figures.done("torch", "onnxruntime") or int(not all(good))


if __name__ == "__main__":
    raise SystemExit(main())
