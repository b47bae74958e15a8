"""Passes: rewrites of a graph, one file each, registered by name."""

from __future__ import annotations

import difflib
import importlib.util
import os
import sys
import traceback
from importlib.metadata import entry_points
from pathlib import Path

from elastic_ir import patterns
from elastic_ir.errors import PlanError, SourceError
from elastic_ir.passes.base import Pass
from elastic_ir.passes.compact import Compact
from elastic_ir.passes.cse import CommonSubexpressions
from elastic_ir.passes.dce import DeadCode
from elastic_ir.passes.drop_by_similarity import DropBySimilarity
from elastic_ir.passes.fold_batchnorm import FoldBatchNorm
from elastic_ir.passes.fold_constants import FoldConstants
from elastic_ir.passes.ghost_skips import GhostSkips
from elastic_ir.passes.ghost_softness import GhostSoftness
from elastic_ir.passes.identity_blocks import IdentityBlocks
from elastic_ir.passes.layerwise_rescale import LayerwiseRescale
from elastic_ir.passes.morph import Morph
from elastic_ir.passes.net2deeper import Net2Deeper
from elastic_ir.passes.net2wider import Net2Wider
from elastic_ir.passes.nm_project import NMProject
from elastic_ir.passes.pipeline import Pipeline
from elastic_ir.passes.remove_ghosts import RemoveGhosts
from elastic_ir.passes.remove_identities import RemoveIdentities
from elastic_ir.passes.rescale_residual import RescaleResidual
from elastic_ir.passes.squeeze import Squeeze
from elastic_ir.passes.stack import DepthUpscale, Stack
from elastic_ir.passes.stretch import Stretch

__all__ = [
    "CommonSubexpressions",
    "Compact",
    "DeadCode",
    "DepthUpscale",
    "DropBySimilarity",
    "FoldBatchNorm",
    "FoldConstants",
    "GhostSkips",
    "GhostSoftness",
    "IdentityBlocks",
    "LayerwiseRescale",
    "Morph",
    "NMProject",
    "Net2Deeper",
    "Net2Wider",
    "Pass",
    "Pipeline",
    "RemoveGhosts",
    "RemoveIdentities",
    "RescaleResidual",
    "Squeeze",
    "Stack",
    "Stretch",
    "find_pass",
    "load_passes",
    "patterns",
    "registered",
]


_OWN: tuple[type[Pass], ...] = (
    Stretch,
    Squeeze,
    RescaleResidual,
    IdentityBlocks,
    Stack,
    DepthUpscale,
    Net2Deeper,
    Net2Wider,
    Morph,
    DropBySimilarity,
    Compact,
    FoldBatchNorm,
    NMProject,
    FoldConstants,
    RemoveIdentities,
    CommonSubexpressions,
    DeadCode,
    GhostSkips,
    GhostSoftness,
    RemoveGhosts,
    LayerwiseRescale,
)
_loaded: dict[str, type[Pass]] = {}  # from files that a user named; see load_passes


def registered() -> dict[str, type[Pass]]:
    """All passes by name: our own, those of the entry-point group ``elastic_ir.passes``, and those of loaded files.

    PlanError where two passes claim one name, or where an entry point is no pass.
    """
    found: dict[str, type[Pass]] = {kind.name: kind for kind in _OWN}
    for entry in entry_points(group="elastic_ir.passes"):
        try:
            kind = entry.load()
        except Exception as error:  # code of others: whatever it raises, the user is told which package it is
            raise PlanError(f"the pass {entry.name!r} ({entry.value}) cannot be imported: {error}") from error
        if not (isinstance(kind, type) and issubclass(kind, Pass)):
            raise PlanError(f"the entry point {entry.name!r} ({entry.value}) is no pass")
        _add(found, kind, entry.value)
    for kind in _loaded.values():
        _add(found, kind, kind.__module__)
    return found


def _add(found: dict[str, type[Pass]], kind: type[Pass], where: str) -> None:
    if kind.name in found and found[kind.name] is not kind:
        raise PlanError(f"two passes are named {kind.name!r}: {found[kind.name].__module__} and {where}")
    found[kind.name] = kind


def load_passes(path: str | os.PathLike[str]) -> list[type[Pass]]:
    """Run a Python file and register the passes that it defines; returns them.

    Raises SourceError where there is no such file or it fails, PlanError where it defines no pass, or one whose name is
    taken.
    """
    path = Path(path)
    if not path.is_file():
        raise SourceError(f"{path} is no file; give a Python file that defines a pass")
    name = f"elastic_ir_passes_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise SourceError(f"{path.name} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's own code: what it raised, and where
        line = _line_in(error, path)
        raise SourceError(f"{path.name}{line} failed: {type(error).__name__}: {error}") from error
    kinds = [
        kind
        for kind in vars(module).values()
        if isinstance(kind, type)
        and issubclass(kind, Pass)
        and kind.__module__ == name
        and hasattr(kind, "name")
    ]
    if not kinds:
        raise PlanError(
            f"{path.name} defines no pass; a pass is a frozen dataclass derived from Pass, with a name"
        )
    taken = {key: kind for key, kind in registered().items() if kind.__module__ != name}
    for kind in kinds:
        _add(taken, kind, path.name)
        _loaded[kind.name] = kind
    return kinds


def _line_in(error: BaseException, path: Path) -> str:
    """The last line of a file that an exception passed through."""
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path
    ]
    if isinstance(error, SyntaxError):
        lines.append(error.lineno or 0)
    return f" line {lines[-1]}" if lines else ""


def find_pass(name: str) -> type[Pass]:
    """The pass of that name; PlanError lists the names there are."""
    passes = registered()
    if name not in passes:
        near = difflib.get_close_matches(name, passes, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise PlanError(f"there is no pass {name!r}; the passes are {', '.join(sorted(passes))}{hint}")
    return passes[name]
