"""Discovery, time per node: a CIFAR ResNet-1202 relative to a ResNet-110. Limit: 1.5 times.

``benchmarks/growth.py`` fits its growth over three decades. Run: ``python -m benchmarks.discovery``.
"""

from __future__ import annotations

import torch

import elastic_ir as eir
from benchmarks.figures import Figures, wall
from elastic_ir.discovery import discover
from elastic_ir.zoo import cifar_resnet

LIMIT = 1.5


def per_node(graph: eir.Graph) -> float:
    """Seconds of one discovery for each node."""
    return wall(lambda: discover(graph)) / len(graph)


def main() -> int:
    """Print the ratio; 1 where the limit is passed."""
    with torch.device("meta"):
        small, large = (eir.trace(cifar_resnet(depth, width=16)) for depth in (110, 1202))
    figures = Figures()
    what = "discovery, time per node: ResNet-1202 relative to ResNet-110"
    figures.ratio(what, lambda: per_node(large), lambda: per_node(small), limit=LIMIT, rounds=9)
    return figures.done("torch")


if __name__ == "__main__":
    raise SystemExit(main())
