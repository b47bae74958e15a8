"""Stretching a traced torchvision ResNet-50 to a ResNet-101 module, against ``copy.deepcopy`` of the target.

Limit: 1.5 times the copy, for ``to_module(check=False)``. The same with the check, which runs the module and the graph
on two inputs each, tracing and shape propagation are printed beside it.
Run: ``python -m benchmarks.stretch``; where torchvision does not import beside a CPU-only torch, with
``PYTHONPATH=tests/torchvision_cpu``.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torchvision.models import resnet50

import elastic_ir as eir

LIMIT = 1.5


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that a call took, and its result."""
    begin = time.perf_counter()
    result = work()
    return time.perf_counter() - begin, result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    model = resnet50(weights=None)
    example = torch.zeros(1, 3, 224, 224)
    trace, graph = timed(lambda: eir.trace(model, (example,)))
    discovery, _ = timed(lambda: graph.structure)
    target = eir.stretch(graph, to_depth=101).to_module()
    ratios, checked, copies = [], [], []
    for _ in range(rounds):  # paired, so that a slow moment of the machine hits both
        stretched, _made = timed(lambda: eir.stretch(graph, to_depth=101).to_module(check=False))
        del _made
        with_check, _made = timed(lambda: eir.stretch(graph, to_depth=101).to_module())
        del _made
        copied, _made = timed(lambda: copy.deepcopy(target))
        del _made
        checked.append(with_check / copied)
        copies.append(copied)
        ratios.append(stretched / copied)
    copied = statistics.median(copies)
    ratio = statistics.median(ratios)
    print(f"{'what':44} {'times the copy':>14}")
    print(f"{'copy.deepcopy of the ResNet-101':44} {1:14.2f}   ({copied * 1e3:.0f} ms)")
    print(f"{'stretch to 101 and emit a module, check=False':44} {ratio:14.2f}   (limit {LIMIT})")
    print(f"{'  the same with the check (224x224)':44} {statistics.median(checked):14.2f}")
    print(f"{'  of this, the rewriting of the graph':44} {_rewriting(graph) / copied:14.2f}")
    print(f"{'tracing ResNet-50 with shape propagation':44} {trace / copied:14.2f}")
    print(f"{'discovery':44} {discovery / copied:14.2f}")
    return int(not ratio <= LIMIT)


def _rewriting(graph: eir.Graph) -> float:
    return statistics.median(timed(lambda: eir.stretch(graph, to_depth=101))[0] for _ in range(5))


if __name__ == "__main__":
    raise SystemExit(main())
