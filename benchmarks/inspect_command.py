"""``elastic-ir inspect timm:convnext_tiny`` end to end, against a process that imports timm, builds the model and
traces it. Limit: 2 times. Tracing is measured both ways: by torch.fx alone, and into a graph of ours.

Run: ``python -m benchmarks.inspect_command``.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import torch

LIMIT = 2.0
NAME = "convnext_tiny"
BY_FX = f"import timm, torch.fx; torch.fx.symbolic_trace(timm.create_model({NAME!r}))"
BY_US = f"import timm, elastic_ir; elastic_ir.trace(timm.create_model({NAME!r}))"


def seconds(*arguments: str) -> float:
    """Wall time of a Python process."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - begin


def main(rounds: int = 7) -> int:
    command = ("-m", "elastic_ir.cli", "inspect", f"timm:{NAME}")
    programs = {"whole": command, "fx": ("-c", BY_FX), "ours": ("-c", BY_US)}
    for arguments in programs.values():  # the first runs read files from the disk
        seconds(*arguments)
    taken = [{name: seconds(*arguments) for name, arguments in programs.items()} for _ in range(rounds)]
    ratios = {name: statistics.median(row["whole"] / row[name] for row in taken) for name in ("fx", "ours")}
    print(f"inspect timm:{NAME}: {statistics.median(row['whole'] for row in taken):.2f} s")
    print(f"against building it and torch.fx.symbolic_trace: {ratios['fx']:.2f} times (limit {LIMIT})")
    print(f"against building it and elastic_ir.trace: {ratios['ours']:.2f} times (limit {LIMIT})")
    print(f"torch {torch.__version__}, Python {sys.version.split()[0]}")
    return int(max(ratios.values()) > LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
