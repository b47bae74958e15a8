"""Passes: rewrites of a graph, one file each, registered by name."""

from __future__ import annotations

from importlib.metadata import entry_points

from elastic_ir.errors import PlanError
from elastic_ir.passes.base import Pass
from elastic_ir.passes.compact import Compact
from elastic_ir.passes.fold_batchnorm import FoldBatchNorm
from elastic_ir.passes.nm_project import NMProject
from elastic_ir.passes.pipeline import Pipeline
from elastic_ir.passes.squeeze import Squeeze
from elastic_ir.passes.stretch import Stretch

__all__ = [
    "Compact",
    "FoldBatchNorm",
    "NMProject",
    "Pass",
    "Pipeline",
    "Squeeze",
    "Stretch",
    "find_pass",
    "registered",
]


def registered() -> dict[str, type[Pass]]:
    """All passes by name: our own, then those of the entry-point group ``elastic_ir.passes``.

    PlanError where two passes claim one name.
    """
    found: dict[str, type[Pass]] = {
        kind.name: kind for kind in (Stretch, Squeeze, Compact, FoldBatchNorm, NMProject)
    }
    for entry in entry_points(group="elastic_ir.passes"):
        kind = entry.load()
        if kind.name in found and found[kind.name] is not kind:
            raise PlanError(
                f"two passes are named {kind.name!r}: {found[kind.name].__module__} and {entry.value}"
            )
        found[kind.name] = kind
    return found


def find_pass(name: str) -> type[Pass]:
    """The pass of that name; PlanError lists the names there are."""
    passes = registered()
    if name not in passes:
        raise PlanError(f"there is no pass {name!r}; the passes are {', '.join(sorted(passes))}")
    return passes[name]
