"""Passes: rewrites of a graph, one file each, registered by name."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from elastic_ir.errors import PlanError, SourceError
from elastic_ir.lazy_names import lazy_names
from elastic_ir.passes.infra import Pass

if TYPE_CHECKING:
    from elastic_ir.passes.cleanup.cse import CommonSubexpressions
    from elastic_ir.passes.cleanup.dce import DeadCode
    from elastic_ir.passes.cleanup.fold_batchnorm import FoldBatchNorm
    from elastic_ir.passes.cleanup.fold_constants import FoldConstants
    from elastic_ir.passes.cleanup.remove_identities import RemoveIdentities
    from elastic_ir.passes.depth.drop_by_similarity import DropBySimilarity
    from elastic_ir.passes.depth.squeeze import Squeeze
    from elastic_ir.passes.depth.stack import DepthUpscale, Stack
    from elastic_ir.passes.depth.stretch import Stretch
    from elastic_ir.passes.growth.identity_blocks import IdentityBlocks
    from elastic_ir.passes.growth.layerwise_rescale import LayerwiseRescale
    from elastic_ir.passes.growth.morph import Morph
    from elastic_ir.passes.growth.net2deeper import Net2Deeper
    from elastic_ir.passes.growth.net2wider import Net2Wider
    from elastic_ir.passes.growth.rescale_residual import RescaleResidual
    from elastic_ir.passes.infra.pipeline import Pipeline
    from elastic_ir.passes.sparsity.compact import Compact
    from elastic_ir.passes.sparsity.ghost_skips import GhostSkips
    from elastic_ir.passes.sparsity.ghost_softness import GhostSoftness
    from elastic_ir.passes.sparsity.nm_project import NMProject
    from elastic_ir.passes.sparsity.prune import Prune
    from elastic_ir.passes.sparsity.remove_ghosts import RemoveGhosts

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
    "Prune",
    "RemoveGhosts",
    "RemoveIdentities",
    "RescaleResidual",
    "Squeeze",
    "Stack",
    "Stretch",
    "find_pass",
    "load_passes",
    "registered",
]


#: Our own passes: the name of each, its file here, and its class. They are imported when they are asked for, since most
#: commands want one of them.
_OWN: dict[str, tuple[str, str]] = {
    "stretch": ("depth.stretch", "Stretch"),
    "squeeze": ("depth.squeeze", "Squeeze"),
    "rescale-residual": ("growth.rescale_residual", "RescaleResidual"),
    "identity-blocks": ("growth.identity_blocks", "IdentityBlocks"),
    "stack": ("depth.stack", "Stack"),
    "depth-upscale": ("depth.stack", "DepthUpscale"),
    "net2deeper": ("growth.net2deeper", "Net2Deeper"),
    "net2wider": ("growth.net2wider", "Net2Wider"),
    "morph": ("growth.morph", "Morph"),
    "drop-by-similarity": ("depth.drop_by_similarity", "DropBySimilarity"),
    "prune": ("sparsity.prune", "Prune"),
    "compact": ("sparsity.compact", "Compact"),
    "fold-batchnorm": ("cleanup.fold_batchnorm", "FoldBatchNorm"),
    "nm-project": ("sparsity.nm_project", "NMProject"),
    "fold-constants": ("cleanup.fold_constants", "FoldConstants"),
    "remove-identities": ("cleanup.remove_identities", "RemoveIdentities"),
    "cse": ("cleanup.cse", "CommonSubexpressions"),
    "dce": ("cleanup.dce", "DeadCode"),
    "ghost-skips": ("sparsity.ghost_skips", "GhostSkips"),
    "ghost-softness": ("sparsity.ghost_softness", "GhostSoftness"),
    "remove-ghosts": ("sparsity.remove_ghosts", "RemoveGhosts"),
    "layerwise-rescale": ("growth.layerwise_rescale", "LayerwiseRescale"),
}
_FILES = {kind: file for file, kind in _OWN.values()} | {"Pipeline": "infra.pipeline"}
_loaded: dict[str, type[Pass]] = {}  # from files that a user named; see load_passes


__getattr__, __dir__ = lazy_names(__name__, _FILES)


def _own(name: str) -> type[Pass]:
    file, kind = _OWN[name]
    found: type[Pass] = getattr(importlib.import_module(f"elastic_ir.passes.{file}"), kind)
    return found


def registered() -> dict[str, type[Pass]]:
    """All passes by name: our own, those of the entry-point group ``elastic_ir.passes``, and those of loaded files.

    PlanError where two passes claim one name, or where an entry point is not a pass.
    """
    return {name: _own(name) for name in _OWN} | _of_others()


def _of_others() -> dict[str, type[Pass]]:
    from elastic_ir.user_functions import offered

    found: dict[str, type[Pass]] = {}
    for where, kind in offered("elastic_ir.passes", "pass", PlanError):
        if not (isinstance(kind, type) and issubclass(kind, Pass)):
            raise PlanError(f"the entry point {where} is not a pass")
        _add(found, kind, where)
    for kind in _loaded.values():
        _add(found, kind, kind.__module__)
    return found


def _add(found: dict[str, type[Pass]], kind: type[Pass], where: str) -> None:
    """Add a pass of others; PlanError where its name is taken, be it by one of ours."""
    held = found.get(kind.name) or (_own(kind.name) if kind.name in _OWN else None)
    if held not in (None, kind):
        raise PlanError(f"two passes are named {kind.name!r}: {held.__module__} and {where}")
    found[kind.name] = kind


def load_passes(path: str | os.PathLike[str]) -> list[type[Pass]]:
    """Run a Python file and register the passes that it defines; returns them.

    Raises SourceError where there is no such file or it fails, PlanError where it defines no pass, or one whose name is
    taken.
    """
    path = Path(path)
    if not path.is_file():
        raise SourceError(f"{path} is not a file; give a Python file that defines a pass")
    name = f"elastic_ir_passes_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise SourceError(f"{path.name} is not a Python file")
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
    taken = {key: kind for key, kind in _of_others().items() if kind.__module__ != name}
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
    """The pass of that name, which alone of ours is imported; PlanError lists the names there are."""
    others = _of_others()
    if name in _OWN:
        return _own(name)
    if name not in others:
        names = sorted({*_OWN, *others})
        near = difflib.get_close_matches(name, names, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise PlanError(f"there is no pass {name!r}; the passes are {', '.join(names)}{hint}")
    return others[name]
