"""Discovery grows linearly: time per node on a CIFAR ResNet-1202 against a ResNet-110. Limit: 1.5 times.

Run: ``python -m benchmarks.discovery``.
"""

from __future__ import annotations

import statistics
import time

import torch

import elastic_ir as eir
from elastic_ir.discovery import discover
from elastic_ir.zoo import cifar_resnet

LIMIT = 1.5


def per_node(graph: eir.Graph) -> float:
    """Seconds of one discovery for each node."""
    begin = time.perf_counter()
    discover(graph)
    return (time.perf_counter() - begin) / len(graph)


def main() -> int:
    with torch.device("meta"):
        small, large = (eir.trace(cifar_resnet(depth, width=16)) for depth in (110, 1202))
    rounds = [(per_node(small), per_node(large)) for _ in range(9)]
    ratio = statistics.median(b / a for a, b in rounds)
    for name, graph, column in (("ResNet-110", small, 0), ("ResNet-1202", large, 1)):
        micros = statistics.median(pair[column] for pair in rounds) * 1e6
        print(
            f"{name:12} {len(graph):6} nodes  {micros:6.1f} us a node  stages {[len(s) for s in graph.stages]}"
        )
    print(f"time per node, ResNet-1202 against ResNet-110: {ratio:.2f} times (limit {LIMIT})")
    return int(ratio > LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
