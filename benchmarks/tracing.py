"""Reading live modules into graphs, against what torch does for the same: in interleaved pairs, with the range.

ResNet-50, ViT-L and ConvNeXt-L are read by ``torch.fx``: against ``torch.fx.symbolic_trace`` and a run of what it gives
on fake tensors, which is what a graph with shapes takes there. BERT is read by ``torch.export``: against
``torch.export.export``. ResNet-50 is held against ``copy.deepcopy`` of a ResNet-101 too, as stretching is
(``python -m benchmarks.stretch``); the goal is 3 times.

Run: ``python -m benchmarks.tracing``; where torchvision does not import beside a CPU-only torch, with
``PYTHONPATH=tests/torchvision_cpu``.
"""

from __future__ import annotations

import argparse
import copy
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torchvision.models
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import elastic_ir as eir

COPY = 3.0  #: goal: tracing ResNet-50, in copies of a ResNet-101
IMAGES = ("resnet50", "vit_l_16", "convnext_large")


def seconds(work: Callable[[], object]) -> float:
    """Processor time of a call, which is on one thread."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def paired(name: str, ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> float:
    """Print the ratios of two calls in turn, and the median times of each; the median ratio."""
    ours(), theirs()  # what is imported and cached at first
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(rounds)]
    ratios = sorted(left / right for left, right in pairs)
    median = statistics.median(ratios)
    times = " ".join(f"{statistics.median(column) * 1e3:8.0f}" for column in zip(*pairs, strict=True))
    print(f"{name:52} {ratios[0]:8.2f} {median:8.2f} {ratios[-1]:8.2f} {times}", flush=True)
    return median


def by_fx(model: nn.Module, example: torch.Tensor) -> None:
    """What torch takes to trace a module and to find the shapes of its values."""
    traced = fx.symbolic_trace(model)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with torch.no_grad(), mode:
        fx.Interpreter(traced).run(mode.from_tensor(example))


def bert() -> tuple[nn.Module, dict[str, Any]]:
    """BERT-base, and what it is exported on."""
    from transformers import BertConfig, BertModel

    model = BertModel(BertConfig(), add_pooling_layer=False).eval()
    return model, {"input_ids": torch.ones(1, 16, dtype=torch.long)}


def main() -> int:
    """Print the ratios; 1 where the goal is not reached."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    columns = ("minimum", "median", "maximum", "ours ms", "torch ms")
    print(f"{'times what torch takes':52} {' '.join(f'{column:>8}' for column in columns)}")
    example = torch.zeros(1, 3, 224, 224)
    for name in IMAGES:
        model = torchvision.models.get_model(name, weights=None).eval()

        def ours(model: nn.Module = model) -> object:
            return eir.trace(model, example, frontend="fx")

        def theirs(model: nn.Module = model) -> object:
            return by_fx(model, example)

        paired(f"{name} against symbolic_trace and a fake forward", ours, theirs, rounds)
    model, inputs = bert()
    paired(
        "BERT-base against torch.export.export",
        lambda: eir.trace(model, None, inputs, frontend="export"),
        lambda: torch.export.export(model, (), inputs, strict=False),
        rounds,
    )
    network, target = (torchvision.models.get_model(name, weights=None) for name in ("resnet50", "resnet101"))
    ratio = paired(
        "resnet50 against copy.deepcopy of a ResNet-101",
        lambda: eir.trace(network, example),
        lambda: copy.deepcopy(target),
        rounds,
    )
    print(
        f"goal of the last line: {COPY}; {rounds} pairs each, torch {torch.__version__}, Python "
        f"{platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    return int(not ratio <= COPY)


if __name__ == "__main__":
    raise SystemExit(main())
