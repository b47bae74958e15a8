"""Stretching a traced torchvision ResNet-50 to a ResNet-101 module, against ``copy.deepcopy`` of the target.

Goal: 1.1 times the copy, for ``to_module(check=False)``. The same with the check, which runs the module and the graph
on two inputs each, and the rewriting alone are printed beside it. Run: ``python -m benchmarks.stretch``; where
torchvision does not import beside a CPU-only torch, with ``PYTHONPATH=tests/torchvision_cpu``.
"""

from __future__ import annotations

import copy
import statistics

import torch
from torchvision.models import resnet50

import elastic_ir as eir
from benchmarks.figures import Figures, pairs, wall

LIMIT, ROUNDS = 1.1, 15
WHAT = "stretch a traced ResNet-50 to a ResNet-101 module, relative to `copy.deepcopy` of the ResNet-101"


def main() -> int:
    """Print the ratios; 1 where the limit is passed."""
    figures = Figures()
    graph = eir.trace(resnet50(weights=None), (torch.zeros(1, 3, 224, 224),))
    target = eir.stretch(graph, to_depth=101).to_module()

    def copied() -> float:
        return wall(lambda: copy.deepcopy(target))

    def stretched(check: bool = False) -> float:
        return wall(lambda: eir.stretch(graph, to_depth=101).to_module(check=check))

    figures.ratio(WHAT, stretched, copied, limit=LIMIT, rounds=ROUNDS)
    for what, ours in (
        ("  the same with the check (224x224)", lambda: stretched(check=True)),
        ("  of this, the rewriting of the graph", lambda: wall(lambda: eir.stretch(graph, to_depth=101))),
    ):
        ratio = statistics.median(a / b for a, b in pairs(ours, copied))
        print(f"{what}: {ratio:.2f}")
    return figures.done("torch", "torchvision")


if __name__ == "__main__":
    raise SystemExit(main())
