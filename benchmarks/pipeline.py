"""What the pass manager costs: a pipeline of ten passes on a ResNet-152, against the same rewrites by hand.

By hand each pass edits one copy through a rewriter, and nothing is verified, recorded or observed. Limit: the pipeline
takes at most 8 % more. Run: ``python -m benchmarks.pipeline``; where torchvision does not import beside a CPU-only
torch, with ``PYTHONPATH=tests/torchvision_cpu``.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable

import torch
from torchvision.models import resnet152

import elastic_ir as eir
from benchmarks.figures import Figures, pairs
from elastic_ir.passes import Pipeline
from elastic_ir.rewrite.rewriter import Rewriter

LIMIT = 8  # per cent
TEXT = ",".join(
    (
        "stretch{to-stages=4,10,40,4}", "rescale-residual", "squeeze{to-stages=3,8,36,3}", "stack",
        "squeeze{to-stages=3,8,36,3 drop=even}", "identity-blocks{to-stages=3,9,37,3}",
        "stretch{to-stages=3,12,40,3 order=interpolate}", "squeeze{to-stages=3,8,36,3}", "depth-upscale",
        "squeeze{to-depth=101}",
    )
)  # fmt: skip


def by_hand(graph: eir.Graph, pipeline: Pipeline) -> float:
    """Seconds of processor time that the rewrites themselves take."""
    start = time.process_time()
    target = graph.copy()
    for item in pipeline:
        with Rewriter(target) as rewriter:
            item.rewrite(target, rewriter)
    return time.process_time() - start


def managed(graph: eir.Graph, pipeline: Pipeline) -> float:
    """Seconds of the pipeline, with verification after each pass and the record."""
    start = time.process_time()
    pipeline.run(graph)
    return time.process_time() - start


def undisturbed(work: Callable[[eir.Graph, Pipeline], float], graph: eir.Graph, pipeline: Pipeline) -> float:
    """The least of three measurements without the collection of garbage, which falls into one of two by chance."""
    taken = []
    for _ in range(3):
        gc.collect()
        gc.disable()
        try:
            taken.append(work(graph, pipeline))
        finally:
            gc.enable()
    return min(taken)


def main() -> int:
    """Print the overhead; 1 where the limit is passed."""
    graph = eir.trace(resnet152(weights=None), torch.zeros(1, 3, 64, 64))
    graph.structure  # noqa: B018 - discovered once, before anything is timed
    pipeline = Pipeline.parse(TEXT)
    taken = pairs(
        lambda: undisturbed(managed, graph, pipeline),
        lambda: undisturbed(by_hand, graph, pipeline),
        rounds=7,
    )
    figures = Figures()
    figures.add(
        f"{len(pipeline)} passes on a ResNet-152: pass manager and verification on top of the rewrites",
        [100 * (ours / own - 1) for ours, own in taken],
        limit=LIMIT,
        unit=" %",
    )
    return figures.done("torch")


if __name__ == "__main__":
    sys.exit(main())
