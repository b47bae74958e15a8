"""What compact leaves of a network whose filters were pruned by half, against the natively narrow network.

Parameters and FLOPs must be those of the narrow network exactly; the latency must be its own within 1.15 times, by
torch and by onnxruntime. The two are run in turn, and medians count.

Run: ``python -m benchmarks.compact``.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import elastic_ir as eir
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


def alternate(
    left: Callable[[], object], right: Callable[[], object], rounds: int = 41
) -> tuple[float, float, float]:
    """The median ratio of two calls run in turn, and the median seconds of each."""
    for _ in range(3):
        left(), right()
    taken = []
    for number in range(rounds):
        pair = {}
        for call in (left, right) if number % 2 else (right, left):
            begin = time.perf_counter()
            call()
            pair[call] = time.perf_counter() - begin
        taken.append((pair[left], pair[right]))
    ratio = statistics.median(a / b for a, b in taken)
    return ratio, statistics.median(a for a, _ in taken), statistics.median(b for _, b in taken)


def torch_latency(ours: nn.Module, native: nn.Module, x: Tensor) -> float:
    """The ratio of the two networks' latencies, in torch."""
    with torch.inference_mode():
        ratio, mine, theirs = alternate(lambda: ours(x), lambda: native(x))
    print(f"  torch: {mine * 1e3:.2f} ms against {theirs * 1e3:.2f} ms, {ratio:.2f} times (limit {LIMIT})")
    return ratio


def onnxruntime_latency(ours: eir.Graph, native: eir.Graph) -> float:
    """The same ratio in onnxruntime, on one thread."""
    found = compare_latency(native, ours)
    told = f"{found.after:.2f} ms against {found.before:.2f} ms, {found.ratio:.2f} times (limit {LIMIT})"
    print(f"  onnxruntime: {told}")
    return found.ratio


def measure(name: str, wide: nn.Module, narrow: nn.Module) -> bool:
    """Compact the half-pruned wide network and compare it with the narrow one; whether all limits hold."""
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
    ratios = [torch_latency(ours, narrow, x), onnxruntime_latency(done, twin)]
    same = (after.parameters, after.flops) == (native.parameters, native.flops)
    return same and error < 1e-4 and all(ratio <= LIMIT for ratio in ratios)


def main() -> int:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    good = [
        measure("ResNet-20 of width 64", cifar_resnet(20, width=64), cifar_resnet(20, width=32)),
        measure("VGG-16", vgg(64), vgg(32)),
    ]
    print(f"torch {torch.__version__}")
    return int(not all(good))


if __name__ == "__main__":
    raise SystemExit(main())
