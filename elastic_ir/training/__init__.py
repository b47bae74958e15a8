"""Training: finding tickets and comparing them (extra ``[train]``), and what any trainer of a ticket can use.

Schedules, losses and scales of layers are offered here and need no trainer; the engine's files (``fit``, ``imp``,
``study``, ...) are imported by name, but for what a search in Python takes. This one imports no torch until a function
is called or what needs it is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from elastic_ir.training.schedules import Fading, Schedule, schedule_of

if TYPE_CHECKING:
    from elastic_ir.analysis.gradinit import GradInit, find_scales
    from elastic_ir.training.data import Data, Split, load_data
    from elastic_ir.training.losses import SoftLabels, distillation_loss, smoothed_cross_entropy
    from elastic_ir.training.pruning.imp import find_tickets
    from elastic_ir.training.settings import Pruning, Training

__all__ = [
    "Data", "Fading", "GradInit", "Pruning", "Schedule", "SoftLabels", "Split", "Training", "distillation_loss",
    "find_scales", "find_tickets", "load_data", "schedule_of", "smoothed_cross_entropy",
]  # fmt: skip

#: Name -> the file below elastic_ir/ that has it.
_LATER = {
    **dict.fromkeys(("SoftLabels", "distillation_loss", "smoothed_cross_entropy"), "training.losses"),
    **dict.fromkeys(("GradInit", "find_scales"), "analysis.gradinit"),
    **dict.fromkeys(("Data", "Split", "load_data"), "training.data"),
    **dict.fromkeys(("Pruning", "Training"), "training.settings"),
    "find_tickets": "training.pruning.imp",
}


def __getattr__(name: str) -> Any:
    """What needs torch is imported when it is first used."""
    if name in _LATER:
        return getattr(importlib.import_module(f"elastic_ir.{_LATER[name]}"), name)
    raise AttributeError(f"module 'elastic_ir.training' has no attribute {name!r}")
