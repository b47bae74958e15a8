"""``elastic-ir inspect timm:convnext_tiny`` end to end, against a process that imports timm, builds the model and
traces it. Limit: 2 times. Tracing is measured both ways: by torch.fx alone, and into a graph of ours.

Run: ``python -m benchmarks.inspect_command``.
"""

from __future__ import annotations

import sys

from benchmarks.figures import Figures, process

LIMIT = 2.0
NAME = "convnext_tiny"
BY_FX = f"import timm, torch.fx; torch.fx.symbolic_trace(timm.create_model({NAME!r}))"
BY_US = f"import timm, elastic_ir; elastic_ir.trace(timm.create_model({NAME!r}))"


def main() -> int:
    """Print the ratios; 1 where the limit is passed."""
    figures = Figures()
    for tracer, code in (("torch.fx.symbolic_trace", BY_FX), ("elastic_ir.trace", BY_US)):
        figures.ratio(
            f"`elastic-ir inspect timm:{NAME}`, relative to importing timm, building the model and `{tracer}`",
            lambda: process([sys.executable, "-m", "elastic_ir.cli", "inspect", f"timm:{NAME}"]),
            lambda code=code: process([sys.executable, "-c", code]),  # type: ignore[misc]
            limit=LIMIT,
        )
    return figures.done("torch", "timm")


if __name__ == "__main__":
    raise SystemExit(main())
