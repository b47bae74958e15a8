"""Reading live modules into graphs, against what torch does for the same.

ResNet-50, ViT-L and ConvNeXt-L are read by ``torch.fx``: against ``torch.fx.symbolic_trace`` and a run of what it gives
on fake tensors, which is what a graph with shapes takes there. BERT is read by ``torch.export``: against
``torch.export.export``. ResNet-50 is held against ``copy.deepcopy`` of a ResNet-101 too, as stretching is
(``python -m benchmarks.stretch``); the goal is 3 times.

Run: ``python -m benchmarks.tracing``; where torchvision does not import beside a CPU-only torch, with
``PYTHONPATH=tests/torchvision_cpu``.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
import torchvision.models
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import elastic_ir as eir
from benchmarks.figures import Figures

COPY, FX, EXPORT = 3.0, 1.0, 1.15  #: goals
IMAGES = {"resnet50": "ResNet-50", "vit_l_16": "ViT-L/16", "convnext_large": "ConvNeXt-L"}


def seconds(work: Callable[[], object]) -> float:
    """Processor time of a call, which is on one thread."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def by_fx(model: nn.Module, example: torch.Tensor) -> object:
    """What torch takes to trace a module and to find the shapes of its values."""
    traced = fx.symbolic_trace(model)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with torch.no_grad(), mode:
        return fx.Interpreter(traced).run(mode.from_tensor(example))


def bert() -> tuple[nn.Module, dict[str, Any]]:
    """BERT-base, and what it is exported on."""
    from transformers import BertConfig, BertModel

    model: nn.Module = BertModel(BertConfig(), add_pooling_layer=False)
    return model.eval(), {"input_ids": torch.ones(1, 16, dtype=torch.long)}


def main() -> int:
    """Print the ratios; 1 where a goal is not reached."""
    figures, example = Figures(), torch.zeros(1, 3, 224, 224)

    def add(name: str, ours: Callable[[], object], peer: Callable[[], object], goal: float) -> None:
        figures.ratio(name, lambda: seconds(ours), lambda: seconds(peer), limit=goal)

    for name, title in IMAGES.items():
        model = torchvision.models.get_model(name, weights=None).eval()

        def ours(model: nn.Module = model) -> object:
            return eir.trace(model, example, frontend="fx")

        def peer(model: nn.Module = model) -> object:
            return by_fx(model, example)

        add(
            f"tracing {title}, relative to `torch.fx.symbolic_trace` and a run on fake tensors",
            ours,
            peer,
            FX,
        )
    network, inputs = bert()
    add(
        "tracing BERT-base, relative to `torch.export.export`",
        lambda: eir.trace(network, None, inputs, frontend="export"),
        lambda: torch.export.export(network, (), inputs, strict=False),
        EXPORT,
    )
    source, target = (torchvision.models.get_model(name, weights=None) for name in ("resnet50", "resnet101"))
    add(
        "tracing ResNet-50, relative to `copy.deepcopy` of a ResNet-101",
        lambda: eir.trace(source, example),
        lambda: copy.deepcopy(target),
        COPY,
    )
    return figures.done("torch", "torchvision", "transformers")


if __name__ == "__main__":
    raise SystemExit(main())
